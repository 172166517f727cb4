"""Readouts of frozen features: which features they are, and what k-NN, a linear model and a probe make of them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from applied import copy_images, save_checkpoint, save_classifier, write_features_file
from conftest import tiny_config
from sklearn.linear_model import LogisticRegression

from modeling_mae import EvalNet, MAEModel
from modeling_mae.app.explorer import Explorer
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.errors import UserError
from modeling_mae.evaluation import extract_features
from modeling_mae.evaluation.features import JudgeSettings, frozen_encoder, knn_metrics, linear_metric
from modeling_mae.evaluation.probes import probe_metric
from modeling_mae.evaluation.reader import FrozenSet, Reader
from modeling_mae.evaluation.readouts import POOLED, ReadoutSettings, read_once, readout_table
from modeling_mae.evaluation.tables import ApplySettings
from modeling_mae.readout import ATTENTION, PATCHES, POOLINGS, Readout, read
from modeling_mae.tasks import NUMBERS, SEVERAL_CLASSES
from modeling_mae.training.augment import BatchTransform


def chosen_readouts(depth, *options):
    return ReadoutSettings(*options).chosen(depth)


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


def normed(tokens: np.ndarray, encoder: MAEModel) -> np.ndarray:
    """Under the encoder's final norm, by NumPy."""
    norm, centred = encoder.layernorm, tokens - tokens.mean(-1, keepdims=True)
    weight, bias = (parameter.detach().numpy() for parameter in (norm.weight, norm.bias))
    return centred / np.sqrt(centred.var(-1, keepdims=True) + norm.eps) * weight + bias


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
        encoder.layernorm.bias.normal_()
    images = torch.randn(4, 3, 32, 32)
    first, second, last = (normed(tokens, encoder) for tokens in block_outputs(encoder, images))
    kinds = (((1, 3), "mean"), ((2,), "mean_deviation"), ((3,), "cls"), ((2,), "attention"), ((1,), "flatten"))
    readouts = [Readout(blocks, pooling) for blocks, pooling in kinds]
    with torch.no_grad():
        _, features = read(encoder, images, [key for readout in readouts for key in readout.keys])
    features = {key: value.numpy() for key, value in features.items()}
    expected = [
        np.concatenate([first[:, 1:].mean(1), last[:, 1:].mean(1)], 1),
        np.concatenate([second[:, 1:].mean(1), second[:, 1:].std(1)], 1),
        last[:, 0],
        second[:, 1:],
        first[:, 1:].reshape(4, -1),
    ]
    for readout, value in zip(readouts, expected, strict=True):
        np.testing.assert_allclose(readout.of(features), value, atol=2e-5)
        assert readout.size(encoder.config) == value[0].size * 4


def save_trained(folder, save=save_checkpoint, **fields):
    """A checkpoint whose norms have weights, as training leaves them."""
    path = save(folder, **fields)
    model = MAEModel.from_pretrained(path) if save is save_checkpoint else EvalNet.from_pretrained(path)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 2)
                module.bias.copy_(torch.rand(module.bias.shape, generator=generator))
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("save", [save_checkpoint, save_classifier])
def test_the_table_the_file_the_functions_and_the_app_read_the_same(tmp_path, save):
    """So that the block and pooling that the table recommends are those that `mae features` writes."""
    path = str(save_trained(tmp_path / "model", save, **({"head_norm": "layer"} if save is save_classifier else {})))
    images = copy_images(tmp_path / "images")
    # as run_eval.py looks at them, 7 at a time
    inputs = ApplySettings().open(open_checkpoint(path), str(images))
    reader = Reader(Accelerator(cpu=True), inputs.transform, 7, 0)
    encoder, blocks = frozen_encoder(open_checkpoint(path)), (1, 2)
    keys = [(block, pooling) for block in blocks for pooling in POOLINGS]
    table = reader.map(inputs.images, lambda batch: read(encoder, inputs.transform(batch), keys)[1])
    for pooling in POOLINGS:
        if pooling == ATTENTION:
            continue
        for chosen in ((1,), (2,), blocks):
            readout = Readout(chosen, pooling)
            target = tmp_path / f"{pooling}-{len(chosen)}-{chosen[0]}.npy"
            write_features_file(path, images, target, blocks=chosen, pooling=pooling)
            expected = readout.of(table)
            expected = expected.reshape(len(expected), 4, 4, -1) if pooling == PATCHES else expected
            np.testing.assert_allclose(np.load(target), expected, atol=2e-6, err_msg=str(readout))
            found = extract_features(path, images, blocks=chosen, pooling=pooling, num_workers=0)
            np.testing.assert_array_equal(found.values, np.load(target))
    differences = np.abs(table[1, "mean"] - table[2, "mean"]).mean()
    assert differences > 0.05  # the blocks are told apart
    explorer = Explorer(path)
    look = explorer.open(sorted(images.glob("*/*"))[0].read_bytes(), "first")
    for block in blocks:
        patches = explorer.patch_features(look, block)
        np.testing.assert_allclose(patches.mean(0), table[block, "mean"][0], atol=2e-5)


