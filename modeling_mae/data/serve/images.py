"""The kinds of `Images`: in memory, from files, streamed. `open_images` chooses."""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ...errors import UserError
from ..find.sources import Source
from ..read.arrays import cell_of, describe_stacks
from ..read.bit_depth import WHITE, common_white, describe_scale
from ..read.decode import BadImage, decode_present, look_at, name_of
from ..read.reduced import ReducedJpeg, Reduction
from ..stream.shards import ShardedRows
from .crops import repeats_of
from .filling import WORTH_PROCESSES, fill
from .image_cache import KeptImages, Machine, share_memory
from .image_set import Images
from .lanes import LaneOrder
from .mixture import MixedOrder, Mixture
from .order import Order


SHAPE_SAMPLE = 16  # images that tell whether all have the same shape
READ_AT_START = 250_000  # images; to decode more before the first update would take more than a minute
KEPT = "from files, kept in memory once decoded"
FILE_SAMPLE = 64  # files that tell which value is white, and whether they are stacks


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
        boxes, flips = self.crop(epoch, indices, *self.pixels.shape[2:], repeats_of(epoch, indices))
        batch = {"images": self.pixels[indices], "boxes": boxes, "flips": flips}
        return batch if self._labels is None else {**batch, "labels": self._labels[indices]}


class FileImages(Images):
    """Images that loading workers decode and crop whenever they are asked for."""

    where = "from files"
    decodes = True
    scaled_decoding = True  # of large JPEG files, at 1/2, 1/4 or 1/8 size where their crop allows it
    kept: KeptImages | None = None  # what was decoded before

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
        self.bands, self.mixture = bands, Mixture.of(source)
        self.source, self.num_channels, self.on_bad_image, self.white = source, num_channels, on_bad_image, white
        for flags in (self.skipped, self.incomplete):
            flags.share_memory_()  # loading workers write into them

    def read(self, index: int) -> torch.Tensor:
        return self.read_or_next(index)[0]

    def read_or_next(
        self,
        index: int,
        enough_pixels: int | None = None,
        reduction_of: Callable[[int], Reduction | None] = lambda index: None,
    ) -> tuple[torch.Tensor | ReducedJpeg, int]:
        """(image, its index): image `index`, or the next readable one where bad images are skipped.

        `enough_pixels` is for statistics, as in `decode`. Missing values are NaN then. `reduction_of(index)` says how
        the crops of an image let it be reduced.

        Raises:
            BadImage: the image is bad and bad images are errors, or there is no readable one.
        """
        for step in range(len(self.skipped)):
            i = (index + step) % len(self.skipped)
            image = self._read(i, enough_pixels, reduction_of(i))
            if image is not None:
                return image, i
        raise BadImage(f"none of the {len(self.skipped)} images of {self.source.name} can be read")

    def _read(self, index: int, enough_pixels: int | None, reduction: Reduction | None):
        """Image `index`, kept or decoded; None where it is bad and bad images are skipped."""
        kept = self.kept if enough_pixels is None else None
        if kept is not None and (found := kept.get(index)) is not None:
            image, whole = found
            # The same pixels as without keeping: the file gives those of a reduced image.
            if whole or reduction is None or reduction(*image.shape[1:]) == 1:
                return image
        decoded = self.try_file(index, partial(self.decode, enough_pixels=enough_pixels, reduction=reduction))
        if decoded is None:
            return None
        image, gone = decoded
        if gone is not None:
            self.incomplete[index] = True
            image = image.float().masked_fill(gone, torch.nan) if enough_pixels else image
        if kept is not None and torch.is_tensor(image):
            kept.put(index, image, whole=reduction is None or reduction(*image.shape[1:]) > 1)
        return image

    def decode(
        self,
        data: bytes | None,
        path: str | None,
        enough_pixels: int | None = None,
        reduction: Reduction | None = None,
    ):
        """As `decode_present`, under the rules of this set."""
        rules = (self.num_channels, self.white, enough_pixels, self.bands, reduction)
        image, gone = decode_present(data, path, *rules)
        if not torch.is_tensor(image):
            return image, gone
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
        repeats = np.array(repeats_of(epoch, indices))
        epochs = np.broadcast_to(epoch, len(indices))
        read, rows = {}, np.array(indices)
        for index in dict.fromkeys(indices):  # what stands here several times is decoded once
            here = rows == index
            read[index] = self.read_or_next(index, reduction_of=partial(self._reduction, epochs[here], repeats[here]))
        images, indices = zip(
            *(read[index] for index in indices), strict=True
        )  # a stand-in has its own crop and label
        heights, widths = ([image.shape[axis] for image in images] for axis in (1, 2))
        boxes, flips = self.crop(epoch, indices, heights, widths, repeats)
        resized = []
        for image, box, flip in zip(images, boxes.tolist(), flips.tolist(), strict=True):
            image = self._resized_crop(image, box)
            resized.append(image.flip(2) if flip else image)
        batch = {"images": torch.stack(resized)}
        return batch if self._labels is None else {**batch, "labels": self._labels[list(indices)]}

    def _resized_crop(self, image: torch.Tensor | ReducedJpeg, box: list[int]) -> torch.Tensor:
        if isinstance(image, ReducedJpeg):
            return image.crop(box, self.size)
        return F.resized_crop(image, *box, list(self.size), InterpolationMode.BICUBIC, antialias=True)

    def _reduction(self, epochs: np.ndarray, repeats: np.ndarray, index: int) -> Reduction | None:
        """How image `index` may be reduced for these of its crops."""
        if not self.scaled_decoding or self.dtype != torch.uint8 or self.bands:
            return None

        def boxes_of(height: int, width: int) -> torch.Tensor:
            return self.crop(epochs, [index] * len(repeats), height, width, repeats)[0]

        return Reduction(boxes_of, self.size)


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
    machine: Machine | None = None,
    crop_fraction: float = 1.0,
    on_bad_image: str = "error",
    labels: np.ndarray | None = None,
    white: float | None = None,
    bands: list[int] | None = None,
    scaled_decoding: bool = True,
    num_workers: int = 0,
) -> Images:
    """The images of `source` for a model that takes `size` (height, width): in memory when all have the same shape,
    take at most `memory_budget` bytes and are at most `READ_AT_START`; else from their files. `labels` are class
    numbers ``(images,)`` or floats ``(images, classes or targets)``. The value `white` in the files becomes 255; None
    finds it from a sample. `bands`, counted from 1, are those of the files that the model sees.

    The processes of a `machine` share the memory, which `num_workers` others fill where that is faster. All processes
    of the run must call this together. Images of several shapes, or more images, that fit by their mean are kept once
    they are decoded.

    Raises:
        BadImage: as `FileImages.read_or_next`.
        UserError: the images have no common white, or the bands are not as many as channels.
    """
    if bands and len(bands) != num_channels:
        raise UserError(f"bands {bands} are {len(bands)}, the model takes {num_channels} channels: set num_channels")
    labels = None if labels is None else torch.from_numpy(labels)
    images_class = StreamedImages if isinstance(source.dataset, ShardedRows) else FileImages
    files = images_class(source, size, num_channels, crop_fraction, labels, on_bad_image, white or WHITE, bands)
    files.scaled_decoding = scaled_decoding
    looks = files.try_files(files.spread(FILE_SAMPLE), partial(look_at, num_channels=num_channels, bands=bands))
    ranges, stacks = [look[0] for look in looks], [look[1] for look in looks]
    if white is None:
        files.white = common_white(ranges)
    if any(kind != "8 bits" for _, kind, _ in ranges):
        files.dtype = torch.float32
    scale = describe_scale(files.white) if files.dtype != torch.uint8 else ""
    remarks = [scale, describe_stacks(stacks), source.left_out]
    files.remarks = "".join(f"; {remark}" for remark in remarks if remark)
    if isinstance(files, StreamedImages):
        return files
    return _kept_in_memory(files, memory_budget, machine or Machine(), num_workers)


