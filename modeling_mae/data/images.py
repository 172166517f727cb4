"""`Images`, the one interface to a set of images, and its kinds: in memory, from files.

A new kind of source is one class here and one branch in `sources.py`.
"""

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .crops import CenterCrop, RandomResizedCrop, finish_crop
from .decode import BadImage, decode
from .order import MicroBatches, Order
from .sources import Source


STATISTICS_SAMPLE = 2048  # images that mean and deviation are measured on
PREFETCHED_BATCHES = 4  # of each loading worker


class Images(Dataset, ABC):
    """A set of images as training, evaluation and statistics see it, in the centre crop until `view` changes it.

    A batch is a dict. `images`: uint8 ``(batch, channels, height, width)``. Where the device still has to crop them:
    `boxes` ``(batch, 4)`` and `flips` ``(batch,)``. Where the set has labels: `labels`, class numbers
    ``(batch,)``, or floats ``(batch, classes or targets)``.
    """

    where: str  # "in memory" or "from files", for people
    decodes: bool  # whether a batch takes work that loading workers can do

    def __init__(self, num_images: int, size: tuple[int, int], crop_fraction: float, labels: torch.Tensor | None):
        self.size = size  # (height, width) in pixels, as the model takes them
        self.crop: CenterCrop | RandomResizedCrop = CenterCrop(size, crop_fraction)
        self.skipped = torch.zeros(num_images, dtype=torch.bool)  # unreadable images that another one stands in for
        self._labels = labels  # (num_images,) class numbers, or (num_images, n) floats
        self._rows: np.ndarray | None = None  # of a view: its images' positions in the whole set
        self._augment: Callable | None = None

    @abstractmethod
    def read(self, index: int) -> torch.Tensor:
        """Image `index` of the whole set, uncropped: uint8 ``(channels, height, width)``."""

    @abstractmethod
    def _crop_batch(self, epoch: int, indices: list[int]) -> dict:
        """The batch of these images of the whole set."""

    def __len__(self) -> int:
        return len(self.skipped) if self._rows is None else len(self._rows)

    @property
    def labels(self) -> torch.Tensor | None:
        """Class numbers ``(images,)``, floats ``(images, classes or targets)``, or None."""
        return self._labels if self._labels is None or self._rows is None else self._labels[self._rows]

    def view(
        self,
        crop: CenterCrop | RandomResizedCrop | None = None,
        rows: np.ndarray | None = None,
        augment: Callable[[torch.Tensor, int, list[int]], torch.Tensor] | None = None,
    ) -> "Images":
        """The same images, shared and not copied, under another crop; only `rows` of them; changed by `augment`.

        An image keeps its crop from the whole set. `augment(images, epoch, indices)` gets and gives uint8
        ``(batch, channels, *size)``; the indices are those of the view.
        """
        view = copy.copy(self)
        view.crop = crop or self.crop
        view._augment = augment or self._augment
        if rows is not None:
            view._rows = rows if self._rows is None else self._rows[rows]
        return view

    def batch(self, epoch: int, indices: list[int]) -> dict:
        """The images at `indices` as epoch `epoch` sees them."""
        rows = indices if self._rows is None else self._rows[indices].tolist()
        batch = self._crop_batch(epoch, rows)
        if self._augment is not None:
            pixels = finish_crop(batch, self.size).round().to(torch.uint8)  # (batch, channels, *size)
            batch = {key: batch[key] for key in ("labels",) if key in batch}
            batch["images"] = self._augment(pixels, epoch, indices)
        return batch

    def __getitem__(self, epoch_and_indices: tuple[int, list[int]]) -> dict:
        return self.batch(*epoch_and_indices)

    def spread(self, count: int) -> list[int]:
        """At most `count` indices of the whole set, evenly spaced."""
        total = len(self.skipped)
        return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()

    def loader(self, batches: Sampler | Iterable[tuple[int, list[int]]], num_workers: int) -> DataLoader:
        """The given batches, each (epoch, indices), in order."""
        # What lies in memory is cropped on the device: a worker would only copy it.
        workers = num_workers if self.decodes or self._augment is not None else 0
        return DataLoader(
            self,
            batch_size=None,  # the sampler makes the batches
            sampler=batches,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            generator=torch.Generator(),  # of its own: the global one must stand where a checkpoint left it
        )

    def training_loader(
        self,
        *,
        seed: int,
        batch_size: int,
        total_batch_size: int,
        updates: range,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
    ) -> DataLoader:
        """One process's micro-batches of `batch_size` for the `updates`, `total_batch_size` images an update.

        Raises:
            UserError: the batch sizes do not fit each other or the number of images.
        """
        order = Order(len(self), total_batch_size, seed)
        return self.loader(MicroBatches(order, batch_size, updates, process_index, num_processes), num_workers)


