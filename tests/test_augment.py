import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from modeling_mae.training.augment import BatchTransform, CenterCrop, RandomResizedCrop, crop_and_resize, uniforms


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
