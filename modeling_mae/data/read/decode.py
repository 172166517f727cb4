"""From the bytes of an image file to a tensor: uint8 of files with 8 bits, float32 of all others.

torchvision decodes JPEG, faster than PIL. simplejpeg, where it is installed, gives the same pixels in less time.
`arrays.py` reads arrays, PIL decodes everything else.
"""

import io
import math
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

from ...image_processing_mae import MOST_MISSING
from .arrays import bands_first, plain_numbers, read_array
from .bit_depth import WHITE, check_8_bits, deep_values, kind_and_highest, scaled
from .faults import BadImage, name_of, reading
from .header import is_deep, plain_jpeg_size, read_header
from .limits import MOST_PIXELS, check_size
from .reduced import ReducedJpeg, Reduction, picture_tensor, reduce_jpeg


try:
    import simplejpeg
except ImportError:
    simplejpeg = None


# The decoder only reads the bytes. A writable copy of every file would cost a thirtieth of the decoding.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

LUMINANCE = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601, as PIL's "L"
SMALL = 1 << 20  # pixels up to which reading the header costs a part of the decoding that matters


@dataclass(frozen=True)
class Rules:
    """How files become tensors of `num_channels`.

    Of pictures 1 channel is luminance, 3 are RGB. Arrays have any number; see `bands_first` and `plain_numbers`.
    `bands`, counted from 1, chooses `num_channels` of an array's bands, or of a picture's red, green and blue.

    Values of more than 8 bits are scaled, so that `white` becomes 255, and not rounded; None takes the range of the
    file's type.

    `enough_pixels` is for statistics: a larger image is thinned out to no fewer. JPEG is decoded at reduced size then,
    several times faster. `reduction` is for crops: a JPEG file that it allows to be smaller comes as a `ReducedJpeg`.
    """

    num_channels: int
    white: float | None = None
    bands: list[int] | None = None
    enough_pixels: int | None = None
    reduction: Reduction | None = None
    max_image_pixels: int = MOST_PIXELS


Decoded = tuple[torch.Tensor | ReducedJpeg, torch.Tensor | None]


def decode(
    data: bytes | None,
    path: str | None,
    num_channels: int,
    white: float | None = None,
    bands: list[int] | None = None,
    max_image_pixels: int = MOST_PIXELS,
) -> torch.Tensor:
    """The whole image that `decode_present` gives, without what was missing."""
    image, _ = decode_present(data, path, Rules(num_channels, white, bands, max_image_pixels=max_image_pixels))
    assert isinstance(image, torch.Tensor)
    return image


def decode_present(data: bytes | None, path: str | None, rules: Rules) -> Decoded:
    """``(channels, height, width)`` of an encoded image: uint8 of a file with 8 bits, else float32 where 255 is white.
    And bool of the same shape, true where a value was missing; None where none was.

    The EXIF orientation is applied. CMYK and palettes are converted. Transparency is shown on white, as a browser
    does. Of an animation the first frame is taken.

    Raises:
        BadImage: the data cannot be decoded, or its channels or values do not fit; the message names the file.
    """
    with reading(path):
        if data is None and path is not None and not path.lower().endswith(".npy"):  # of which perhaps a part is read
            data = _read(path)
        check_size(data, path, rules.max_image_pixels)
        array = read_array(data, path)
        if array is not None:
            return _from_array(*array, rules, name_of(path))
        return _from_picture(_read(str(path)) if data is None else data, rules, name_of(path))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # a pathlib.Path would take half as long again, for each image
        return file.read()


def _from_picture(data: bytes, rules: Rules, name: str) -> Decoded:
    channels = 3 if rules.bands else rules.num_channels
    if channels not in (1, 3):
        raise BadImage(
            f"{name} is a picture of 1 (gray) or 3 (RGB) channels, and the model takes {channels}: set num_channels"
        )
    gone = None
    if data[:2] == b"\xff\xd8":
        check_8_bits(rules.white, name)
        image = _decode_jpeg(data, channels, rules.enough_pixels, None if rules.bands else rules.reduction)
        if isinstance(image, ReducedJpeg):
            return image, None
    else:
        image, gone = _decode_with_pil(data, channels, rules.white, name)
    if rules.bands:
        image = torch.from_numpy(bands_first(image.numpy(), 0, rules.num_channels, rules.bands, name))
        gone = None if gone is None else gone[:1].expand_as(image)  # only pictures of one channel have such
    step = math.isqrt(image[0].numel() // rules.enough_pixels) if rules.enough_pixels else 1
    if step <= 1:
        return image, gone
    return image[:, ::step, ::step], None if gone is None else gone[:, ::step, ::step]


def _from_array(values: np.ndarray, axis: int | None, missing: float | None, rules: Rules, name: str) -> Decoded:
    values = bands_first(values, axis, rules.num_channels, rules.bands, name)
    step = max(1, math.isqrt(values[0].size // rules.enough_pixels)) if rules.enough_pixels else 1
    most = MOST_MISSING if step == 1 else 1  # what is left of a good image may have more missing
    numbers, gone = plain_numbers(values[:, ::step, ::step], name, missing, most, rules.bands)
    if numbers.dtype == np.uint8:
        check_8_bits(rules.white, name)
    else:
        numbers = scaled(numbers, rules.white, name)
    return torch.from_numpy(np.ascontiguousarray(numbers)), None if gone is None else torch.from_numpy(gone)


def look_at(
    data: bytes | None,
    path: str | None,
    num_channels: int,
    bands: list[int] | None = None,
    max_image_pixels: int = MOST_PIXELS,
) -> tuple[tuple[str, str, float], bool]:
    """What `open_images` wants to know of a file: (name, kind of values, highest value) of what `decode` gives, as
    `common_white` takes them; and whether it is a stack of pages.

    Raises:
        BadImage: the image cannot be read.
    """
    name, header = name_of(path), read_header(data, path)
    with reading(path):
        check_size(data, path, max_image_pixels)
        if header.is_array and (array := read_array(data, path)) is not None:
            values, axis, missing = array
            values = bands_first(values, axis, num_channels, bands, name)
            values = plain_numbers(values, name, missing, bands=bands)[0]
        elif header.deep:
            data = _read(str(path)) if data is None else data
            with Image.open(io.BytesIO(data)) as picture:
                values = _plain_picture(deep_values(picture, data, name)[0], name)[0]
        else:
            return (name, "8 bits", WHITE), header.stack
        return (name, *kind_and_highest(values)), header.stack


def _decode_jpeg(
    data: bytes, num_channels: int, enough_pixels: int | None, reduction: Reduction | None
) -> torch.Tensor | ReducedJpeg:
    size = plain_jpeg_size(data) if enough_pixels is None else None
    if size is not None and size[0] * size[1] <= SMALL and (reduction is None or not reduction.possible(*size)):
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
        image: Image.Image = opened
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
    absent = None if gone is None else torch.from_numpy(gone.any(0, keepdims=True)).repeat(num_channels, 1, 1)
    if len(image) != num_channels:
        image = image.repeat(3, 1, 1) if num_channels == 3 else torch.tensordot(LUMINANCE, image, 1)[None]
    return image, absent


def _to_tensor(image: Image.Image, num_channels: int) -> torch.Tensor:
    mode = "L" if num_channels == 1 else "RGB"
    return picture_tensor(image if image.mode == mode else image.convert(mode))