class MemoryImages(Images):
    """All images, decoded once: ``pixels (images, channels, height, width)`` uint8. The device crops them."""

    where = "in memory"
    decodes = False

    def __init__(
        self,
        pixels: torch.Tensor,
        size: tuple[int, int],
        crop_fraction: float = 1.0,
        labels: torch.Tensor | None = None,
    ):
        super().__init__(len(pixels), size, crop_fraction, labels)
        self.pixels = pixels

    def read(self, index: int) -> torch.Tensor:
        return self.pixels[index]

    def _crop_batch(self, epoch: int, indices: list[int]) -> dict:
        boxes, flips = self.crop(epoch, indices, *self.pixels.shape[2:])
        batch = {"images": self.pixels[indices], "boxes": boxes, "flips": flips}
        return batch if self._labels is None else {**batch, "labels": self._labels[indices]}


class FileImages(Images):
    """Images that loading workers decode and crop whenever they are asked for."""

    where = "from files"
    decodes = True

    def __init__(
        self,
        source: Source,
        size: tuple[int, int],
        num_channels: int,
        crop_fraction: float = 1.0,
        labels: torch.Tensor | None = None,
        on_bad_image: str = "error",
    ):
        super().__init__(len(source), size, crop_fraction, labels)
        self.source, self.num_channels, self.on_bad_image = source, num_channels, on_bad_image
        self.skipped.share_memory_()  # loading workers write into it

    def read(self, index: int) -> torch.Tensor:
        return self.read_or_next(index)[0]

    def read_or_next(self, index: int) -> tuple[torch.Tensor, int]:
        """(image, its index): image `index`, or the next readable one where bad images are skipped.

        Raises:
            BadImage: the image is bad and bad images are errors, or there is no readable one.
        """
        for step in range(len(self.skipped)):
            i = (index + step) % len(self.skipped)
            cell = self.source.dataset[i][self.source.image_column]
            try:
                return decode(cell["bytes"], cell["path"], self.num_channels), i
            except BadImage as error:
                if self.on_bad_image == "error":
                    raise BadImage(f"{error}: mend or remove it, or go on without it by --on_bad_image skip") from None
                if not self.skipped[i]:
                    self.skipped[i] = True
                    print(f"skipped    {error}", file=sys.stderr, flush=True)
        raise BadImage(f"none of the {len(self.skipped)} images of {self.source.name} can be read")

    def _crop_batch(self, epoch: int, indices: list[int]) -> dict:
        # An image that stands in for a bad one brings its own crop and label.
        images, indices = zip(*(self.read_or_next(index) for index in indices), strict=True)
        heights, widths = ([image.shape[axis] for image in images] for axis in (1, 2))
        boxes, flips = self.crop(epoch, indices, heights, widths)
        resized = []
        for image, box, flip in zip(images, boxes.tolist(), flips.tolist(), strict=True):
            image = F.resized_crop(image, *box, list(self.size), InterpolationMode.BICUBIC, antialias=True)
            resized.append(image.flip(2) if flip else image)
        batch = {"images": torch.stack(resized)}
        return batch if self._labels is None else {**batch, "labels": self._labels[list(indices)]}


def open_images(
    source: Source,
    size: tuple[int, int],
    num_channels: int,
    *,
    memory_budget: int,
    crop_fraction: float = 1.0,
    on_bad_image: str = "error",
    labels: np.ndarray | None = None,
) -> Images:
    """The images of `source` for a model that takes `size` (height, width): in memory when all have the same shape and
    take at most `memory_budget` bytes, else from their files. `labels` are class numbers ``(images,)`` or floats
    ``(images, classes or targets)``.

    Raises:
        BadImage: as `FileImages.read_or_next`.
    """
    labels = None if labels is None else torch.from_numpy(labels)
    files = FileImages(source, size, num_channels, crop_fraction, labels, on_bad_image)
    sample = [files.read(i) for i in files.spread(16)]
    shapes = {tuple(image.shape) for image in sample}
    if len(shapes) > 1 or len(files) * sample[0].numel() > memory_budget:
        return files
    return _read_all(files, sample[0].shape, crop_fraction) or files


def _read_all(files: FileImages, shape: torch.Size, crop_fraction: float) -> MemoryImages | None:
    """All images in memory; None when one has another shape."""
    pixels = torch.empty(len(files), *shape, dtype=torch.uint8)  # (images, channels, height, width)
    labels = None if files.labels is None else files.labels.clone()
    rows = files.source.dataset.select_columns([files.source.image_column])
    for start in range(0, len(files), 1000):
        for i, cell in enumerate(rows[start : start + 1000][files.source.image_column], start):
            try:
                image = decode(cell["bytes"], cell["path"], files.num_channels)
            except BadImage:
                image, stand_in = files.read_or_next(i)
                if labels is not None:
                    labels[i] = files.labels[stand_in]
            if image.shape != shape:
                return None
            pixels[i] = image
    images = MemoryImages(pixels, files.size, crop_fraction, labels)
    images.skipped = files.skipped
    return images


def measure_mean_std(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over evenly spaced images, where white is 1."""
    count, total, squares = 0, 0.0, 0.0
    for image in _sample(images):
        values = image.double().flatten(1) / 255  # (channels, pixels)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    std = (squares / count - mean**2).clamp(min=0).sqrt()
    # A channel that holds a single value has no deviation to divide by.
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) or 1.0 for v in std.tolist()]


def _sample(images: Images) -> Iterator[torch.Tensor]:
    return (images.read(i) for i in images.spread(STATISTICS_SAMPLE))
