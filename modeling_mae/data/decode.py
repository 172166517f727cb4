"""From the bytes of an image file to a uint8 tensor.

torchvision decodes JPEG, twice as fast as PIL. PIL decodes everything else.
"""

import io
import math
import re
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

from ..errors import UserError
from .bit_depth import BadImage, check_8_bits, deep_values, highest_value, is_deep, to_8_bits


__all__ = ["BadImage", "decode", "file_size", "value_range"]

# The decoder only reads the bytes. A writable copy of every file would cost a thirtieth of the decoding.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

ERRORS = (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError)


def decode(
    data: bytes | None,
    path: str | None,
    num_channels: int,
    white: float | None = None,
    enough_pixels: int | None = None,
) -> torch.Tensor:
    """``(channels, height, width)`` uint8 of an encoded image; 1 channel is luminance, 3 are RGB.

    The EXIF orientation is applied. CMYK and palettes are converted. Transparency is shown on white, as a browser
    does. Of an animation the first frame is taken. Values of more than 8 bits are scaled, so that `white` becomes 255;
    None takes the range of the file's type.

    `enough_pixels` is for statistics: a larger image is thinned out to no fewer. JPEG is decoded at reduced size then,
    several times faster.

    Raises:
        BadImage: the data cannot be decoded, or its values do not fit `white`; the message names the file.
        UserError: another number of channels.
    """
    if num_channels not in (1, 3):
        raise UserError(f"num_channels={num_channels}: image files are read as 1 (gray) or 3 (RGB) channels")
    try:
        if data is None:
            with open(path, "rb") as file:
                data = file.read()
        if data[:2] == b"\xff\xd8":
            check_8_bits(white, name_of(path))
            image = _decode_jpeg(data, num_channels, enough_pixels)
        else:
            image = _decode_with_pil(data, num_channels, white, name_of(path))
    except ERRORS as error:
        raise _bad(error, path) from error
    step = math.isqrt(image[0].numel() // enough_pixels) if enough_pixels else 1
    return image if step <= 1 else image[:, ::step, ::step]


def file_size(data: bytes | None, path: str | None) -> tuple[int, str]:
    """(pixels, format) of an encoded image, from its header. BadImage where there is none."""
    try:
        with Image.open(io.BytesIO(data) if data is not None else path) as header:
            return header.width * header.height, header.format
    except ERRORS as error:
        raise _bad(error, path) from error


def value_range(data: bytes | None, path: str | None) -> tuple[str, str, float]:
    """(name, kind of values, highest value) of an encoded image, as `common_white` takes them.

    Raises:
        BadImage: the image cannot be read.
    """
    try:
        return name_of(path), *highest_value(data, path, name_of(path))
    except ERRORS as error:
        raise _bad(error, path) from error


def name_of(path: str | None) -> str:
    return path or "an image without a name"


def _bad(error: Exception, path: str | None) -> BadImage:
    if isinstance(error, BadImage):
        return error
    reason = re.sub(r" ?<_io.BytesIO object at 0x\w+>", "", " ".join(str(error).split()))
    reason = reason.replace(f" {str(path)!r}", "")  # the message begins with the path already
    return BadImage(f"{name_of(path)} is not a readable image ({reason[:120]})")


def _decode_jpeg(data: bytes, num_channels: int, enough_pixels: int | None) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as header:  # reads the header only
        if enough_pixels and header.width * header.height > enough_pixels:
            # A half, a quarter or an eighth of the size. Pixels are left to spare: reducing lowers the deviation.
            part = max(1, math.isqrt(header.width * header.height // (4 * enough_pixels)))
            size = max(1, header.width // part), max(1, header.height // part)
            header.draft("L" if num_channels == 1 else "RGB", size)
            return _to_tensor(header, num_channels)
        if header.mode == "CMYK":
            return _decode_with_pil(data, num_channels, None, "CMYK")
        may_be_turned = "exif" in header.info  # looking for an orientation costs a fifteenth of the decoding
    mode = ImageReadMode.GRAY if num_channels == 1 else ImageReadMode.RGB
    encoded = torch.frombuffer(data, dtype=torch.uint8)
    return decode_image(encoded, mode, apply_exif_orientation=may_be_turned)


def _decode_with_pil(data: bytes, num_channels: int, white: float | None, name: str) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as opened:
        _refuse_lost_bands(opened, name)
        if is_deep(opened):
            values, alpha = deep_values(opened, data, name)
            pixels = to_8_bits(values, white, name)
            image = Image.fromarray(pixels if alpha is None else np.dstack([pixels, alpha]))
        else:
            check_8_bits(white, name)
            opened.load()
            image = ImageOps.exif_transpose(opened)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return _to_tensor(image, num_channels)


def _to_tensor(image: Image.Image, num_channels: int) -> torch.Tensor:
    array = torch.from_numpy(np.array(image.convert("L" if num_channels == 1 else "RGB")))
    return array[None] if num_channels == 1 else array.permute(2, 0, 1).contiguous()


def _refuse_lost_bands(opened: Image.Image, name: str) -> None:
    """BadImage for a TIFF of more bands than Pillow reads: the first three of five are not its colours."""
    bands = getattr(opened, "tag_v2", {}).get(277, 1)  # SamplesPerPixel
    if bands > len(opened.getbands()):
        kept = len(opened.getbands())
        raise BadImage(f"{name} has {bands} bands, of which only the first {kept} would be read: save those to learn")
