"""run_eval.py for several labels an image and for regression, as a user starts it."""

import json

import datasets
import numpy as np
import pytest
import torch
from conftest import TINY_GRAY, copied
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.evaluation import predict
from modeling_mae.tasks import NUMBERS, SEVERAL_CLASSES


SMALL = {**TINY_GRAY, "image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    MAEForPreTraining(MAEConfig(**SMALL)).save_pretrained(folder)
    image_processor((16, 16), [0.3], [0.3], 1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Quarters that are light or dark. `labels`: which are light, `light`: how light the image is on the whole."""
    folder = tmp_path_factory.mktemp("toys")
    generator = np.random.default_rng(0)
    for split, count in (("train", 384), ("test", 128)):
        rows = {"image": [], "quarters": [], "vectors": [], "light": [], "corners": []}
        for _ in range(count):
            on = generator.random(4) < 0.4
            levels = np.where(on, 150.0, 20.0).reshape(2, 2)
            pixels = (np.kron(levels, np.ones((8, 8))) + generator.uniform(0, 60, (16, 16))).astype(np.uint8)
            rows["image"].append(Image.fromarray(pixels))
            rows["quarters"].append(np.flatnonzero(on).tolist())
            rows["vectors"].append(on.astype(float).tolist())
            rows["light"].append(4.0 + pixels.mean() / 60)
            rows["corners"].append([pixels[:8, :8].mean() / 60, pixels[8:, 8:].mean() / 60])
        names = datasets.Sequence(datasets.ClassLabel(names=["north-west", "north-east", "south-west", "south-east"]))
        numbers = datasets.Value("float32")
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "quarters": names,
                "vectors": datasets.Sequence(numbers),
                "light": numbers,
                "corners": datasets.Sequence(numbers),
            }
        )
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def run(*words, fails=False):
    code, output = copied("run_eval.py", words)
    assert bool(code) == fails and "Traceback" not in output, output
    return output


def words_for(checkpoint, toys, column, folder):
    return (
        *("--model_name_or_path", checkpoint, "--train_dir", toys, "--label_column_name", column),
        *("--output_dir", folder, "--report_to", "none", "--eval_crop_fraction", 1, "--crop_scale", 1, 1),
        *("--horizontal_flip", "false", "--total_batch_size", 32, "--per_device_train_batch_size", 32),
        *("--warmup_epochs", 1, "--auto_augment", "none", "--random_erasing", 0, "--layer_decay", 1),
        *("--dataloader_num_workers", 0),
    )


@pytest.mark.slow
def test_several_labels_from_images_to_pipeline(checkpoint, toys, tmp_path):
    folder = tmp_path / "run"
    words = words_for(checkpoint, toys, "quarters", folder)
    output = run(*words, "--n_partial", 0, 2, "--num_train_epochs", 20, "--base_learning_rate", 0.03,
                 "--eval_epochs", 5, "--knn", "true", "--save_predictions", "true", "--label_fraction", 0.75,
                 "--linear_overrides", "base_learning_rate=2")  # fmt: skip
    assert "4 classes, several per image" in output and "label_fraction 0.75: a random part" in output
    assert "mixup and cutmix mix the labels" in output
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())}
    for name in ("raw pixels", "untrained encoder", "pre-trained encoder"):
        assert 0.4 < rows[name]["logistic_regression"] <= 1 and rows[name]["knn"]["10"] > 0.4
    assert rows["raw pixels"]["logistic_regression"] > 0.95
    chance = 0.4
    assert rows["n_partial-0"]["mean_average_precision"] > chance + 0.1 and rows["n_partial-0"]["images"] == 288
    best = rows["n_partial-2"]
    assert best["mean_average_precision"] > 0.9 and best["f1_micro"] > 0.8 and best["f1_macro"] > 0.8
    log = json.loads((folder / "n_partial-2" / "trainer_state.json").read_text())["log_history"]
    precisions = [entry["eval_mean_average_precision"] for entry in log if "eval_mean_average_precision" in entry]
    assert max(precisions) == pytest.approx(best["mean_average_precision"])
    assert precisions[-1] == best["last_mean_average_precision"]
    table = (folder / "results.txt").read_text()
    assert "mAP" in table and "F1 macro" in table and "logistic regr." in table and "accuracy" not in table
    card = (folder / "n_partial-2" / "README.md").read_text()
    assert "| mean average precision |" in card and "| north-west |" in card and "confusion" not in card
    assert "best mean average precision" in card and "sigmoid" in card
    assert (folder / "partial.png").exists() and (folder / "n_partial-2" / "training.png").exists()
    predictions = datasets.Dataset.from_parquet(str(folder / "n_partial-2" / "predictions.parquet"))
    truth = datasets.Dataset.from_parquet(str(toys / "test.parquet"))["quarters"][:]
    assert predictions["label"][:] == truth
    scores = np.array(predictions["scores"][:])
    assert scores.shape == (128, 4)
    assert predictions["prediction"][0] == np.flatnonzero(scores[0] > 0.5).tolist()
    said = predict(folder / "n_partial-2", toys / "test.parquet", label_column_name="quarters", num_workers=0)
    names = ["north-west", "north-east", "south-west", "south-east"]
    np.testing.assert_allclose(said[[f"score_{name}" for name in names]], scores, atol=1e-5)
    assert [[names.index(name) for name in row] for row in said["prediction"]] == predictions["prediction"][:]
    assert [[names.index(name) for name in row] for row in said["label"]] == truth
    # as anyone opens it: sigmoid scores, with names
    model = AutoModelForImageClassification.from_pretrained(folder / "n_partial-2").eval()
    assert model.config.problem_type == SEVERAL_CLASSES.name and model.config.id2label[3] == "south-east"
    processor = AutoImageProcessor.from_pretrained(folder / "n_partial-2")
    classify = pipeline("image-classification", model=model, image_processor=processor)
    image = datasets.Dataset.from_parquet(str(toys / "test.parquet"))["image"][0]
    found = {row["label"]: row["score"] for row in classify(image)}
    for i, name in model.config.id2label.items():
        assert found[name] == pytest.approx(scores[0, i], abs=1e-3)
    # tested alone, with the other way to write the same labels
    tested = (*words_for(folder / "n_partial-2", toys, "vectors", tmp_path / "tested"), "--do_train", "false")
    run(*tested)
    (row,) = json.loads((tmp_path / "tested" / "results.json").read_text())
    assert row["mean_average_precision"] == pytest.approx(best["mean_average_precision"])


@pytest.mark.slow
def test_regression_from_images_to_pipeline(checkpoint, toys, tmp_path):
    folder = tmp_path / "run"
    output = run(*words_for(checkpoint, toys, "light", folder), "--n_partial", 0, 2, "--num_train_epochs", 20,
                 "--eval_epochs", 5, "--base_learning_rate", 0.03, "--knn", "true", "--save_predictions", "true",
                 "--mixup", 0, "--cutmix", 0, "--linear_overrides", "base_learning_rate=8")  # fmt: skip
    assert "1 target," in output and "mean squared error" in output
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())}
    truth = np.array(datasets.Dataset.from_parquet(str(toys / "test.parquet"))["light"][:])
    chance = truth.var()  # the error of the mean
    assert rows["raw pixels"]["ridge_regression"] < 0.1 * chance and rows["raw pixels"]["knn"]["20"] < chance
    assert rows["n_partial-0"]["mean_squared_error"] < 0.9 * chance
    best = rows["n_partial-2"]
    assert best["mean_squared_error"] < 0.2 * chance and best["r2"] > 0.8
    log = json.loads((folder / "n_partial-2" / "trainer_state.json").read_text())["log_history"]
    errors = [entry["eval_mean_squared_error"] for entry in log if "eval_mean_squared_error" in entry]
    assert min(errors) == pytest.approx(best["mean_squared_error"], rel=1e-5)
    predictions = datasets.Dataset.from_parquet(str(folder / "n_partial-2" / "predictions.parquet"))
    np.testing.assert_allclose(predictions["label"][:], truth)
    said = predict(folder / "n_partial-2", toys / "test.parquet", num_workers=0)
    np.testing.assert_allclose(said["prediction"], predictions["prediction"][:], atol=1e-5)
    assert "confidence" not in said
    error = np.square(np.array(predictions["prediction"][:]) - truth).mean()
    assert error == pytest.approx(best["mean_squared_error"], rel=1e-4)
    table = (folder / "results.txt").read_text()
    assert "MSE" in table and "ridge regr." in table and "accuracy" not in table
    card = (folder / "n_partial-2" / "README.md").read_text()
    assert "A regression on the encoder" in card and "| mean absolute error |" in card
    model = AutoModelForImageClassification.from_pretrained(folder / "n_partial-2").eval()
    assert model.config.problem_type == NUMBERS.name and model.config.id2label == {0: "light"}
    processor = AutoImageProcessor.from_pretrained(folder / "n_partial-2")
    classify = pipeline("image-classification", model=model, image_processor=processor)
    image = datasets.Dataset.from_parquet(str(toys / "test.parquet"))["image"][0]
    (value,) = classify(image, function_to_apply="none")  # newer versions of transformers know that by themselves
    assert value["score"] == pytest.approx(predictions["prediction"][0], abs=1e-2)


@pytest.mark.slow
def test_several_targets_and_whole_numbers(checkpoint, toys, tmp_path):
    folder = tmp_path / "corners"
    run(*words_for(checkpoint, toys, "corners", folder), "--n_partial", 2, "--max_train_steps", 3,
        "--save_predictions", "true")  # fmt: skip
    (row,) = json.loads((folder / "results.json").read_text())
    assert len(row["per_target_absolute_error"]) == 2
    assert "| corners 1 |" in (folder / "README.md").read_text()
    predictions = datasets.Dataset.from_parquet(str(folder / "predictions.parquet"))
    assert np.array(predictions["prediction"][:]).shape == (128, 2)
    said = predict(folder, toys / "test.parquet", num_workers=0)
    found = said[[name for name in said if name.startswith("prediction_corners ")]]
    np.testing.assert_allclose(found, predictions["prediction"][:], atol=1e-5)
    # The classifier of another problem as the start: its head goes.
    output = run(*words_for(folder, toys, "quarters", tmp_path / "next"), "--n_partial", 2, "--max_train_steps", 3)
    assert "its head is newly initialised" in output
    output = run(*words_for(checkpoint, toys, "quarters", tmp_path / "no"), "--problem_type", "regresion", fails=True)
    assert "problem_type 'regresion' does not work: did you mean 'regression'?" in output
    output = run(
        *words_for(checkpoint, toys, "light", tmp_path / "no"), "--problem_type", SEVERAL_CLASSES.name, fails=True
    )
    assert "several labels per image need lists" in output
