"""`Images`, the one interface to a set of images. `images.py` has its kinds."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ...errors import UserError
from ..read.bit_depth import WHITE
from .crops import CenterCrop, Crop, finish_crop
from .mixture import Mixture
from .order import MicroBatches, Order, UpdateOrder, distinct_images
from .worker import WatchedLoader


PREFETCHED_BATCHES = 4  # of each loading worker


class Images(Dataset, ABC):
    """A set of images as training, evaluation and statistics see it, in the centre crop until `view` changes it.

    An image that stands in a batch several times has another crop each time.

    A batch is a dict. `images`: `dtype` ``(batch, channels, height, width)``. Where the device still has to crop them:
    `boxes` ``(batch, 4)`` and `flips` ``(batch,)``. Where the set has labels: `labels`, class numbers
    ``(batch,)``, or floats ``(batch, classes or targets)``.
    """

    where: str  # "in memory" or "from files", for people
    decodes: bool  # whether a batch takes work that loading workers can do
    white: float = WHITE  # value in the files that is 255 here
    dtype: torch.dtype = torch.uint8  # of the images; float32 where the files have other than 8 bits
    bands: list[int] | None = None  # of the files, counted from 1, that are the channels; None takes all
    mixture: Mixture | None = None  # the sources that were joined, and their shares of the training
    at_own_size: bool = False  # whether evaluation sees images as large as they are
    remarks: str = ""  # for people: how values are scaled, and what is not among the images

    def __init__(self, num_images: int, size: tuple[int, int], crop_fraction: float, labels: torch.Tensor | None):
        self.size = size  # (height, width) in pixels, as the model takes them
        self.crop_fraction = crop_fraction  # of the crop of evaluation
        self.crop: Crop = CenterCrop(size, crop_fraction)
        self.skipped = torch.zeros(num_images, dtype=torch.bool)  # unreadable images that another one stands in for
        self.incomplete = torch.zeros(num_images, dtype=torch.bool)  # whose missing values were filled
        self._labels = labels  # (num_images,) class numbers, or (num_images, n) floats
        self.rows: np.ndarray | None = None  # of a view: its images' positions in the whole set
        self.augment: Callable | None = None

    @abstractmethod
    def read(self, index: int) -> torch.Tensor:
        """Image `index` of the whole set, uncropped: `dtype` ``(channels, height, width)``."""

    @abstractmethod
    def _crop_batch(self, epoch: int | list[int], indices: list[int]) -> dict:
        """The batch of these images of the whole set."""

    def __len__(self) -> int:
        return len(self.skipped) if self.rows is None else len(self.rows)

    @property
    def labels(self) -> torch.Tensor | None:
        """Class numbers ``(images,)``, floats ``(images, classes or targets)``, or None."""
        return self._labels if self._labels is None or self.rows is None else self._labels[self.rows]

    @property
    def known_labels(self) -> torch.Tensor:
        """The labels. Raises an error if the set has none."""
        assert self.labels is not None, "this set of images has no labels"
        return self.labels

    def labels_of(self, rows: torch.Tensor | list[int]) -> torch.Tensor | None:
        """Labels of these images of the whole set."""
        return None if self._labels is None else self._labels[rows]

    def with_labels(self, labels: torch.Tensor) -> "Images":
        """The same images, shared and not copied, with these labels of the whole set."""
        images = copy.copy(self)
        images._labels = labels
        return images

    def _with_labels(self, batch: dict, rows: list[int]) -> dict:
        labels = self.labels_of(rows)
        return batch if labels is None else {**batch, "labels": labels}

    def view(
        self,
        crop: Crop | None = None,
        rows: np.ndarray | None = None,
        augment: Callable[[torch.Tensor, int | list[int], list[int]], torch.Tensor] | None = None,
    ) -> "Images":
        """The same images, shared and not copied, under another crop; only `rows` of them; changed by `augment`.

        An image keeps its crop from the whole set. `augment(images, epoch, indices)` gets and gives uint8
        ``(batch, channels, *size)``; the indices are those of the view.

        Raises:
            UserError: images of other than 8 bits are to be changed.
        """
        if augment is not None and self.dtype != torch.uint8:
            raise UserError("augmentation by --auto_augment needs images of 8 bits, which these are not: give none")
        view = copy.copy(self)
        view.crop = crop or self.crop
        view.augment = augment or self.augment
        if rows is not None:
            view.rows = rows if self.rows is None else self.rows[rows]
        return view

    def batch(self, epoch: int | list[int], indices: list[int]) -> dict:
        """The images at `indices` as epoch `epoch` sees them: one for all, or one for each."""
        rows = indices if self.rows is None else self.rows[indices].tolist()
        batch = self._crop_batch(epoch, rows)
        if self.augment is not None:
            pixels = finish_crop(batch, self.size).round().to(torch.uint8)  # (batch, channels, *size)
            batch = {key: batch[key] for key in ("labels",) if key in batch}
            batch["images"] = self.augment(pixels, epoch, indices)
        return batch

    def __getitem__(self, epoch_and_indices: tuple[int | list[int], list[int]]) -> dict:
        return self.batch(*epoch_and_indices)

    def spread(self, count: int) -> list[int]:
        """At most `count` indices of the whole set, evenly spaced."""
        total = len(self.skipped)
        return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()

    @property
    def can_fail(self) -> bool:
        """Whether a batch takes files or loading workers, either of which can fail."""
        # What lies in memory is cropped on the device: a worker would only copy it.
        return self.decodes or self.augment is not None

    def loader(self, batches: Sampler | Iterable[tuple[int, list[int]]], num_workers: int) -> DataLoader:
        """The given batches, each (epoch, indices), in order."""
        workers = num_workers if self.can_fail else 0
        prefetched = PREFETCHED_BATCHES if workers else None
        pinned = torch.cuda.is_available() or torch.xpu.is_available()  # MPS shares the CPU's memory
        return WatchedLoader(self, workers, sampler=batches, pin_memory=pinned, prefetch_factor=prefetched)

    def order(self, total_batch_size: int, seed: int) -> UpdateOrder:
        if self.mixture is not None:
            return self.mixture.order(self.rows, total_batch_size, seed)
        return Order(len(self), total_batch_size, seed)

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
        repeats: int = 1,
    ) -> DataLoader:
        """One process's micro-batches of `batch_size` for the `updates`, `total_batch_size` images an update.

        With `repeats` each image is decoded once and stands in its micro-batch so many times, in crops of its own.

        Raises:
            UserError: the batch sizes do not fit each other or the number of images.
        """
        order = self.order(distinct_images(total_batch_size, repeats), seed)
        batches = MicroBatches(order, batch_size, updates, process_index, num_processes, repeats)
        return self.loader(batches, num_workers)
