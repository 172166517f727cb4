"""The kinds of `Images`: in memory, from files, streamed. `open_images` chooses."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ...errors import UserError
from ...words import counted
from ..find.sources import Source
from ..read.arrays import cell_of, describe_stacks
from ..read.bit_depth import WHITE, common_white, describe_scale, usual_kind
from ..read.decode import ImageRows, Rules, decode_present, look_at, rows_of
from ..read.faults import BadImage, name_of
from ..read.limits import MOST_PIXELS
from ..read.reduced import ReducedJpeg, Reduction
from ..stream.shards import ShardedRows
from .crops import repeats_of
from .decoded import KeptImages, Memory, fill, share_file
from .image_set import Images
from .lanes import LaneOrder
from .mixture import Mixture
from .order import UpdateOrder
from .worker import mapped, shared_or


SHAPE_SAMPLE = 16  # images that tell whether all have the same shape
READ_AT_START = 250_000  # images; to decode more before the first update would take more than a minute
WORTH_PROCESSES = 32 << 20  # bytes of decoded images; fewer are there before other processes have started
ROOM = 2  # times what a sample says that all images take
KEPT = "from files, kept in memory once decoded"
FILE_SAMPLE = 64  # files that tell which value is white, and whether they are stacks


@dataclass(frozen=True)
class ImageSettings:
    """How files become images. The fields are named like the options."""

    on_bad_image: str = "error"
    scaled_decoding: bool = True  # of large JPEG files, at 1/2, 1/4 or 1/8 size if their crop allows it
    white_value: float | None = None  # in the files, becomes 255; None finds it from a sample
    bands: list[int] | None = None  # of the files that the model sees, counted from 1
    image_mean: list[float] | None = None  # for white 1; None measures it on a sample
    image_std: list[float] | None = None
    eval_crop_fraction: float | None = None  # of the largest central box; None takes all of it
    max_image_pixels: int = MOST_PIXELS  # of a file; larger ones are bad images

    @property
    def crop_fraction(self) -> float:
        return self.eval_crop_fraction or 1.0


@dataclass(frozen=True)
class Opening:
    """How a set of images is opened for a model that takes `size` (height, width) in pixels."""

    size: tuple[int, int]
    num_channels: int
    settings: ImageSettings = field(default_factory=ImageSettings)
    memory: Memory = field(default_factory=Memory)

    def with_white(self, white: float | None) -> "Opening":
        """The same, with a white that is known. None finds it from a sample."""
        return replace(self, settings=replace(self.settings, white_value=white))


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
        height, width = self.pixels.shape[2:]
        boxes, flips = self.crop(epoch, indices, height, width, repeats_of(epoch, indices))
        batch = {"images": self.pixels[indices], "boxes": boxes, "flips": flips}
        return self._with_labels(batch, indices)


class FileImages(Images):
    """Images that loading workers decode and crop whenever they are asked for."""

    where = "from files"
    decodes = True
    kept: KeptImages | None = None  # what was decoded before

    def __init__(self, source: Source, opening: Opening, labels: torch.Tensor | None = None):
        settings = opening.settings
        super().__init__(len(source), opening.size, settings.crop_fraction, labels)
        self.source, self.num_channels, self.settings = source, opening.num_channels, settings
        self.on_bad_image = settings.on_bad_image
        self.white, self.bands, self.mixture = settings.white_value or WHITE, settings.bands, Mixture.of(source)
        # Loading workers write into them.
        self.skipped, self.incomplete = (shared_or(mapped, flags) for flags in (self.skipped, self.incomplete))

    def read(self, index: int) -> torch.Tensor:
        return self.read_whole(index)[0]

    def read_whole(self, index: int, enough_pixels: int | None = None) -> tuple[torch.Tensor, int]:
        """As `read_or_next`, of an image that is not reduced for a crop."""
        image, index = self.read_or_next(index, enough_pixels)
        assert isinstance(image, torch.Tensor)
        return image, index

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
        most = self.settings.max_image_pixels
        rules = Rules(self.num_channels, self.white, self.bands, enough_pixels, reduction, most)
        image, gone = decode_present(data, path, rules)
        if not torch.is_tensor(image):
            return image, gone
        return self._of_kind(image, path), gone

    def whole_or_rows(self, index: int) -> torch.Tensor | ImageRows | None:
        """Image `index`, of a large file its rows; None where it is bad and bad images are skipped."""
        rules = Rules(self.num_channels, self.white, self.bands, max_image_pixels=self.settings.max_image_pixels)
        rows = self.try_file(index, lambda data, path: (rows_of(data, path, rules, self._of_kind),))
        if rows is None:
            return None
        image = rows[0] if rows[0] is not None else self.read(index)
        return None if self.skipped[index] else image

    def _of_kind(self, image: torch.Tensor, path: str | None) -> torch.Tensor:
        if self.dtype == torch.uint8 and image.dtype != torch.uint8 and not torch.equal(image, image.to(torch.uint8)):
            raise BadImage(f"{name_of(path)} has values that 8 bits do not hold, as the other files do: convert it")
        return image.to(self.dtype)

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
                raise BadImage(f"{error}: fix or remove it, or go on without it by --on_bad_image skip") from None
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
        for index in dict.fromkeys(indices):  # an index that stands here several times is decoded once
            here = rows == index
            read[index] = self.read_or_next(index, reduction_of=partial(self._reduction, epochs[here], repeats[here]))
        images = [read[index][0] for index in indices]
        indices = [read[index][1] for index in indices]  # a stand-in has its own crop and label
        heights, widths = ([image.shape[axis] for image in images] for axis in (1, 2))
        boxes, flips = self.crop(epoch, indices, heights, widths, repeats)
        resized = []
        for image, box, flip in zip(images, boxes.tolist(), flips.tolist(), strict=True):
            crop = self._resized_crop(image, box)
            resized.append(crop.flip(2) if flip else crop)
        return self._with_labels({"images": torch.stack(resized)}, indices)

    def _resized_crop(self, image: torch.Tensor | ReducedJpeg, box: list[int]) -> torch.Tensor:
        if isinstance(image, ReducedJpeg):
            return image.crop(box, self.size)
        return F.resized_crop(image, *box, list(self.size), InterpolationMode.BICUBIC, antialias=True)

    def _reduction(self, epochs: np.ndarray, repeats: np.ndarray, index: int) -> Reduction | None:
        """How image `index` may be reduced for these of its crops."""
        if not self.settings.scaled_decoding or self.dtype != torch.uint8 or self.bands:
            return None

        def boxes_of(height: int, width: int) -> torch.Tensor:
            return self.crop(epochs, [index] * len(repeats), height, width, repeats)[0]

        return Reduction(boxes_of, self.size)


class StreamedImages(FileImages):
    """Images of a stream. Neighbours in the order of training lie in few shards."""

    where = "streamed"

    def order(self, total_batch_size: int, seed: int) -> UpdateOrder:
        if self.rows is not None or self.mixture is not None:
            return super().order(total_batch_size, seed)  # a unit has few images of a part
        return LaneOrder(self.source.dataset.counts, total_batch_size, seed)

    def spread(self, count: int) -> list[int]:
        return self.source.dataset.spread(count)


def open_images(source: Source, opening: Opening, labels: np.ndarray | None = None) -> Images:
    """The images of `source`: in memory if all have the same shape, take at most the budget of memory and are at most
    `READ_AT_START`; else from their files. `labels` are class numbers ``(images,)`` or floats ``(images, classes or
    targets)``.

    The processes of a machine share the memory, which loading workers fill if that is faster. All processes of the run
    must call this together. Images of several shapes, or more images, that fit by their mean are kept once they are
    decoded.

    Raises:
        BadImage: as `FileImages.read_or_next`.
        UserError: the images have no common white, or the bands are not as many as channels.
    """
    settings, channels = opening.settings, opening.num_channels
    if settings.bands and len(settings.bands) != channels:
        count = len(settings.bands)
        raise UserError(f"bands {settings.bands} are {count}, the model takes {channels} channels: set num_channels")
    images_class = StreamedImages if isinstance(source.dataset, ShardedRows) else FileImages
    files = images_class(source, opening, None if labels is None else torch.from_numpy(labels))
    look = partial(look_at, num_channels=channels, bands=settings.bands, max_image_pixels=settings.max_image_pixels)
    looks = {i: seen for i in files.spread(FILE_SAMPLE) if (seen := files.try_file(i, look)) is not None}
    ranges, stacks = [seen[0] for seen in looks.values()], [seen[1] for seen in looks.values()]
    if settings.white_value is None:
        files.white = common_white(ranges)
    kind = usual_kind(ranges)
    if kind != "8 bits":
        files.dtype = torch.float32
    for index, (seen, _) in looks.items():
        if seen[1] != kind:
            files.try_file(index, files.decode)  # a stray is bad at once, as it is beyond the sample
    scale = describe_scale(files.white) if files.dtype != torch.uint8 else ""
    elsewhere = f"{counted(source.elsewhere, 'image')} in other splits" if source.elsewhere else ""
    remarks = [scale, describe_stacks(stacks), source.left_out, elsewhere]
    files.remarks = "".join(f"; {remark}" for remark in remarks if remark)
    return files if isinstance(files, StreamedImages) else _kept_in_memory(files, opening.memory)


def _kept_in_memory(files: FileImages, memory: Memory) -> Images:
    """The images of these files, in memory if they fit."""
    if not memory.budget:
        return files
    sample = [files.read(i) for i in files.spread(SHAPE_SAMPLE)]
    bytes_needed = len(files) * sum(image.nbytes for image in sample) // len(sample)
    if bytes_needed > memory.budget:
        return files
    if len({image.shape for image in sample}) == 1 and len(files) <= READ_AT_START:
        images = _read_all(files, sample[0].shape, memory)
        if images is not None:
            return images
    room = min(memory.budget, ROOM * bytes_needed)
    shared = share_file(KeptImages.bytes_for(len(files), room, memory.machine), memory.machine)
    if shared is not None:
        files.kept, files.where = KeptImages(shared, len(files), files.dtype, memory.machine), KEPT
    return files


def _read_all(files: FileImages, shape: torch.Size, memory: Memory) -> MemoryImages | None:
    """All images in memory; None when one has another shape. One process of a machine decodes them, or its loading
    workers do."""
    machine, size = memory.machine, len(files) * shape.numel() * files.dtype.itemsize
    num_workers = memory.num_workers if size >= WORTH_PROCESSES else 0
    shared = share_file(size, machine) if num_workers or not machine.alone else None
    whole = (len(files), *shape)  # (images, channels, height, width)
    pixels = torch.empty(whole, dtype=files.dtype) if shared is None else shared.tensor(whole, files.dtype)
    outcome: tuple[torch.Tensor, ...] | UserError | None = None
    if shared is None or machine.first:
        try:
            stand_ins = fill(pixels, files, num_workers if shared is not None else 0)
            outcome = None if stand_ins is None else (stand_ins, files.skipped, files.incomplete)
        except UserError as error:
            outcome = error
    outcome = machine.from_first(outcome) if shared is not None else outcome
    if isinstance(outcome, UserError):
        raise outcome
    if outcome is None:
        return None
    stand_ins, files.skipped, files.incomplete = outcome
    return MemoryImages(pixels, files.size, files.crop_fraction, files.labels_of(stand_ins), files)
