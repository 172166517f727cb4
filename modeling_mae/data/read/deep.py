"""Pictures that Pillow opens. Of those with more than 8 bits all are read, which Pillow does for gray alone."""

import re
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .stored import Stored, gray_or_rgb


SPACE = rb"(?:\s+(?:#[^\r\n]*[\r\n]+)*)+"
NETPBM = re.compile(rb"P([2356])" + SPACE + rb"(\d+)" + SPACE + rb"(\d+)" + SPACE + rb"(\d+)(?:\s*#[^\r\n]*[\r\n]|\s)")
J2K_SIZES = b"\xff\x4f\xff\x51"  # markers at the start of a JPEG 2000 stream
PLAIN_MODES = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # others than those of `gray_or_rgb`


def bits_of(picture: Image.Image) -> int:
    """Bits a channel of a picture that is opened but not yet loaded: more than 8 need `deep_picture`."""
    opened: Any = picture
    if picture.mode.startswith(("I", "F")):
        return 16
    if picture.format == "PNG":
        return 16 if any(";16" in str(tile[3]) for tile in opened.tile) else 8
    if picture.format == "PPM":
        codec = opened.tile[0][3]
        return 16 if isinstance(codec, tuple) and isinstance(codec[-1], int) and codec[-1] > 255 else 8
    if picture.format == "SGI":
        opened.fp.seek(3)
        return 8 * opened.fp.read(1)[0]
    if picture.format == "JPEG2000":
        return _j2k_bits(_bytes_of(opened))
    if picture.format == "AVIF":
        start = _bytes_of(opened)
        place = start.find(b"av1C")
        return 16 if place >= 0 and start[place + 6] & 0x40 else 8
    return 8


def deep_picture(picture: Image.Image, data: bytes, orientation: int) -> Stored:
    """The picture with all its bits.

    Raises:
        Exception: a damaged file.
    """
    import imagecodecs  # late: few sets need it

    if picture.format == "PNG":
        return gray_or_rgb(imagecodecs.png_decode(data), orientation=orientation)
    if picture.format == "JPEG2000":
        return gray_or_rgb(imagecodecs.jpeg2k_decode(data), most=(1 << _j2k_bits(data)) - 1)
    if picture.format == "AVIF":
        return gray_or_rgb(imagecodecs.avif_decode(data))
    if picture.format == "SGI":
        return gray_or_rgb(_sgi(data))
    if (header := NETPBM.match(data)) is not None:
        return _netpbm(header, data)
    return gray_or_rgb(np.asarray(ImageOps.exif_transpose(picture)))


def deep_jpeg(data: bytes) -> Stored:
    """A JPEG file of 12 or 16 bits, which Pillow does not open. Exception: it is another file, or damaged."""
    import imagecodecs

    if data[:2] != b"\xff\xd8":
        raise UnidentifiedImageError("cannot identify image file")
    values = imagecodecs.jpeg_decode(data)
    return gray_or_rgb(values, most=4095 if values.dtype.itemsize > 1 and values.max() < 4096 else None)


def plain_picture(picture: Image.Image) -> Stored:
    """A picture of 8 bits as gray or RGB, with transparency as a band of its own."""
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    mode = PLAIN_MODES.get(picture.mode, picture.mode)
    mode = mode if mode in ("L", "LA", "RGB", "RGBA") else "RGB"
    return gray_or_rgb(np.asarray(picture if picture.mode == mode else picture.convert(mode)))


def _bytes_of(opened: Any) -> bytes:
    opened.fp.seek(0)
    return opened.fp.read()


def _j2k_bits(data: bytes) -> int:
    """The bits of the deepest channel."""
    start = data.find(J2K_SIZES)
    count = int.from_bytes(data[start + 40 : start + 42], "big")
    return max((size & 0x7F) + 1 for size in data[start + 42 : start + 42 + 3 * count : 3]) if start >= 0 else 8


def _netpbm(header: re.Match, data: bytes) -> Stored:
    kind, width, height, white = map(int, header.groups())
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    count = int(np.prod(shape))
    if kind in (2, 3):
        words = re.sub(rb"#[^\r\n]*", b"", data[header.end() :]).split()
        values = np.array(words[:count], np.uint16)
    else:
        values = np.frombuffer(data, ">u2", count, header.end())
    return gray_or_rgb(values.reshape(shape), most=white)


def _sgi(data: bytes) -> np.ndarray:
    """``(height, width, channels)`` of a SGI file of 16 bits. Its rows begin at the bottom."""
    width, height, channels = (int.from_bytes(data[place : place + 2], "big") for place in (6, 8, 10))
    shape = (channels if int.from_bytes(data[4:6], "big") > 2 else 1, height, width)
    if data[2] == 0:
        values = np.frombuffer(data, ">u2", int(np.prod(shape)), 512)
    else:
        starts = np.frombuffer(data, ">u4", shape[0] * height, 512)
        values = np.concatenate([_sgi_row(data, int(start), width) for start in starts])
    return np.moveaxis(values.reshape(shape)[:, ::-1], 0, -1)


def _sgi_row(data: bytes, start: int, width: int) -> np.ndarray:
    """A row of runs: a word says how many follow, and whether they differ."""
    words, row, place = np.frombuffer(data, ">u2", offset=start, count=(len(data) - start) // 2), [], 0
    while (count := int(words[place]) & 0x7F) != 0:
        differ = bool(words[place] & 0x80)
        part = words[place + 1 : place + 1 + (count if differ else 1)]
        row.append(part if differ else part.repeat(count))
        place += 1 + (count if differ else 1)
    values = np.concatenate(row) if row else words[:0]
    if len(values) != width:
        raise ValueError("a row of another length")
    return values
