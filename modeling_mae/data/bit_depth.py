"""Which pixel value is white. One rule for a whole data set, found from a sample, brings all its values to 0..255.

A rule for each file would not do: a dark image would come out as bright as any other.
"""

import io
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torchvision.io import decode_image

from ..errors import UserError


WHITE = 255  # of ordinary files, with 8 bits a channel
BITS = range(8, 33, 2)  # of whole numbers: 255, 1023, 4095, 16383, 65535, ...
DARK = 16  # floats that go to less, but above 1, are not likely to have 255 for white


class BadImage(UserError):
    """A file that cannot be read as an image. The message names it."""


def is_deep(opened: Image.Image) -> bool:
    """Whether the file, opened but not yet loaded, has more than 8 bits a channel."""
    return opened.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in opened.tile)


def deep_values(opened: Image.Image, data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(values, alpha) of a deep file, upright: ``(height, width)`` or ``(height, width, 3)``, and uint8
    ``(height, width)`` or None.

    Raises:
        BadImage: NaN, infinite or negative values, or colours of which Pillow does not read all bits.
    """
    alpha = None
    if opened.mode.startswith(("I", "F")):
        values = np.asarray(ImageOps.exif_transpose(opened))
    elif isinstance(opened, PngImagePlugin.PngImageFile):  # Pillow reads the upper 8 bits of 16 only
        encoded = torch.frombuffer(data, dtype=torch.uint8)
        values = decode_image(encoded, apply_exif_orientation=True).permute(1, 2, 0).numpy()
        if values.shape[2] in (2, 4):
            values, alpha = values[..., :-1], np.round(values[..., -1] / 257).astype(np.uint8)
        values = values.squeeze(-1) if values.shape[2] == 1 else values
    else:
        upper = np.asarray(ImageOps.exif_transpose(opened))
        if upper.max() < 128:  # less than 16 bits are used: the upper 8 are too few
            raise BadImage(f"{name} has colours of 16 bits, of which Pillow reads the upper 8: save it as PNG")
        values = upper.astype(np.uint16) * 257
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadImage(f"{name} has values that are NaN or infinite")
    if values.min() < 0:
        raise BadImage(f"{name} has values down to {values.min():g}, below 0, which is black")
    return values, alpha


def to_8_bits(values: np.ndarray, white: float | None, name: str) -> np.ndarray:
    """0..`white` as uint8. `white` None is for a single file: the range of its type.

    Raises:
        BadImage: a value is above white.
    """
    highest = values.max()
    if white is None:
        white = white_above(highest, values.dtype.kind == "f")
        white = white if values.dtype.kind == "f" else max(white, 65535)
    if highest > white:
        raise BadImage(f"{name} has values up to {highest:g}, above white, which is {white:g} (see --white_value)")
    return np.round(values.astype(np.float64) * (255 / white)).astype(np.uint8)


def check_8_bits(white: float | None, name: str) -> None:
    """BadImage for a file of 8 bits where another value than 255 is white."""
    if white not in (None, WHITE):
        raise BadImage(f"{name} has 8 bits a channel, while white is {white:g} (see --white_value)")


def white_above(highest: float, is_float: bool) -> float:
    """The usual value for white that is no lower than `highest`."""
    if is_float and highest <= 1:
        return 1
    return next((2**bits - 1 for bits in BITS if highest < 2**bits), highest)


def highest_value(data: bytes | None, path: str | None, name: str) -> tuple[str, float]:
    """(kind of values, highest) of a file: `8 bits`, `whole numbers` or `decimals`. Only the deep are decoded.

    Raises:
        OSError and others: the file cannot be read.
        BadImage: as `deep_values`.
    """
    with Image.open(io.BytesIO(data) if data is not None else path) as opened:
        if not is_deep(opened):
            return "8 bits", WHITE
        if data is None:
            with open(path, "rb") as file:
                data = file.read()
        values, _ = deep_values(opened, data, name)
    return "decimals" if values.dtype.kind == "f" else "whole numbers", float(values.max())


def common_white(sample: Iterable[tuple[str, str, float]]) -> tuple[float, bool]:
    """(white, whether the values are deep) of a data set from its sample of (name, kind, highest value).

    Raises:
        UserError: the files have no common scale.
    """
    highest: dict[str, tuple[float, str]] = {}
    for name, kind, value in sample:
        highest[kind] = max(highest.get(kind, (-1.0, "")), (value, name))
    deep = {kind: pair for kind, pair in highest.items() if kind != "8 bits"}
    if not deep:
        return WHITE, False
    whites = {kind: white_above(value, kind == "decimals") for kind, (value, _) in highest.items()}
    if len(set(whites.values())) > 1:
        examples = " and ".join(f"{kind} up to {value:g} ({name})" for kind, (value, name) in highest.items())
        raise UserError(f"the images have no common scale, but {examples}: convert them to one kind")
    value, name = deep.get("decimals", (0.0, ""))
    if 1 < value < DARK:
        raise UserError(
            f"{name} has values up to {value:g}, which is too high for 0 to 1 and dark for 0 to 255: say which value "
            f"is white, as --white_value {value:g}"
        )
    return whites.popitem()[1], True
