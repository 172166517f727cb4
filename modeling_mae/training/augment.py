"""Random crops as pure functions of (seed, epoch, image), and what happens to a batch on the device after that.

torchvision's transforms draw from a stateful generator and crop one box a call; here every image of a batch has its
own box in one call, and the same box whichever process or worker handles it, before or after a resume.
"""

import random

import numpy as np
import torch
from accelerate.utils import set_seed
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image


def uniforms(seed: int, epoch: int, indices, count: int) -> np.ndarray:
    """``(images, count)`` numbers in [0, 1) that depend on seed, epoch and image index alone (splitmix64 as a
    counter-based generator: the libraries' generators carry a state, which workers and processes cannot share)."""

    def mix(x):
        x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    with np.errstate(over="ignore"):
        key = mix(mix(np.array([seed], np.uint64)) ^ np.uint64(epoch))
        key = mix(key ^ np.asarray(indices, np.uint64))[:, None]  # (images, 1)
        bits = mix(key ^ np.arange(count, dtype=np.uint64))
    return (bits >> np.uint64(11)) * 2.0**-53


class RandomResizedCrop:
    """Boxes of torchvision's RandomResizedCrop and a flip for every second image (paper, Table 8)."""

    tries = 10

    def __init__(self, seed: int, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip: bool = True):
        self.seed, self.scale, self.ratio, self.flip = seed, tuple(scale), tuple(ratio), flip

    def __call__(self, epoch: int, indices, height, width) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes ``(images, 4)`` = top, left, height, width in pixels, and flips ``(images,)``. `height` and `width`
        of the images: numbers, or one an image."""
        n, tries = len(indices), self.tries
        draws = uniforms(self.seed, epoch, indices, 2 * tries + 3)
        height = np.broadcast_to(np.asarray(height), (n,))[:, None]
        width = np.broadcast_to(np.asarray(width), (n,))[:, None]
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, :tries])
        low, high = np.log(self.ratio[0]), np.log(self.ratio[1])
        aspect = np.exp(low + (high - low) * draws[:, tries : 2 * tries])
        widths, heights = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = np.arange(n), fits.argmax(1)
        w, h, height, width = widths[first], heights[first], height[:, 0], width[:, 0]
        top = np.floor(draws[:, -3] * (height - h + 1))
        left = np.floor(draws[:, -2] * (width - w + 1))
        # No try fits: the largest central crop of an allowed aspect ratio.
        none, shape = ~fits.any(1), width / height
        w = np.where(none, np.where(shape > self.ratio[1], np.round(height * self.ratio[1]), width), w)
        h = np.where(none, np.where(shape < self.ratio[0], np.round(width / self.ratio[0]), height), h)
        top, left = np.where(none, (height - h) // 2, top), np.where(none, (width - w) // 2, left)
        boxes = torch.from_numpy(np.stack([top, left, h, w], 1).astype(np.int64))
        return boxes, torch.from_numpy((draws[:, -1] < 0.5) & self.flip)


def training_crop(seed: int, scale: list[float], flip: bool, size: tuple[int, int]) -> RandomResizedCrop:
    """RandomResizedCrop of `scale`; the scale 1 1 takes the largest box with the aspect ratio of `size`."""
    if tuple(scale) == (1.0, 1.0):
        return RandomResizedCrop(seed, scale, (size[1] / size[0],) * 2, flip)
    return RandomResizedCrop(seed, scale, flip=flip)


class CenterCrop:
    """The deterministic crop of evaluation: the central `fraction` of the largest box with the aspect ratio of `size`.
    Cropping 224/256 of the box and resizing it equals resizing to 256 and cropping 224; small sets use 1."""

    def __init__(self, size: tuple[int, int], fraction: float = 1.0):
        self.size, self.fraction = size, fraction

    def __call__(self, epoch: int, indices, height, width) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(indices)
        height, width = np.broadcast_to(np.asarray(height), (n,)), np.broadcast_to(np.asarray(width), (n,))
        scale = self.fraction * np.minimum(height / self.size[0], width / self.size[1])
        h, w = np.maximum(1, np.round(self.size[0] * scale)), np.maximum(1, np.round(self.size[1] * scale))
        boxes = np.stack([(height - h) // 2, (width - w) // 2, h, w], 1).astype(np.int64)
        return torch.from_numpy(boxes), torch.zeros(n, dtype=torch.bool)


def _resize_matrix(start: torch.Tensor, length: torch.Tensor, inputs: int, outputs: int) -> torch.Tensor:
    """Weights ``(batch, outputs, inputs)`` of an antialiased bicubic resize of `length` pixels from `start` on."""
    scale = length / outputs  # (batch,)
    support = scale.clamp(min=1)
    centre = (torch.arange(outputs, device=start.device) + 0.5) * scale[:, None] + start[:, None]  # (batch, outputs)
    pixel = torch.arange(inputs, device=start.device) + 0.5
    x = ((pixel - centre[..., None]) / support[:, None, None]).abs()
    a = -0.5  # the cubic kernel of PIL and of torch's antialiased resize
    weights = torch.where(
        x < 1, ((a + 2) * x - (a + 3)) * x * x + 1, torch.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0)
    )
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # (batch, inputs)
    weights = weights * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def crop_and_resize(
    images: torch.Tensor, boxes: torch.Tensor, flips: torch.Tensor | None, size: tuple[int, int]
) -> torch.Tensor:
    """Crop every image to its own box and resize it: ``(batch, channels, h, w)`` -> float32 ``(batch, channels,
    *size)`` in 0..255, antialiased bicubic, as two batched matrix products. `flips` (batch,) mirrors an image left to
    right."""
    top, left, height, width = boxes.to(images.device).float().unbind(1)
    rows = _resize_matrix(top, height, images.shape[2], size[0])  # (batch, size[0], h)
    columns = _resize_matrix(left, width, images.shape[3], size[1])  # (batch, size[1], w)
    if flips is not None:
        columns = torch.where(flips.to(images.device)[:, None, None], columns.flip(1), columns)
    resized = rows[:, None] @ images.float() @ columns[:, None].transpose(2, 3)
    return resized.clamp(0, 255)


class BatchTransform(nn.Module):
    """A batch of uint8 images -> normalised ``pixel_values (batch, channels, *size)``, on whatever device the images
    are: crops where the batch brings `boxes`, else the images have their size already; then flips and normalises."""

    def __init__(self, mean: list[float], std: list[float], size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, batch: dict) -> torch.Tensor:
        # In place: new memory for each step would cost more than the arithmetic.
        return cut(batch, self.size).to(torch.float32, copy=True).sub_(self.mean).div_(self.std)


class AutoAugmentedImages(Dataset):
    """Another data set's images, cropped to `size`, flipped and changed by timm's RandAugment (arXiv 1909.13719), in
    the loading processes: it works on single PIL images. What happens to one depends on (seed, epoch, index) alone.

    Raises:
        ValueError: for images of neither 1 nor 3 channels, or a policy that timm does not know.
    """

    def __init__(self, images, policy: str, size: tuple[int, int], mean: list[float], seed: int):
        if len(mean) not in (1, 3):
            raise ValueError(f"auto_augment {policy!r} needs images of 1 or 3 channels, not {len(mean)}: give none")
        fill = tuple(round(255 * value) for value in mean)
        options = {"translate_const": int(0.45 * min(size)), "img_mean": fill if len(fill) == 3 else fill[0]}
        if "mmax" not in policy:
            options["magnitude_max"] = 9.999  # at 10 timm posterizes to 0 bits, which newer Pillows refuse
        try:
            self.augment = rand_augment_transform(policy, {**options, "interpolation": Image.Resampling.BICUBIC})
        except (AssertionError, KeyError, ValueError) as error:
            raise ValueError(f"auto_augment {policy!r} is no RandAugment of timm's ({error!r})") from None
        self.images, self.size, self.seed = images, size, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict:
        batch = self.images.__getitems__(pairs)
        pixels = cut(batch, self.size).round().to(torch.uint8)  # (batch, channels, *size)
        changed = []
        for (epoch, index), image in zip(pairs, pixels, strict=True):
            # timm draws from these two global generators.
            state = int(uniforms(self.seed, epoch, [index], 1)[0, 0] * 2**32)
            random.seed(state)
            np.random.seed(state)
            changed.append(pil_to_tensor(self.augment(to_pil_image(image))))
        return {"images": torch.stack(changed), "labels": batch["labels"]}


def cut(batch: dict, size: tuple[int, int]) -> torch.Tensor:
    """The images of a batch, cropped where it brings `boxes`, mirrored where it brings `flips`."""
    images, flips = batch["images"], batch.get("flips")
    if "boxes" in batch:
        return crop_and_resize(images, batch["boxes"], flips, size)
    return images if flips is None else torch.where(flips[:, None, None, None], images.flip(3), images)


class Mix:
    """Random erasing, mixup and cutmix of a normalised batch (timm's; arXiv 1708.04896, 1710.09412, 1905.04899), a
    pure function of the integers given to the call."""

    def __init__(self, erasing: float, mixup: float, cutmix: float, num_classes: int, device):
        self.erase = RandomErasing(erasing, mode="pixel", device=device) if erasing else None
        # Labels are smoothed in the model's loss.
        options = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, "label_smoothing": 0.0, "num_classes": num_classes}
        self.mix = Mixup(**options) if mixup or cutmix else None

    def __call__(self, pixel_values: torch.Tensor, labels: torch.Tensor, *key: int):
        """``(batch, channels, height, width)`` and class numbers ``(batch,)``, or probabilities ``(batch, classes)``
        when mixed."""
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        if self.erase is not None:
            pixel_values = self.erase(pixel_values)
        return self.mix(pixel_values, labels) if self.mix is not None else (pixel_values, labels)
