"""Recipe and command line to arguments, and what is refused."""

import dataclasses
import json
import socket
from pathlib import Path

import pytest
import yaml
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from configuration import (
    ArgumentError,
    EvalArguments,
    PretrainArguments,
    model_config,
    model_settings,
    parse_arguments,
)
from configuration.arguments import option
from configuration.parsing import RECIPES, recipe_text
from modeling_mae import MAEConfig
from modeling_mae.data.find.sources import SourceSettings
from modeling_mae.data.serve.images import ImageSettings
from modeling_mae.evaluation.classifier import ViewSettings
from modeling_mae.hub.push import HubSettings
from modeling_mae.settings import settings
from modeling_mae.training.optim import LengthSettings, OptimizerSettings
from modeling_mae.training.state import RunSettings
from modeling_mae.training.trials import TrialSettings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder: no run of the developer's is in the way, and no recipe is found by accident."""
    monkeypatch.chdir(tmp_path)


def parse(*words, recipe=None, default=None) -> PretrainArguments:
    if recipe is not None:
        Path("recipe.yaml").write_text(recipe)
        words = ("recipe.yaml", *words)
    return parse_arguments(PretrainArguments, list(words), default)


def refused(capsys, *words, recipe=None) -> str:
    """The one line that refuses the words; the process would have ended with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        parse(*words, recipe=recipe)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == "" and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_defaults_are_the_papers_table_8():
    args = parse("--output_dir", "x")
    assert (args.total_batch_size, args.base_learning_rate, args.warmup_epochs) == (4096, 1.5e-4, 40)
    assert (args.num_train_epochs, args.weight_decay, args.adam_beta1, args.adam_beta2) == (800, 0.05, 0.9, 0.95)
    assert (args.crop_scale, args.horizontal_flip) == ([0.2, 1.0], True)


def test_command_line_wins_over_recipe_wins_over_defaults():
    recipe = "seed: 3\nweight_decay: 0.1\nknn: true\nreport_to: [none]\n"
    args = parse("--seed", "7", "--no_horizontal_flip", recipe=recipe)
    assert (args.seed, args.weight_decay, args.knn, args.trackers) == (7, 0.1, True, [])
    assert args.adam_beta2 == 0.95 and args.horizontal_flip is False
    assert parse("--knn", "false", recipe=recipe).knn is False


def test_only_without_any_argument_the_default_recipe_is_read():
    assert parse(default="demo").output_dir == "runs/demo"
    assert parse("--seed", "1", default="demo").output_dir == "runs/pretrain"


def test_a_recipe_is_a_path_or_a_bare_name():
    expected = parse(str(RECIPES / "demo.yaml"))
    assert parse("demo") == parse("demo.yaml") == expected
    Path("demo.yaml").write_text("seed: 9")  # one's own, beside the repository's
    assert parse("demo.yaml").seed == 9


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'0.001'"])
def test_numbers_in_yaml_are_numbers_however_written(text):
    assert parse(recipe=f"base_learning_rate: {text}").base_learning_rate == 1e-3


def test_every_kind_of_yaml_value():
    args = parse(
        recipe="""
            config_overrides: {image_size: 32, patch_size: 4, norm_pix_loss: false, layer_norm_eps: 1e-5}
            image_mean: [0.5, 0.25, 1.0e-2]
            image_std: [1, 0.5, 0.5]
            report_to: none
            max_train_steps: null
            checkpointing_steps: 500
            on_bad_image: skip
            horizontal_flip: no
        """
    )
    assert args.image_mean == [0.5, 0.25, 0.01] and args.image_std == [1.0, 0.5, 0.5]
    assert args.max_train_steps is None and args.checkpointing_steps == "500" and args.on_bad_image == "skip"
    assert args.horizontal_flip is False
    config = model_config(args)
    assert (config.image_size, config.patch_size, config.norm_pix_loss, config.layer_norm_eps) == (32, 4, False, 1e-5)


def test_overrides_are_merged_key_by_key():
    args = parse("--config_overrides", "mask_ratio=0.5", "patch_size=8", recipe="config_overrides: {patch_size: 28}")
    assert (model_config(args).mask_ratio, model_config(args).patch_size) == (0.5, 8)
    assert parse("--config_overrides", "mask_ratio=0.5").config_overrides == ["mask_ratio=0.5"]  # no default spoilt
    assert parse("--seed", "1").config_overrides == []


def test_the_arguments_of_a_run_are_a_recipe_for_it():
    args = parse("pretrain_cifar10", "--seed", "5")
    Path("arguments.json").write_text(json.dumps(dataclasses.asdict(args)))
    assert parse("arguments.json") == args


def test_one_folder_is_a_text_and_several_are_a_list(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(recipe="train_dir: ~/a").train_dir == "/home/me/a"
    args = parse("--train_dir", "~/a", "b", "--mix", "7", "3")
    assert (args.train_dir, args.mix) == (["/home/me/a", "b"], [7.0, 3.0])
    assert args.deciding_weights()["mix"] == [7.0, 3.0] and parse().deciding_weights()["mix"] is None
    Path("arguments.json").write_text(json.dumps(dataclasses.asdict(args)))
    assert parse("arguments.json") == args


def test_the_command_line_replaces_another_source_in_the_recipe():
    args = parse("pretrain_imagenet_base", "--train_dir=here")
    assert (args.train_dir, args.dataset_name) == ("here", None)
    args = parse("--train_dir", "here", recipe="train_dir: [a, b]\nmix: [1, 2]")
    assert (args.train_dir, args.mix) == ("here", None)
    args = parse("--num-train-epochs", "50", recipe="max_train_steps: 7")
    assert (args.num_train_epochs, args.max_train_steps) == (50, None)


@pytest.mark.parametrize(
    "words, nearest",
    [
        (["--weight_decy", "0.1"], "weight_decay"),
        (["--learning_rate=1"], "base_learning_rate"),
        (["--warmup-epoch", "3"], "warmup_epochs"),
        (["--num_train", "3"], "num_train_epochs"),  # no abbreviations
        (["--mask_ratio", "0.5"], "--config_overrides mask_ratio"),
        (["--mixed_precision", "bf16"], "accelerate launch --mixed_precision"),
        (["--xyzzy"], "--help"),
        (["demo", "more.yaml"], "the recipe comes first"),
        (["demoo"], "'demo'"),
        (["pretrain_imagenet_bas.yaml"], "'pretrain_imagenet_base'"),
        (["elsewhere/demo.yaml"], "'elsewhere/demo.yaml' not found"),
        (["--seed", "x"], "invalid int value: 'x'"),
        (["--on_bad_image", "ignore"], "skip"),
    ],
)
def test_unknown_words_are_refused_in_one_line_with_the_nearest(capsys, words, nearest):
    assert nearest in refused(capsys, *words)


@pytest.mark.parametrize(
    "recipe, expected",
    [
        ("weight_decy: 0.1", "weight_decay"),
        ("image_size: 32", "--config_overrides image_size"),
        ("seed: three", "invalid int value: 'three'"),
        ("- seed", "expected lines of"),
        ("seed: [1", "not readable as YAML"),
        ("config_overrides: {patchsize: 4}", "'patch_size'"),
        ("config_overrides: {image_size: 30}", "30"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(capsys, recipe, expected):
    line = refused(capsys, recipe=recipe)
    assert expected in line
    if "overrides" not in recipe:
        assert "recipe.yaml" in line


def test_only_one_process_of_a_machine_speaks(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        parse("--xyzzy")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words, named",
    [
        ("--base_learning_rate nan", ["base_learning_rate nan", "above 0"]),
        ("--base_learning_rate 0", ["base_learning_rate 0.0"]),
        ("--adam_beta2 1", ["adam_beta2 1.0", "0.95"]),
        ("--weight_decay -1", ["weight_decay -1.0"]),
        ("--total_batch_size 0", ["total_batch_size 0"]),
        ("--per_device_train_batch_size -8", ["per_device_train_batch_size -8"]),
        ("--max_train_steps 0", ["max_train_steps 0"]),
        ("--max_train_samples 0", ["max_train_samples 0"]),
        ("--logging_steps 0", ["logging_steps 0"]),
        ("--checkpoints_kept 0", ["checkpoints_kept 0"]),
        ("--picture_epochs -1", ["picture_epochs -1"]),
        ("--seed -1", ["seed -1"]),
        ("--image_cache many", ["image_cache 'many'", "auto, off"]),
        ("--image_cache 0", ["image_cache '0'"]),
        ("--image_cache nan", ["image_cache 'nan'"]),
        ("--repeated_augmentation 0", ["repeated_augmentation 0"]),
        ("--repeated_augmentation 3", ["total_batch_size 4096", "repeated_augmentation 3", "--total_batch_size 4095"]),
        (
            "--repeated_augmentation 8 --per_device_train_batch_size 4",
            ["per_device_train_batch_size 4", "--per_device_train_batch_size 8"],
        ),
        ("--progressive_resizing -0.1", ["progressive_resizing -0.1"]),
        ("--progressive_resizing 0.7 0.4", ["progressive_resizing 0.7 0.4", "a sum below 1"]),
        ("--progressive_resizing 0.2 0.2 0.2", ["progressive_resizing 0.2 0.2 0.2", "one or two shares"]),
        ("--crop_scale 0 1", ["crop_scale 0.0"]),
        ("--crop_scale 0.5 1.5", ["crop_scale 1.5"]),
        ("--crop_scale 0.9 0.5", ["crop_scale 0.9 0.5"]),
        ("--crop_scale 0.9", ["crop_scale 0.9"]),
        ("--num_train_epochs 30", ["warmup_epochs 40", "num_train_epochs 30"]),
        ("--max_hours 0", ["max_hours 0.0", "above 0"]),
        ("--max_hours 1 --max_train_steps 5", ["max_hours 1.0", "max_train_steps 5"]),
        ("--own_images true --config_overrides patchsize=3", ["'patchsize'", "'patch_size'"]),
        ("--own_images true --crop_scale 0.9 0.5", ["crop_scale 0.9 0.5"]),
        ("--own_images true --total_batch_size 0", ["total_batch_size 0"]),
        ("--dataset_name a --train_dir b", ["dataset_name 'a'", "train_dir 'b'"]),
        ("--train_dir a --mix 1", ["mix 1.0", "1 shares", "1 folders"]),
        ("--train_dir a b c --mix 0.7 0.3", ["mix 0.7 0.3", "2 shares", "3 folders"]),
        ("--mix 0.7 0.3", ["mix 0.7 0.3", "0 folders"]),
        ("--train_dir a b --mix 1 0", ["mix 0.0", "above 0"]),
        ("--train_dir a b --mix 1 inf", ["mix inf", "above 0"]),
        ("--train_dir a b a", ["train_dir has 'a' twice"]),
        ("--train_dir=a --train_dir=", ["train_dir", "is empty"]),
        ("--dataset_config_name a", ["dataset_config_name 'a'", "dataset_name"]),
        ("--model_name_or_path a --config_name vit_tiny", ["model_name_or_path 'a'", "config_name 'vit_tiny'"]),
        ("--config_name vit_tin", ["'vit_tin'", "'vit_tiny'"]),
        ("--config_overrides mask_ratio", ["'mask_ratio'", "key=value"]),
        ("--image_mean 0.5 0.5 0.5", ["image_std (not given)"]),
        ("--image_mean 0.5 0.5 0.5 --image_std 0.5", ["image_mean 0.5 0.5 0.5", "image_std 0.5"]),
        ("--image_mean 0.5 --image_std 0.5", ["num_channels 3", "num_channels=1"]),
        ("--image_mean nan 1 1 --image_std 1 1 1", ["image_mean nan", "finite"]),
        ("--image_mean 1 1 1 --image_std 1 0 1", ["image_std 0.0", "above 0"]),
        ("--checkpointing_steps 0", ["checkpointing_steps '0'", "epoch"]),
        ("--checkpointing_steps epochs", ["checkpointing_steps 'epochs'"]),
        ("--report_to tensorbord", ["'tensorbord'", "'tensorboard'"]),
        ("--report_to none tensorboard", ["none tensorboard"]),
        ("--hub_model_id me/model", ["hub_model_id 'me/model'", "push_to_hub"]),
        ("--resume_from_checkpoint nowhere", ["'nowhere'"]),
        ("--resume_from_checkpoint auto --overwrite_output_dir", ["resume_from_checkpoint 'auto'"]),
    ],
)
def test_check_names_the_value_and_the_remedy(capsys, words, named):
    line = refused(capsys, *words.split())
    for part in named:
        assert part in line


def test_a_run_that_is_there_is_not_overwritten_unasked(capsys):
    Path("run/checkpoint-7").mkdir(parents=True)
    assert "already holds a run" in refused(capsys, "--output_dir", "run")
    assert "checkpoint-7" in refused(capsys, "--output_dir", "run", "--resume_from_checkpoint", "checkpoint-8")
    Path("run/model.safetensors").touch()
    assert "already holds a run" in refused(capsys, "--output_dir", "run")
    for words in (["--resume_from_checkpoint", "auto"], ["--overwrite_output_dir"]):
        assert parse("--output_dir", "run", *words).output_dir == "run"
    # not even when asked, where it is the checkpoint to begin with
    MAEConfig().save_pretrained("run")
    words = ["--model_name_or_path", "run", "--output_dir", "./run", "--overwrite_output_dir", "true"]
    assert "holds model_name_or_path 'run'" in refused(capsys, *words)
    with pytest.raises(SystemExit):
        parse_arguments(EvalArguments, [*words[:-2], "--do_train", "false"])
    assert "holds model_name_or_path 'run'" in capsys.readouterr().err
    Path("file").touch()
    assert "is a file" in refused(capsys, "--output_dir", "file")


def test_another_projects_checkpoint_is_checked_as_ours_is(capsys):
    config = ViTMAEConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    ViTMAEForPreTraining(config).save_pretrained("theirs")
    config = model_config(parse("--model_name_or_path", "theirs", "--config_overrides", "mask_ratio=0.5"))
    assert (config.hidden_size, config.num_attention_heads, config.mask_ratio) == (64, 4, 0.5)
    line = refused(capsys, "--model_name_or_path", "theirs", "--config_overrides", "num_channels=1")
    assert "num_channels=1 contradicts its tensors, which have num_channels=3; leave num_channels out" in line
    Path("timm").mkdir()
    Path("timm/config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    assert "timm" in refused(capsys, "--model_name_or_path", "timm")
    Path("mae_pretrain.pth").touch()
    assert "mae_pretrain.pth" in refused(capsys, "--model_name_or_path", "mae_pretrain.pth")


def test_pushing_is_checked_without_network(capsys, monkeypatch, tmp_path):
    def connect(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "HF_TOKEN" in refused(capsys, "--push_to_hub", "--hub_model_id", "me/model")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    assert parse("--push_to_hub", "--hub_model_id", "me/model").hub_model_id == "me/model"
    assert "'always' does not work: give no, end or checkpoint" in refused(capsys, "--push_to_hub", "always")
    assert "me/my model" in refused(capsys, "--push_to_hub", "--hub_model_id", "me/my model")
    assert parse("--model_name_or_path", "me/model").model_name_or_path == "me/model"


@pytest.mark.parametrize(
    "words, recipe, strategy",
    [
        ([], "", "no"),
        (["--push_to_hub"], "", "end"),
        (["--push_to_hub", "true"], "", "end"),
        (["--push_to_hub", "False"], "push_to_hub: checkpoint", "no"),
        (["--push_to_hub", "end"], "", "end"),
        (["--push_to_hub", "checkpoint"], "push_to_hub: false", "checkpoint"),
        ([], "push_to_hub: true", "end"),
        ([], "push_to_hub: no", "no"),  # which YAML reads as false
        ([], "push_to_hub: checkpoint", "checkpoint"),
    ],
)
def test_when_to_push(monkeypatch, words, recipe, strategy):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    args = parse(*words, recipe=recipe)
    assert settings(HubSettings, args) == HubSettings(strategy, None, False)


def test_settings_of_the_rooms_are_the_options_under_their_names():
    words = "--num_train_epochs 7 --warmup_epochs 2 --total_batch_size 64 --base_learning_rate 0.5 --seed 3"
    args = parse(*words.split(), "--per_device_train_batch_size", "8")
    assert settings(LengthSettings, args) == LengthSettings(64, 7, 2, 0.5)
    assert settings(RunSettings, args) == RunSettings(3, 64, 8, 10, "epoch", 2, False)
    assert args.dataloader_num_workers is None and args.run_folders() == [Path("runs/pretrain")]
    assert settings(LengthSettings, EvalArguments(min_learning_rate=1e-6)).min_learning_rate == 1e-6


SETTINGS = [HubSettings, LengthSettings, OptimizerSettings, RunSettings, TrialSettings, SourceSettings, ImageSettings]


@pytest.mark.parametrize("kind", [*SETTINGS, ViewSettings])
def test_every_setting_of_a_room_is_an_option_of_a_script(kind):
    options = {field.name for script in (PretrainArguments, EvalArguments) for field in dataclasses.fields(script)}
    assert {field.name for field in dataclasses.fields(kind)} <= options


@pytest.mark.parametrize("script", [PretrainArguments, EvalArguments])
def test_every_option_says_what_it_decides(script):
    decides = {field.name: field.metadata["decides"] for field in dataclasses.fields(script)}
    assert set(decides.values()) == {"weights", "result", "nothing"}
    # By hand, some of each: the manifest of a checkpoint holds the first, results.json depends on the second.
    assert all(decides[name] == "weights" for name in ("seed", "total_batch_size", "crop_scale", "mix", "bands"))
    assert all(decides[name] == "result" for name in ("num_train_epochs", "dataset_name", "model_name_or_path"))
    assert all(decides[name] == "nothing" for name in ("output_dir", "license", "plan", "logging_steps"))
    with pytest.raises(TypeError, match="decides"):
        option(1, "An option that does not say it.")


def test_an_option_that_was_added_is_at_its_default_as_it_was_without():
    @dataclasses.dataclass(frozen=True)
    class Later(PretrainArguments):
        noise: float = option(0.0, "A new option.", decides="weights", added=True)

    assert Later().added() == {**PretrainArguments().added(), "noise": 0.0}
    assert Later().deciding_weights() == PretrainArguments().deciding_weights()
    assert Later(noise=0.5).deciding_weights() == {**PretrainArguments().deciding_weights(), "noise": 0.5}
    later = parse_arguments(Later, ["--noise", "0.5"])
    assert later.noise == 0.5 and "noise: 0.5" in recipe_text(later)


def test_a_recipe_that_is_saved_gives_the_same_options(tmp_path):
    words = "--train_dir a b --mix 3 1 --image_mean 0.1 0.25 0.3 --image_std 0.1 0.2 1e-3 --base_learning_rate 1e-5"
    words += " --config_overrides image_size=[32,64] mask_type=block norm_pix_loss=false mask_ratio=0.5 mask_ratio=0.8"
    args = parse(*words.split(), "--report_to", "none", "--license", "no")
    (tmp_path / "recipe.yaml").write_text(recipe_text(args))
    again = parse_arguments(PretrainArguments, [str(tmp_path / "recipe.yaml")])
    assert model_config(again) == model_config(args)
    assert dataclasses.replace(again, config_overrides=[]) == dataclasses.replace(args, config_overrides=[])
    # How one call began is not kept.
    once = parse("--overwrite_output_dir", "true", "--allow_changes", "true", "--plan", "true")
    assert not {"overwrite_output_dir", "allow_changes", "plan"} & set(yaml.safe_load(recipe_text(once)))


def test_an_option_of_earlier_versions_says_what_to_do(capsys):
    with pytest.raises(SystemExit):
        parse("--decode_device", "cuda")
    assert "option 'decode_device' no longer exists: the loading workers decode all" in capsys.readouterr().err


def parse_eval(*words, recipe=None) -> EvalArguments:
    """Arguments of run_eval.py for a checkpoint of 4 blocks in `model`."""
    if recipe is not None:
        Path("recipe.yaml").write_text(recipe)
        words = ("recipe.yaml", *words)
    MAEConfig(num_hidden_layers=4).save_pretrained("model")
    return parse_arguments(EvalArguments, [*words, "--model_name_or_path", "model"])


def refused_eval(capsys, *words, recipe=None) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_eval(*words, recipe=recipe)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    return line


def test_one_training_has_the_output_folder_and_several_have_one_each():
    def trainings(*words):
        return [
            (run.name, str(run.folder), run.n_partial) for run in parse_eval("--output_dir", "out", *words).trainings()
        ]

    assert trainings() == [("n_partial-0", "out", 0)]
    assert trainings("--n_partial", "0.5") == [("n_partial-0.5", "out", 0.5)]
    assert trainings("--n_partial", "0", "0.5", "4", "--from_scratch", "true") == [
        ("n_partial-0", "out/n_partial-0", 0),
        ("n_partial-0.5", "out/n_partial-0.5", 0.5),
        ("n_partial-4", "out/n_partial-4", 4),
        ("from-scratch", "out/from-scratch", None),
    ]
    assert trainings("--from_scratch", "true") == [("from-scratch", "out", None)]
    assert trainings("--do_train", "false") == [] and parse_eval("--do_train", "false").run_folders() == []


def test_a_run_leaves_nothing_open():
    """What is not given is the paper's, by the number of blocks tuned."""
    args = parse_eval("--n_partial", "0", "1", "--from_scratch", "true", "--mixup", "0.3")
    by_blocks = """optimizer base_learning_rate min_learning_rate weight_decay layer_decay total_batch_size
        num_train_epochs warmup_epochs auto_augment random_erasing cutmix""".split()
    assert all(getattr(args, name) is None for name in by_blocks)
    linear, tuned, scratch = (run.recipe for run in args.trainings())
    for recipe, n_partial in ((linear, [0]), (tuned, [1]), (scratch, None)):
        assert recipe.n_partial == n_partial and recipe.mixup == 0.3  # what is given wins
        assert all(getattr(recipe, name) is not None for name in by_blocks)
    assert (linear.optimizer, linear.total_batch_size, linear.num_train_epochs, linear.cutmix) == (
        "lars",
        16384,
        90,
        0,
    )
    assert (tuned.optimizer, tuned.total_batch_size, tuned.num_train_epochs, tuned.cutmix) == ("adamw", 1024, 100, 1)
    assert (linear.layer_decay, tuned.layer_decay, scratch.layer_decay) == (1, 0.75, 1)
    # Each is a recipe of its own: it does this training alone, in the folder of the training.
    assert linear.output_dir == "runs/eval/n_partial-0" and not linear.from_scratch and scratch.from_scratch


