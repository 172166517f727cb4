"""run_eval.py, as a user starts it."""

import json
import time

import datasets
import numpy as np
import pytest
import torch
from conftest import (
    TINY_GRAY,
    TWO_PROCESSES,
    Copies,
    assert_same_run,
    assert_same_weights,
    run_in_turn,
    weights_and_history,
)
from conftest import run as run_script
from flat import load_source
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.evaluation import predict


RECIPE = """
model_name_or_path: CHECKPOINT
eval_crop_fraction: 1.0
max_train_samples: 320
max_eval_samples: 103
total_batch_size: 32
per_device_train_batch_size: 16
per_device_eval_batch_size: 10
num_train_epochs: 2
warmup_epochs: 0.5
checkpointing_steps: 7
logging_steps: 3
dataloader_num_workers: 1
report_to: none
linear_overrides: {base_learning_rate: 5.0, config_overrides: {pooling: mean}}
"""


def run(*arguments, **options):
    return run_script(*arguments, script="run_eval.py", **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    MAEForPreTraining(MAEConfig(**TINY_GRAY)).save_pretrained(folder)
    image_processor((28, 28), [0.2], [0.3], 1).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(checkpoint, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("CHECKPOINT", str(checkpoint)))
    return path


def test_all_strategies_in_one_call(tmp_path, recipe):
    folder = tmp_path / "run"
    options = ("--from_scratch", "true", "--knn", "true", "--save_predictions", "true", "--label_fraction", 0.5)
    options += ("--feature_layers", 1, "--feature_pooling", "mean_deviation", "attention")
    output = run(recipe, "--output_dir", folder, "--n_partial", 0, 0.5, 1, 2, *options)
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())}
    frozen = ["raw pixels", "untrained encoder", "pre-trained encoder"]
    runs = ["n_partial-0", "n_partial-0.5", "n_partial-1", "n_partial-2", "from-scratch"]
    readouts = ["mean_deviation, block 1", "attention, block 1"]
    assert list(rows) == frozen + readouts + runs
    for name in readouts:
        assert 0.1 < rows[name]["probe"] < 1 and f"{100 * rows[name]['probe']:.1f}" in output.split("\n\n")[-2]
    assert "logistic_regression" in rows[readouts[0]] and "knn" not in rows[readouts[1]]
    assert all(0 < rows[name]["logistic_regression"] < 1 and set(rows[name]["knn"]) == {"10", "20", "100", "200"}
               for name in frozen)  # fmt: skip
    # head 16 x 10 + 10; the block's MLP 2 x 16 x 32 + 48 and its norm 32; the final norm 32
    tuned = [rows[name]["tuned_parameters"] for name in runs[:2]]
    assert tuned == [170, 170 + 32 + 32 + 2 * 16 * 32 + 48]
    for name in runs:
        assert rows[name]["images"] == 160 and f"{100 * rows[name]['accuracy']:.1f}" in output
        predictions = datasets.Dataset.from_parquet(str(folder / name / "predictions.parquet"))
        right = np.mean(np.array(predictions["label"]) == np.array(predictions["prediction"]))
        assert len(predictions) == 103 and rows[name]["accuracy"] == pytest.approx(right)
        confusion = np.array(rows[name]["confusion_matrix"])
        assert confusion.sum() == 103 and confusion.trace() == round(103 * right)
        for file in "confusion.png training.png trainer_state.json arguments.json last/model.safetensors".split():
            assert (folder / name / file).stat().st_size > 0
        log = json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
        accuracies = [entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry]
        assert len(accuracies) == 2 and max(accuracies) == pytest.approx(right)
        metrics = {
            result.metric_type: result for result in ModelCard.load(folder / name / "README.md").data.eval_results
        }
        assert metrics["accuracy"].metric_value == pytest.approx(right, abs=1e-5)
        assert metrics["accuracy"].dataset_name == "fashion_mnist" and metrics["accuracy"].dataset_split == "test"
    assert (folder / "partial.png").stat().st_size > 0
    settings = json.loads((folder / "n_partial-0" / "arguments.json").read_text())
    assert settings["optimizer"] == "lars" and settings["base_learning_rate"] == 5.0 and settings["mixup"] == 0
    assert json.loads((folder / "n_partial-1" / "arguments.json").read_text())["optimizer"] == "adamw"
    # what `mae predict` says of the same images
    images = load_source(split="test", max_samples=103).dataset
    said = predict(folder / "n_partial-2", images, num_workers=0)
    written = datasets.Dataset.from_parquet(str(folder / "n_partial-2" / "predictions.parquet"))
    names = images.features["label"].names
    assert said["prediction"].tolist() == [names[i] for i in written["prediction"]]
    assert said["label"].tolist() == [names[i] for i in written["label"]]
    assert (said["prediction"] == said["label"]).mean() == pytest.approx(rows["n_partial-2"]["accuracy"])
    np.testing.assert_allclose(said["confidence"], written["confidence"], atol=1e-6)
    for place in range(1, 5):
        assert said[f"prediction_{place + 1}"].tolist() == [names[top[place]] for top in written["top5"]]
    model = AutoModelForImageClassification.from_pretrained(folder / "n_partial-2").eval()
    assert model.config.id2label[9] == "Ankle boot"
    processor = AutoImageProcessor.from_pretrained(folder / "n_partial-2")
    assert list(processor.image_mean) == [0.2] and list(processor.image_std) == [0.3]  # the checkpoint's
    # going on with what is finished does nothing but show it
    again = run(recipe, "--output_dir", folder, "--n_partial", 0, 0.5, 1, 2, *options[:2], "--label_fraction", 0.5,
                "--resume_from_checkpoint", "auto")  # fmt: skip
    assert "update" not in again and f"{100 * rows['from-scratch']['accuracy']:.1f}" in again


