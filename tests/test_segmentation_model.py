"""MAEForSemanticSegmentation: against values made by hand, by numpy, and by transformers' own classes."""

import numpy as np
import pytest
import torch
from conftest import TINY
from sklearn.metrics import log_loss
from transformers import AutoModel, AutoModelForSemanticSegmentation

from modeling_mae import MAEConfig, MAEForPreTraining, MAEForSemanticSegmentation, MAEModel


HEADS = ("linear", "multiscale", "upernet")


def model_of(**changes) -> MAEForSemanticSegmentation:
    torch.manual_seed(0)
    # A head's usual initial weights are so small that nothing would show.
    config = MAEConfig(**{**TINY, "num_labels": 3, "head_initializer_range": 1.0, **changes})
    return MAEForSemanticSegmentation(config).eval()


def test_the_middle_of_a_patch_has_the_logits_of_the_patch():
    """Between the middles of patches, which are pixels where the patch is odd, the linear head interpolates."""
    model = model_of(image_size=[20, 15], patch_size=5)
    pixels = torch.randn(2, 3, 20, 15)
    tokens = model.mae(pixels).last_hidden_state[:, 1:] / (1 + 1e-6) ** 0.5  # BatchNorm's first statistics
    expected = (tokens @ model.segmenter.classifier.weight.T).view(2, 4, 3, 3)  # (batch, rows, columns, labels)
    logits = model(pixels).logits
    torch.testing.assert_close(logits[:, :, 2::5, 2::5], expected.permute(0, 3, 1, 2))
    between = (2 * logits[:, :, 2, 2] + 3 * logits[:, :, 2, 7]) / 5
    torch.testing.assert_close(logits[:, :, 2, 5], between)


@pytest.mark.parametrize("head", HEADS)
def test_any_size_of_images(head):
    model = model_of(segmentation_head=head)
    for size in ((32, 32), (30, 45), (7, 64)):
        assert model(torch.randn(2, 3, *size)).logits.shape == (2, 3, *size)
    pixels = torch.randn(1, 3, 30, 45)
    padded = torch.zeros(1, 3, 32, 48)
    padded[:, :, :30, :45] = pixels
    torch.testing.assert_close(model(pixels).logits, model(padded).logits[:, :, :30, :45])


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded(tmp_path, head):
    encoder = MAEForPreTraining(MAEConfig(**TINY))
    encoder.save_pretrained(tmp_path / "pretrained")
    model = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path / "pretrained", num_labels=4, segmentation_head=head
    )
    assert type(model) is MAEForSemanticSegmentation
    for name, weight in encoder.mae.state_dict().items():
        assert torch.equal(weight, model.mae.state_dict()[name]), name
    model.eval().save_pretrained(tmp_path / "saved")
    pixels = torch.randn(1, 3, 32, 32)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)
    assert type(AutoModel.from_pretrained(tmp_path / "saved")) is MAEModel
    torch.testing.assert_close(model(features=model.frozen_features(pixels)).logits, model(pixels).logits)


def test_the_blocks_of_twelve_are_those_of_the_official_segmentation():
    assert model_of(segmentation_head="upernet", num_hidden_layers=12).read_blocks == [4, 6, 8, 12]
    assert model_of(segmentation_head="upernet", num_hidden_layers=2).read_blocks == [1, 1, 1, 2]
    assert model_of(num_hidden_layers=12).read_blocks == [12]


def test_a_block_of_upernet_is_normalised_as_by_the_backbone():
    model = model_of(segmentation_head="upernet")
    pixels, seen = torch.randn(1, 3, 32, 32), []
    model.segmenter.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    model(pixels)
    encoded = model.mae(pixels, output_hidden_states=True)
    rows, columns = model.config.grid
    torch.testing.assert_close(
        seen[-1][0], encoded.last_hidden_state[0, 1:].T.reshape(-1, rows, columns), rtol=1e-5, atol=1e-6
    )
    assert len(seen) == 4


