"""Runs on unknown images, by the real command: nothing given but the images and, for speed, a tiny encoder."""

import json
import math

import pytest
import yaml
from conftest import TWO_PROCESSES, assert_same_run, assert_same_weights, run, weights_and_history

from modeling_mae.training.manifest import checkpoints_in, read_manifest


ENCODER = ("hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=32")
TINY = ("--config_overrides", *ENCODER, "patch_size=7", "decoder_hidden_size=16", "decoder_num_hidden_layers=1")
WORDS = ("own_images", "--max_train_samples", 160, "--eval_every_epochs", 0, "--report_to", "none", *TINY)
# About a second and a half: a few epochs, how many depends on the machine.
HOURS = ("--max_hours", "0.0004", "--checkpointing_steps", 5)


def arguments_of(folder) -> dict:
    return json.loads((folder / "arguments.json").read_text())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run that chose its settings and its length, and what it printed."""
    folder = tmp_path_factory.mktemp("own") / "run"
    return folder, run(*WORDS, *HOURS, "--checkpoints_kept", 100, "--output_dir", folder)


def test_trials_leave_no_trace_in_the_weights(fitted, tmp_path):
    folder, output = fitted
    arguments = arguments_of(folder)
    # 160 images of 28 x 28 in gray: 160 / 20 = 8 images an update
    assert (arguments["total_batch_size"], arguments["crop_scale"]) == (8, [0.6, 1.0])
    assert {"num_channels=1", "image_size=28"} <= set(arguments["config_overrides"])
    epochs, warmup = arguments["num_train_epochs"], arguments["warmup_epochs"]
    assert epochs > 0 and epochs * 100 == pytest.approx(round(epochs * 100)) and warmup == pytest.approx(epochs / 20)
    assert f"num_train_epochs={epochs:g}: an epoch takes" in output and f"{math.ceil(20 * epochs):,} updates" in output
    # The recipe that was decided: no trial, and the same weights to the last bit.
    again = run(folder / "recipe.yaml", "--output_dir", tmp_path / "again")
    assert "chosen" not in again
    assert_same_run(folder, tmp_path / "again")
    manifest = read_manifest(checkpoints_in(folder)[0])["made_with"]
    assert manifest["chosen"]["num_train_epochs"] == epochs and manifest["chosen"]["image_size"] == 28
    assert "chosen" not in read_manifest(checkpoints_in(tmp_path / "again")[0])["made_with"]


def test_a_plan_is_decided_and_nothing_is_trained(tmp_path):
    output = run(*WORDS, "--max_train_steps", 3, "--plan", "true", "--output_dir", tmp_path / "plan")
    plan = yaml.safe_load((tmp_path / "plan" / "recipe.yaml").read_text())
    # 160 images of 28 x 28 in gray, as above; 3 updates of 20 an epoch
    assert plan["total_batch_size"] == 8 and plan["num_train_epochs"] == pytest.approx(0.15)
    assert plan["config_overrides"]["image_size"] == 28 and len(plan["image_mean"]) == 1
    assert "# total_batch_size=8: " in output and "total_batch_size: 8" in output and "update 3/3" not in output
    names = {path.name for path in (tmp_path / "plan").iterdir()}
    assert "recipe.yaml" in names and not {"model.safetensors", "history.jsonl", "README.md"} & names
    run(tmp_path / "plan" / "recipe.yaml")  # into the folder of the plan
    assert (tmp_path / "plan" / "model.safetensors").exists()


@pytest.mark.slow
def test_going_on_keeps_what_was_chosen(fitted, tmp_path):
    folder, _ = fitted
    early = min(checkpoints_in(folder), key=lambda path: int(path.name.rpartition("-")[2]))
    assert int(early.name.rpartition("-")[2]) == 5, "a busy machine leaves time for fewer updates, but for some"
    resume = ("--resume_from_checkpoint", early)
    output = run(*WORDS, *HOURS, *resume, "--output_dir", tmp_path / "on")
    assert "as when the run began" in output and "an epoch takes" not in output and "changed" not in output
    assert_same_weights(weights_and_history(folder)[0], weights_and_history(tmp_path / "on")[0])
    lengths = [{key: arguments_of(path)[key] for key in ("num_train_epochs", "warmup_epochs", "total_batch_size")}
               for path in (folder, tmp_path / "on")]  # fmt: skip
    assert lengths[0] == lengths[1]
    # A longer run is asked for by giving its length; other images and other settings are refused by name.
    longer = run(*WORDS, *resume, "--num_train_epochs", 40, "--max_train_steps", 16, "--output_dir", tmp_path / "b")
    assert "changed    length" in longer
    refused = run(*WORDS[:1], "--max_train_samples", 150, *WORDS[3:], *resume, "--output_dir", tmp_path / "c", code=1)
    assert "data 160 images" in refused and "-> 150 images" in refused
    refused = run(*WORDS, "--total_batch_size", 16, *resume, "--output_dir", tmp_path / "d", code=1)
    assert "total_batch_size 8 -> 16" in refused


@pytest.mark.slow
def test_two_processes_choose_the_same(tmp_path):
    output = run(*WORDS, *HOURS, "--auto_batch_size", "true", "--output_dir", tmp_path / "two", **TWO_PROCESSES)
    assert "8 = 2 processes x 4 images x 1 accumulation step" in output
    assert output.count("an epoch takes") == 1 and output.count("only works on a GPU") == 1
    assert arguments_of(tmp_path / "two")["per_device_train_batch_size"] == 4
