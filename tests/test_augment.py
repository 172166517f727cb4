import random

import numpy as np
import pytest
import torch
from flat import load_source, open_images

from modeling_mae.data.serve.crops import RandomResizedCrop, finish_crop
from modeling_mae.errors import UserError
from modeling_mae.training.augment import BatchTransform, Mix, RandAugment


def test_batch_transform_normalises_and_flips():
    images = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    transform = BatchTransform([0.1, 0.2, 0.3], [0.5, 0.25, 0.125], (2, 2))
    result = transform({"images": images, "flips": torch.tensor([False, True])})
    assert result[0, 1, 1, 0].item() == pytest.approx((6 / 255 - 0.2) / 0.25)
    assert result[1, 2, 0, 0].item() == pytest.approx((21 / 255 - 0.3) / 0.125)  # mirrored: its right pixel
    whole = {"images": images, "boxes": torch.tensor([[0, 0, 2, 2]] * 2), "flips": torch.tensor([False, True])}
    torch.testing.assert_close(transform(whole), result)
    assert torch.equal(images, torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2))  # the batch stays as it is


def test_rand_augment_depends_on_seed_epoch_and_image_alone():
    source = load_source(max_samples=40)
    labels = np.arange(40) % 10
    images = open_images(source, (28, 28), 1, memory_budget=1 << 30, labels=labels)
    images = images.view(crop=RandomResizedCrop(0, (0.6, 1.0)))
    everything = list(range(40))

    def augmented(policy="rand-m9-mstd0.5-inc1", seed=0):
        return images.view(augment=RandAugment(policy, (28, 28), [0.28], seed))

    whole = augmented().batch(1, everything)
    assert whole["images"].shape == (40, 1, 28, 28) and whole["images"].dtype == torch.uint8
    random.seed(5)
    np.random.seed(5)
    part = augmented().batch(1, [33, 4])
    assert torch.equal(part["images"], whole["images"][[33, 4]])
    assert part["labels"].tolist() == labels[[33, 4]].tolist() and set(part) == {"images", "labels"}
    for of_another_epoch_or_seed in (augmented().batch(2, everything), augmented(seed=1).batch(1, everything)):
        assert not torch.equal(of_another_epoch_or_seed["images"], whole["images"])
    # At probability 0 it is the crop alone.
    unchanged = augmented("rand-p0-m9").batch(1, everything)
    cropped = finish_crop(images.batch(1, everything), (28, 28)).round().byte()
    assert torch.equal(unchanged["images"], cropped) and not torch.equal(whole["images"], cropped)


def test_policies_that_cannot_be():
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        RandAugment("rand-m9", (28, 28), [0.1] * 4, 0)
    with pytest.raises(UserError, match="not a RandAugment policy of timm"):
        RandAugment("rand-x9", (28, 28), [0.1], 0)


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
