"""Pictures that Pillow opens. Of those with more than 8 bits all are read, which Pillow does for gray alone."""

import re
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Transpose

from .stored import Stored, gray_or_rgb


SPACE = rb"(?:\s+(?:#[^\r\n]*[\r\n]+)*)+"
NETPBM = re.compile(rb"P([2356])" + SPACE + rb"(\d+)" + SPACE + rb"(\d+)" + SPACE + rb"(\d+)(?:\s*#[^\r\n]*[\r\n]|\s)")
J2K_SIZES = b"\xff\x4f\xff\x51"  # markers at the start of a JPEG 2000 stream
J2K_PLAIN = 7  # 8 bits without a sign, as such a stream says it of a channel
ODD_J2K = [{kind} for kind in (*range(J2K_PLAIN), 0x80 | J2K_PLAIN)]  # fewer bits, and a sign: Pillow rounds them
PLAIN_MODES = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # others than those of `gray_or_rgb`
FEW_BITS = {"L;2": 85, "L;4": 17}  # how many times brighter Pillow makes gray PNG of 2 and 4 bits
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


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
        data = _bytes_of(opened)
        return 8 if _j2k_bits(data) <= 8 and set(_j2k_channels(data)) not in ODD_J2K else 16
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
        return gray_or_rgb(imagecodecs.avif_decode(data), orientation=orientation)
    if picture.format == "SGI":
        return gray_or_rgb(_sgi(data))
    if (header := NETPBM.match(data)) is not None:
        return _netpbm(header, data)
    return gray_or_rgb(np.asarray(picture), orientation=orientation)


def deep_jpeg(data: bytes) -> Stored:
    """A JPEG file of 12 or 16 bits, which Pillow does not open. Exception: it is another file, or damaged."""
    import imagecodecs

    if data[:2] != b"\xff\xd8":
        raise UnidentifiedImageError("cannot identify image file")
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):  # the end, and the start of the last scan
        raise ValueError("image file is truncated")  # the decoder would make up the rest
    values = imagecodecs.jpeg_decode(data)
    return gray_or_rgb(values, most=4095 if values.dtype.itemsize > 1 and values.max() < 4096 else None)


def plain_picture(picture: Image.Image) -> Stored:
    """A picture of 8 bits as gray or RGB, with transparency as a band of its own."""
    picture = loaded(picture)
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    mode = PLAIN_MODES.get(picture.mode, picture.mode)
    mode = mode if mode in ("L", "LA", "RGB", "RGBA") else "RGB"
    return gray_or_rgb(np.asarray(picture if picture.mode == mode else picture.convert(mode)))


def loaded(picture: Image.Image) -> Image.Image:
    """An opened picture with its pixels, upright, and with what is transparent. Pillow reads some kinds otherwise
    than their formats say.

    Raises:
        Exception: the file is damaged, or its colours have no meaning here.
    """
    opened: Any = picture
    if picture.mode == "LAB":
        raise ValueError("it has the colours of CIELAB: save it as RGB")
    _, box, _, raw = opened.tile[0] if opened.tile else (None, None, None, None)
    key = picture.info.get("transparency")
    if picture.format == "PNG" and isinstance(key, int) and isinstance(raw, str):
        picture.info["transparency"] = key * FEW_BITS.get(raw, 1)
    without_alpha = picture.format == "TGA" and picture.mode == "RGBA" and not _tga_alpha_bits(opened)
    picture.load()
    if without_alpha:
        picture = picture.convert("RGB")
    if picture.format == "PSD" and picture.mode == "1":  # of such files 1 is black
        picture = ImageOps.invert(picture)
    if picture.format == "GIF" and key is None and box not in (None, (0, 0, *picture.size)):
        part = picture.convert("RGBA").crop(box)  # around the first frame there is nothing yet
        picture = Image.new("RGBA", picture.size)
        picture.paste(part, box)
    return turned(picture)


def turned(picture: Image.Image) -> Image.Image:
    """A picture with its pixels, upright."""
    picture.load()  # what stands behind them counts as well
    turn = TURNS.get(orientation_of(picture))
    return picture if turn is None else picture.transpose(turn)


def orientation_of(picture: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 if there is none that can be read. What XMP says does not count, as in browsers."""
    try:
        found = picture.info.get("exif") or _exif_behind_pixels(picture)
        if not found:
            return 1
        exif = Image.Exif()
        exif.load(found)
        orientation = int(exif.get(ORIENTATION) or 1)
        return orientation if orientation in TURNS else 1
    except Exception:  # whatever a damaged tag makes the parser raise: the picture may be good
        return 1


def _exif_behind_pixels(picture: Any) -> bytes | None:
    """Of a PNG file that is not loaded yet: loading would find it, and take long."""
    if picture.format != "PNG" or picture.fp is None:
        return None
    file, place = picture.fp, picture.fp.tell()
    try:
        file.seek(8)
        while len(start := file.read(8)) == 8:
            length = int.from_bytes(start[:4], "big")
            if start[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(place)


def _tga_alpha_bits(opened: Any) -> int:
    """Bits of transparency in the fourth byte of each pixel. Without any the byte means nothing, and is often 0."""
    opened.fp.seek(17)
    return opened.fp.read(1)[0] & 0x0F


def _bytes_of(opened: Any) -> bytes:
    opened.fp.seek(0)
    return opened.fp.read()


def _j2k_channels(data: bytes) -> bytes:
    """Of each channel its bits less one, and 128 more where its values have a sign."""
    start = data.find(J2K_SIZES)
    count = int.from_bytes(data[start + 40 : start + 42], "big")
    return data[start + 42 : start + 42 + 3 * count : 3] if start >= 0 else bytes([J2K_PLAIN])


def _j2k_bits(data: bytes) -> int:
    """The bits of the deepest channel."""
    return max((size & 0x7F) + 1 for size in _j2k_channels(data))


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
