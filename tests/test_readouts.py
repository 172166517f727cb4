"""Readouts of frozen features: which features they are, and what k-NN, a linear model and a probe make of them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_config
from sklearn.linear_model import LogisticRegression

from modeling_mae import MAEModel
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.errors import UserError
from modeling_mae.evaluation.features import knn_accuracies, logistic_accuracy
from modeling_mae.evaluation.probes import probe_metric
from modeling_mae.evaluation.readouts import Readout, block_features, chosen_readouts, readout_table
from modeling_mae.tasks import NUMBERS, SEVERAL_CLASSES
from modeling_mae.training.augment import BatchTransform


def test_the_readouts_that_options_choose():
    assert chosen_readouts(4, None, None, None) == []
    assert chosen_readouts(4, None, [1, 3], None) == [Readout((1, 3), "mean")]
    assert chosen_readouts(4, None, None, ["cls", "attention"]) == [Readout((4,), "cls"), Readout((4,), "attention")]
    every = chosen_readouts(12, "all", None, None)
    assert chosen_readouts(12, "all", None, ["mean_deviation"]) == every  # a recipe may have chosen some already
    assert chosen_readouts(12, "all", [3, 5], None) == [*every, Readout((3, 5), "mean")]
    assert len(every) == 3 * 4 + 3  # three poolings of blocks 6, 9, 12 and all; attention of the single blocks
    assert Readout((6,), "attention") in every and Readout(tuple(range(1, 13)), "mean_deviation") in every
    assert [str(readout) for readout in chosen_readouts(1, "all", None, None)] == [
        f"{pooling}, block 1" for pooling in ("mean", "cls", "mean_deviation", "attention")
    ]


@pytest.mark.parametrize(
    "names, layers, poolings, message",
    [
        ("every", None, None, "readouts 'every' does not work: give one of all"),
        (None, [0], None, "feature_layers 0 does not work: give one of 1 ... 4"),
        (None, [5], None, "feature_layers 5 does"),
        (None, [2, 2], None, "feature_layers 2 does not work: give one of 1 ... 4, each once"),
        (None, None, ["max"], "feature_pooling 'max' does not work: give one of mean, cls, mean_deviation, attention"),
    ],
)
def test_readouts_that_there_are_not(names, layers, poolings, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        chosen_readouts(4, names, layers, poolings)


def normed(tokens: np.ndarray) -> np.ndarray:
    centred = tokens - tokens.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)


def block_outputs(encoder: MAEModel, images: torch.Tensor) -> list[np.ndarray]:
    """The tokens that come out of each block, seen by hooks, ``(images, 1 + patches, width)``."""
    seen, hooks = [], []
    for layer in encoder.layers:
        hooks.append(layer.register_forward_hook(lambda _, __, output: seen.append(output.numpy())))
    with torch.no_grad():
        encoder(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_features_are_those_of_the_named_blocks():
    torch.manual_seed(0)
    encoder = MAEModel(tiny_config(num_hidden_layers=3)).eval()
    with torch.no_grad():
        encoder.layernorm.weight.normal_()
    images = torch.randn(4, 3, 32, 32)
    blocks = block_outputs(encoder, images)
    last = normed(blocks[2]) * encoder.layernorm.weight.detach().numpy()  # eps differs by a trifle
    readouts = [
        Readout((1, 3), "mean"),
        Readout((2,), "mean_deviation"),
        Readout((3,), "cls"),
        Readout((2,), "attention"),
    ]
    with torch.no_grad():
        features = block_features(encoder, 3, [key for readout in readouts for key in readout.keys])(images)
    features = {key: value.numpy() for key, value in features.items()}
    expected = [
        np.concatenate([normed(blocks[0])[:, 1:].mean(1), last[:, 1:].mean(1)], 1),
        np.concatenate([normed(blocks[1])[:, 1:].mean(1), normed(blocks[1])[:, 1:].std(1)], 1),
        last[:, 0],
        normed(blocks[1])[:, 1:],
    ]
    for readout, value in zip(readouts, expected, strict=True):
        np.testing.assert_allclose(readout.of(features), value, atol=2e-5)
        assert readout.size(encoder.config) == value[0].size * 4


@pytest.fixture
def sets():
    """Two sets of gray noise whose classes differ in brightness, and what `readout_table` takes beside them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    pixels = torch.randint(0, 100, (120, 1, 32, 32), generator=generator) + 50 * labels[:, None, None, None]
    pixels = pixels.to(torch.uint8)
    train, evaluation = (
        MemoryImages(pixels[part], (32, 32), labels=labels[part]) for part in (slice(90), slice(90, 120))
    )
    transform = BatchTransform([0.4], [0.2], (32, 32))
    options = {"seed": 0, "memory_budget": 1 << 30, "batch_size": 16, "num_workers": 0, "ks": (5,)}
    return (train, evaluation, transform), options


