"""The real command, as a user starts it."""

import json
import random
import re
import signal
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from conftest import (
    RECIPE,
    TWO_PROCESSES,
    Copies,
    assert_same_run,
    assert_same_weights,
    photograph,
    run,
    run_in_turn,
    start,
    weights_and_history,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

import modeling_mae  # noqa: F401 (registers the Auto classes)
from modeling_mae.data.find.sources import BUNDLED


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run without a break, and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "small.yaml").write_text(RECIPE)
    more = ("--knn", "true", "--report_to", "tensorboard", "--picture_epochs", 2)
    return folder / "run", run(folder / "small.yaml", "--output_dir", folder / "run", *more)


def test_run_leaves_what_it_promises(straight, recipe):
    folder, output = straight
    for name in (
        "model.safetensors config.json preprocessor_config.json arguments.json trainer_state.json loss.png README.md "
        "reconstruction.png knn.json pictures/reconstruction-epoch-0002.png pictures/reconstruction-epoch-0004.png"
    ).split():
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "tensorboard").rglob("events*"))
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-14", "checkpoint-20"}
    assert "32 = 1 process x 16 images x 2 accumulation steps" in output and "k-NN accuracy, raw pixels" in output
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history] == [3, 6, 9, 12, 15, 18, 20]
    assert history[-1]["loss"] < history[0]["loss"]
    # peak = 1e-2 x 32 / 256, reached after 5 updates; the entry at step 3 is of update 2
    assert history[0]["learning_rate"] == pytest.approx(1e-2 * 32 / 256 * 2 / 5)
    events = EventAccumulator(str(next((folder / "tensorboard").rglob("events*")).parent)).Reload()
    assert [event.step for event in events.Images("reconstruction")] == [10, 20, 20]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        [entry["loss"] for entry in history], rel=1e-5
    )
    model = AutoModel.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert model.config.num_channels == 1 and processor.crop_size["height"] == 28
    # mean and deviation as measured: of all pixels of the 160 images
    table = datasets.load_dataset("parquet", data_files=str(BUNDLED / "train*"), split="train")
    chosen = np.linspace(0, len(table) - 1, 160).round().astype(int)
    pixels = np.stack([np.asarray(image) for image in table.select(chosen)["image"]]) / 255
    np.testing.assert_allclose(
        [processor.image_mean, processor.image_std], [[pixels.mean()], [pixels.std()]], atol=1e-4
    )
    assert AutoModelForPreTraining.from_pretrained(folder)(torch.randn(2, 1, 28, 28)).loss.isfinite()
    refused = run(recipe, "--output_dir", folder, code=2)
    assert "already holds a run" in refused


def test_resume_is_exact(tmp_path, recipe, straight):
    stopped = Copies("run_pretrain.py", (recipe, "--output_dir", tmp_path / "resumed"))
    while not (tmp_path / "resumed" / "checkpoint-7").exists() and stopped.poll() is None:
        time.sleep(0.01)
    stopped.kill()
    stopped.communicate()
    # 7 + 13, whatever the kill left behind
    run(recipe, "--output_dir", tmp_path / "resumed", "--resume_from_checkpoint", tmp_path / "resumed/checkpoint-7")
    assert_same_run(straight[0], tmp_path / "resumed")


@pytest.mark.slow
def test_resume_is_exact_without_the_images_of_a_list(tmp_path, recipe):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(map(str, range(0, 12_000, 3))))
    command = (recipe, "--exclude", names)
    output = run(*command, "--output_dir", tmp_path / "straight")
    assert "160 images" in output and "4,000 of 12,000 images left out by names.txt" in output
    stopped = Copies("run_pretrain.py", (*command, "--output_dir", tmp_path / "resumed"))
    while not (tmp_path / "resumed" / "checkpoint-7").exists() and stopped.poll() is None:
        time.sleep(0.01)
    stopped.kill()
    stopped.communicate()
    words = (*command, "--output_dir", tmp_path / "resumed", "--resume_from_checkpoint")
    # Another list is another training.
    other = tmp_path / "other.txt"
    other.write_text("1\n2\n")
    refused = run(*words, tmp_path / "resumed/checkpoint-7", "--exclude", other, code=1)
    assert "data" in refused and "allow_changes" in refused
    run(*words, tmp_path / "resumed/checkpoint-7")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_signal_to_the_launcher_reaches_the_run(tmp_path, recipe):
    words = (recipe, "--output_dir", tmp_path / "run", "--max_train_steps", 100_000, "--checkpointing_steps", 100_000)
    process = start(*words, launcher=("--num_processes", "1", "--cpu"))
    output = ""
    for line in process.stdout:  # until the run has ended, too: it holds the other end
        output += line
        if line.startswith("update 3/"):
            process.terminate()
    process.wait()
    assert "stopped by SIGTERM" in output and len(list((tmp_path / "run").glob("checkpoint-*"))) == 1, output


