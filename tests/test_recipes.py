"""Every recipe, preset and launcher file works, and holds what was published."""

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from configuration import EvalArguments, PretrainArguments, model_config, parse_arguments
from configuration.own_images import settle
from configuration.parsing import RECIPES
from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining, MAEForSemanticSegmentation
from modeling_mae.data.find.facts import ImageFacts
from modeling_mae.data.serve.order import split_batch
from modeling_mae.settings import settings as settings_of
from modeling_mae.training.optim import LengthSettings, Schedule, parameter_groups


CONFIGURATION = RECIPES.parent
ALL_RECIPES = sorted(RECIPES.glob("*.yaml"))
PRETRAINING = [
    path
    for path in ALL_RECIPES
    if path.stem in ("demo", "own_images", "continue_images") or path.stem.startswith("pretrain")
]
EVALUATION = [path for path in ALL_RECIPES if path not in PRETRAINING]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder: no run of the developer's is in the way, and no recipe is found by accident."""
    monkeypatch.chdir(tmp_path)


def parse(*words) -> PretrainArguments:
    return parse_arguments(PretrainArguments, list(words))


@pytest.mark.parametrize("recipe", PRETRAINING, ids=lambda path: path.stem)
def test_every_recipe_works_and_holds_only_differences(recipe):
    start = yaml.safe_load(recipe.read_text()).get("model_name_or_path")
    if start:  # its configuration, which else the Hub has
        MAEConfig(architectures=["MAEForPreTraining"]).save_pretrained(start)
    args = parse(str(recipe))
    if args.own_images:
        args, _, _ = settle(args, ImageFacts(12_000, 28, 28, 1), 1, {})
    config = model_config(args)
    assert config.model_type == "mae"
    with torch.device("meta"):
        MAEForPreTraining(config)
    assert split_batch(args.total_batch_size, args.per_device_train_batch_size, 1) >= 1
    images = {"imagenet": 1_281_167, "stl10": 100_000, "zalando-datasets/fashion_mnist": 60_000, None: 12_000}
    images["fashion_scenes"] = 6_000
    count = images.get(args.dataset_name, 50_000)  # CIFAR's
    schedule = Schedule.from_epochs(count, settings_of(LengthSettings, args))
    rates = [schedule.rate(update) for update in (0, schedule.warmup, schedule.updates)]
    assert rates == pytest.approx([0, args.base_learning_rate * args.total_batch_size / 256, 0], abs=1e-12)
    assert 0 < schedule.warmup < schedule.updates / 4
    only_differences(recipe, args, PretrainArguments())
    base = model_config(dataclasses.replace(args, config_overrides=[]))
    overrides = yaml.safe_load(recipe.read_text()).get("config_overrides", {})
    assert not [key for key, value in overrides.items() if getattr(base, key) == value]


@pytest.mark.parametrize("recipe", EVALUATION, ids=lambda path: path.stem)
def test_every_evaluation_recipe_works(recipe):
    written = yaml.safe_load(recipe.read_text())
    pretraining = Path(written["model_name_or_path"]).name
    of_pretraining = parse(str(RECIPES / f"{pretraining}.yaml"))  # the encoder is one that a recipe makes
    model_config(of_pretraining).save_pretrained(written["model_name_or_path"])
    args = parse_arguments(EvalArguments, [str(recipe)])
    assert args.dataset_name == of_pretraining.dataset_name or (args.with_masks and args.dataset_name is None)
    only_differences(recipe, args, EvalArguments())
    for run in args.trainings():
        n_partial, settings = run.n_partial, run.recipe
        config = model_config(settings)
        with torch.device("meta"):
            model = (MAEForSemanticSegmentation if args.with_masks else EvalNet)(config)
        depth = config.num_hidden_layers
        model.freeze(depth if n_partial is None else n_partial)
        assert split_batch(settings.total_batch_size, settings.per_device_train_batch_size, 1) >= 1
        # settings of the kind of evaluation: a probe neither mixes nor decays, a tuned network does not use LARS
        if args.with_masks:
            mixed = settings.mixup or settings.cutmix or settings.random_erasing or settings.auto_augment != "none"
            assert not mixed and settings.optimizer == "adamw" and settings.eval_crop_fraction == 1
        elif n_partial == 0:
            assert config.drop_path_rate == config.label_smoothing == settings.mixup == settings.weight_decay == 0
            assert config.head_norm == "batch"
        else:
            assert settings.optimizer == "adamw" and config.head_norm == "layer", run.name
        groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
        peak = settings.base_learning_rate * settings.total_batch_size / 256
        rates = sorted({peak * group["lr_scale"] for group in groups})
        assert rates[-1] == peak  # the head's
        lowest = 0 if n_partial is None or n_partial == depth else depth + 1 - math.ceil(n_partial)
        assert rates[0] == pytest.approx(peak * settings.layer_decay ** (depth + 1 - lowest))