@pytest.mark.slow
def test_going_on_with_what_is_finished(tmp_path, recipe):
    """Results of other settings are never shown as those that were asked for."""
    words = (recipe, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "auto")
    first, *ends = run_in_turn(
        (*words, "--n_partial", 1),
        (*words, "--n_partial", 1),
        (*words, "--n_partial", 1, "--eval_crop_fraction", 0.5),
        (*words, "--n_partial", 2),
        (*words, "--n_partial", 1, "--num_train_epochs", 1),
        (*words, "--n_partial", 1, "--num_train_epochs", 3),
        (*words, "--n_partial", 1, "--num_train_epochs", 3, "--eval_crop_fraction", 0.5, "--allow_changes", "true"),
        script="run_eval.py",
    )
    codes, (same, crop, blocks, shorter, longer, allowed) = zip(*ends, strict=True)
    assert first[0] == 0 and codes == (0, 1, 1, 1, 0, 0)
    assert "update" not in same and same.splitlines()[-1] == first[1].splitlines()[-1]
    assert "finished results of other settings (eval_crop_fraction 1.0 -> 0.5)" in crop and "--allow_changes" in crop
    assert "holds the results of n_partial-1, not of n_partial-2: give another --output_dir" in blocks
    assert "is at update 20, but the run has only 10" in shorter
    assert "goes on with the new ones" in longer and "length 20 -> 30 updates: the rate follows" in longer
    assert "update 21/30" in longer and "update 20/30" not in longer and "update 30/30" in longer
    note = "n_partial-1 was finished with other settings (eval_crop_fraction 1.0 -> 0.5): it goes on with the new ones"
    assert note in allowed and "update " not in allowed.replace("from update 30 of", "")
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    assert row["epochs"] == 3
    tested = ("--model_name_or_path", tmp_path / "run", "--do_train", "false", "--output_dir", tmp_path / "test")
    run(recipe, *tested, "--eval_crop_fraction", 0.5)
    assert json.loads((tmp_path / "test" / "results.json").read_text())[0]["accuracy"] == row["accuracy"]


