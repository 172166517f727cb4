"""The numbers of one image as its file holds them, and what they mean. `meaning.py` makes the image of them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stored:
    """`values` are ``(height, width)``, or have bands in `axis`. It is None if the file does not say which axis.

    `colour` is the meaning of the bands: gray, rgb, cmyk, palette (numbers of rows in `palette`), or bands if the file
    does not say. The last band is not one of these if `alpha` says that it is transparency.
    """

    values: np.ndarray
    axis: int | None = None
    colour: str = "bands"
    palette: np.ndarray | None = None  # (colours, 3) uint8
    alpha: str | None = None  # straight or premultiplied
    inverted: bool = False  # 0 is white
    most: int | None = None  # the highest value of whole numbers, if their type has a higher one
    orientation: int = 1  # as EXIF counts
    missing: float | np.ndarray | None = None  # the value of pixels without one, or where (height, width) they are
    is_picture: bool = False  # no value can lie above white

    @property
    def highest(self) -> int:
        """The highest value that whole numbers of this file can have."""
        kind = self.values.dtype
        return self.most or (1 if kind.kind == "b" else (1 << 8 * kind.itemsize) - 1)


def gray_or_rgb(values: np.ndarray, **meaning) -> Stored:
    """A picture ``(height, width)`` or ``(height, width, 1 to 4)``; a second or fourth band is transparency."""
    bands = values.shape[2] if values.ndim == 3 else 1
    alpha = "straight" if bands in (2, 4) else None
    axis = 2 if values.ndim == 3 else None
    return Stored(values, axis, "gray" if bands < 3 else "rgb", alpha=alpha, is_picture=True, **meaning)


def promised(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Stands for values that are not read yet. It takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)