def _kept_in_memory(files: FileImages, budget: int, machine: Machine, num_workers: int) -> Images:
    """The images of these files, in at most `budget` bytes of memory, where they fit."""
    sample = [files.read(i) for i in files.spread(SHAPE_SAMPLE)]
    bytes_needed = len(files) * sum(image.nbytes for image in sample) // len(sample)
    if bytes_needed > budget:
        return files
    if len({image.shape for image in sample}) == 1 and len(files) <= READ_AT_START:
        images = _read_all(files, sample[0].shape, machine, num_workers)
        if images is not None:
            return images
    memory = share_memory(KeptImages.bytes_for(len(files), budget), machine)
    if memory is not None:
        files.kept, files.where = KeptImages(memory, len(files), files.dtype), KEPT
    return files


def _read_all(files: FileImages, shape: torch.Size, machine: Machine, num_workers: int) -> MemoryImages | None:
    """All images in memory; None when one has another shape. One process of a machine decodes them, or its
    `num_workers` do."""
    size = len(files) * shape.numel() * files.dtype.itemsize
    num_workers = num_workers if size >= WORTH_PROCESSES else 0
    memory = share_memory(size, machine) if num_workers or not machine.alone else None
    shape = (len(files), *shape)  # (images, channels, height, width)
    pixels = torch.empty(shape, dtype=files.dtype) if memory is None else memory.tensor(shape, files.dtype)
    outcome = None
    if memory is None or machine.first:
        try:
            stand_ins = fill(pixels, files, num_workers if memory is not None else 0)
            outcome = None if stand_ins is None else (stand_ins, files.skipped, files.incomplete)
        except UserError as error:
            outcome = error
    outcome = machine.from_first(outcome) if memory is not None else outcome
    if isinstance(outcome, Exception):
        raise outcome
    if outcome is None:
        return None
    stand_ins, files.skipped, files.incomplete = outcome
    labels = None if files.labels is None else files.labels[stand_ins]
    return MemoryImages(pixels, files.size, files.crop.fraction, labels, files)