@pytest.mark.slow
def test_going_on_from_scratch_keeps_mean_and_deviation(tmp_path, recipe, checkpoint):
    """They are written into the checkpoint by hand, as no image would give them."""
    words = (recipe, "--output_dir", tmp_path / "run", "--from_scratch", "true", "--config_name", checkpoint)
    assert "mean [0.125]" not in run(*words, "--num_train_epochs", 1)
    for manifest in (tmp_path / "run").glob("checkpoint-*/manifest.json"):
        content = json.loads(manifest.read_text())
        content["made_with"] |= {"mean": [0.125], "std": [0.375]}
        manifest.write_text(json.dumps(content))
    output = run(*words, "--num_train_epochs", 2, "--resume_from_checkpoint", "auto")
    assert "mean [0.125], std [0.375]" in output and "update 20/20" in output


def test_a_killed_run_goes_on_exactly(tmp_path, recipe):
    """With everything that draws random numbers: RandAugment, erasing, mixup, cutmix, drop path."""
    command = (recipe, "--n_partial", 2, "--config_overrides", "drop_path_rate=0.5")
    run(*command, "--output_dir", tmp_path / "straight")
    stopped = Copies("run_eval.py", (*command, "--output_dir", tmp_path / "killed"))
    while not (tmp_path / "killed" / "checkpoint-7").exists() and stopped.poll() is None:
        time.sleep(0.01)
    stopped.kill()
    stopped.communicate()
    run(*command, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", tmp_path / "killed/checkpoint-7")
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    assert_same_weights(
        *(load_file(tmp_path / name / "last" / "model.safetensors") for name in ("straight", "killed"))
    )
    _, history = weights_and_history(tmp_path / "straight")
    assert sum("eval_accuracy" in entry for entry in history) == 2


@pytest.mark.slow
def test_a_killed_run_with_patience_ends_where_the_other_ends(tmp_path, recipe):
    """No weight changes at this rate, so no epoch is better than the first, and the third is the last of 6."""
    command = (recipe, "--n_partial", 2, "--patience", 2, "--base_learning_rate", 1e-30, "--min_learning_rate", 0)
    command += ("--num_train_epochs", 6)
    run(*command, "--output_dir", tmp_path / "straight")
    _, history = weights_and_history(tmp_path / "straight")
    assert [entry["step"] for entry in history if "eval_accuracy" in entry] == [10, 20, 30]
    assert max(entry["step"] for entry in history) == 30
    for stop in (7, 28):  # before the best epoch's evaluation, and while the patience runs
        killed = tmp_path / f"killed-{stop}"
        stopped = Copies("run_eval.py", (*command, "--checkpoints_kept", 99, "--output_dir", killed))
        while not (killed / f"checkpoint-{stop}").exists() and stopped.poll() is None:
            time.sleep(0.01)
        stopped.kill()
        stopped.communicate()
        run(*command, "--output_dir", killed, "--resume_from_checkpoint", killed / f"checkpoint-{stop}")
        assert_same_run(tmp_path / "straight", killed)


def test_two_processes_test_as_one(tmp_path, recipe):
    run(recipe, "--output_dir", tmp_path / "trained", "--n_partial", 1, "--num_train_epochs", 1)
    command = (
        recipe,
        "--model_name_or_path",
        tmp_path / "trained",
        "--do_train",
        "false",
        "--save_predictions",
        "true",
    )
    run(*command, "--output_dir", tmp_path / "one")
    run(*command, "--output_dir", tmp_path / "two", "--per_device_eval_batch_size", 9, **TWO_PROCESSES)
    (one,), (two,) = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one.pop("loss") == pytest.approx(two.pop("loss")) and one == two
    predictions = [datasets.Dataset.from_parquet(str(tmp_path / f / "predictions.parquet")) for f in ("one", "two")]
    assert predictions[0]["top5"][:] == predictions[1]["top5"][:] and len(predictions[0]) == 103
    np.testing.assert_allclose(predictions[0]["confidence"], predictions[1]["confidence"], rtol=1e-5)
    trained = json.loads((tmp_path / "trained" / "results.json").read_text())[0]
    assert trained["accuracy"] == one["accuracy"]


def test_own_folders(tmp_path, recipe):
    """16-bit gray PNGs by class, another image size than the checkpoint's, and what can be wrong with labels."""
    generator = np.random.default_rng(0)
    photos, other = tmp_path / "photos", tmp_path / "other"
    for folder, classes in (
        (photos / "train", ("dark", "light", "mid")),
        (photos / "test", ("dark", "light")),
        (other, ("red", "dark")),
    ):
        for name in classes:
            (folder / name).mkdir(parents=True)
            for i in range(16):
                top = {"dark": 9000, "light": 65535}.get(name, 30000)
                pixels = generator.integers(top // 2, top, (40, 36), dtype=np.uint16)
                Image.fromarray(pixels).save(folder / name / f"{i}.png")
    words = (recipe, "--train_dir", photos, "--output_dir", tmp_path / "run", "--total_batch_size", 16)
    words += ("--n_partial", 2, "--config_overrides", "image_size=35", "--max_train_samples", 48)
    output = run(*words, "--num_train_epochs", 6, "--mixup", 0, "--cutmix", 0, "--auto_augment", "none",
                 "--base_learning_rate", 0.05, "--layer_decay", 1)  # fmt: skip
    assert "1 of 3 classes have no evaluation image: mid" in output
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    assert row["per_class_accuracy"][2] is None and row["accuracy"] > 0.9
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert "checkpoint for images of (28, 28) pixels: its positions are interpolated to (35, 35)" in output
    assert model.config.image_size == 35 and model.config.id2label == {0: "dark", 1: "light", 2: "mid"}
    # a classifier of three classes as the start of one of two, with what it was trained for another size
    words = (recipe, "--train_dir", photos / "test", "--validation_dir", photos / "test")
    words += ("--model_name_or_path", tmp_path / "run", "--output_dir", tmp_path / "two", "--total_batch_size", 16)
    run(
        *words,
        "--n_partial",
        1,
        "--num_train_epochs",
        1,
        "--max_train_samples",
        32,
        "--auto_augment",
        "none",
        "--resume_from_checkpoint",
        "auto",
    )
    two = AutoModelForImageClassification.from_pretrained(tmp_path / "two")
    assert two.config.id2label == {0: "dark", 1: "light"} and two.head.weight.shape == (2, 16)
    first = "layers.0.mlp.fc1.weight"
    assert torch.equal(two.mae.state_dict()[first], model.mae.state_dict()[first])
    words = (recipe, "--output_dir", tmp_path / "refused", "--total_batch_size", 16)
    message_by_words = {
        (
            "--train_dir",
            photos / "train",
            "--validation_dir",
            other,
        ): "the training images do not have (red)",
        ("--train_dir", photos / "train"): "--validation_dir",
        ("--train_dir", photos / "train" / "dark", "--validation_dir", photos / "test"): "no column of labels",
        ("--do_train", "false"): "has no classifier to test",
        ("--n_partial", 1, 0, "--linear_overrides", "total_batch_size=512"): (
            "n_partial-0: total_batch_size 512 is more"
        ),
        ("--n_partial", 3): "n_partial 3 does not work: give 0 (head only)",
        ("--model_name_or_path", tmp_path / "nowhere"): "is neither a folder here nor a Hub id",
    }
    ends = run_in_turn(*((*words, *more) for more in message_by_words), script="run_eval.py")
    for (code, output), message in zip(ends, message_by_words.values(), strict=True):
        assert code and message in output, output
