"""Runs under torch.compile, as `accelerate launch --dynamo_backend` sets it up. The backend here is one that needs no
C++ compiler: what is compiled stays what it is."""

import pytest
import torch
from conftest import run, weights_and_history

from modeling_mae import MAEForPreTraining


WAYS = {"whole": {}, "by block": {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"}}


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_run_leaves_the_model_that_any_run_leaves(tmp_path, recipe, way):
    options = {"ACCELERATE_DYNAMO_BACKEND": "eager", **WAYS[way]}
    run(recipe, "--output_dir", tmp_path / "usual")
    words = (recipe, "--output_dir", tmp_path / "compiled", "--checkpoints_kept", 9)
    run(*words, **options)
    run(*words, "--resume_from_checkpoint", tmp_path / "compiled" / "checkpoint-7", **options)
    (usual, history), (compiled, other) = (weights_and_history(tmp_path / name) for name in ("usual", "compiled"))
    assert [entry["loss"] for entry in other] == pytest.approx([entry["loss"] for entry in history], rel=1e-5)
    torch.testing.assert_close(compiled, usual, rtol=1e-4, atol=1e-5)
    loaded = MAEForPreTraining.from_pretrained(tmp_path / "compiled").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in compiled.items())


def test_a_compiled_evaluation_leaves_a_classifier(tmp_path, recipe):
    run(recipe, "--output_dir", tmp_path / "encoder", "--max_train_steps", 2)
    words = ("--model_name_or_path", tmp_path / "encoder", "--max_train_samples", 96, "--max_eval_samples", 64)
    words += ("--total_batch_size", 32, "--per_device_train_batch_size", 32, "--num_train_epochs", 1)
    words += ("--warmup_epochs", 0, "--n_partial", 1, "--auto_augment", "none", "--report_to", "none")
    for name, backend in {"usual": "no", "compiled": "eager"}.items():
        run(*words, "--output_dir", tmp_path / name, script="run_eval.py", ACCELERATE_DYNAMO_BACKEND=backend)
    usual, compiled = (weights_and_history(tmp_path / name)[0] for name in ("usual", "compiled"))
    torch.testing.assert_close(compiled, usual, rtol=1e-4, atol=1e-5)
