"""Values that cannot work end in one line before any long work: the value, the reason, the remedy."""

import dataclasses
import json
import math
import re
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import TINY_GRAY

from configuration import ArgumentError, EvalArguments, PretrainArguments, model_config, parse_arguments
from configuration import memory as memory_module
from configuration.memory import decoder_parameters, encoder_parameters, machine_memory
from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining, MAEModel
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.commands.convert import convert
from modeling_mae.errors import UserError


SMALL = {**TINY_GRAY, "image_size": 16, "patch_size": 4, "num_channels": 3}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, which is the home too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def checkpoint(tmp_path):
    MAEForPreTraining(MAEConfig(**SMALL)).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def refused(capsys, *words, cls=PretrainArguments) -> str:
    """The one line of the error."""
    capsys.readouterr()  # of what went before
    began = time.perf_counter()
    with pytest.raises(SystemExit) as exit:
        parse_arguments(cls, [str(word) for word in words])
    output = capsys.readouterr().err
    assert exit.value.code == 2 and output.count("\n") == 1 and time.perf_counter() - began < 20
    return output


OVERRIDES = [
    ("hidden_act=foo", "hidden_act='foo' is not one of transformers' activations: 'gelu' is the paper's"),
    ("hidden_act=geluu", "did you mean 'gelu'"),
    ("image_size=1000006 patch_size=2", "image_size=1000006x1000006 has 250,003,000,009 patches"),
    ("image_size=65536 patch_size=64", "64 images of 65536x65536 pixels need"),
    ("image_size=1000000 patch_size=1000000", "GiB, this machine has"),
    ("image_size=1000006", "not a multiple of patch_size=16x16; 1000016x1000016 would be"),
    ("hidden_size=12000000", "parameters: weights need"),
    ("decoder_hidden_size=1600000", "parameters: weights need"),
    ("intermediate_size=100000000000", "GiB, this machine has"),
    ("num_hidden_layers=1000000000", "num_hidden_layers=1000000000 is more than 1000: give fewer layers"),
    ("num_channels=1000000000", "GiB, this machine has"),
    ("hidden_size=0", "hidden_size=0 must be at least 1"),
    ("hidden_size=-768", "hidden_size=-768 must be at least 1"),
    ("num_attention_heads=-12", "num_attention_heads=-12 must be at least 1"),
    ("patch_size=0", "image_size=224 and patch_size=0 must be at least 1"),
    ("image_size=-224", "image_size=-224 and patch_size=16 must be at least 1"),
    ("image_size=nan", "image_size"),
    ("image_size=1e308", "image_size"),
    ("hidden_size=inf", "hidden_size"),
    ("mask_ratio=nan", "mask_ratio=nan is outside (0, 1)"),
    ("mask_ratio=inf", "mask_ratio=inf is outside (0, 1)"),
    ("layer_norm_eps=nan", "layer_norm_eps=nan must be above 0 and finite"),
    ("layer_norm_eps=-1e-6", "layer_norm_eps=-1e-06 must be above 0"),
    ("initializer_range=inf", "initializer_range=inf is not a deviation"),
    ("head_initializer_range=-1.0", "head_initializer_range=-1.0 is not a deviation"),
    ("drop_path_rate=nan", "drop_path_rate=nan is outside [0, 1)"),
    ("label_smoothing=nan", "label_smoothing=nan is outside [0, 1)"),
]


@pytest.mark.parametrize("overrides, message", OVERRIDES)
def test_fields_of_the_model(capsys, overrides, message):
    words = ("--config_name", "vit_base", "--output_dir", "run", "--config_overrides", *overrides.split())
    assert message in refused(capsys, *words)
    assert not Path("run").exists()


NUMBERS = [
    ("warmup_epochs", "1e308", "a number of epochs, 0 for none, at most 1000000"),
    ("num_train_epochs", "1e308", "a number of epochs above 0, at most 1000000"),
    ("max_train_steps", 10**30, "a number of updates, 1 to 1000000000000"),
    ("base_learning_rate", "1e308", "a rate above 0"),
    ("weight_decay", "1e308", "0 to 1000000"),
    ("dataloader_num_workers", 10**9, "a number of workers"),
    ("checkpointing_steps", "9" * 5000, "give epoch or a number of updates"),
    ("per_device_train_batch_size", 10**12, "GiB, this machine has"),
    *(
        (name, value, f"{name} {float(value):g}" if value != "-inf" else name)
        for name in "num_train_epochs base_learning_rate warmup_epochs weight_decay adam_beta1 adam_beta2".split()
        for value in ("nan", "inf", "-inf")
    ),
    ("seed", -1, "seed -1 does not work"),
    ("crop_scale", "nan", "crop_scale nan does not work"),
]


@pytest.mark.parametrize("name, value, message", NUMBERS)
def test_numbers(capsys, name, value, message):
    assert message in refused(capsys, f"--{name}={value}", "--config_name", "vit_tiny", "--output_dir", "run")


