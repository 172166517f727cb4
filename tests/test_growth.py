"""How features grow in pre-training: the effective rank by closed forms, the measurements, what is said of them."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from conftest import run

from modeling_mae import MAEConfig, MAEModel
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.evaluation import growth
from modeling_mae.evaluation.growth import FeatureGrowth, describe_features, effective_rank
from modeling_mae.evaluation.reader import Reader
from modeling_mae.report.pretraining import judge_growth
from modeling_mae.training.augment import BatchTransform
from modeling_mae.training.optim import Schedule
from modeling_mae.words import counted


def with_singular_values(*values: float) -> torch.Tensor:
    """Features ``(50, 6)`` that have these singular values, and 0 for the rest."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 6, dtype=torch.float64))[0] for n in (50, 6))
    return (left[:, : len(values)] * torch.tensor(values)) @ right[:, : len(values)].T


@pytest.mark.parametrize("directions", [1, 2, 6])
def test_as_many_ranks_as_directions_that_are_used_alike(directions):
    assert effective_rank(with_singular_values(*[3.0] * directions)) == pytest.approx(directions, rel=1e-6)


def test_effective_rank_is_the_exponential_of_the_entropy():
    shares = [0.5, 0.25, 0.25]
    expected = math.exp(-sum(p * math.log(p) for p in shares))  # 2.83
    assert effective_rank(with_singular_values(2.0, 1.0, 1.0)) == pytest.approx(expected, rel=1e-6)


def small_growth(labelled: bool = True) -> tuple[FeatureGrowth, MAEConfig]:
    """Bright images of class 1, dark ones of class 0; a k-NN on raw pixels can only be right."""
    labels = torch.arange(40) % 2
    pixels = (torch.arange(40 * 64).reshape(40, 1, 8, 8) % 7 + 200 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    parts = [pixels[:30], pixels[30:]]
    numbers = [labels[:30], labels[30:]] if labelled else [None, None]
    train, evaluation = (
        MemoryImages(part, (8, 8), labels=number) for part, number in zip(parts, numbers, strict=True)
    )
    config = MAEConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    reader = Reader(Accelerator(), BatchTransform([0.5], [0.25], (8, 8)), 16, 0)
    return FeatureGrowth(reader, train, evaluation if labelled else None, 5), config


def test_measurements():
    watch, config = small_growth()
    baselines = watch.baselines(config, seed=1)
    assert baselines.keys() == {"knn_untrained", "rank_untrained", "knn_raw_pixels", "knn_images"}
    assert baselines["knn_raw_pixels"] == 1.0 and baselines["knn_images"] == 10
    torch.manual_seed(1)
    model = MAEModel(config).eval()
    with torch.no_grad():  # by hand, in one batch
        pixels = watch.reader.transform(watch.train.batch(0, list(range(30))))
        features = model(pixels).pooler_output
    measured = watch.measure(model)
    assert measured["rank"] == pytest.approx(effective_rank(features), rel=1e-4)
    assert measured == {"knn": baselines["knn_untrained"], "rank": baselines["rank_untrained"]}


def test_without_labels_there_is_only_the_rank():
    watch, config = small_growth(labelled=False)
    assert watch.baselines(config, seed=1).keys() == {"rank_untrained"}


def test_large_sets_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(growth, "TRAIN_SAMPLE", 4)
    watch, _ = small_growth()
    assert watch.train.labels.tolist() == [i % 2 for i in (0, 9, 19, 29)]


def log_of(*accuracies: float, raw: float = 0.8) -> list[dict]:
    entries = [{"epoch": 2.0 * i, "knn": accuracy, "rank": 5.0} for i, accuracy in enumerate(accuracies, 1)]
    return [{"epoch": 0.0, "knn_raw_pixels": raw, "knn_untrained": 0.5, "knn_images": 10_000}, *entries]


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (log_of(0.7, 0.82, 0.79, 0.81, 0.9), "features beat raw pixels (80.0 %) since epoch 8; still rising"),
        (log_of(0.7, 0.9, 0.9, 0.9), "features beat raw pixels (80.0 %) since epoch 4; no longer rising"),
        (log_of(0.6, 0.7), "features do not beat raw pixels (80.0 %); still rising"),
        (log_of(0.6, 0.603), "no longer rising"),  # less than a standard error of 0.5 points
        (log_of(0.6), "k-NN accuracy 60.0 %, features do not beat raw pixels (80.0 %)"),
        (log_of(0.45, raw=0.4), "since epoch 2; the untrained encoder has 50.0 %: no gain yet"),
        ([{"epoch": 0.0, "rank_untrained": 3.0}, {"epoch": 1.0, "rank": 7.25}], "rank 3.0 untrained, 7.2 now"),
    ],
)
def test_the_verdict(log, sentence):
    assert sentence in judge_growth(log)
    if len(log) == 2:
        assert "rising" not in judge_growth(log)


def test_counts_in_words():
    assert [counted(n, "update") for n in (0, 1, 1234)] == ["0 updates", "1 update", "1,234 updates"]
    assert [counted(n, "epoch") for n in (0.5, 1.0, 2.25)] == ["0.5 epochs", "1 epoch", "2.25 epochs"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    assert str(Schedule(1, 1, 1, 1.0)) == "1 update, 1 epoch of 1"


def test_one_line_of_figures():
    assert describe_features({"knn": 0.745, "rank": 12.34}) == "k-NN 74.5 %  rank 12.3"
    baselines = {"knn_untrained": 0.5, "rank_untrained": 3.0, "knn_raw_pixels": 1.0, "knn_images": 10}
    assert describe_features(baselines) == "k-NN untrained 50.0 %  rank untrained 3.0  k-NN raw pixels 100.0 %"


@pytest.mark.slow
def test_the_weights_are_the_same_with_and_without_a_look(recipe, tmp_path):
    quiet, watched = tmp_path / "quiet", tmp_path / "watched"
    run(recipe, "--max_train_steps", "10", "--output_dir", quiet)
    output = run(recipe, "--max_train_steps", "10", "--output_dir", watched, "--eval_every_epochs", "1")
    assert (quiet / "model.safetensors").read_bytes() == (watched / "model.safetensors").read_bytes()
    log = [json.loads(line) for line in (watched / "history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log if "knn" in entry] == [1, 2]
    assert "knn_raw_pixels" in log[0] and (watched / "features.png").exists()
    assert output.count("features   epoch") == 3 and "raw pixels (" in output
    # asked for when there is nothing left to train
    output = run(recipe, "--max_train_steps", "10", "--output_dir", quiet, "--resume_from_checkpoint", "auto",
                 "--eval_every_epochs", "1")  # fmt: skip
    assert output.count("features   epoch") == 1 and not (quiet / "features.png").exists()