def test_linear_overrides_are_for_linear_probing_alone():
    recipe = """
        n_partial: [0, 1]
        crop_scale: [0.6, 1.0]
        config_overrides: {drop_path_rate: 0.2}
        linear_overrides:
          optimizer: sgd
          base_learning_rate: 3e-1
          crop_scale: [1.0, 1.0]
          config_overrides: {pooling: mean, drop_path_rate: 0.0}
    """
    linear, tuned = (run.recipe for run in parse_eval(recipe=recipe).trainings())
    assert (linear.optimizer, linear.base_learning_rate, linear.crop_scale) == ("sgd", 0.3, [1, 1])
    assert (tuned.optimizer, tuned.base_learning_rate, tuned.crop_scale) == ("adamw", 1e-3, [0.6, 1])
    assert (model_config(linear).pooling, model_config(linear).drop_path_rate) == ("mean", 0.0)
    assert model_config(linear).head_norm == "batch"  # the paper's, where nothing replaces it
    assert (model_config(tuned).pooling, model_config(tuned).drop_path_rate) == ("mean", 0.2)
    # The command line replaces single keys of it.
    words = ["--linear_overrides", "optimizer=lars", "config_overrides={pooling: cls}"]
    linear, tuned = (run.recipe for run in parse_eval(*words, recipe=recipe).trainings())
    assert (linear.optimizer, linear.base_learning_rate, tuned.optimizer) == ("lars", 0.3, "adamw")
    assert model_config(linear).pooling == "cls"