def test_warm_up_in_a_short_trial(capsys):
    words = ("--warmup_epochs", "1e308", "--max_train_steps", 5, "--config_name", "vit_tiny")
    assert "warmup_epochs 1e+308 does not work" in refused(capsys, *words)


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("name", ["output_dir", "config_name", "train_dir", "resume_from_checkpoint"])
def test_empty_texts(capsys, name, value):
    assert f"{name} {value!r} is empty: give a value, or leave the option out" in refused(capsys, f"--{name}={value}")


def test_evaluation(capsys, checkpoint):
    words = ("--model_name_or_path", checkpoint, "--output_dir", "run")
    for more, message in (
        (("--n_partial", 0, 0), "n_partial 0.0 0.0 has 0 twice: give each number of blocks once"),
        (("--n_partial", 0, 1, 1.0), "has 1 twice"),
        (("--n_partial", "nan"), "n_partial nan does not work"),
        (("--n_partial", "inf"), "n_partial inf does not work"),
        (("--mixup", "1e308"), "mixup 1e+308 does not work"),
        (("--layer_decay", "nan"), "layer_decay nan does not work"),
        (("--problem_type", "multilabel"), "give single_label_classification, multi_label_classification, regression"),
        (("--linear_overrides", "warmup_epochs=1e308"), "warmup_epochs 1e+308 does not work"),
        (("--model_name_or_path", ""), "model_name_or_path '' is empty"),
        (("--per_device_eval_batch_size", 10**12), "per_device_eval_batch_size 1000000000000 images of 16x16 pixels"),
        (("--do_train", "false", "--knn", "true", "--per_device_eval_batch_size", 10**12), "GiB, this machine has"),
    ):
        assert message in refused(capsys, *words, *more, cls=EvalArguments)


EDITS = [
    ({"hidden_act": "foo"}, "hidden_act='foo'"),
    ({"image_size": 4000004}, "1,000,002,000,001 patches"),
    ({"hidden_size": 10_000_000}, "parameters: weights need"),
    ({"hidden_size": "wide"}, "hidden_size"),
    ({"num_hidden_layers": 10**9}, "is more than 1000"),
    ({"patch_size": 0}, "must be at least 1"),
    ({"layer_norm_eps": math.nan}, "layer_norm_eps=nan"),
    ({"num_labels": 10**12}, "num_labels=1000000000000 is not a whole number in 1 ... 10000000"),
    ({"problem_type": "ranking"}, "problem_type='ranking' is not one of"),
    ({"id2label": 5}, "configuration of"),
]


@pytest.mark.parametrize(
    "override, message",
    [
        ("pooling=attention", "num_pooling_queries=16 with num_pooling_heads=1 would"),
        ("image_size=30", "image_size=30x30 is not a multiple of patch_size=4x4"),
    ],
)
def test_overrides_of_a_checkpoint_are_checked(capsys, checkpoint, override, message):
    words = ("--model_name_or_path", checkpoint, "--output_dir", "run", "--n_partial", 0)
    assert message in refused(capsys, *words, "--config_overrides", override, cls=EvalArguments)


@pytest.mark.parametrize("cls", [PretrainArguments, EvalArguments])
def test_a_checkpoint_that_is_not_there(capsys, checkpoint, cls, monkeypatch):
    Path("empty").mkdir()
    Path("several").mkdir()
    checkpoint.rename("several/n_partial-4")
    for name, message in (
        ("nowhere", "'nowhere' is neither a folder here nor a Hub id: pre-train first, or give"),
        ("several/n_partial-5", "is neither a folder here nor a Hub id: "),
        ("empty", "'empty' has no config.json of a model: give the output_dir of a run"),
        ("several", "'several' has no config.json of a model: give 'several/n_partial-4'"),
    ):
        assert message in refused(capsys, "--model_name_or_path", name, "--output_dir", "run", cls=cls)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    args = parse_arguments(cls, ["--model_name_or_path", "me/nothing"])  # only the Hub knows
    with pytest.raises(ArgumentError, match="'me/nothing' is neither a folder here nor a Hub id that can be reached"):
        model_config(args)


@pytest.mark.parametrize("edit, message", EDITS)
def test_an_edited_checkpoint(capsys, checkpoint, edit, message):
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    words = ("--model_name_or_path", checkpoint, "--output_dir", "run", "--n_partial", 0)
    assert message in refused(capsys, *words, cls=EvalArguments)
    assert message in refused(capsys, *words[:4])


