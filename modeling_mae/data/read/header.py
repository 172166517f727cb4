"""What an image file says of itself before its values are read: the one reader of headers."""

import io
import logging
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .deep import bits_of, deep_jpeg, orientation_of
from .dicom import described_dicom, is_dicom
from .faults import BadImage, name_of, open_file, reading
from .limits import DEFLATE, least_bytes
from .stored import Stored, promised
from .tiff import described_tiff, pages_of_stack


NUMPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LONGEST_NUMPY_HEADER = 10_000  # bytes; NumPy refuses longer ones
GRAY = {"1", "L", "LA", "La", "I", "F"}  # Pillow's modes of one channel, beside those of 16 bits
TURNED = 5  # the lowest orientation that exchanges height and width
RIGHT_FIRST, BOTTOM_FIRST = {2, 3, 6, 7}, {3, 4, 7, 8}  # orientations whose x or y runs against the file's
# Of JPEG: the frame's sizes, and what may stand before it.
FRAME_MARKERS = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
EXIF_MARKER = 0xE1
SEGMENT_MARKERS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, comments, what programs add
for library in (
    "tifffile",
    "imagecodecs",
    "pydicom",
    "PIL",
):  # what is odd about a file that they can read all the same
    logging.getLogger(library).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Header:
    """`format` as Pillow calls it, or NPY, NPZ, TIFF, DICOM. Height and width are those of the upright image, in
    pixels. `channels` are the bands of an array, else 1 or 3."""

    format: str
    height: int
    width: int
    channels: int
    plain: bool  # a picture of 8 bits a channel, without missing values
    pages: int = 0  # of a TIFF whose others are as large as the first, the one that is read; smaller ones are previews
    least_bytes: int = 0  # that the file must have to hold the values; 0 where the header does not tell

    @property
    def pixels(self) -> int:
        return self.height * self.width


def opened(data: bytes | None, path: str | None) -> BinaryIO:
    """The file, or its bytes, to read from."""
    if data is not None:
        return io.BytesIO(data)
    assert path is not None, "an image has bytes or a path"
    return open_file(path)


def kind_of(data: bytes | None, path: str | None) -> str | None:
    """`npy`, `npz`, `tiff` or `dicom` by the first bytes. None for any other file.

    Raises:
        OSError: the file cannot be read.
    """
    if data is None:
        with opened(data, path) as file:
            start = file.read(132)
    else:
        start = data[:132]
    if is_dicom(start):
        return "dicom"
    if start.startswith(NUMPY):
        return "npy"
    if start.startswith(b"PK\x03\x04"):
        return "npz"
    return "tiff" if start.startswith(TIFF) else None


def read_header(data: bytes | None, path: str | None) -> Header:
    """The header of an encoded image: its bytes, or the file at `path`.

    Raises:
        BadImage: it cannot be read, or it holds no single picture or array.
    """
    Image.MAX_IMAGE_PIXELS = None  # a header takes no memory: `Limit` refuses what is too large
    with reading(path), opened(data, path) as file:
        kind = kind_of(data, path)
        if kind == "npy":
            shape, _, numbers = numpy_header(file)
            values = promised(shape, numbers)
            return header_of("NPY", Stored(values), path, least_bytes=values.size * values.itemsize)
        if kind == "npz":
            with zipfile.ZipFile(file) as archive, archive.open(only_array(archive.namelist(), path)) as member:
                shape, _, numbers = numpy_header(member)
                values = promised(shape, numbers)
                packed = values.size * values.itemsize // DEFLATE
                return header_of("NPZ", Stored(values), path, least_bytes=packed)
        if kind == "dicom":
            return header_of("DICOM", described_dicom(file, path), path)
        if kind == "tiff":
            import tifffile  # late: it takes a moment, and few sets need it

            with tifffile.TiffFile(file) as tiff:
                return header_of("TIFF", described_tiff(tiff, path)[1], path, pages_of_stack(tiff))
        try:
            picture = Image.open(file)
        except UnidentifiedImageError:
            file.seek(0)
            return header_of("JPEG", deep_jpeg(file.read()), path)
        with picture:
            gray = picture.mode in GRAY or picture.mode.startswith("I;")
            turned = orientation_of(picture) >= TURNED
            height, width = picture.size if turned else picture.size[::-1]
            least = least_bytes(picture, data) if data is not None else 0
            bits = bits_of(picture)
            return Header(str(picture.format), height, width, 1 if gray else 3, bits <= 8, least_bytes=least)


def header_of(format: str, stored: Stored, path: str | None, pages: int = 0, least_bytes: int = 0) -> Header:
    shape, kind = stored.values.shape, stored.values.dtype
    if len(shape) not in (2, 3) or not all(shape):
        sides = "x".join(map(str, shape))
        remedy = ": save height x width, with bands first or last" if all(shape) else ", no pixels: remove it"
        raise BadImage(f"{name_of(path)} has the shape {sides}{remedy}")
    axis = (int(np.argmin(shape)) if stored.axis is None else stored.axis) if len(shape) == 3 else None
    height, width = (n for i, n in enumerate(shape) if i != axis)
    if stored.orientation >= TURNED:
        height, width = width, height
    bands = 1 if axis is None else shape[axis]
    channels = {"gray": 1, "bands": bands}.get(stored.colour, 3)
    plain = stored.colour != "bands" and kind in (np.uint8, np.bool_) and stored.missing is None
    return Header(format, height, width, channels, plain, pages, least_bytes)


def numpy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether the first axis is the fastest, type) of an .npy file. Afterwards `file` is at its values."""
    start = file.read(8)
    size = file.read(2 if start[6:7] == b"\1" else 4)
    length = int.from_bytes(size, "little")
    if length > LONGEST_NUMPY_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    return _parsed(start + size + file.read(length))


@lru_cache
def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Kept, because parsing takes longer than reading a small array, and all files of a set have the same header."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def only_array(names: list[str], path: str | None) -> str:
    """The name of the array of an .npz file. Raises a BadImage if there are several."""
    if len(names) != 1:
        known = ", ".join(name.removesuffix(".npy") for name in names[:6]) or "none"
        raise BadImage(f"{name_of(path)} has {len(names)} arrays ({known}): save one a file")
    return names[0]


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """``(bands, height, width)`` turned and mirrored as EXIF's `orientation` asks."""
    if orientation >= TURNED:
        values = values.swapaxes(1, 2)
    if orientation in RIGHT_FIRST:
        values = values[:, :, ::-1]
    return values[:, ::-1] if orientation in BOTTOM_FIRST else values


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG file with one or three bands and without an orientation. None for all others. Decoding
    takes ten times as long as Pillow's reading of a header, and a hundred times as long as this."""
    place = 2
    while data[place : place + 1] == b"\xff" and place + 10 < len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in FRAME_MARKERS:
            height, width = (int.from_bytes(data[start : start + 2], "big") for start in (place + 5, place + 7))
            return (height, width) if data[place + 4] == 8 and data[place + 9] in (1, 3) else None
        if marker == EXIF_MARKER or marker not in SEGMENT_MARKERS:
            return None
        place += 2 + length
    return None