@pytest.mark.parametrize("words", [("--config_overrides", "pooling=attention"),
                                   ("--linear_overrides", "config_overrides={pooling: attention}")])  # fmt: skip
def test_attentive_probing_has_its_own_settings(words):
    probe, tuned = (run.recipe for run in parse_eval(*words, "--n_partial", "0", "1").trainings())
    assert (probe.optimizer, probe.base_learning_rate, probe.total_batch_size) == ("lars", 0.1, 4096)
    assert (model_config(probe).pooling, model_config(probe).head_norm) == ("attention", "batch")
    assert (tuned.optimizer, tuned.total_batch_size) == ("adamw", 1024)
    given = parse_eval(*words, "--total_batch_size", "512").trainings()[0].recipe
    assert given.total_batch_size == 512


def test_pre_training_has_no_attention_pooling(capsys):
    line = refused(capsys, "--config_overrides", "pooling=attention", "num_pooling_queries=8")
    assert "trained with labels" in line and "--config_overrides pooling=mean" in line


def test_settings_that_decide_nothing_are_not_compared():
    assert "num_pooling_queries" not in model_settings(MAEConfig())
    assert model_settings(MAEConfig(pooling="attention"))["num_pooling_queries"] == 32


@pytest.mark.parametrize(
    "override, named",
    [
        ("optimiser=sgd", "'optimizer'"),
        ("pooling=mean", "write config_overrides={pooling: mean}"),
        ("optimizer", "key=value"),
        ("n_partial=1", "'n_partial' is not one of the options"),
        ("num_train_epochs=many", "invalid float value: 'many'"),
        ("weight_decay=-1", "weight_decay -1"),
        ("config_overrides={poling: mean}", "'pooling'"),
    ],
)
def test_a_wrong_linear_override_is_refused_in_one_line(capsys, override, named):
    assert named in refused_eval(capsys, "--linear_overrides", override)