def test_one_row_for_each_readout(sets, capsys):
    torch.manual_seed(1)
    encoder = MAEModel(tiny_config(num_channels=1)).eval()
    readouts = [Readout((1, 2), "mean"), Readout((2,), "attention")]
    both, attention = readout_table(Accelerator(cpu=True), encoder, *sets[0], readouts, **sets[1])
    assert both["name"] == "mean, blocks 1 2" and both["feature_layers"] == [1, 2]
    assert attention["name"] == "attention, block 2" and attention["feature_pooling"] == "attention"
    arrays = []
    for images in sets[0][:2]:
        blocks = block_outputs(encoder, (images.pixels.float() / 255 - 0.4) / 0.2)
        arrays += [np.concatenate([normed(tokens)[:, 1:].mean(1) for tokens in blocks], 1), images.labels.numpy()]
    assert both["knn"] == knn_accuracies(*map(torch.from_numpy, arrays), ks=(5,))
    assert both["logistic_regression"] == pytest.approx(logistic_accuracy(*arrays), abs=0.034)  # one of 30
    assert both["probe"] > 0.9 and attention["probe"] > 0.9 and "knn" not in attention
    # Tokens: 16 patches x 32 values x 4 bytes x 120 images, twice. A mean is a sixteenth of them.
    tight = {**sets[1], "memory_budget": 2 * 120 * 4 * 32 * 15}
    (row,) = readout_table(
        Accelerator(cpu=True), encoder, *sets[0], [Readout((2,), "attention"), Readout((2,), "mean")], **tight
    )
    assert row["name"] == "mean, block 2"
    assert "no readout attention, block 2: its features would take 0.0 GiB" in capsys.readouterr().out


def noisy_classes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    points = generator.normal(size=(count, 8)) + 2.0 * np.eye(3, 8)[labels]
    return points.astype(np.float32), labels


def test_a_linear_probe_is_level_with_logistic_regression():
    train, test = noisy_classes(1500, 0), noisy_classes(1000, 1)
    expected = LogisticRegression().fit(*train).score(*test)
    accuracy = probe_metric(tiny_config(), *train, *test, seed=0)
    assert 0.7 < expected < 0.95 and accuracy == pytest.approx(expected, abs=0.02)


def test_an_attentive_probe_finds_the_patch_that_tells_the_class():
    """One of 9 patches bears the class and a mark; the others are noise that drowns the class in the mean."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 1400)
    tokens = 4 * generator.normal(size=(1400, 9, 16)).astype(np.float32)
    tokens[:, :, 15] = -2
    place = generator.integers(0, 9, 1400)
    tokens[np.arange(1400), place] = 6 * np.eye(3, 16)[labels] + 20 * np.eye(16)[15]
    train, test = slice(1000), slice(1000, 1400)
    accuracies = [
        probe_metric(tiny_config(), x[train], labels[train], x[test], labels[test], seed=0)
        for x in (tokens, tokens.mean(1))
    ]
    assert accuracies[0] > 0.95 > 0.7 > accuracies[1] > 0.3, accuracies


def test_probes_of_several_labels_and_of_numbers():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(1200, 6)).astype(np.float32)
    train, test = slice(1000), slice(1000, 1200)
    several = (points[:, :3] > 0).astype(np.float32)
    value = probe_metric(
        tiny_config(), points[train], several[train], points[test], several[test], seed=0, task=SEVERAL_CLASSES
    )
    assert value > 0.97  # mean average precision
    numbers = 30 + points[:, :2] @ np.float32([[1, 0], [2, 1]])  # variance 6 without the features
    value = probe_metric(
        tiny_config(), points[train], numbers[train], points[test], numbers[test], seed=0, task=NUMBERS
    )
    assert value < 0.5  # mean squared error
