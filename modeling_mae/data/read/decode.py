"""From the bytes of an image file to a tensor: uint8 of files with 8 bits, float32 of all others.

torchvision decodes JPEG, faster than PIL. simplejpeg, where it is installed, gives the same pixels in less time.
`arrays.py` reads arrays, PIL decodes everything else.
"""

import io
import math
import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_image

from .arrays import read_array
from .bit_depth import WHITE, check_8_bits, kind_and_highest
from .deep import bits_of, deep_jpeg, deep_picture, loaded, orientation_of, plain_picture
from .faults import name_of, open_file, reading
from .header import header_of, kind_of, opened, plain_jpeg_size, read_header
from .limits import MOST_PIXELS, PIXELS_OF_A_JPEG_BYTE, Limit
from .meaning import Rules, chosen_bands, image_of, not_a_picture_of, numbers_of, on_white
from .reduced import ReducedJpeg, picture_tensor, reduce_jpeg
from .stored import Stored
from .tiff import TiffRows


try:
    import simplejpeg
except ImportError:
    simplejpeg = None


# The decoder only reads the bytes. A writable copy of every file would cost a thirtieth of the decoding.
warnings.filterwarnings("ignore", message="The given buffer is not writable")
# What is odd about a file that they read.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom|tifffile)\.")

BY_ROWS = 1 << 24  # values of a file; fewer are read at once
SMALL = 1 << 20  # pixels up to which reading the header costs a part of the decoding that matters


