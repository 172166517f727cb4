import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from modeling_mae.data.serve.crops import (
    CenterCrop,
    RandomResizedCrop,
    crop_and_resize,
    finish_crop,
    training_crop,
    uniforms,
)


def test_uniforms_are_uniform_and_depend_on_the_image_alone():
    draws = uniforms(0, 0, range(20000), 5)
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:  # a chi-square of 50 cells: 49 degrees, below 100 but once in 100,000
        counts = np.histogram(column, 50, (0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 100
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.04
    assert np.array_equal(uniforms(0, 0, [7, 3], 5), draws[[7, 3]])
    for of_another_seed_or_epoch in (uniforms(1, 0, range(100), 5), uniforms(0, 1, range(100), 5)):
        assert not np.isclose(of_another_seed_or_epoch, draws[:100]).any()


@pytest.mark.parametrize("shape", [(40, 60), (30, 300)])
def test_boxes_are_distributed_as_torchvisions(shape):
    height, width = shape
    boxes, flips = RandomResizedCrop(0)(0, range(4000), height, width)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = torch.tensor([TorchvisionCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    for our_side, their_side in zip(boxes.double().T, theirs.double().T, strict=True):
        assert abs(our_side.mean() - their_side.mean()) < 5 * their_side.std() * (2 / 4000) ** 0.5 + 1e-9
        assert our_side.std() == pytest.approx(their_side.std().item(), rel=0.08, abs=1e-9)
    assert flips.double().mean() == pytest.approx(0.5, abs=0.04)


def test_each_image_of_a_batch_has_a_box_in_its_own_size():
    heights, widths = [40, 100, 30], [60, 20, 300]
    boxes, flips = RandomResizedCrop(0)(1, [5, 6, 7], heights, widths)
    for index, height, width, box, flip in zip([5, 6, 7], heights, widths, boxes, flips, strict=True):
        alone, flip_alone = RandomResizedCrop(0)(1, [index], height, width)
        assert torch.equal(alone[0], box) and flip_alone[0] == flip


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


def test_a_scale_of_1_takes_the_largest_box_of_the_models_shape():
    for size, height, width, expected in (
        ((28, 28), 28, 28, [0, 0, 28, 28]),
        ((32, 16), 40, 60, [0, None, 40, 20]),
        ((16, 32), 40, 60, [None, 0, 30, 60]),
    ):
        boxes, _ = training_crop(0, [1.0, 1.0], True, size)(0, range(50), height, width)
        for side, value in zip(boxes.T, expected, strict=True):
            assert value is None or (side == value).all()
    crop = training_crop(3, [0.5, 1.0], False, (28, 28))
    boxes, flips = crop(0, range(50), 28, 28)
    assert len(boxes[:, 2].unique()) > 1 and not flips.any() and crop.seed == 3


def test_what_is_cropped_already_is_only_mirrored():
    images = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    assert finish_crop({"images": images}, (2, 2)) is images
    mirrored = finish_crop({"images": images, "flips": torch.tensor([False, True])}, (2, 2))
    assert torch.equal(mirrored[0], images[0]) and mirrored[1, 0].tolist() == [[13, 12], [15, 14]]
