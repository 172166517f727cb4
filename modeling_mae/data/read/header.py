"""What an image file says of itself before its values are read: the one reader of headers."""

import importlib.util
import io
import logging
import math
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .faults import BadImage, name_of, reading


NUMPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DEFLATE = 1032  # bytes that one byte of zlib can become at most
MOST_BANDS = 1000  # pages of a TIFF that can be bands; more are a stack
NODATA_TAG = 42113  # GDAL's: the value, as text, of pixels without one
GRAY = {"1", "L", "LA", "La", "I", "F"}  # Pillow's modes of one channel, beside those of 16 bits
ORIENTATION, TURNED = 0x0112, 5  # the EXIF tag, and its lowest value that exchanges height and width
RIGHT_FIRST, BOTTOM_FIRST = {2, 3, 6, 7}, {3, 4, 7, 8}  # orientations whose x or y runs against the file's
# Of JPEG: the frame's sizes, and what may stand before it.
FRAME_MARKERS = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
EXIF_MARKER = 0xE1
SEGMENT_MARKERS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, comments, what programs add
for library in ("tifffile", "imagecodecs"):  # what is odd about a file that they can read all the same
    logging.getLogger(library).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Header:
    """`format` as Pillow calls it, or NPY, NPZ, TIFF, DICOM. Height and width are those of the upright image, in
    pixels. `channels` are the bands of an array, else 1 or 3."""

    format: str
    height: int
    width: int
    channels: int
    is_array: bool  # of numbers, which Pillow does not read
    deep: bool = False  # a picture of more than 8 bits a channel
    stack: bool = False  # a TIFF with pages as large as the first, the one that is read; smaller ones are previews
    least_bytes: int = 0  # that the file must have to hold the values; 0 where the header does not tell

    @property
    def pixels(self) -> int:
        return self.height * self.width


def opened(data: bytes | None, path: str | None) -> BinaryIO:
    """The file, or its bytes, to read from."""
    if data is not None:
        return io.BytesIO(data)
    assert path is not None, "an image has bytes or a path"
    return open(path, "rb")


def kind_of(data: bytes | None, path: str | None) -> str | None:
    """`npy`, `npz`, `tiff` or `dicom` by the first bytes; None of any other file.

    Raises:
        OSError: the file cannot be read.
    """
    if data is None:
        with opened(data, path) as file:
            start = file.read(132)
    else:
        start = data[:132]
    if start.startswith(NUMPY):
        return "npy"
    if start.startswith(b"PK\x03\x04"):
        return "npz"
    if start.startswith(TIFF):
        return "tiff"
    return "dicom" if start[128:132] == b"DICM" else None


