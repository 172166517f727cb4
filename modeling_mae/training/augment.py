"""Processes cropped images: normalisation, RandAugment, erasing, mixup, cutmix.

All randomness is a pure function of integers (seed, epoch or update, image or place in the batch). timm draws from the
global generators, so they are seeded right before.
"""

import random
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ..data.serve.crops import finish_crop, uniforms
from ..errors import UserError


MAX_MAGNITUDE = 9.999  # at 10 timm posterizes to 0 bits, which newer versions of Pillow refuse
MAX_SHIFT = 0.45  # share of the image's shorter side, as in the official fine-tuning code


class BatchTransform(nn.Module):
    """A batch of `Images` -> normalised ``pixel_values (batch, channels, *size)``, on the images' device. A `size`
    given with the batch replaces the default."""

    def __init__(self, mean: list[float], std: list[float], size: tuple[int, int]):
        super().__init__()
        self.channel_mean, self.channel_std, self.size = mean, std, size
        self.mean: torch.Tensor  # (channels, 1, 1)
        self.std: torch.Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, batch: dict, size: tuple[int, int] | None = None) -> torch.Tensor:
        # In place, because new memory for each step would cost more than the arithmetic.
        return finish_crop(batch, size or self.size).to(torch.float32, copy=True).sub_(self.mean).div_(self.std)


class RandAugment:
    """timm's RandAugment (arXiv 1909.13719) as an `augment` of `Images.view`. It works on single PIL images, in the
    loading workers.

    Raises:
        UserError: images have neither 1 nor 3 channels, or timm does not know the policy.
    """

    def __init__(self, policy: str, size: tuple[int, int], mean: list[float], seed: int):
        if len(mean) not in (1, 3):
            raise UserError(f"auto_augment {policy!r} needs images of 1 or 3 channels, not {len(mean)}: give none")
        fill = tuple(round(255 * value) for value in mean)
        options: dict[str, Any] = {
            "translate_const": int(MAX_SHIFT * min(size)),
            "img_mean": fill if len(fill) == 3 else fill[0],
            "interpolation": Image.Resampling.BICUBIC,
        }
        if "mmax" not in policy:
            options["magnitude_max"] = MAX_MAGNITUDE
        try:
            self.augment = rand_augment_transform(policy, options)
        except (AssertionError, KeyError, ValueError) as error:
            raise UserError(f"auto_augment {policy!r} is not a RandAugment policy of timm ({error!r})") from None
        self.seed = seed

    def __call__(self, images: torch.Tensor, epoch: int | list[int], indices: list[int]) -> torch.Tensor:
        """uint8 ``(batch, channels, height, width)`` -> the same shape, changed."""
        changed = []
        states = (uniforms(self.seed, epoch, indices, 1)[:, 0] * 2**32).astype(np.int64).tolist()
        for state, image in zip(states, images, strict=True):
            random.seed(state)
            np.random.seed(state)
            changed.append(pil_to_tensor(self.augment(to_pil_image(image))))
        return torch.stack(changed)


class Mix:
    """Random erasing, mixup and cutmix of a normalised batch (timm's; arXiv 1708.04896, 1710.09412, 1905.04899)."""

    def __init__(self, erasing: float, mixup: float, cutmix: float, num_classes: int, device):
        self.erase = RandomErasing(erasing, mode="pixel", device=device) if erasing else None
        # No label smoothing here, because the model's loss does it.
        options = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, "label_smoothing": 0.0, "num_classes": num_classes}
        self.mix = Mixup(**options) if mixup or cutmix else None

    @property
    def changes(self) -> bool:
        """Whether any of the three is on."""
        return self.erase is not None or self.mix is not None

    def __call__(self, pixel_values: torch.Tensor, labels: torch.Tensor, *key: int):
        """Returns images ``(batch, channels, height, width)`` and class numbers ``(batch,)``, or if mixed
        probabilities ``(batch, classes)``. A pure function of the integers in `key`.

        Float labels ``(batch, n)`` are mixed in the same shares as the images."""
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        if self.erase is not None:
            pixel_values = self.erase(pixel_values)
        if self.mix is None:
            return pixel_values, labels
        if labels.ndim == 1:
            return self.mix(pixel_values, labels)
        # timm only mixes class numbers. With a separate class per image, the probabilities are the images' shares.
        self.mix.num_classes = len(labels)
        pixel_values, shares = self.mix(pixel_values, torch.arange(len(labels), device=labels.device))
        return pixel_values, shares.to(labels) @ labels  # (batch, batch) @ (batch, n)
