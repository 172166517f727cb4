"""Our models under transformers' own Trainer, with its ViT as the truth."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trained_by_trainer import one_update


TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", ["EvalNet", "ViT", "MAE"])
def test_accumulation_changes_neither_update_nor_loss(tmp_path, name):
    whole = one_update(name, 16, tmp_path)
    for micro_batch in (8, 4):
        found = one_update(name, micro_batch, tmp_path)
        assert found["update"] == pytest.approx(whole["update"], rel=1e-4)
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-3)  # it is rounded


def test_evaluate_of_a_pretraining_gives_its_loss(tmp_path):
    found = one_update("MAE", 16, tmp_path)
    assert 0 < found["eval_loss"] < 10


@pytest.mark.ecosystem
@pytest.mark.parametrize("name", ["EvalNet", "ViT"])
def test_processes_change_neither_update_nor_loss(tmp_path, name):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [*launcher, TESTS / "trained_by_trainer.py", name, "8", tmp_path],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"')))
    alone = one_update(name, 16, tmp_path)
    assert found["update"] == pytest.approx(alone["update"], rel=1e-4)
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-3)