def test_signal_writes_a_checkpoint_and_says_how_to_go_on(tmp_path, recipe, straight):
    process = Copies("run_pretrain.py", (recipe, "--output_dir", tmp_path / "run", "--checkpointing_steps", 1000))
    process.wait_for_line("update 3/")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "--resume_from_checkpoint auto goes on" in output and "Traceback" not in output
    run(recipe, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "auto")
    assert_same_run(straight[0], tmp_path / "run")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, recipe, straight):
    moments = random.Random(0)
    for attempt in range(5):
        folder = tmp_path / f"killed-{attempt}"
        process = start(recipe, "--output_dir", folder, "--checkpointing_steps", 2)
        while not list(folder.glob("checkpoint-*")) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.5)
        process.kill()
        process.communicate()
        run(recipe, "--output_dir", folder, "--checkpointing_steps", 2, "--resume_from_checkpoint", "auto")
        assert_same_run(straight[0], folder)


def test_two_processes_train_as_one(tmp_path, recipe, straight):
    output = run(recipe, "--output_dir", tmp_path / "two", **TWO_PROCESSES)
    assert "32 = 2 processes x 16 images x 1 accumulation step" in output
    (weights, history), (others, other_history) = (
        weights_and_history(straight[0]),
        weights_and_history(tmp_path / "two"),
    )
    losses = [[entry["loss"] for entry in log] for log in (history, other_history)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=2e-4, rtol=1e-3, msg=name)
    # both go on exactly, each with its own random state
    resume = ("--resume_from_checkpoint", tmp_path / "two" / "checkpoint-14", "--output_dir", tmp_path / "resumed")
    run(recipe, *resume, **TWO_PROCESSES)
    resumed, log = weights_and_history(tmp_path / "resumed")
    assert_same_weights(resumed, others)
    assert log == [entry for entry in other_history if entry["step"] > 14]


def test_loss_that_is_not_finite_stops_the_run(tmp_path, recipe):
    output = run(recipe, "--output_dir", tmp_path / "run", "--base_learning_rate", "1e6", "--warmup_epochs", 0, code=1)
    assert "not finite" in output or "is nan" in output or "is inf" in output
    assert "lower --base_learning_rate" in output
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_good_checkpoint_outlives_a_loss_that_is_not_finite(tmp_path, recipe):
    command = (recipe, "--output_dir", tmp_path / "run")
    run(*command, "--max_train_steps", 7)
    kept = (tmp_path / "run" / "checkpoint-7" / "model.safetensors").read_bytes()
    output = run(
        *command, "--resume_from_checkpoint", "auto", "--base_learning_rate", "1e6", "--allow_changes", "true", code=1
    )
    assert "go on from" in output and "checkpoint-7 with --resume_from_checkpoint" in output
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-7"]
    assert (tmp_path / "run" / "checkpoint-7" / "model.safetensors").read_bytes() == kept


@pytest.mark.slow
def test_what_comes_after_the_training_can_fail(tmp_path, recipe):
    """Going on with a finished run, from its weights, and an upload that cannot be."""
    output_dir = tmp_path / "run"
    push = ("--push_to_hub", "true", "--hub_model_id", "me/small")
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0"}
    output = run(recipe, "--output_dir", output_dir, *push, code=1, **offline)
    assert f"hf upload me/small {output_dir}" in output
    weights, history = weights_and_history(output_dir)
    run(recipe, "--output_dir", output_dir, "--resume_from_checkpoint", "auto")
    again, same_history = weights_and_history(output_dir)
    assert history == same_history
    assert_same_weights(again, weights)
    words = ("--max_train_steps", 1, "--warmup_epochs", 0, "--base_learning_rate", "1e-12", "--weight_decay", 0)
    words += ("--config_overrides", "mask_ratio=0.5", "--max_train_samples", 33, "--knn", "true")
    run(recipe, "--output_dir", tmp_path / "further", "--model_name_or_path", output_dir, *words)
    further, _ = weights_and_history(tmp_path / "further")
    for name, value in weights.items():
        torch.testing.assert_close(further[name], value, atol=1e-9, rtol=1e-6)
    assert AutoModel.from_pretrained(tmp_path / "further").config.mask_ratio == 0.5