def read_header(data: bytes | None, path: str | None) -> Header:
    """The header of an encoded image: its bytes, or the file at `path`.

    Raises:
        BadImage: it cannot be read, or it holds no single picture or array.
    """
    Image.MAX_IMAGE_PIXELS = None  # a header takes no memory: `check_size` refuses what is too large
    with reading(path), opened(data, path) as file:
        kind, stack = kind_of(data, path), False
        if kind == "npy":
            shape, needed = _numpy_shape(file)
            return array_header("NPY", shape, None, path, least_bytes=needed)
        if kind == "npz":
            with zipfile.ZipFile(file) as archive, archive.open(only_array(archive.namelist(), path)) as member:
                shape, needed = _numpy_shape(member)
                return array_header("NPZ", shape, None, path, least_bytes=needed // DEFLATE)
        if kind == "dicom":
            about = read_dicom(file, path, header_only=True)
            samples = int(about.get("SamplesPerPixel") or 1)
            shape = (int(about.Rows), int(about.Columns), *[samples] * (samples > 1))
            return array_header("DICOM", shape, 2, path)
        if kind == "tiff":
            import tifffile  # late: it takes a moment, and few sets need it

            with tifffile.TiffFile(file) as tiff:
                stack, pages = is_stack(tiff), array_pages(tiff)
                if pages is not None:
                    return array_header("TIFF", pages.shape, axis_of_bands(pages, path), path, stack)
            file.seek(0)
        with Image.open(file) as picture:
            gray = picture.mode in GRAY or picture.mode.startswith("I;")
            turned = orientation_of(picture) >= TURNED
            height, width = picture.size if turned else picture.size[::-1]
            channels = 1 if gray else 3
            return Header(str(picture.format), height, width, channels, False, is_deep(picture), stack)


def array_header(
    format: str, shape: tuple[int, ...], axis: int | None, path: str | None, stack=False, least_bytes=0
) -> Header:
    """The header of an array whose bands are in `axis`; None: in its shortest one."""
    if len(shape) not in (2, 3) or not all(shape):
        sides = "x".join(map(str, shape))
        remedy = ": save height x width, with bands first or last" if all(shape) else ", no pixels: remove it"
        raise BadImage(f"{name_of(path)} has the shape {sides}{remedy}")
    if len(shape) == 2:
        return Header(format, *shape, 1, True, stack=stack, least_bytes=least_bytes)
    axis = int(np.argmin(shape)) if axis is None else axis
    height, width = (n for i, n in enumerate(shape) if i != axis)
    return Header(format, height, width, shape[axis], True, stack=stack, least_bytes=least_bytes)


def _numpy_shape(file: Any) -> tuple[tuple[int, ...], int]:
    """The shape, and how many bytes its values take."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    return shape, math.prod(shape) * kind.itemsize


def only_array(names: list[str], path: str | None) -> str:
    """The array of an .npz file. BadImage where there are several."""
    if len(names) != 1:
        known = ", ".join(name.removesuffix(".npy") for name in names[:6]) or "none"
        raise BadImage(f"{name_of(path)} has {len(names)} arrays ({known}): save one a file")
    return names[0]


def has_pydicom() -> bool:
    return importlib.util.find_spec("pydicom") is not None


def read_dicom(file: BinaryIO, path: str | None, header_only: bool = False) -> Any:
    """The DICOM file. BadImage where it has several frames or cannot be read here."""
    if not has_pydicom():
        raise BadImage(f"{name_of(path)} is DICOM: install pydicom to read it")
    import pydicom

    about = pydicom.dcmread(file, stop_before_pixels=header_only)
    frames = int(about.get("NumberOfFrames") or 1)
    if frames > 1:
        raise BadImage(f"{name_of(path)} has {frames} frames: save one a file")
    return about


def array_pages(tiff: Any) -> Any:
    """The page, or the series of pages that are bands, that hold the array of a `tifffile.TiffFile`; None if Pillow
    reads all of it as well."""
    page, series = tiff.pages[0], _series(tiff)
    if series is not None and series.axes == "CYX":
        return series
    return None if missing_value(tiff) is None and _pillow_reads(page) else page


def missing_value(tiff: Any) -> float | None:
    """The value of pixels without one."""
    tag = tiff.pages[0].tags.get(NODATA_TAG)
    return float(str(tag.value).strip("\0 ")) if tag is not None else None


def axis_of_bands(pages: Any, path: str | None) -> int | None:
    """The axis of the bands of what `array_pages` gives; None of a single band. BadImage for other axes."""
    if pages.axes not in ("YX", "YXS", "SYX", "CYX"):
        raise BadImage(f"{name_of(path)} has the axes {pages.axes}: save one picture a file")
    return {"YX": None, "YXS": 2}.get(pages.axes, 0)


def _series(tiff: Any) -> Any:
    """The pages that belong together; None of very many pages, which would all have to be read for it."""
    try:
        tiff.pages[MOST_BANDS]
    except IndexError:
        return tiff.series[0]
    return None


def is_stack(tiff: Any) -> bool:
    try:
        series = _series(tiff)
        bands = series is not None and series.axes == "CYX"
        return not bands and tiff.pages[1].shape == tiff.pages[0].shape
    except Exception:  # whatever a broken second page raises: the first may be good
        return False


def _pillow_reads(page: Any) -> bool:
    """Whether Pillow reads all bits and bands of a TIFF page: one band, or colours of 8 bits with or without alpha."""
    if page.samplesperpixel == 1:
        return page.dtype is not None and page.dtype.kind != "c" and page.dtype.itemsize <= 4
    alpha = len(page.extrasamples or ()) == 1 and page.extrasamples[0] in (1, 2)
    return page.dtype == np.uint8 and page.samplesperpixel - alpha <= 4 and (alpha or not page.extrasamples)


def is_deep(picture: Image.Image) -> bool:
    """Whether the picture, opened but not yet loaded, has more than 8 bits a channel."""
    return picture.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def orientation_of(picture: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 if there is none that can be read."""
    if "exif" not in picture.info and picture.format != "TIFF":  # to look for it elsewhere would decode a PNG
        return 1
    try:
        return int(picture.getexif().get(ORIENTATION) or 1)
    except Exception:  # whatever a damaged tag makes the parser raise: the picture may be good
        return 1


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG file that is gray or of three colours and says nothing of an orientation; None of all
    others. Pillow reads a header in a tenth of the time that decoding takes, this in a hundredth."""
    place = 2
    while data[place : place + 1] == b"\xff" and place + 10 < len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in FRAME_MARKERS:
            height, width = (int.from_bytes(data[start : start + 2], "big") for start in (place + 5, place + 7))
            return (height, width) if data[place + 9] in (1, 3) else None
        if marker == EXIF_MARKER or marker not in SEGMENT_MARKERS:
            return None
        place += 2 + length
    return None
