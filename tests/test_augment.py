import random

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from modeling_mae.training.augment import (
    AutoAugmentedImages,
    BatchTransform,
    CenterCrop,
    Mix,
    RandomResizedCrop,
    crop_and_resize,
    cut,
    uniforms,
)
from modeling_mae.training.data import load_source, make_images


def test_uniforms_are_uniform_and_depend_on_the_image_alone():
    draws = uniforms(0, 0, range(20000), 5)
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:  # a chi-square of 50 cells: 49 degrees, below 100 but once in 100,000
        counts = np.histogram(column, 50, (0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 100
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.04
    assert np.array_equal(uniforms(0, 0, [7, 3], 5), draws[[7, 3]])
    for other in (uniforms(1, 0, range(100), 5), uniforms(0, 1, range(100), 5)):
        assert not np.isclose(other, draws[:100]).any()


@pytest.mark.parametrize("shape", [(40, 60), (30, 300)])
def test_boxes_are_distributed_as_torchvisions(shape):
    height, width = shape
    boxes, flips = RandomResizedCrop(0)(0, range(4000), height, width)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = torch.tensor([TorchvisionCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    for ours, other in zip(boxes.double().T, theirs.double().T, strict=True):
        assert abs(ours.mean() - other.mean()) < 5 * other.std() * (2 / 4000) ** 0.5 + 1e-9
        assert ours.std() == pytest.approx(other.std().item(), rel=0.08, abs=1e-9)
    assert flips.double().mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("channels", "shape", "size"), [(3, (40, 50), (28, 24)), (1, (28, 28), (28, 28))])
def test_batched_crop_equals_torchvision_image_by_image(channels, shape, size):
    images = torch.randint(0, 256, (32, channels, *shape), generator=torch.Generator().manual_seed(0))
    boxes, flips = RandomResizedCrop(0)(3, range(32), *shape)
    assert flips.any() and not flips.all()
    result = crop_and_resize(images.to(torch.uint8), boxes, flips, size)
    for image, box, flip, ours in zip(images, boxes.tolist(), flips, result, strict=True):
        bicubic = InterpolationMode.BICUBIC
        theirs = F.resized_crop(image.float(), *box, list(size), bicubic, antialias=True).clamp(0, 255)
        torch.testing.assert_close(ours, theirs.flip(2) if flip else theirs, atol=0.02, rtol=0)


def test_centre_crop():
    boxes, flips = CenterCrop((224, 224), 224 / 256)(0, [0], 256, 512)
    assert boxes.tolist() == [[16, 144, 224, 224]] and not flips.any()
    assert CenterCrop((28, 28))(0, [0], 28, 28)[0].tolist() == [[0, 0, 28, 28]]


def test_batch_transform_normalises_and_flips():
    images = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    transform = BatchTransform([0.1, 0.2, 0.3], [0.5, 0.25, 0.125], (2, 2))
    result = transform({"images": images, "flips": torch.tensor([False, True])})
    assert result[0, 1, 1, 0].item() == pytest.approx((6 / 255 - 0.2) / 0.25)
    assert result[1, 2, 0, 0].item() == pytest.approx((21 / 255 - 0.3) / 0.125)  # mirrored: its right pixel
    whole = {"images": images, "boxes": torch.tensor([[0, 0, 2, 2]] * 2), "flips": torch.tensor([False, True])}
    torch.testing.assert_close(transform(whole), result)


def test_rand_augment_depends_on_seed_epoch_and_image_alone():
    images = make_images(load_source(max_samples=40), RandomResizedCrop(0, (0.6, 1.0)), (28, 28), 1)
    augmented = AutoAugmentedImages(images, "rand-m9-mstd0.5-inc1", (28, 28), [0.28], 0)
    whole = augmented.__getitems__([(1, i) for i in range(40)])
    assert whole["images"].shape == (40, 1, 28, 28) and whole["images"].dtype == torch.uint8
    random.seed(5)
    np.random.seed(5)
    part = augmented.__getitems__([(1, 33), (1, 4)])
    assert torch.equal(part["images"], whole["images"][[33, 4]]) and torch.equal(
        part["labels"], images.labels[[33, 4]]
    )
    for other in (
        augmented.__getitems__([(2, i) for i in range(40)]),
        AutoAugmentedImages(images, "rand-m9-mstd0.5-inc1", (28, 28), [0.28], 1).__getitems__(
            [(1, i) for i in range(40)]
        ),
    ):
        assert not torch.equal(other["images"], whole["images"])
    # at probability 0 it is the crop alone
    none = AutoAugmentedImages(images, "rand-p0-m9", (28, 28), [0.28], 0).__getitems__([(1, i) for i in range(40)])
    assert torch.equal(none["images"], cut(images.__getitems__([(1, i) for i in range(40)]), (28, 28)).round().byte())
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        AutoAugmentedImages(images, "rand-m9", (28, 28), [0.1] * 4, 0)
    with pytest.raises(ValueError, match="no RandAugment of timm's"):
        AutoAugmentedImages(images, "rand-x9", (28, 28), [0.1], 0)


def test_mixed_labels_say_what_is_in_the_image():
    """Each class is a plain image of its own value, so that the mix can be read off the pixels."""
    labels = torch.arange(8)
    images = labels.float().view(8, 1, 1, 1).expand(8, 1, 20, 20)
    for mix, mixes in ((Mix(0, 0.8, 0, 8, "cpu"), "mixup"), (Mix(0, 0, 1.0, 8, "cpu"), "cutmix")):
        mixed, targets = mix(images.clone(), labels, 0, 1, 2)
        assert targets.shape == (8, 8) and torch.allclose(targets.sum(1), torch.ones(8))
        expected = (targets * labels).sum(1)  # timm mixes the batch with itself reversed
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, atol=1e-4, rtol=1e-4, msg=mixes)
        assert 0.01 < targets.diagonal().mean() < 0.999
        again, same = mix(images.clone(), labels, 0, 1, 2)
        assert torch.equal(again, mixed) and torch.equal(same, targets)
        assert not torch.equal(mix(images.clone(), labels, 0, 1, 3)[1], targets)


def test_erasing_hits_its_part_of_the_images():
    erased, labels = Mix(0.25, 0, 0, 10, "cpu")(torch.zeros(2000, 1, 12, 12), torch.zeros(2000).long(), 0)
    share = (erased != 0).flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.04)  # four deviations of a share of 2000
    assert labels.ndim == 1
    plain, _ = Mix(0, 0, 0, 10, "cpu")(torch.ones(3, 1, 4, 4), torch.zeros(3).long(), 0)
    assert torch.equal(plain, torch.ones(3, 1, 4, 4))
