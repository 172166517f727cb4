"""Runs under torch.compile, as `accelerate launch --dynamo_backend` sets it up. The backend here is one that needs no
C++ compiler: what is compiled stays what it is."""

from pathlib import Path

import pytest
import torch
from conftest import RECIPE, TINY_GRAY, TWO_PROCESSES, run, weights_and_history

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.data.serve.processor import image_processor


pytestmark = pytest.mark.slow
WAYS = {"whole": {}, "by block": {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"}}
by_whole_and_block = pytest.mark.parametrize("way", WAYS)
# The compiler needs seconds for each block, so there is one, and the runs are short.
SHALLOW = ("--config_overrides", "num_hidden_layers=1", "--max_train_steps", 8, "--checkpointing_steps", 6)
SIZES = ("--progressive_resizing", 0.5)  # compiled anew for the smaller one, for any size


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe, and what runs that are not compiled leave: usual, sizes and classifier. The last is of encoder."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / "small.yaml").write_text(RECIPE)
    run(folder / "small.yaml", "--output_dir", folder / "usual", *SHALLOW)
    run(folder / "small.yaml", "--output_dir", folder / "sizes", *SHALLOW, *SIZES)
    torch.manual_seed(0)
    MAEForPreTraining(MAEConfig(**{**TINY_GRAY, "num_hidden_layers": 1})).save_pretrained(folder / "encoder")
    image_processor((28, 28), [0.3], [0.35], 1).save_pretrained(folder / "encoder")
    run(*evaluation_of(folder), "--output_dir", folder / "classifier", script="run_eval.py")
    return folder


def evaluation_of(place: Path) -> tuple:
    return (
        *("--model_name_or_path", place / "encoder", "--max_train_samples", 96, "--max_eval_samples", 64),
        *("--total_batch_size", 32, "--per_device_train_batch_size", 32, "--per_device_eval_batch_size", 32),
        *("--num_train_epochs", 1, "--warmup_epochs", 0, "--n_partial", 1, "--auto_augment", "none"),
        *("--report_to", "none", "--dataloader_num_workers", 0),
    )


def assert_near(compiled: Path, usual: Path) -> None:
    """The names are the same, and the values up to rounding."""
    weights, expected = (weights_and_history(folder)[0] for folder in (compiled, usual))
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "sizes"),
    [("whole", ()), ("whole", SIZES), ("by block", SIZES)],
)
def test_a_compiled_run_leaves_the_model_that_any_run_leaves(tmp_path, place, way, sizes):
    options = {"ACCELERATE_DYNAMO_BACKEND": "eager", **WAYS[way]}
    words = (place / "small.yaml", "--output_dir", tmp_path / "compiled", *SHALLOW, *sizes)
    assert "compiled by eager" in run(*words, **options)
    run(*words, "--resume_from_checkpoint", tmp_path / "compiled" / "checkpoint-6", **options)
    assert_near(tmp_path / "compiled", place / ("sizes" if sizes else "usual"))
    loaded = MAEForPreTraining.from_pretrained(tmp_path / "compiled").state_dict()
    weights = weights_and_history(tmp_path / "compiled")[0]
    assert all(torch.equal(value, loaded[name]) for name, value in weights.items())


@by_whole_and_block
def test_two_processes_leave_the_model_that_one_leaves(tmp_path, place, way):
    dynamo = ("--dynamo_backend", "eager", *(["--dynamo_use_regional_compilation"] if WAYS[way] else []))
    launcher = {**TWO_PROCESSES, "launcher": (*TWO_PROCESSES["launcher"], *dynamo)}
    output = run(place / "small.yaml", "--output_dir", tmp_path / "compiled", *SHALLOW, **launcher)
    assert "2 processes" in output and "compiled by eager" in output
    assert_near(tmp_path / "compiled", place / "usual")


@by_whole_and_block
def test_a_compiled_evaluation_leaves_a_classifier(tmp_path, place, way):
    options = {"ACCELERATE_DYNAMO_BACKEND": "eager", **WAYS[way]}
    output = run(*evaluation_of(place), "--output_dir", tmp_path / "compiled", script="run_eval.py", **options)
    assert "compiled by eager" in output
    assert_near(tmp_path / "compiled", place / "classifier")