def test_an_argument_error_is_one_line_for_people():
    for wrong in (EvalArguments(model_name_or_path="a", n_partial=[]), PretrainArguments(seed=-1)):
        with pytest.raises(ArgumentError) as error:
            wrong.check()
        assert "\n" not in str(error.value)


def test_what_several_trainings_cannot_do(capsys):
    several = ["--n_partial", "0", "1"]
    Path("checkpoint-5").mkdir()
    line = refused_eval(capsys, *several, "--resume_from_checkpoint", "checkpoint-5")
    assert "is of one training, but there are 2: give auto" in line
    assert "push_to_hub 'checkpoint' is for one training" in refused_eval(capsys, *several, "--push_to_hub=checkpoint")
    assert "n_partial 5 does not work" in refused_eval(capsys, "--n_partial", "5")
    assert "n_partial 0.7 does not work" in refused_eval(capsys, "--n_partial", "0.7")


def test_a_saved_model_can_be_named_in_either_way(capsys):
    MAEConfig(image_size=32, patch_size=4).save_pretrained("model")
    for words in (
        ["--config_name", "model"],
        ["--config_name", "model/config.json"],
        ["--model_name_or_path", "model"],
    ):
        config = model_config(parse(*words, "--config_overrides", "mask_ratio=0.5"))
        assert (config.image_size, config.patch_size, config.mask_ratio) == (32, 4, 0.5)
    Path("other.json").write_text('{"model_type": "vit"}')
    assert "'vit'" in refused(capsys, "--config_name", "other.json")


# What version 0.1 wrote into the manifest of a pre-training, but for what its run alone knows.
OF_VERSION_0_1 = """adam_beta1 adam_beta2 bands base_learning_rate crop_scale decoder_hidden_size
    decoder_intermediate_size decoder_num_attention_heads decoder_num_hidden_layers decoder_reads decoder_type
    drop_path_rate head_initializer_range head_norm hidden_act hidden_size horizontal_flip image_size
    initializer_range intermediate_size label_smoothing layer_norm_eps mask_ratio mask_type mix norm_pix_loss
    num_attention_heads num_channels num_hidden_layers patch_size pooling position_embedding prediction_ratio qkv_bias
    repeated_augmentation scaled_decoding seed total_batch_size warmup_epochs weight_decay""".split()


def test_runs_of_version_0_1_go_on():
    """A setting that it did not write would be a change, which going on exactly refuses."""
    assert sorted({**PretrainArguments().deciding_weights(), **model_settings(MAEConfig())}) == OF_VERSION_0_1
