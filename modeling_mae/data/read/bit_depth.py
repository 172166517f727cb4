"""Which pixel value is white. One rule for a whole data set, found from a sample, brings it to the scale of 255.

A rule for each file would not do: a dark image would come out as bright as any other. Files of 8 bits stay uint8. All
others become float32 on that scale, which keeps whole numbers of up to 24 bits apart. Of decimals white is 1, so that
the model sees them as they are, less the mean and divided by the deviation.
"""

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ...errors import UserError
from .faults import BadImage


WHITE = 255  # of ordinary files, with 8 bits a channel
STRAYS = 4  # one in so many files, or fewer, of another kind are strays
BITS = range(8, 33, 2)  # of whole numbers: 255, 1023, 4095, 16383, 65535, ...


def scaled(values: np.ndarray, white: float | None, name: str, is_picture: bool) -> np.ndarray:
    """The values as float32 on the scale where `white` is 255, with nothing rounded or cut off.

    `white` None is for a single file: the range of its type. Decimals, and whole numbers of what is not a picture, may
    go beyond white.

    Raises:
        BadImage: a whole number of a picture is above white.
    """
    is_float = values.dtype.kind == "f"
    if white is None:
        white = 1 if is_float else max(white_above(values.max()), 65535)
    if is_picture and not is_float and values.max() > white:
        raise BadImage(
            f"{name} has values up to {values.max():g}, above white, which is {white:g} (see --white_value)"
        )
    scaled = np.empty(values.shape, np.float32)  # the product is that of float64, without a copy of its size
    return np.multiply(values, WHITE / white, out=scaled, dtype=np.float64, casting="same_kind")


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
    """The white of a data set, from its sample of (name, kind, highest value). A few files of another kind do not
    count: each is a bad image, wherever it stands.

    Raises:
        UserError: the files have no common scale.
    """
    sample = list(sample)
    counts = Counter(kind for _, kind, _ in sample)
    highest: dict[str, tuple[float, str]] = {}
    for name, kind, value in sample:
        if counts[kind] * STRAYS > len(sample):
            highest[kind] = max(highest.get(kind, (-math.inf, "")), (value, name))
    deep = {kind: pair for kind, pair in highest.items() if kind != "8 bits"}
    if not deep:
        return WHITE
    whites = {kind: 1 if kind == "decimals" else white_above(value) for kind, (value, _) in highest.items()}
    if len(set(whites.values())) > 1:
        examples = " and ".join(f"{kind} up to {value:g} ({name})" for kind, (value, name) in highest.items())
        raise UserError(f"the images have no common scale, but {examples}: convert them to one kind")
    return whites.popitem()[1]


def usual_kind(sample: Iterable[tuple[str, str, float]]) -> str:
    """The kind of values of most files."""
    counts = Counter(kind for _, kind, _ in sample)
    return max(counts, key=lambda kind: (counts[kind], kind != "8 bits"), default="8 bits")


def describe_scale(white: float) -> str:
    return "values are taken as they are" if white == 1 else f"values 0..{white:g} are kept, {white:g} is white"