def test_photographs_from_a_folder(tmp_path, recipe):
    photos = tmp_path / "photos"
    for split, count in (("train", 33), ("test", 6)):
        for name in ("cat", "dog"):
            (photos / split / name).mkdir(parents=True)
            for i in range(count // 2):
                photograph(photos / split / name / f"{i}.jpg", i)
    command = (recipe, "--train_dir", photos, "--max_train_steps", 3, "--config_overrides", "num_channels=3")
    output = run(*command, "--output_dir", tmp_path / "run", "--dataloader_num_workers", 1, "--knn", "true")
    assert "photos: 32 images" in output and "from files" in output and "trained encoder" in output


def test_a_broken_image_that_a_loading_process_finds(tmp_path, recipe):
    """Not among those that are looked at before training."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(48):
        photograph(photos / f"{i:02}.jpg", i)
    (photos / "01.jpg").write_text("no image")
    words = ("--dataloader_num_workers", 1, "--config_overrides", "num_channels=3", "--max_train_steps", 3)
    output = run(recipe, "--train_dir", photos, "--output_dir", tmp_path / "run", *words, code=1)
    (error,) = [line for line in output.splitlines() if "error" in line]
    assert re.match(r"run_pretrain.py: error: \S+01.jpg is not a readable image", error)


def test_files_of_every_kind_and_broken_ones(tmp_path, recipe):
    """Without labels, without a test split, too few for eight pictures or twenty neighbours."""
    photos = tmp_path / "photos"
    photos.mkdir()
    photograph().convert("RGBA").save(photos / "alpha.png")
    photograph().convert("LA").save(photos / "gray.png")
    photograph().convert("CMYK").save(photos / "cmyk.jpg")
    photograph().quantize(16).save(photos / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(photos / "turned.jpg", exif=exif)
    command = (recipe, "--train_dir", photos, "--max_train_steps", 3, "--knn", "true", "--total_batch_size", 4)
    command += ("--per_device_train_batch_size", 4, "--config_overrides", "num_channels=3")
    output = run(*command, "--output_dir", tmp_path / "run")
    assert "photos: 5 images" in output and "no k-NN accuracy" in output
    (photos / "text.jpg").write_text("no image")
    whole = (photos / "turned.jpg").read_bytes()
    (photos / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    for broken, other in (("text.jpg", "truncated.jpg"), ("truncated.jpg", "text.jpg")):
        (photos / other).rename(tmp_path / other)
        output = run(*command, "--output_dir", tmp_path / "bad", "--overwrite_output_dir", "true", code=1)
        assert broken in output and "--on_bad_image skip" in output
        (tmp_path / other).rename(photos / other)
    for workers in (0, 2):
        words = ("--on_bad_image", "skip", "--dataloader_num_workers", workers, "--max_train_steps", 6)
        output = run(*command, "--output_dir", tmp_path / f"skipped-{workers}", *words)
        assert "skipped    2 of 7 images" in output and output.count("text.jpg") == output.count("truncated.jpg") == 1
        assert "| bad images skipped | 2 |" in (tmp_path / f"skipped-{workers}" / "README.md").read_text()
    (tmp_path / "empty").mkdir()
    message_by_words = {
        ("--train_dir", tmp_path / "empty"): "has no images (empty)",
        ("--train_dir", tmp_path / "photoz"): f"did you mean {str(photos)!r}",
        ("--total_batch_size", 8): "total_batch_size 8 is more than the 7 images there are",
    }
    command += ("--output_dir", tmp_path / "refused", "--on_bad_image", "skip", "--per_device_train_batch_size", 2)
    ends = run_in_turn(*((*command, *words) for words in message_by_words))
    for (code, output), message in zip(ends, message_by_words.values(), strict=True):
        assert code == 1 and message in output, output


def test_wrong_arguments_are_one_line(tmp_path, recipe):
    message_by_words = {
        ("--learning_rte", "1"): "unknown option",
        ("--train_dir", tmp_path / "nowhere"): "does not exist",
        ("--total_batch_size", "500"): "not a multiple",
    }
    ends = run_in_turn(*((recipe, "--output_dir", tmp_path / "run", *words) for words in message_by_words))
    for (code, output), message in zip(ends, message_by_words.values(), strict=True):
        assert code and message in output, output
