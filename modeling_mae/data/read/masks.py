"""From the bytes of a mask to numbers: a class, a colour or an instance for each pixel."""

import io
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .deep import turned
from .faults import BadImage, name_of, open_file, reading
from .header import kind_of, only_array, read_header
from .limits import MOST_PIXELS, Limit


COLOUR = 1 << 24  # is added to the number of a colour, so that blue, 0x0000ff, is not 255
LENGTH = np.dtype(np.uint32)  # of runs of pixels
LOSSY = ("JPEG", "JPEG2000", "WEBP")
GRAY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # of Pillow; those of a palette hold its numbers


@dataclass(frozen=True)
class KeptMask:
    """A mask in memory, of any whole numbers: the `values` of its pixels ``(pixels,)``; or of runs of equal pixels in
    raster order, with their `lengths` ``(runs,)``, where these take less."""

    values: np.ndarray
    lengths: np.ndarray | None
    shape: tuple[int, ...]

    @classmethod
    def of(cls, mask: np.ndarray) -> "KeptMask":
        flat = mask.ravel()
        if flat.min() >= 0:
            flat = flat.astype(np.min_scalar_type(flat.max()))
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        if len(starts) * (flat.itemsize + LENGTH.itemsize) >= flat.nbytes:
            return cls(flat, None, mask.shape)
        return cls(flat[starts], np.diff(starts, append=len(flat)).astype(LENGTH), mask.shape)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.lengths is None else self.lengths.nbytes)

    def whole(self) -> np.ndarray:
        """``(height, width)``"""
        flat = self.values if self.lengths is None else np.repeat(self.values, self.lengths)
        return flat.reshape(self.shape)


def decode_mask(data: bytes | None, path: str | None, max_image_pixels: int = MOST_PIXELS) -> np.ndarray:
    """``(height, width)`` int32 of an encoded mask: whole numbers as they are, palettes as the numbers of their
    entries, colours as `COLOUR` + 0xRRGGBB, and black as 0. The EXIF orientation is applied, as to images.

    Raises:
        BadImage: it cannot be read, it holds several planes or fractions, it has more than `max_image_pixels`, or it
            is a JPEG, which blurs numbers.
    """
    header = None
    with suppress(BadImage):  # the reason is told below, in the words of masks
        header = read_header(data, path)
    if header is not None:
        Limit.of(data, path, max_image_pixels).check_header(header)
    with reading(path):
        if data is None:
            with open_file(str(path)) as file:
                data = file.read()
        kind = kind_of(data, path)
        if kind in ("npy", "npz"):
            return _whole_numbers(_numpy(data, path), path)
        with Image.open(io.BytesIO(data)) as opened:
            if opened.format in LOSSY:
                raise BadImage(
                    f"{name_of(path)} is a {opened.format} file, which blurs the numbers of a mask: save masks as PNG"
                )
            if (pages := getattr(opened, "n_frames", 1)) > 1:
                raise BadImage(f"{name_of(path)} is a mask of {pages} pages: save one number a pixel, as PNG")
            if opened.mode in GRAY_MODES:
                return _whole_numbers(np.asarray(turned(opened)), path)
            if opened.mode in ("RGB", "RGBA"):
                colours = np.asarray(turned(opened), np.int32)  # (height, width, 3 or 4)
                numbers = colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]
                return numbers + COLOUR * (numbers > 0)
            if kind != "tiff":
                raise BadImage(f"{name_of(path)} is a mask of mode {opened.mode}: save one number a pixel, as PNG")
        import tifffile  # late: it takes a moment, and few sets need it

        return _whole_numbers(tifffile.imread(io.BytesIO(data), key=0), path)


def _numpy(data: bytes, path: str | None) -> np.ndarray:
    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    return loaded if isinstance(loaded, np.ndarray) else loaded[only_array(loaded.files, path)]


def _whole_numbers(values: np.ndarray, path: str | None) -> np.ndarray:
    planes = values.squeeze() if values.ndim == 3 and 1 in values.shape else values
    if planes.ndim != 2:
        sides = "x".join(map(str, values.shape))
        raise BadImage(f"{name_of(path)} is a mask of shape {sides}: save height x width, one number a pixel")
    whole = planes.astype(np.int32)
    if planes.dtype.itemsize > 2 and not (whole == planes).all():
        raise BadImage(f"{name_of(path)} is a mask with fractions, or with numbers of more than 32 bits: save classes")
    return whole
