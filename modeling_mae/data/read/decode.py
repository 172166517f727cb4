"""From the bytes of an image file to a tensor: uint8 of files with 8 bits, float32 of all others.

torchvision decodes JPEG, faster than PIL. simplejpeg, where it is installed, gives the same pixels in less time.
`arrays.py` reads arrays, PIL decodes everything else.
"""

import io
import math
import re
import warnings
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

from ...image_processing_mae import MOST_MISSING
from .arrays import array_pixels, bands_first, is_stack, plain_numbers, read_array
from .bit_depth import WHITE, BadImage, check_8_bits, deep_file_values, deep_values, is_deep, kind_and_highest, scaled
from .reduced import ReducedJpeg, Reduction, picture_tensor, reduce_jpeg


try:
    import simplejpeg
except ImportError:
    simplejpeg = None


__all__ = ["BadImage", "decode", "decode_present", "file_size", "look_at", "value_range"]

# The decoder only reads the bytes. A writable copy of every file would cost a thirtieth of the decoding.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

LUMINANCE = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601, as PIL's "L"
SMALL = 1 << 20  # pixels up to which reading the header costs a part of the decoding that matters
# Of JPEG: the frame's sizes, and what may stand before it.
FRAME_MARKERS = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
EXIF_MARKER = 0xE1
SEGMENT_MARKERS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, comments, what programs add
ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    SyntaxError,
    LookupError,
    AttributeError,
    EOFError,
    Image.DecompressionBombError,
)


def decode(data: bytes | None, path: str | None, num_channels: int, *rules, **named_rules) -> torch.Tensor:
    """The image that `decode_present` gives, without what was missing."""
    return decode_present(data, path, num_channels, *rules, **named_rules)[0]


def decode_present(
    data: bytes | None,
    path: str | None,
    num_channels: int,
    white: float | None = None,
    enough_pixels: int | None = None,
    bands: list[int] | None = None,
    reduction: Reduction | None = None,
) -> tuple[torch.Tensor | ReducedJpeg, torch.Tensor | None]:
    """``(channels, height, width)`` of an encoded image: uint8 of a file with 8 bits, else float32 where 255 is white.
    And bool of the same shape, true where a value was missing; None where none was.

    Of pictures 1 channel is luminance, 3 are RGB. Arrays have any number; see `bands_first` and `plain_numbers`.
    `bands`, counted from 1, chooses `num_channels` of an array's bands, or of a picture's red, green and blue.

    The EXIF orientation is applied. CMYK and palettes are converted. Transparency is shown on white, as a browser
    does. Of an animation the first frame is taken. Values of more than 8 bits are scaled, so that `white` becomes 255,
    and not rounded; None takes the range of the file's type.

    `enough_pixels` is for statistics: a larger image is thinned out to no fewer. JPEG is decoded at reduced size then,
    several times faster.

    `reduction` is for crops: a JPEG file that it allows to be smaller comes as a `ReducedJpeg`.

    Raises:
        BadImage: the data cannot be decoded, or its channels or values do not fit; the message names the file.
    """
    name = name_of(path)
    try:
        if data is None and not path.lower().endswith(".npy"):  # of a large array perhaps only a part is read
            data = _read(path)
        array = read_array(data, path, name)
        if array is not None:
            return _from_array(*array, num_channels, white, bands, name, enough_pixels)
        data = _read(path) if data is None else data
        return _from_picture(data, num_channels, white, bands, name, enough_pixels, reduction)
    except ERRORS as error:
        raise _bad(error, path) from error


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # a pathlib.Path would take half as long again, for each image
        return file.read()


