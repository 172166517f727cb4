"""Which pixel value is white. One rule for a whole data set, found from a sample, brings it to the scale of 255.

A rule for each file would not do: a dark image would come out as bright as any other. Files of 8 bits stay uint8. All
others become float32 on that scale, which keeps whole numbers of up to 24 bits apart. Of decimals white is 1, so that
the model sees them as they are, less the mean and divided by the deviation.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps

from ...errors import UserError
from .faults import BadImage
from .header import BOTTOM_FIRST, RIGHT_FIRST, TURNED, orientation_of


WHITE = 255  # of ordinary files, with 8 bits a channel
BITS = range(8, 33, 2)  # of whole numbers: 255, 1023, 4095, 16383, 65535, ...


def deep_values(picture: Image.Image, data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(values, alpha) of a deep picture, opened but not yet loaded, upright: ``(height, width)`` or ``(height, width,
    3)``, and uint8 ``(height, width)`` or None.

    Raises:
        BadImage: a negative whole number.
        Exception: a damaged file.
    """
    alpha = None
    if picture.mode.startswith(("I", "F")) and picture.format != "PNG":
        values = np.asarray(ImageOps.exif_transpose(picture))
    else:  # PNG, of which Pillow reads the upper 8 bits of 16 only
        import imagecodecs  # late: few sets need it

        values = upright(imagecodecs.png_decode(data), orientation_of(picture))
        if values.ndim == 3 and values.shape[2] in (2, 4):
            values, alpha = values[..., :-1], np.round(values[..., -1] / 257).astype(np.uint8)
        values = values.squeeze(-1) if values.shape[2:] == (1,) else values
    if values.dtype.kind != "f" and values.min() < 0:
        raise BadImage(f"{name} has values down to {values.min():g}, below 0, which is black")
    return values, alpha


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """``(height, width, ...)`` turned and mirrored as EXIF's `orientation` asks."""
    if orientation >= TURNED:
        values = values.swapaxes(0, 1)
    if orientation in RIGHT_FIRST:
        values = values[:, ::-1]
    return values[::-1] if orientation in BOTTOM_FIRST else values


def scaled(values: np.ndarray, white: float | None, name: str) -> np.ndarray:
    """The values as float32 on the scale where `white` is 255, with nothing rounded or cut off.

    `white` None is for a single file: the range of its type. Decimals may go beyond white and below 0.

    Raises:
        BadImage: a whole number is above white.
    """
    is_float = values.dtype.kind == "f"
    if white is None:
        white = 1 if is_float else max(white_above(values.max()), 65535)
    if not is_float and values.max() > white:
        raise BadImage(
            f"{name} has values up to {values.max():g}, above white, which is {white:g} (see --white_value)"
        )
    return (values.astype(np.float64) * (WHITE / white)).astype(np.float32)


def check_8_bits(white: float | None, name: str) -> None:
    """BadImage for a file of 8 bits where another value than 255 is white."""
    if white not in (None, WHITE):
        raise BadImage(f"{name} has 8 bits a channel, while white is {white:g} (see --white_value)")


def white_above(highest: float) -> float:
    """The usual value for white that is no lower than `highest`, of whole numbers."""
    return next((2**bits - 1 for bits in BITS if highest < 2**bits), highest)


def kind_and_highest(values: np.ndarray) -> tuple[str, float]:
    """(kind of values, highest): `8 bits`, `whole numbers` or `decimals`."""
    if values.dtype == np.uint8:
        return "8 bits", WHITE
    return "decimals" if values.dtype.kind == "f" else "whole numbers", float(values.max())


def common_white(sample: Iterable[tuple[str, str, float]]) -> float:
    """The white of a data set, from its sample of (name, kind, highest value).

    Raises:
        UserError: the files have no common scale.
    """
    highest: dict[str, tuple[float, str]] = {}
    for name, kind, value in sample:
        highest[kind] = max(highest.get(kind, (-1.0, "")), (value, name))
    deep = {kind: pair for kind, pair in highest.items() if kind != "8 bits"}
    if not deep:
        return WHITE
    whites = {kind: 1 if kind == "decimals" else white_above(value) for kind, (value, _) in highest.items()}
    if len(set(whites.values())) > 1:
        examples = " and ".join(f"{kind} up to {value:g} ({name})" for kind, (value, name) in highest.items())
        raise UserError(f"the images have no common scale, but {examples}: convert them to one kind")
    return whites.popitem()[1]


def describe_scale(white: float) -> str:
    return "values are taken as they are" if white == 1 else f"values 0..{white:g} are kept, {white:g} is white"
