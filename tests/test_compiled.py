"""Runs under torch.compile, as `accelerate launch --dynamo_backend` sets it up. The backend here is one that needs no
C++ compiler: what is compiled stays what it is."""

from pathlib import Path

import pytest
import torch
from conftest import TWO_PROCESSES, run, weights_and_history

from modeling_mae import MAEForPreTraining


pytestmark = pytest.mark.slow
WAYS = {"whole": {}, "by block": {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"}}
by_whole_and_block = pytest.mark.parametrize("way", WAYS)


def assert_near(compiled: Path, usual: Path) -> None:
    """The names are the same, and the values up to rounding."""
    weights, expected = (weights_and_history(folder)[0] for folder in (compiled, usual))
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


@by_whole_and_block
def test_a_compiled_run_leaves_the_model_that_any_run_leaves(tmp_path, recipe, way):
    options = {"ACCELERATE_DYNAMO_BACKEND": "eager", **WAYS[way]}
    sizes = ("--progressive_resizing", 0.5, 0.25)  # each is compiled anew
    run(recipe, "--output_dir", tmp_path / "usual", *sizes)
    words = (recipe, "--output_dir", tmp_path / "compiled", "--checkpoints_kept", 9, *sizes)
    assert "compiled by eager" in run(*words, **options)
    run(*words, "--resume_from_checkpoint", tmp_path / "compiled" / "checkpoint-7", **options)
    assert_near(tmp_path / "compiled", tmp_path / "usual")
    loaded = MAEForPreTraining.from_pretrained(tmp_path / "compiled").state_dict()
    weights = weights_and_history(tmp_path / "compiled")[0]
    assert all(torch.equal(value, loaded[name]) for name, value in weights.items())


@by_whole_and_block
def test_two_processes_leave_the_model_that_one_leaves(tmp_path, recipe, way):
    run(recipe, "--output_dir", tmp_path / "usual")
    dynamo = ("--dynamo_backend", "eager", *(["--dynamo_use_regional_compilation"] if WAYS[way] else []))
    launcher = (*TWO_PROCESSES["launcher"], *dynamo)
    output = run(recipe, "--output_dir", tmp_path / "compiled", **{**TWO_PROCESSES, "launcher": launcher})
    assert "2 processes" in output and "compiled by eager" in output
    assert_near(tmp_path / "compiled", tmp_path / "usual")


@by_whole_and_block
def test_a_compiled_evaluation_leaves_a_classifier(tmp_path, recipe, way):
    run(recipe, "--output_dir", tmp_path / "encoder", "--max_train_steps", 2)
    words = ("--model_name_or_path", tmp_path / "encoder", "--max_train_samples", 96, "--max_eval_samples", 64)
    words += ("--total_batch_size", 32, "--per_device_train_batch_size", 32, "--num_train_epochs", 1)
    words += ("--warmup_epochs", 0, "--n_partial", 1, "--auto_augment", "none", "--report_to", "none")
    run(*words, "--output_dir", tmp_path / "usual", script="run_eval.py")
    options = {"ACCELERATE_DYNAMO_BACKEND": "eager", **WAYS[way]}
    output = run(*words, "--output_dir", tmp_path / "compiled", script="run_eval.py", **options)
    assert "compiled by eager" in output
    assert_near(tmp_path / "compiled", tmp_path / "usual")