def test_attention_in_a_file_is_the_checkpoints_and_in_a_table_the_probes(tmp_path):
    fields = {"head_norm": "layer", "pooling": "attention", "num_pooling_queries": 4}
    path = str(save_classifier(tmp_path / "model", **fields))
    images = copy_images(tmp_path / "images", 9)
    inputs = ApplySettings().open(open_checkpoint(path), str(images))
    encoder = frozen_encoder(open_checkpoint(path))
    with torch.no_grad():
        pixels = inputs.transform(inputs.images.batch(0, list(range(9))))
        patches = read(encoder, pixels, [(2, ATTENTION)])[1][2, ATTENTION]
        expected = encoder.pooler(patches)
    found = extract_features(path, images, pooling=ATTENTION, num_workers=0)
    np.testing.assert_allclose(found.values, expected, atol=2e-6)


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
    reader = Reader(Accelerator(cpu=True), BatchTransform([0.4], [0.2], (32, 32)), 16, 0)
    return reader, train, evaluation


def test_one_row_for_each_readout(sets, capsys):
    torch.manual_seed(1)
    encoder, (reader, train, evaluation) = MAEModel(tiny_config(num_channels=1)).eval(), sets
    settings = JudgeSettings(seed=0, ks=(5,))
    readouts = [Readout((1, 2), "mean"), Readout((2,), "attention")]
    kept, seen = read_once(reader, encoder, (train, evaluation), readouts, 1 << 30)
    both, attention = readout_table(reader, encoder.config, seen, kept, settings)
    assert both["name"] == "mean, blocks 1 2" and both["feature_layers"] == [1, 2]
    assert attention["name"] == "attention, block 2" and attention["feature_pooling"] == "attention"
    by_hand = []
    for images in (train, evaluation):
        blocks = block_outputs(encoder, (images.pixels.float() / 255 - 0.4) / 0.2)
        features = np.concatenate([normed(tokens, encoder)[:, 1:].mean(1) for tokens in blocks], 1)
        by_hand.append(FrozenSet(features, images.labels.numpy()))
    assert both["knn"] == knn_metrics(*by_hand, ks=(5,))
    for arrays, hand in zip(seen, by_hand, strict=True):  # the encoder's own: the mean of the last block
        np.testing.assert_allclose(arrays[POOLED], hand.features[:, -arrays[POOLED].shape[1] :], atol=2e-6)
    assert both["logistic_regression"] == pytest.approx(linear_metric(*by_hand), abs=0.034)  # one of 30
    assert both["probe"] > 0.9 and attention["probe"] > 0.9 and "knn" not in attention
    # Tokens: 16 patches x 32 values x 4 bytes x 120 images, twice. A mean is a sixteenth of them.
    tight, readouts = 2 * 120 * 4 * 32 * 15, [Readout((2,), "attention"), Readout((2,), "mean")]
    assert read_once(reader, encoder, (train, evaluation), readouts, tight)[0] == readouts[1:]
    assert "no readout attention, block 2: its features would take 0.0 GiB" in capsys.readouterr().out


def noisy_classes(count: int, seed: int) -> FrozenSet:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    points = generator.normal(size=(count, 8)) + 2.0 * np.eye(3, 8)[labels]
    return FrozenSet(points.astype(np.float32), labels)


def test_a_linear_probe_is_level_with_logistic_regression():
    train, test = noisy_classes(1500, 0), noisy_classes(1000, 1)
    expected = LogisticRegression().fit(train.features, train.labels).score(test.features, test.labels)
    accuracy = probe_metric(tiny_config(), train, test, JudgeSettings(seed=0))
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
        probe_metric(tiny_config(), *(FrozenSet(x[part], labels[part]) for part in (train, test)), JudgeSettings(0))
        for x in (tokens, tokens.mean(1))
    ]
    assert accuracies[0] > 0.95 > 0.7 > accuracies[1] > 0.3, accuracies


def test_probes_of_several_labels_and_of_numbers():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(1200, 6)).astype(np.float32)
    train, test = slice(1000), slice(1000, 1200)
    several = (points[:, :3] > 0).astype(np.float32)
    sets = (FrozenSet(points[part], several[part]) for part in (train, test))
    value = probe_metric(tiny_config(), *sets, JudgeSettings(0, SEVERAL_CLASSES))
    assert value > 0.97  # mean average precision
    numbers = 30 + points[:, :2] @ np.float32([[1, 0], [2, 1]])  # variance 6 without the features
    sets = (FrozenSet(points[part], numbers[part]) for part in (train, test))
    value = probe_metric(tiny_config(), *sets, JudgeSettings(0, NUMBERS))
    assert value < 0.5  # mean squared error