# arXiv 2111.06377, Tables 9 and 10, and FINETUNE.md of the official code: rate, decay of layers, drop path, epochs
IMAGENET = {
    "finetune_imagenet_base": (1e-3, 0.75, 0.1, 100),
    "finetune_imagenet_large": (1e-3, 0.75, 0.1, 50),
    "finetune_imagenet_huge": (1e-3, 0.75, 0.2, 50),
    "finetune_imagenet_base_official": (5e-4, 0.65, 0.1, 100),
    "finetune_imagenet_large_official": (1e-3, 0.75, 0.2, 50),
    "finetune_imagenet_huge_official": (1e-3, 0.75, 0.3, 50),
    "attentive_imagenet_base": (0.1, 1, 0, 90),
    "linear_imagenet_base": (0.1, 1, 0, 90),
    "linear_imagenet_large": (0.1, 1, 0, 50),
    "linear_imagenet_huge": (0.1, 1, 0, 50),
}


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_recipes_are_the_published_settings(name):
    file = RECIPES / f"{name}.yaml"
    pretraining = Path(yaml.safe_load(file.read_text())["model_name_or_path"])
    model_config(parse(str(RECIPES / f"{pretraining.name}.yaml"))).save_pretrained(pretraining)
    args = parse_arguments(EvalArguments, [str(file)])
    (run,) = args.trainings()
    settings = run.recipe
    config = model_config(settings)
    rates = (settings.base_learning_rate, settings.layer_decay, config.drop_path_rate, settings.num_train_epochs)
    assert rates == IMAGENET[name]
    if name.startswith("attentive"):
        shared = (4096, 10, 0, 0, "attention", "lars", [0.08, 1.0], 0.875)
        assert (config.num_pooling_queries, config.num_pooling_heads) == (32, 1)
    elif name.startswith("linear"):
        shared = (16384, 10, 0, 0, "cls", "lars", [0.08, 1.0], 0.875)
    else:
        shared = (1024, 5, 0.8, 1.0, "mean", "adamw", [0.08, 1.0], 0.875)
        assert settings.auto_augment == "rand-m9-mstd0.5-inc1" and settings.random_erasing == 0.25
        assert config.label_smoothing == 0.1 and settings.weight_decay == 0.05 and settings.adam_beta2 == 0.999
    rest = (settings.total_batch_size, settings.warmup_epochs, settings.mixup, settings.cutmix)
    assert (*rest, config.pooling, settings.optimizer, settings.crop_scale, settings.eval_crop_fraction) == shared


def test_the_recipe_of_ade20k_has_the_published_settings():
    model_config(parse(str(RECIPES / "pretrain_imagenet_base.yaml"))).save_pretrained("runs/pretrain_imagenet_base")
    args = parse_arguments(EvalArguments, [str(RECIPES / "segment_ade20k_base.yaml"), "--train_dir", "x"])
    (run,) = args.trainings()
    settings, config = run.recipe, model_config(run.recipe)
    schedule = Schedule.from_epochs(20_210, settings_of(LengthSettings, settings))  # training images of ADE20K
    assert schedule.updates == pytest.approx(160_000, rel=1e-3) and schedule.warmup == pytest.approx(1500, rel=0.01)
    assert schedule.peak == pytest.approx(1e-4) and settings.total_batch_size == 16
    assert (settings.layer_decay, config.drop_path_rate, config.image_size) == (0.65, 0.1, 512)
    assert (settings.segmentation_head, settings.ignore_index, run.n_partial) == ("upernet", 0, 12)


def only_differences(recipe, args, defaults):
    assert args.output_dir == f"runs/{recipe.stem}"
    written = yaml.safe_load(recipe.read_text())
    same = [key for key in written if getattr(args, key) == getattr(defaults, key)]
    assert not same
    comment = recipe.read_text().split("\n" + next(iter(written)))[0]
    assert f"configuration/recipes/{recipe.name}" in comment and "accelerate launch" in comment


# arXiv 2010.11929 Table 1 (base, large, huge) and arXiv 2012.12877 Table 1 (tiny, small): width, depth, heads, MLP
PUBLISHED = {
    "tiny": (192, 12, 3, 768, 16),
    "small": (384, 12, 6, 1536, 16),
    "base": (768, 12, 12, 3072, 16),
    "large": (1024, 24, 16, 4096, 16),
    "huge": (1280, 32, 16, 5120, 14),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_models(name):
    config = model_config(parse("--config_name", f"vit_{name}"))
    encoder = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert (*encoder, config.patch_size) == PUBLISHED[name]
    decoder = (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads)
    assert decoder == (512, 8, 16) and config.decoder_intermediate_size == 2048
    file = CONFIGURATION / "models" / f"vit_{name}.json"
    assert MAEConfig.from_json_file(file).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", ["cpu", "one_gpu", "multi_gpu", "multi_machine", "fsdp"])
def test_accelerate_takes_the_launcher_files(name):
    file = str(CONFIGURATION / "accelerate" / f"{name}.yaml")
    args, defaults, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", file, "run_pretrain.py"])
    )
    assert args.mixed_precision == ("no" if name == "cpu" else "bf16")
    assert (args.use_cpu, args.use_fsdp) == (name == "cpu", name == "fsdp")
    assert args.multi_gpu == name.startswith("multi")
    if name == "fsdp":
        layers = args.fsdp_transformer_layer_cls_to_wrap.split(",")
        module = importlib.import_module("modeling_mae.modeling_mae")
        assert all(hasattr(module, layer) for layer in layers)
