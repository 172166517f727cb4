"""Which part of an image is seen: a pure function of (seed, epoch, image, repeat). The crops and resizes themselves.

torchvision's transforms draw from a generator with a state, and crop one box a call. Here every image of a batch has
its own box in one call. The box is the same in every process and loading worker, before and after a resume.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from .worker import mapped, shared_or


ASPECT_RATIOS = (3 / 4, 4 / 3)  # width to height of a random crop: the RandomResizedCrop of every published MAE
Epochs = int | Sequence[int] | np.ndarray  # one for all images, or one for each
Indices = Sequence[int] | np.ndarray
Sides = int | Sequence[int] | np.ndarray
TRIES = 10  # to draw a box that fits, as torchvision does before it takes the centre


def uniforms(seed: int, epoch: Epochs, indices: Indices, count: int, repeats: Sides = 0) -> np.ndarray:
    """``(images, count)`` numbers in [0, 1) that depend on seed, epoch, image index and repeat alone. `epoch` and
    `repeats` are one number for all images, or one for each.

    This is splitmix64 as a counter-based generator. The libraries' generators carry a state, which workers and
    processes cannot share.
    """

    def mix(x):
        x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    with np.errstate(over="ignore"):
        # No epoch reaches 2^32, so that epoch and repeat fill different bits.
        moment = np.asarray(epoch, np.uint64) ^ (np.asarray(repeats, np.uint64) << np.uint64(32))
        key = mix(mix(np.array([seed], np.uint64)) ^ moment)
        key = mix(key ^ np.asarray(indices, np.uint64))[:, None]  # (images, 1)
        bits = mix(key ^ np.arange(count, dtype=np.uint64))  # (images, count)
    return (bits >> np.uint64(11)) * 2.0**-53


class Crop(Protocol):
    """Which part of each image is seen. `RandomResizedCrop` says what the arguments and results are."""

    def __call__(
        self, epoch: Epochs, indices: Indices, height: Sides, width: Sides, repeats: Sides = 0
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class RandomResizedCrop:
    """The boxes of torchvision's RandomResizedCrop, and a flip for every second image (paper, Table 8)."""

    def __init__(self, seed: int, scale=(0.2, 1.0), ratio=ASPECT_RATIOS, flip: bool = True):
        self.seed, self.scale, self.ratio, self.flip = seed, tuple(scale), tuple(ratio), flip

    def __call__(
        self, epoch: Epochs, indices: Indices, height: Sides, width: Sides, repeats: Sides = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes ``(images, 4)`` = top, left, height, width in pixels, and flips ``(images,)``.

        `epoch`, `height` and `width` of the images in pixels, and which crop of the epoch this is (`repeats`): one
        number for all, or one for each.
        """
        n = len(indices)
        draws = uniforms(self.seed, epoch, indices, 2 * TRIES + 3, repeats)
        height = np.broadcast_to(np.asarray(height), (n,))[:, None]
        width = np.broadcast_to(np.asarray(width), (n,))[:, None]
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, :TRIES])  # (images, tries)
        low, high = np.log(self.ratio[0]), np.log(self.ratio[1])
        aspect = np.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
        widths, heights = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = np.arange(n), fits.argmax(1)
        w, h, height, width = widths[first], heights[first], height[:, 0], width[:, 0]  # (images,)
        top = np.floor(draws[:, -3] * (height - h + 1))
        left = np.floor(draws[:, -2] * (width - w + 1))
        # Where no box fits: the largest central crop of an allowed aspect ratio.
        none, shape = ~fits.any(1), width / height
        w = np.where(none, np.where(shape > self.ratio[1], np.round(height * self.ratio[1]), width), w)
        h = np.where(none, np.where(shape < self.ratio[0], np.round(width / self.ratio[0]), height), h)
        top, left = np.where(none, (height - h) // 2, top), np.where(none, (width - w) // 2, left)
        boxes = torch.from_numpy(np.stack([top, left, h, w], 1).astype(np.int64))  # (images, 4)
        return boxes, torch.from_numpy((draws[:, -1] < 0.5) & self.flip)

    @property
    def only_flips(self) -> bool:
        """Whether every box is the largest that fits: only flips are random."""
        return self.scale == (1.0, 1.0)

    def has_choice(self, height, width) -> np.ndarray:
        """Whether images of this size can get several boxes, ``(images,)``. `height` and `width` are arrays."""
        low = np.exp(np.log(self.ratio[0]))
        w, h = np.round(np.sqrt(height * width * low)), np.round(np.sqrt(height * width / low))
        fits = (w <= width) & (h <= height)  # where it does not, there is the central crop alone
        varied = self.scale != (1.0, 1.0) or self.ratio[0] != self.ratio[1]
        return varied | (fits & ((w < width) | (h < height)))


class FlippingCrop(Crop, Protocol):
    """A crop that may leave nothing but flips to chance."""

    def has_choice(self, height, width) -> np.ndarray: ...


class OnlyCrop:
    """The boxes of a crop that has no choice, with all images mirrored or none. `had_choice` tells
    whether it had one all the same, also where loading workers called it."""

    def __init__(self, crop: "FlippingCrop", mirrored: bool):
        self.crop, self.mirrored = crop, mirrored
        self.had_choice = shared_or(mapped, torch.zeros(1, dtype=torch.bool))

    def __call__(
        self, epoch: Epochs, indices: Indices, height: Sides, width: Sides, repeats: Sides = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RandomResizedCrop`."""
        sizes = (np.broadcast_to(np.asarray(side), (len(indices),)) for side in (height, width))
        if self.crop.has_choice(*sizes).any():
            self.had_choice[0] = True
        boxes, flips = self.crop(epoch, indices, height, width, repeats)
        return boxes, torch.full_like(flips, self.mirrored)


def repeats_of(epoch: int | list[int], indices: list[int]) -> list[int]:
    """How many times each index stands before, in the same batch and epoch."""
    seen: Counter[tuple[int, int]] = Counter()
    repeats = []
    epochs = epoch if isinstance(epoch, list) else [epoch] * len(indices)
    for image in zip(epochs, indices, strict=True):
        repeats.append(seen[image])
        seen[image] += 1
    return repeats


def training_crop(seed: int, scale: list[float], flip: bool, size: tuple[int, int]) -> RandomResizedCrop:
    """RandomResizedCrop of `scale`. The scale 1 1 takes the largest box with the aspect ratio of `size`."""
    if tuple(scale) == (1.0, 1.0):
        return RandomResizedCrop(seed, scale, (size[1] / size[0],) * 2, flip)
    return RandomResizedCrop(seed, scale, flip=flip)


class CenterCrop:
    """The deterministic crop of evaluation: the central `fraction` of the largest box with the aspect ratio of `size`.

    A fraction of 224/256 equals resizing the shorter side to 256 and cropping 224. Sets of small images use 1.
    """

    def __init__(self, size: tuple[int, int], fraction: float = 1.0):
        self.size, self.fraction = size, fraction

    def __call__(
        self, epoch: Epochs, indices: Indices, height: Sides, width: Sides, repeats: Sides = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RandomResizedCrop`; no image is flipped, and repeats are the same."""
        n = len(indices)
        height, width = np.broadcast_to(np.asarray(height), (n,)), np.broadcast_to(np.asarray(width), (n,))
        scale = self.fraction * np.minimum(height / self.size[0], width / self.size[1])
        h, w = np.maximum(1, np.round(self.size[0] * scale)), np.maximum(1, np.round(self.size[1] * scale))
        boxes = np.stack([(height - h) // 2, (width - w) // 2, h, w], 1).astype(np.int64)  # (images, 4)
        return torch.from_numpy(boxes), torch.zeros(n, dtype=torch.bool)


def _resize_matrix(start: torch.Tensor, length: torch.Tensor, inputs: int, outputs: int) -> torch.Tensor:
    """Weights ``(batch, outputs, inputs)`` of an antialiased bicubic resize of `length` pixels from `start` on."""
    scale = length / outputs  # (batch,)
    support = scale.clamp(min=1)
    centre = (torch.arange(outputs, device=start.device) + 0.5) * scale[:, None] + start[:, None]  # (batch, outputs)
    pixel = torch.arange(inputs, device=start.device) + 0.5
    x = ((pixel - centre[..., None]) / support[:, None, None]).abs()  # (batch, outputs, inputs)
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
    *size)``, of uint8 in 0..255, antialiased bicubic, as two batched matrix products. `flips` (batch,) mirrors images
    left to right."""
    top, left, height, width = boxes.to(images.device).float().unbind(1)
    rows = _resize_matrix(top, height, images.shape[2], size[0])  # (batch, size[0], h)
    columns = _resize_matrix(left, width, images.shape[3], size[1])  # (batch, size[1], w)
    if flips is not None:
        columns = torch.where(flips.to(images.device)[:, None, None], columns.flip(1), columns)
    resized = rows[:, None] @ images.float() @ columns[:, None].transpose(2, 3)  # (batch, channels, *size)
    # Values beyond black and white are kept where the images have them too.
    return resized.clamp(0, 255) if images.dtype == torch.uint8 else resized


def finish_crop(batch: dict, size: tuple[int, int]) -> torch.Tensor:
    """The images of a batch at their final `size`: cropped where it has `boxes`, mirrored where it has `flips`. Images
    that a loading worker has cropped to another size are resized."""
    images, flips, boxes = batch["images"], batch.get("flips"), batch.get("boxes")
    if boxes is None and tuple(images.shape[2:]) != tuple(size):
        boxes = torch.tensor([0, 0, *images.shape[2:]]).expand(len(images), 4)
    if boxes is not None:
        return crop_and_resize(images, boxes, flips, size)
    return images if flips is None else torch.where(flips[:, None, None, None], images.flip(3), images)