def test_loss_is_that_of_scikit_learn():
    model, generator = model_of(), np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(size=(2, 3, 5, 4))).float()
    labels = torch.from_numpy(generator.integers(0, 3, (2, 5, 4)))
    shares = logits.double().softmax(1).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    truth = labels.flatten().numpy()
    assert model.loss(logits, labels).item() == pytest.approx(log_loss(truth, shares, labels=[0, 1, 2]), rel=1e-5)
    # Ignored pixels count as 0.
    model.config.semantic_loss_ignore_index = 7
    labels[0, :2] = 7
    known = labels.flatten().numpy() != 7
    expected = log_loss(truth[known], shares[known], labels=[0, 1, 2]) * known.sum() / len(known)
    assert model.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    model.config.class_weights = [1.0, 2.0, 0.5]
    weights = np.array(model.config.class_weights)[truth[known]]
    expected = -(weights * np.log(shares[known, truth[known]])).sum() / len(known)
    assert model.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_dice_loss_by_hand():
    model = model_of(dice_weight=0.5, num_labels=2)
    logits = torch.tensor(
        [[[[0.0, 30.0], [-30.0, 30.0]], [[0.0, -30.0], [30.0, -30.0]]]]
    )  # shares .5 1 / 0 1 of class 0
    labels = torch.tensor([[[0, 0], [1, 1]]])
    # Class 0 has the shares 0.5, 1, 0 and 1: both 0.5 + 1, of 2.5 + 2. Class 1: both 0.5 * 0 + 1, of 1.5 + 2.
    dice = 1 - ((2 * 1.5 + 1) / (4.5 + 1) + (2 * 1.0 + 1) / (3.5 + 1)) / 2
    entropy = (np.log(2) + 0 + 0 + 60) / 4
    assert model.loss(logits, labels).item() == pytest.approx(entropy + 0.5 * dice, rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"dice_weight": 1.0, "class_weights": [1.0, 2.0, 3.0]}])
def test_a_batch_has_the_mean_loss_of_its_images(changes):
    """Else the micro-batches of an update, or its processes, would count differently."""
    model = model_of(**changes)
    logits, labels = torch.randn(4, 3, 6, 6), torch.randint(0, 3, (4, 6, 6))
    labels[1, :4], labels[2] = 255, 255  # an image without a known pixel among them
    alone = torch.stack([model.loss(logits[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model.loss(logits, labels), alone.mean())


def test_refused():
    model = model_of()
    pixels = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="a class number for each pixel"):
        model(pixels, labels=torch.zeros(1, 16, 16))
    with pytest.raises(ValueError, match="give either pixel_values or features"):
        model()
    for changes, named in (({"dice_weight": -1.0}, "dice_weight=-1.0"), ({"class_weights": [1.0, -2.0]}, "has -2.0")):
        with pytest.raises(ValueError, match=named):
            MAEConfig(**{**TINY, **changes})


def test_parts_of_the_model_are_trained():
    model = model_of(num_hidden_layers=3, segmentation_head="multiscale")

    def trained() -> set[str]:
        return {name.split(".")[0] + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}

    model.freeze(0).train()
    assert all(name.startswith("segmenter") for name in trained()) and not model.mae.training
    assert model.segmenter.training
    model.freeze(1)
    assert {"maelayers", "maelayernorm"} <= trained() and "maeembeddings" not in trained()
    model.freeze(3)
    assert "maeembeddings" in trained()


@pytest.mark.parametrize("head", HEADS)
def test_gradient_checkpointing_changes_nothing(head):
    pixels, labels, gradients = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32)), []
    for checkpointing in (False, True):
        model = model_of(segmentation_head=head).train()
        if checkpointing:
            new = hasattr(model, "activation_checkpointing_enable")  # transformers before 5.20 has the old name
            model.activation_checkpointing_enable() if new else model.gradient_checkpointing_enable()
        torch.manual_seed(1)  # of UperNet's second head
        model(pixels, labels=labels).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)
