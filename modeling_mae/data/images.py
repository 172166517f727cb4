"""`Images`, the one interface to a set of images, and its kinds: in memory, from files, streamed."""

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..errors import UserError
from .arrays import cell_of, describe_stacks
from .bit_depth import WHITE, common_white, describe_scale
from .crops import CenterCrop, RandomResizedCrop, finish_crop
from .decode import BadImage, decode_present, look_at, name_of
from .lanes import LaneOrder
from .mixture import MixedOrder, Mixture
from .order import MicroBatches, Order
from .shards import ShardedRows
from .sources import Source
from .worker import prepare_worker


SHAPE_SAMPLE = 16  # images that tell whether all have the same shape
READ_AT_START = 250_000  # images; to decode more before the first update would take more than a minute
FILE_SAMPLE = 64  # files that tell which value is white, and whether they are stacks
PREFETCHED_BATCHES = 4  # of each loading worker


class Images(Dataset, ABC):
    """A set of images as training, evaluation and statistics see it, in the centre crop until `view` changes it.

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
    remarks: str = ""  # for people: how values are scaled, and what is not among the images

    def __init__(self, num_images: int, size: tuple[int, int], crop_fraction: float, labels: torch.Tensor | None):
        self.size = size  # (height, width) in pixels, as the model takes them
        self.crop: CenterCrop | RandomResizedCrop = CenterCrop(size, crop_fraction)
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

    def view(
        self,
        crop: CenterCrop | RandomResizedCrop | None = None,
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
        return DataLoader(
            self,
            batch_size=None,  # the sampler makes the batches
            sampler=batches,
            num_workers=workers,
            worker_init_fn=prepare_worker,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            generator=torch.Generator(),  # of its own: the global one must stand where a checkpoint left it
        )

    def order(self, total_batch_size: int, seed: int) -> Order | LaneOrder | MixedOrder:
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
    ) -> DataLoader:
        """One process's micro-batches of `batch_size` for the `updates`, `total_batch_size` images an update.

        Raises:
            UserError: the batch sizes do not fit each other or the number of images.
        """
        order = self.order(total_batch_size, seed)
        return self.loader(MicroBatches(order, batch_size, updates, process_index, num_processes), num_workers)


class MemoryImages(Images):
    """All images, decoded once: ``pixels (images, channels, height, width)`` of any type. The device crops them."""

    where = "in memory"
    decodes = False

    def __init__(
        self,
        pixels: torch.Tensor,
        size: tuple[int, int],
        crop_fraction: float = 1.0,
        labels: torch.Tensor | None = None,
        files: "FileImages | None" = None,
    ):
        super().__init__(len(pixels), size, crop_fraction, labels)
        self.pixels, self.dtype = pixels, pixels.dtype
        self.files = files  # that the pixels were read from
        if files is not None:
            self.white, self.bands, self.remarks, self.mixture = files.white, files.bands, files.remarks, files.mixture
            self.skipped, self.incomplete = files.skipped, files.incomplete

    def read(self, index: int) -> torch.Tensor:
        return self.pixels[index]

    def _crop_batch(self, epoch: int | list[int], indices: list[int]) -> dict:
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
        white: float = WHITE,
        bands: list[int] | None = None,
    ):
        super().__init__(len(source), size, crop_fraction, labels)
        self.bands, self.mixture = bands, source.mixture
        self.source, self.num_channels, self.on_bad_image, self.white = source, num_channels, on_bad_image, white
        for flags in (self.skipped, self.incomplete):
            flags.share_memory_()  # loading workers write into them

    def read(self, index: int) -> torch.Tensor:
        return self.read_or_next(index)[0]

    def read_or_next(self, index: int, enough_pixels: int | None = None) -> tuple[torch.Tensor, int]:
        """(image, its index): image `index`, or the next readable one where bad images are skipped.

        `enough_pixels` is for statistics, as in `decode`. Missing values are NaN then.

        Raises:
            BadImage: the image is bad and bad images are errors, or there is no readable one.
        """
        for step in range(len(self.skipped)):
            i = (index + step) % len(self.skipped)
            decoded = self.try_file(i, partial(self.decode, enough_pixels=enough_pixels))
            if decoded is not None:
                image, gone = decoded
                if gone is not None:
                    self.incomplete[i] = True
                    image = image.float().masked_fill(gone, torch.nan) if enough_pixels else image
                return image, i
        raise BadImage(f"none of the {len(self.skipped)} images of {self.source.name} can be read")

    def decode(self, data: bytes | None, path: str | None, enough_pixels: int | None = None):
        """As `decode_present`, under the rules of this set."""
        image, gone = decode_present(data, path, self.num_channels, self.white, enough_pixels, self.bands)
        if self.dtype == torch.uint8 and image.dtype != torch.uint8 and not torch.equal(image, image.to(torch.uint8)):
            raise BadImage(f"{name_of(path)} has values that 8 bits do not hold, as the other files do: convert it")
        return image.to(self.dtype), gone

    def try_file(self, index: int, read: Callable):
        """``read(data, path)`` of file `index`; None where it is bad and bad images are skipped.

        Raises:
            BadImage: it is bad, and bad images are errors.
        """
        try:
            cell = cell_of(self.source.dataset[index][self.source.image_column])
            return read(cell["bytes"], cell["path"])
        except BadImage as error:
            if self.on_bad_image == "error":
                raise BadImage(f"{error}: mend or remove it, or go on without it by --on_bad_image skip") from None
            if not self.skipped[index]:
                self.skipped[index] = True
                print(f"skipped    {error}", file=sys.stderr, flush=True)
            return None

    def try_files(self, indices: list[int], read: Callable) -> list:
        """What `try_file` gives of the good ones among these files."""
        return [result for i in indices if (result := self.try_file(i, read)) is not None]

    def _crop_batch(self, epoch: int | list[int], indices: list[int]) -> dict:
        images, indices = zip(*map(self.read_or_next, indices), strict=True)  # a stand-in has its own crop and label
        heights, widths = ([image.shape[axis] for image in images] for axis in (1, 2))
        boxes, flips = self.crop(epoch, indices, heights, widths)
        resized = []
        for image, box, flip in zip(images, boxes.tolist(), flips.tolist(), strict=True):
            image = F.resized_crop(image, *box, list(self.size), InterpolationMode.BICUBIC, antialias=True)
            resized.append(image.flip(2) if flip else image)
        batch = {"images": torch.stack(resized)}
        return batch if self._labels is None else {**batch, "labels": self._labels[list(indices)]}


class StreamedImages(FileImages):
    """Images of a stream. Neighbours in the order of training lie in few shards."""

    where = "streamed"

    def order(self, total_batch_size: int, seed: int) -> Order | LaneOrder | MixedOrder:
        if self.rows is not None or self.mixture is not None:
            return super().order(total_batch_size, seed)  # a unit has few images of a part
        return LaneOrder(self.source.dataset.counts, total_batch_size, seed)

    def spread(self, count: int) -> list[int]:
        return self.source.dataset.spread(count)


def open_images(
    source: Source,
    size: tuple[int, int],
    num_channels: int,
    *,
    memory_budget: int,
    crop_fraction: float = 1.0,
    on_bad_image: str = "error",
    labels: np.ndarray | None = None,
    white: float | None = None,
    bands: list[int] | None = None,
) -> Images:
    """The images of `source` for a model that takes `size` (height, width): in memory when all have the same shape,
    take at most `memory_budget` bytes and are at most `READ_AT_START`; else from their files. `labels` are class
    numbers ``(images,)`` or floats ``(images, classes or targets)``. The value `white` in the files becomes 255; None
    finds it from a sample. `bands`, counted from 1, are those of the files that the model sees.

    Raises:
        BadImage: as `FileImages.read_or_next`.
        UserError: the images have no common white, or the bands are not as many as channels.
    """
    if bands and len(bands) != num_channels:
        raise UserError(f"bands {bands} are {len(bands)}, the model takes {num_channels} channels: set num_channels")
    labels = None if labels is None else torch.from_numpy(labels)
    images_class = StreamedImages if isinstance(source.dataset, ShardedRows) else FileImages
    files = images_class(source, size, num_channels, crop_fraction, labels, on_bad_image, white or WHITE, bands)
    looks = files.try_files(files.spread(FILE_SAMPLE), partial(look_at, num_channels=num_channels, bands=bands))
    ranges, stacks = [look[0] for look in looks], [look[1] for look in looks]
    if white is None:
        files.white = common_white(ranges)
    if any(kind != "8 bits" for _, kind, _ in ranges):
        files.dtype = torch.float32
    scale = describe_scale(files.white) if files.dtype != torch.uint8 else ""
    remarks = [scale, describe_stacks(stacks), source.left_out]
    files.remarks = "".join(f"; {remark}" for remark in remarks if remark)
    if isinstance(files, StreamedImages) or len(files) > READ_AT_START:
        return files
    sample = [files.read(i) for i in files.spread(SHAPE_SAMPLE)]
    if len({image.shape for image in sample}) > 1 or len(files) * sample[0].nbytes > memory_budget:
        return files
    return _read_all(files, sample[0].shape, crop_fraction) or files


def _read_all(files: FileImages, shape: torch.Size, crop_fraction: float) -> MemoryImages | None:
    """All images in memory; None when one has another shape."""
    pixels = torch.empty(len(files), *shape, dtype=files.dtype)  # (images, channels, height, width)
    labels = None if files.labels is None else files.labels.clone()
    rows = files.source.dataset.select_columns([files.source.image_column])
    for start in range(0, len(files), 1000):
        for i, cell in enumerate(map(cell_of, rows[start : start + 1000][files.source.image_column]), start):
            try:
                image, gone = files.decode(cell["bytes"], cell["path"])
                files.incomplete[i] = gone is not None
            except BadImage:
                image, stand_in = files.read_or_next(i)
                if labels is not None:
                    labels[i] = files.labels[stand_in]
            if image.shape != shape:
                return None
            pixels[i] = image
    return MemoryImages(pixels, files.size, crop_fraction, labels, files)
