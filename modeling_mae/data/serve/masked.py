"""Images with a mask each. Crop, flip and turn are the same for both: a pure function of (seed, epoch, image)."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..read.volumes import nearest_pixels
from .crops import Crop, Epochs, Indices, Sides, repeats_of, uniforms
from .image_set import Images
from .images import FileImages, MemoryImages
from .order import UpdateOrder


IGNORED = 255  # the number of pixels without a class; more classes than this do not fit 8 bits


class WholeImage:
    """Evaluation sees all of an image, at its own size."""

    def __call__(
        self, epoch: Epochs, indices: Indices, height: Sides, width: Sides, repeats: Sides = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(indices)
        boxes = np.zeros((n, 4), np.int64)
        boxes[:, 2], boxes[:, 3] = height, width
        return torch.from_numpy(boxes), torch.zeros(n, dtype=torch.bool)


class ScaledCrop:
    """Boxes of the model's size in pixels of the image, which an enlargement drawn from `zoom` divides; every second
    image is flipped, and `quarter_turns` turns images by 0, 1, 2 or 3 quarters.

    A box lies inside the image where it fits, and reaches over both edges where it does not. `fill`, the mean in 0..1
    of each channel, is what the model sees there.
    """

    def __init__(
        self,
        seed: int,
        size: tuple[int, int],
        zoom: list[float],
        flip: bool,
        quarter_turns: bool,
        fill: list[float],
    ):
        self.seed, self.size, self.zoom, self.flip, self.fill = seed, size, tuple(zoom), flip, fill
        self.quarter_turns = quarter_turns

    def __call__(
        self, epoch: Epochs, indices: Indices, height: Sides, width: Sides, repeats: Sides = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes ``(images, 4)`` = top, left, height, width in pixels, and flips ``(images,)``. Arguments as of
        `RandomResizedCrop`."""
        draws = uniforms(self.seed, epoch, indices, 4, repeats)
        low, high = np.log(self.zoom)
        zooms = np.exp(low + (high - low) * draws[:, 0])  # (images,)
        sides = []
        for length, side, draw in ((height, self.size[0], draws[:, 1]), (width, self.size[1], draws[:, 2])):
            long = np.maximum(1, np.round(side / zooms))
            room = np.broadcast_to(np.asarray(length), long.shape) - long  # below 0 where the box is larger
            sides.append((np.floor(draw * (np.abs(room) + 1)) * np.sign(room), long))
        (top, h), (left, w) = sides
        boxes = torch.from_numpy(np.stack([top, left, h, w], 1).astype(np.int64))  # (images, 4)
        return boxes, torch.from_numpy((draws[:, 3] < 0.5) & self.flip)

    def turns(self, epoch: Epochs, indices: Indices, repeats: Sides = 0) -> list[int]:
        """How many quarters each image is turned, counter-clockwise."""
        draws = uniforms(self.seed, epoch, indices, 5, repeats)[:, 4]
        return np.floor(4 * draws * self.quarter_turns).astype(int).tolist()

    @property
    def only_flips(self) -> bool:
        """Whether images of the model's size look like themselves or their mirror image."""
        return self.zoom == (1.0, 1.0) and not self.quarter_turns

    def has_choice(self, height, width) -> np.ndarray:
        """Whether images of this size can look like more than themselves and their mirror image, ``(images,)``."""
        return (not self.only_flips) | (np.asarray(height) != self.size[0]) | (np.asarray(width) != self.size[1])