Finish = Callable[[torch.Tensor, str | None], torch.Tensor]
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
    And bool of the same shape, true where a value was missing, or None if none was.

    The EXIF orientation is applied. CMYK and palettes are converted. Transparency is shown on white, as a browser
    does. Of an animation the first frame is taken.

    Raises:
        BadImage: the data cannot be decoded, or its channels or values do not fit; the message names the file.
    """
    with reading(path):
        if data is None and path is not None and not path.lower().endswith(".npy"):  # of which perhaps a part is read
            data = _read(path)
        limit = Limit.of(data, path, rules.max_image_pixels)
        array = read_array(data, path, limit)
        if array is not None:
            return image_of(array, rules, name_of(path))
        return _from_picture(_read(str(path)) if data is None else data, rules, limit)


class ImageRows:
    """A large image whose rows are decoded when they are asked for, as ``rows[:, top:end]``: what ``finish(image,
    path)`` makes of what `decode` gives of them. `shape` is (channels, height, width).

    Raises:
        BadImage: as `decode_present`, also when rows are read.
    """

    def __init__(self, rows: TiffRows, path: str | None, rules: Rules, finish: Finish):
        self.rows, self.path, self.rules, self.finish = rows, path, rules, finish
        header = header_of("TIFF", rows.stored, path)
        self.shape = (rules.num_channels, header.height, header.width)

    def __getitem__(self, key: tuple[slice, slice]) -> torch.Tensor:
        _, between = key
        top, end, _ = between.indices(self.shape[1])
        with reading(self.path):
            image, _ = image_of(self.rows.read(top, end), self.rules, name_of(self.path))
            return self.finish(image, self.path)

    def close(self) -> None:
        self.rows.close()


def rows_of(data: bytes | None, path: str | None, rules: Rules, finish: Finish) -> ImageRows | None:
    """The rows of an image of more than `BY_ROWS` pixels. None for a smaller one, and if no row can be read alone.

    Raises:
        BadImage: it cannot be read, or it is too large.
    """
    with reading(path):
        if kind_of(data, path) != "tiff":
            return None
        rows = TiffRows(opened(data, path), path, Limit.of(data, path, rules.max_image_pixels))
        if rows.are_independent and rows.stored.values.size > BY_ROWS:
            return ImageRows(rows, path, rules, finish)
        rows.close()
        return None


def _read(path: str) -> bytes:
    with open_file(path) as file:  # a pathlib.Path would take half as long again, for each image
        return file.read()


def _from_picture(data: bytes, rules: Rules, limit: Limit) -> Decoded:
    if data[:2] != b"\xff\xd8":
        return _decode_with_pil(data, rules, limit)
    name = limit.name
    channels = 3 if rules.bands else rules.num_channels
    if channels not in (1, 3):
        raise not_a_picture_of(channels, name)
    check_8_bits(rules.white, name)
    try:
        image = _decode_jpeg(data, channels, rules, limit)
    except UnidentifiedImageError:
        return image_of(_deep_jpeg(data, limit), rules, name)
    if isinstance(image, ReducedJpeg):
        return image, None
    if rules.bands:
        image = torch.from_numpy(chosen_bands(image.numpy(), rules, name, (*image.shape[1:], 3)))
    return thinned(image, rules.enough_pixels), None


def look_at(
    data: bytes | None,
    path: str | None,
    num_channels: int,
    bands: list[int] | None = None,
    max_image_pixels: int = MOST_PIXELS,
) -> tuple[tuple[str, str, float], int]:
    """What `open_images` wants to know of a file: (name, kind of values, highest value) of what `decode` gives, as
    `common_white` takes them; and of a stack the number of its pages, else 0.

    Raises:
        BadImage: the image cannot be read.
    """
    name, header = name_of(path), read_header(data, path)
    with reading(path):
        limit = Limit.of(data, path, max_image_pixels)
        limit.check_header(header)
        if header.plain:
            return (name, "8 bits", WHITE), header.pages
        stored = stored_of(data, path, limit)
        values = numbers_of(stored, Rules(num_channels, bands=bands), name).values
        kind, highest = kind_and_highest(values)
        declared = stored.most if kind == "whole numbers" else None
        return (name, kind, max(highest, declared or highest)), header.pages


def stored_of(data: bytes | None, path: str | None, limit: Limit) -> Stored:
    """The numbers of a file of any kind.

    Raises:
        BadImage: as `read_array`.
        Exception: the file is damaged, or it is no image.
    """
    stored = read_array(data, path, limit)
    if stored is not None:
        return stored
    data = _read(str(path)) if data is None else data
    try:
        with limit.opened(io.BytesIO(data), data) as picture:
            if bits_of(picture) <= 8:
                return plain_picture(picture)
            return deep_picture(picture, data, orientation_of(picture))
    except UnidentifiedImageError:
        return _deep_jpeg(data, limit)


def _deep_jpeg(data: bytes, limit: Limit) -> Stored:
    stored = deep_jpeg(data)
    limit.check_stored(stored)
    return stored


def _decode_jpeg(data: bytes, num_channels: int, rules: Rules, limit: Limit) -> torch.Tensor | ReducedJpeg:
    enough_pixels, reduction = rules.enough_pixels, None if rules.bands else rules.reduction
    size = plain_jpeg_size(data) if enough_pixels is None else None
    if size is not None:
        limit.check(size[0] * size[1], size[0] * size[1] // PIXELS_OF_A_JPEG_BYTE)
    if size is not None and size[0] * size[1] <= SMALL and (reduction is None or not reduction.possible(*size)):
        return _decode_whole_jpeg(data, num_channels, may_be_turned=False)
    with limit.opened(io.BytesIO(data), data) as header:
        if enough_pixels and header.width * header.height > enough_pixels:
            # A half, a quarter or an eighth of the size. Pixels are left to spare: reducing lowers the deviation.
            part = max(1, math.isqrt(header.width * header.height // (4 * enough_pixels)))
            size = max(1, header.width // part), max(1, header.height // part)
            header.draft("L" if num_channels == 1 else "RGB", size)
            return _to_tensor(header, num_channels)
        if reduction is not None and (reduced := reduce_jpeg(header, num_channels, reduction)) is not None:
            return reduced
        if header.mode == "CMYK":
            return _to_tensor(loaded(header), num_channels)
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


def _decode_with_pil(data: bytes, rules: Rules, limit: Limit) -> Decoded:
    name = limit.name
    with limit.opened(io.BytesIO(data), data) as opened:
        if bits_of(opened) > 8:
            return image_of(deep_picture(opened, data, orientation_of(opened)), rules, name)
        if rules.bands or rules.num_channels not in (1, 3):
            return image_of(plain_picture(opened), rules, name)
        check_8_bits(rules.white, name)
        try:
            image = loaded(opened)
        except OSError:
            if opened.format != "JPEG2000":
                raise
            return image_of(deep_picture(opened, data, 1), rules, name)  # OpenJPEG reads more than Pillow makes of it
    if "A" in image.getbands() or "transparency" in image.info:
        image = on_white(image)
    return thinned(_to_tensor(image, rules.num_channels), rules.enough_pixels), None


def thinned(image: torch.Tensor, enough_pixels: int | None) -> torch.Tensor:
    step = math.isqrt(image[0].numel() // enough_pixels) if enough_pixels else 1
    return image[:, ::step, ::step] if step > 1 else image


def _to_tensor(image: Image.Image, num_channels: int) -> torch.Tensor:
    mode = "L" if num_channels == 1 else "RGB"
    return picture_tensor(image if image.mode == mode else image.convert(mode))