@pytest.mark.parametrize("edit", [{"hidden_act": "foo"}, {"hidden_size": 32}, {"image_size": 4000004}])
def test_an_edited_checkpoint_from_python(checkpoint, edit):
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    if "hidden_size" not in edit:  # transformers' own error lists the tensors that differ
        with pytest.raises(ValueError, match=next(iter(edit))):
            MAEModel.from_pretrained(checkpoint)
    message = "cannot be loaded: .* in its file and .*32.* by its" if "hidden_size" in edit else next(iter(edit))
    with pytest.raises(UserError, match=message) as error:
        open_checkpoint(checkpoint).encoder()
    assert "\n" not in str(error.value)
    with pytest.raises(UserError) as error:
        convert(str(checkpoint), "converted", "timm")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False, "image_size": [16, 24], "num_channels": 1},
        {"decoder_num_hidden_layers": 3},
        *({"decoder_type": "cross", "decoder_reads": reads} for reads in ("blocks", "stages", "last")),
        {"decoder_type": "cross", "qkv_bias": False, "decoder_num_hidden_layers": 3},
    ],
)
def test_parameters_are_counted_by_formula(fields):
    with torch.device("meta"):
        model = MAEForPreTraining(MAEConfig(**{**SMALL, **fields}))
    count = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("mae", "decoder")}
    assert encoder_parameters(model.config) == count["mae"]
    assert decoder_parameters(model.config) == count["decoder"]


def test_training_needs_more_than_weights(capsys, monkeypatch):
    """On a machine without an accelerator. With one, the moments lie there."""
    monkeypatch.setattr(memory_module, "machine_memory", lambda: 1 << 30)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    words = ("--config_name", "vit_base", "--output_dir", "run", "--per_device_train_batch_size", 1)
    output = refused(capsys, *words)
    assert re.search(r"moments need 1\.\d GiB, this machine has 1\.0 GiB: give a smaller model", output)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert parse_arguments(PretrainArguments, list(map(str, words))).config_name == "vit_base"
    assert "parameters: weights need 1.1 GiB" in refused(capsys, *words[2:], "--config_name", "vit_large")


def test_memory_of_this_machine(tmp_path, monkeypatch):
    whole = machine_memory()
    assert whole is None or whole > 1 << 28
    (tmp_path / "limit").write_text("12345\n")
    monkeypatch.setattr(memory_module, "CGROUP_LIMIT", tmp_path / "limit")
    assert machine_memory() in (None, 12345)
    (tmp_path / "limit").write_text("max\n")
    assert whole is None or machine_memory() >= whole


def test_home_is_expanded(checkpoint, tmp_path):
    words = ["--model_name_or_path=~/checkpoint", "--output_dir", "~/run", "--n_partial", "0"]
    arguments = parse_arguments(EvalArguments, words)
    assert arguments.model_name_or_path == str(checkpoint) and arguments.output_dir == str(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    words = ["--config_name", "~/checkpoint", "--output_dir=~/run"]
    words += ["--resume_from_checkpoint=~/run/checkpoint-3", "--config_overrides", "mask_ratio=0.5"]
    arguments = parse_arguments(PretrainArguments, words)
    assert arguments.config_name == str(checkpoint)
    assert arguments.resume_from_checkpoint == str(tmp_path / "run" / "checkpoint-3")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("config_name: vit_tiny\noutput_dir: ~/other\n")
    assert parse_arguments(PretrainArguments, [str(recipe)]).output_dir == str(tmp_path / "other")
    arguments = parse_arguments(PretrainArguments, ["--resume_from_checkpoint=hub://me/run", "--output_dir", "new"])
    assert arguments.resume_from_checkpoint == "hub://me/run"


PATHS = {
    "output_dir": (PretrainArguments, EvalArguments),
    "model_name_or_path": (PretrainArguments, EvalArguments),
    "config_name": (PretrainArguments, EvalArguments),
    "resume_from_checkpoint": (PretrainArguments, EvalArguments),
    "train_dir": (PretrainArguments, EvalArguments),
    "cache_dir": (PretrainArguments, EvalArguments),
    "validation_dir": (EvalArguments,),
    "mask_dir": (PretrainArguments, EvalArguments),
}


@pytest.mark.parametrize("name", PATHS)
def test_home_is_expanded_in_every_path(tmp_path, monkeypatch, name):
    for cls in PATHS[name]:
        monkeypatch.setattr(cls, "check", lambda arguments: None)  # none of the paths exists
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"{name}: ~/some/where\n")
        for words in ([f"--{name}=~/some/where"], [f"--{name}", "~/some/where"], [str(recipe)], ["~/recipe.yaml"]):
            assert getattr(parse_arguments(cls, words), name) == str(tmp_path / "some" / "where")


@pytest.mark.parametrize("cls", [PretrainArguments, EvalArguments])
def test_every_option_that_says_folder_is_among_these_paths(cls):
    about_folders = {
        field.name
        for field in dataclasses.fields(cls)
        if "str" in str(field.type) and re.search(r"folder|a JSON file", field.metadata["help"], re.IGNORECASE)
    }
    assert about_folders == {name for name, classes in PATHS.items() if cls in classes}


def test_a_classifier_checks_its_labels_and_images():
    model = EvalNet(MAEConfig(**SMALL, num_labels=3, problem_type="regression"))
    with pytest.raises(ValueError, match="labels of shape"):
        model(torch.zeros(2, 3, 16, 16), labels=torch.zeros(2))