def _from_picture(data, num_channels, white, bands, name, enough_pixels, reduction):
    """As `decode_present`, of a file that holds a picture."""
    channels = 3 if bands else num_channels
    if channels not in (1, 3):
        raise BadImage(
            f"{name} is a picture of 1 (gray) or 3 (RGB) channels, and the model takes {channels}: set num_channels"
        )
    gone = None
    if data[:2] == b"\xff\xd8":
        check_8_bits(white, name)
        image = _decode_jpeg(data, channels, enough_pixels, None if bands else reduction)
        if isinstance(image, ReducedJpeg):
            return image, None
    else:
        image, gone = _decode_with_pil(data, channels, white, name)
    if bands:
        image = torch.from_numpy(bands_first(image.numpy(), 0, num_channels, bands, name))
        gone = None if gone is None else gone[:1].expand_as(image)  # only pictures of one channel have such
    step = math.isqrt(image[0].numel() // enough_pixels) if enough_pixels else 1
    if step <= 1:
        return image, gone
    return image[:, ::step, ::step], None if gone is None else gone[:, ::step, ::step]


def _from_array(values, axis, missing, num_channels, white, bands, name, enough_pixels):
    """As `decode_present`, of what `read_array` gives."""
    values = bands_first(values, axis, num_channels, bands, name)
    step = max(1, math.isqrt(values[0].size // enough_pixels)) if enough_pixels else 1
    most = MOST_MISSING if step == 1 else 1  # what is left of a good image may have more missing
    numbers, gone = plain_numbers(values[:, ::step, ::step], name, missing, most, bands)
    if numbers.dtype == np.uint8:
        check_8_bits(white, name)
    else:
        numbers = scaled(numbers, white, name)
    return torch.from_numpy(np.ascontiguousarray(numbers)), None if gone is None else torch.from_numpy(gone)


def file_size(data: bytes | None, path: str | None) -> tuple[int, str]:
    """(pixels, format) of an encoded image, from its header. BadImage where there is none."""
    try:
        if size := array_pixels(data, path):
            return size
        with Image.open(io.BytesIO(data) if data is not None else path) as header:
            return header.width * header.height, header.format
    except ERRORS as error:
        raise _bad(error, path) from error


def value_range(
    data: bytes | None, path: str | None, num_channels: int, bands: list[int] | None = None
) -> tuple[str, str, float]:
    """(name, kind of values, highest value) of what `decode` gives of an encoded image, as `common_white` takes them.

    Raises:
        BadImage: the image cannot be read.
    """
    name = name_of(path)
    try:
        array = read_array(data, path, name)
        if array is not None:
            values, axis, missing = array
            values = bands_first(values, axis, num_channels, bands, name)
            return name, *kind_and_highest(plain_numbers(values, name, missing, bands=bands)[0])
        values = deep_file_values(data, path, name)
        if values is None:
            return name, "8 bits", WHITE
        return name, *kind_and_highest(_plain_picture(values, name)[0])
    except ERRORS as error:
        raise _bad(error, path) from error


def look_at(data: bytes | None, path: str | None, num_channels: int, bands: list[int] | None = None):
    """What `open_images` wants to know of a file: (its `value_range`, whether it is a stack of pages)."""
    return value_range(data, path, num_channels, bands), is_stack(data, path)


def name_of(path: str | None) -> str:
    return path or "an image without a name"


def _bad(error: Exception, path: str | None) -> BadImage:
    if isinstance(error, BadImage):
        return error
    reason = re.sub(r" ?<_io.BytesIO object at 0x\w+>", "", " ".join(str(error).split()))
    reason = reason.replace(f" {str(path)!r}", "")  # the message begins with the path already
    return BadImage(f"{name_of(path)} is not a readable image ({reason[:120]})")


def _decode_jpeg(
    data: bytes, num_channels: int, enough_pixels: int | None, reduction: Reduction | None
) -> torch.Tensor | ReducedJpeg:
    if enough_pixels is None and (size := plain_jpeg_size(data)) is not None:
        if size[0] * size[1] <= SMALL and (reduction is None or not reduction.possible(*size)):
            return _decode_whole_jpeg(data, num_channels, may_be_turned=False)
    with Image.open(io.BytesIO(data)) as header:  # reads the header only
        if enough_pixels and header.width * header.height > enough_pixels:
            # A half, a quarter or an eighth of the size. Pixels are left to spare: reducing lowers the deviation.
            part = max(1, math.isqrt(header.width * header.height // (4 * enough_pixels)))
            size = max(1, header.width // part), max(1, header.height // part)
            header.draft("L" if num_channels == 1 else "RGB", size)
            return _to_tensor(header, num_channels)
        if reduction is not None and (reduced := reduce_jpeg(header, num_channels, reduction)) is not None:
            return reduced
        if header.mode == "CMYK":
            return _decode_with_pil(data, num_channels, None, "CMYK")[0]
        may_be_turned = "exif" in header.info  # looking for an orientation costs a fifteenth of the decoding
    return _decode_whole_jpeg(data, num_channels, may_be_turned)


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG file that is gray or of three colours and says nothing of an orientation; None of all
    others. PIL reads a header in a tenth of the time that decoding takes, this in a hundredth."""
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


def _decode_whole_jpeg(data: bytes, num_channels: int, may_be_turned: bool) -> torch.Tensor:
    if simplejpeg is not None and not may_be_turned:
        with suppress(ValueError):  # it also refuses files of which torchvision reads all there is
            pixels = simplejpeg.decode_jpeg(data, "GRAY" if num_channels == 1 else "RGB")  # (height, width, channels)
            return torch.from_numpy(pixels).permute(2, 0, 1)
    mode = ImageReadMode.GRAY if num_channels == 1 else ImageReadMode.RGB
    encoded = torch.frombuffer(data, dtype=torch.uint8)
    return decode_image(encoded, mode, apply_exif_orientation=may_be_turned)


def _decode_with_pil(
    data: bytes, num_channels: int, white: float | None, name: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    with Image.open(io.BytesIO(data)) as opened:
        if is_deep(opened):
            return _deep_tensor(*deep_values(opened, data, name), num_channels, white, name)
        check_8_bits(white, name)
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)  # a copy of a small picture costs a tenth of its decoding
        image = opened
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return _to_tensor(image, num_channels), None


def _plain_picture(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """As `plain_numbers`, of ``(height, width)`` or ``(height, width, 3)``. Whole numbers stay what they are."""
    values = np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]
    return plain_numbers(values, name) if values.dtype.kind == "f" else (values, None)


def _deep_tensor(values: np.ndarray, alpha, num_channels: int, white: float | None, name: str):
    """float32 ``(num_channels, height, width)`` of deep values, where 255 is white, and what was missing, or None.
    Transparency is shown on white."""
    values, gone = _plain_picture(values, name)
    pixels = scaled(values, white, name)  # (1 or 3, height, width)
    if alpha is not None:
        opaque = alpha.astype(np.float32) / WHITE
        pixels = pixels * opaque + WHITE * (1 - opaque)
    image = torch.from_numpy(np.ascontiguousarray(pixels))
    gone = None if gone is None else torch.from_numpy(gone.any(0, keepdims=True)).repeat(num_channels, 1, 1)
    if len(image) != num_channels:
        image = image.repeat(3, 1, 1) if num_channels == 3 else torch.tensordot(LUMINANCE, image, 1)[None]
    return image, gone


def _to_tensor(image: Image.Image, num_channels: int) -> torch.Tensor:
    mode = "L" if num_channels == 1 else "RGB"
    return picture_tensor(image if image.mode == mode else image.convert(mode))
