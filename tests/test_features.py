import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression

from modeling_mae import MAEConfig, MAEModel
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.evaluation import features
from modeling_mae.evaluation.features import JudgeSettings, frozen_table, knn_metrics, linear_metric
from modeling_mae.evaluation.reader import FrozenSet, Reader
from modeling_mae.training.augment import BatchTransform


def frozen(features, labels) -> FrozenSet:
    return FrozenSet(np.asarray(features), np.asarray(labels))


def test_knn_equals_a_loop():
    torch.manual_seed(0)
    train, labels = torch.randn(60, 5), torch.randint(0, 4, (60,))
    test, answers = torch.randn(150, 5), torch.randint(0, 4, (150,))
    expected = {}
    for k in (3, 7, 20):
        correct = 0
        for query, answer in zip(test, answers.tolist(), strict=True):
            scores = sorted(
                ((float(query @ x / (query.norm() * x.norm())), int(y)) for x, y in zip(train, labels, strict=True)),
                reverse=True,
            )
            votes = [0.0] * 4
            for similarity, label in scores[:k]:
                votes[label] += math.exp(similarity / 0.07)
            correct += votes.index(max(votes)) == answer
        expected[k] = correct / 150
    assert knn_metrics(frozen(train, labels), frozen(test, answers), ks=(3, 7, 20)) == pytest.approx(expected)
    assert len(set(expected.values())) > 1  # the k make a difference here


def test_a_near_neighbour_outvotes_two_far_ones():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    data = (frozen(train, torch.tensor([0, 1, 1])), frozen(torch.tensor([[1.0, 0.1]]), torch.tensor([0])))
    assert knn_metrics(*data, ks=(3,))[3] == 1
    assert knn_metrics(*data, ks=(3,), temperature=1e3)[3] == 0


def test_too_many_neighbours():
    with pytest.raises(ValueError, match="k=20 neighbours, but only 3 training images"):
        knn_metrics(*(frozen(torch.randn(count, 2), torch.zeros(count).long()) for count in (3, 1)), ks=(20,))


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of three classes that overlap, with columns of very different sizes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    points = generator.normal(size=(count, 4)) + labels[:, None] * [1.0, 0.5, 0.0, 0.0]
    return (points * [1.0, 100.0, 0.01, 1.0] + 5).astype(np.float32), labels


def test_logistic_regression_is_scikit_learns_on_standardised_features():
    train, labels = blobs(200, 0)
    test, answers = blobs(100, 1)
    mean, deviation = train.astype(float).mean(0), train.astype(float).std(0)
    classifier = LogisticRegression(C=0.1, max_iter=1000).fit((train - mean) / deviation, labels)
    expected = (classifier.predict((test - mean) / deviation) == answers).mean()
    assert linear_metric(frozen(train, labels), frozen(test, answers)) == pytest.approx(
        expected, abs=0.011
    )  # one of 100
    assert 0.5 < expected < 0.95


WITH_LINEAR = {"settings": JudgeSettings(seed=5, ks=(1, 5, 100))}


@pytest.fixture
def sets():
    """(encoder, options of `frozen_table`): bright and dark noise, 24 images to train on and 10 to evaluate on."""
    torch.manual_seed(3)
    labels = torch.arange(34) % 2
    pixels = torch.randint(0, 200, (34, 1, 8, 8)) + 40 * labels.view(-1, 1, 1, 1)
    train = MemoryImages(pixels[:24].to(torch.uint8), (8, 8), labels=labels[:24])
    evaluation = MemoryImages(pixels[24:].to(torch.uint8), (8, 8), labels=labels[24:])
    config = MAEConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    options = {
        "train": train,
        "evaluation": evaluation,
        "name": "trained encoder",
        "settings": JudgeSettings(seed=5, ks=(1, 5, 100), linear=False),
        "reader": Reader(Accelerator(cpu=True), BatchTransform([0.5], [0.25], (8, 8)), 7, 0),
    }
    return MAEModel(config).eval(), options


def accuracies_by_hand(encode, options) -> dict:
    def values(images):
        with torch.no_grad():
            return frozen(encode((images.pixels.float() / 255 - 0.5) / 0.25).flatten(1), images.labels)

    return knn_metrics(values(options["train"]), values(options["evaluation"]), ks=(1, 5))


def test_one_table_for_pixels_an_untrained_and_the_trained_encoder(sets, capsys):
    encoder, options = sets
    rows = frozen_table(encoder=encoder, **options)
    torch.manual_seed(5)
    untrained = MAEModel(encoder.config).eval()
    assert rows == [
        {"name": "raw pixels", "knn": accuracies_by_hand(lambda x: x, options)},  # k = 100 of 24 images there is not
        {"name": "untrained encoder", "knn": accuracies_by_hand(lambda x: untrained(x).pooler_output, options)},
        {"name": "trained encoder", "knn": accuracies_by_hand(lambda x: encoder(x).pooler_output, options)},
    ]
    lines = capsys.readouterr().out.splitlines()
    first = rows[0]["knn"]
    assert lines[0] == f"k-NN       raw pixels: k=1 {100 * first[1]:.1f} %  k=5 {100 * first[5]:.1f} %"
    assert len(lines) == 3


def test_logistic_regression_beside_the_neighbours(sets):
    encoder, options = sets
    rows = frozen_table(encoder=encoder, **options | WITH_LINEAR)
    train, evaluation = options["train"], options["evaluation"]
    flat = [images.pixels.flatten(1).float().numpy() for images in (train, evaluation)]  # scaled by the fit itself
    expected = linear_metric(frozen(flat[0], train.labels), frozen(flat[1], evaluation.labels))
    assert rows[0]["logistic_regression"] == pytest.approx(expected)
    assert all(0 <= row["logistic_regression"] <= 1 for row in rows)


def test_what_would_take_too_long_is_left_out_and_said(sets, monkeypatch, capsys):
    encoder, options = sets
    # 24 images x 16 features x 2 classes of the encoder; 4 times as many of the pixels.
    monkeypatch.setattr(features, "LOGISTIC_LIMIT", 24 * 16 * 2)
    rows = frozen_table(encoder=encoder, **options | WITH_LINEAR)
    assert ["logistic_regression" in row for row in rows] == [False, True, True]
    assert "no logistic regression: 24 images would take hours" in capsys.readouterr().out
    monkeypatch.setattr(features, "RAW_PIXELS_LIMIT", 24 * 64 * 4)  # bytes
    rows = frozen_table(encoder=encoder, **options)
    assert [row["name"] for row in rows] == ["untrained encoder", "trained encoder"]
    assert "no baseline of raw pixels" in capsys.readouterr().out
