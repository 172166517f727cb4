"""Large photographs decoded at 1/2, 1/4 or 1/8 of their size, several times faster than whole.

JPEG holds each square of 8 x 8 pixels as frequencies, so libjpeg can leave out the high ones that the resize to the
crop's final size would remove. `benchmarks/input.py` measures the speed and the difference to whole decoding.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from .deep import TURNS, orientation_of
from .header import BOTTOM_FIRST, RIGHT_FIRST, TURNED


REDUCTIONS = (8, 4, 2)  # that libjpeg offers


class Reduction:
    """How much smaller an image may be decoded: each of its crops must stay at least as large as `size` (height,
    width) in pixels. `boxes_of(height, width)` gives the crops ``(crops, 4)`` = top, left, height, width.

    It depends on the image's size and its crops alone, so that processes, workers and resumed runs agree.
    """

    def __init__(self, boxes_of: Callable[[int, int], torch.Tensor], size: tuple[int, int]):
        self.boxes_of, self.size = boxes_of, size

    def possible(self, height: int, width: int) -> bool:
        """Whether any crop of an image allows it; an image may still be turned by a quarter."""
        return min(height, width) >= 2 * min(self.size) and height * width >= 4 * self.size[0] * self.size[1]

    def __call__(self, height: int, width: int) -> int:
        """1, 2, 4 or 8."""
        if not self.possible(height, width):
            return 1
        heights, widths = self.boxes_of(height, width)[:, 2:].amin(0).tolist()
        most = min(heights // self.size[0], widths // self.size[1])
        return next((reduction for reduction in REDUCTIONS if reduction <= most), 1)


class ReducedJpeg:
    """An image at a part of its size. It is cropped as if it were whole: `shape` is that of the whole image."""

    def __init__(self, picture: Image.Image, shape: tuple[int, int, int], shift: tuple[float, float], reduction: int):
        self.picture, self.shape, self.shift, self.reduction = picture, shape, shift, reduction

    def crop(self, box: list[int], size: tuple[int, int]) -> torch.Tensor:
        """uint8 ``(channels, *size)`` of the box (top, left, height, width), in pixels of the whole image."""
        top, left, height, width = (length / self.reduction for length in box)
        x, y = left + self.shift[0], top + self.shift[1]
        right, bottom = min(x + width, self.picture.width), min(y + height, self.picture.height)
        resized = self.picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, (x, y, right, bottom))
        return picture_tensor(resized)


def reduce_jpeg(opened: Image.Image, num_channels: int, reduction: Reduction) -> ReducedJpeg | None:
    """The image of a JPEG file, so far only its header. None if the file must be decoded at full size."""
    if opened.mode == "CMYK" or not reduction.possible(opened.height, opened.width):
        return None
    orientation = orientation_of(opened)
    width, height = opened.size[::-1] if orientation >= TURNED else opened.size
    times = reduction(height, width)
    if times == 1:
        return None
    mode = "L" if num_channels == 1 else "RGB"
    opened.draft(mode, (opened.width // times, opened.height // times))
    picture = opened.convert(mode)
    picture = picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
    # If the size is not a multiple, the last pixel stands for a part only. In a turned image it comes first.
    shift = (
        picture.width - width / times if orientation in RIGHT_FIRST else 0.0,
        picture.height - height / times if orientation in BOTTOM_FIRST else 0.0,
    )
    return ReducedJpeg(picture, (num_channels, height, width), shift, times)


def picture_tensor(picture: Image.Image) -> torch.Tensor:
    """uint8 ``(1 or 3, height, width)`` of a gray or RGB picture."""
    array = torch.from_numpy(np.array(picture))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1).contiguous()