class MaskedImages(Images):
    """`images` with a mask each. The labels of `images` are their own numbers.

    ``read_mask(index)`` gives the class numbers ``(height, width)`` uint8 of an image, `IGNORED` where there is none.
    `labels` ``(images, classes)`` are the pixels of each class.

    A batch has `masks` ``(batch, height, width)`` beside `images`, in training both at the model's size. In evaluation
    they have their own sizes: smaller ones are filled up to the largest of the batch, and `sizes` ``(batch, 2)`` says
    which part is theirs.
    """

    decodes = at_own_size = True

    def __init__(self, images: Images, read_mask: Callable[[int], np.ndarray], labels: torch.Tensor):
        super().__init__(len(images), images.size, images.crop_fraction, labels)
        self.images, self.read_mask, self.where = images, read_mask, images.where
        self.white, self.dtype, self.bands, self.mixture = images.white, images.dtype, images.bands, images.mixture
        self.remarks, self.skipped, self.incomplete = images.remarks, images.skipped, images.incomplete
        self.crop: Crop = WholeImage()

    @property
    def have_size(self) -> bool:
        """Whether all images are known to have the model's size."""
        return isinstance(self.images, MemoryImages) and tuple(self.images.pixels.shape[2:]) == tuple(self.size)

    def read(self, index: int) -> torch.Tensor:
        return self.images.read(index)

    def order(self, total_batch_size: int, seed: int) -> UpdateOrder:
        return self.images.view(rows=self.rows).order(total_batch_size, seed)

    def spread(self, count: int) -> list[int]:
        return self.images.spread(count)

    def _crop_batch(self, epoch: int | list[int], indices: list[int]) -> dict:
        images, seen = [], []
        for index in indices:
            if isinstance(self.images, FileImages):
                image, index = self.images.read_whole(index)
            else:
                image = self.images.read(index)
            images.append(image)
            # The label of an image is its number: one that stands in for a bad image brings its own mask.
            seen.append(int(self.images.labels_of([index])))  # type: ignore[arg-type]
        masks = [torch.from_numpy(self.read_mask(index)) for index in seen]
        if isinstance(self.crop, WholeImage):
            return self._with_labels(_whole_batch(images, masks), seen)
        pairs = list(zip(images, masks, strict=True))
        crops = self._cropped(epoch, seen, repeats_of(epoch, indices), pairs)
        batch = {name: torch.stack([pair[i] for pair in crops]) for i, name in enumerate(("images", "masks"))}
        return self._with_labels(batch, seen)

    def masks_of(self, epoch: int | list[int], indices: list[int]) -> torch.Tensor:
        """The masks ``(batch, height, width)`` of a batch of images that all have the model's size."""
        masks = [torch.from_numpy(self.read_mask(index)) for index in indices]
        repeats = repeats_of(epoch, indices)
        pairs = [(mask[None], mask) for mask in masks]
        return torch.stack([mask for _, mask in self._cropped(epoch, indices, repeats, pairs)])

    def _cropped(self, epoch, indices: list[int], repeats: list[int], pairs: list) -> list:
        heights, widths = ([mask.shape[axis] for _, mask in pairs] for axis in (0, 1))
        boxes, flips = self.crop(epoch, indices, heights, widths, repeats)
        crop = self.crop
        turns = crop.turns(epoch, indices, repeats) if isinstance(crop, ScaledCrop) else [0] * len(indices)
        fill = 255 * torch.tensor(crop.fill if isinstance(crop, ScaledCrop) else [0.0])  # (channels,)
        cropped = []
        for (image, mask), box, flip, turn in zip(pairs, boxes.tolist(), flips.tolist(), turns, strict=True):
            image, mask = crop_pair(image, mask, box, self.size, fill[: len(image)])
            if flip:
                image, mask = image.flip(2), mask.flip(1)
            if turn:
                image, mask = image.rot90(turn, (1, 2)), mask.rot90(turn, (0, 1))
            cropped.append((image, mask))
        return cropped


def crop_pair(
    image: torch.Tensor, mask: torch.Tensor, box: list[int], size: tuple[int, int], fill: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the box (top, left, height, width), which may reach over the edges, at `size`: ``(channels, *size)`` by
    antialiased bicubic, ``(*size)`` by the nearest pixel. Outside the image is the `fill`, one for all channels or one
    for each, and `IGNORED`."""
    top, left, height, width = box
    rows, columns = slice(max(0, top), top + height), slice(max(0, left), left + width)
    image, mask = image[:, rows, columns], mask[rows, columns]
    if mask.shape != (height, width):
        place = (slice(max(0, -top), max(0, -top) + len(mask)), slice(max(0, -left), max(0, -left) + mask.shape[1]))
        canvas = fill.to(image.dtype)[:, None, None].expand(len(image), height, width).clone()
        canvas[:, place[0], place[1]] = image
        image, known = canvas, mask
        mask = known.new_full((height, width), IGNORED)
        mask[place] = known
    if (height, width) == tuple(size):
        return image, mask
    image = F.resize(image, list(size), InterpolationMode.BICUBIC, antialias=True)
    return image, mask.index_select(0, _nearest(size[0], height)).index_select(1, _nearest(size[1], width))


@lru_cache(1024)
def _nearest(count: int, length: int) -> torch.Tensor:
    """As `nearest_pixels`. Cached, because it costs a tenth of the time of a mask."""
    return torch.from_numpy(nearest_pixels(count, length))


def _whole_batch(images: list[torch.Tensor], masks: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    sizes = torch.tensor([mask.shape for mask in masks])  # (batch, 2)
    height, width = sizes.amax(0).tolist()
    batch = {
        "images": images[0].new_zeros(len(images), len(images[0]), height, width),
        "masks": masks[0].new_full((len(images), height, width), IGNORED),
        "sizes": sizes,
    }
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        batch["images"][i, :, : mask.shape[0], : mask.shape[1]] = image
        batch["masks"][i, : mask.shape[0], : mask.shape[1]] = mask
    return batch
