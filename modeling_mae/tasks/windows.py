"""Images of any size through a model of one size: in overlapping windows, whose logits are averaged."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F


STRIDE = 2 / 3  # of the window, as published comparisons on ADE20K have it
AT_ONCE = 64  # windows
LOGITS_AT_ONCE = 1 << 25  # of a row of windows: 128 MiB


def starts_of(length: int, window: int) -> list[int]:
    """Where the windows begin on an axis of so many pixels. The last ends with the axis."""
    last = max(0, length - window)
    return [*range(0, last, max(1, int(window * STRIDE))), last]


@torch.no_grad()
def logits_of(model, pixel_values: torch.Tensor, sizes: list[list[int]], in_windows: bool) -> torch.Tensor:
    """``(batch, classes, height, width)`` float32 of ``pixel_values (batch, channels, height, width)``, of which each
    image has its own of `sizes` (height, width) and nothing beyond.

    An image that is smaller than the model's size is filled up with zeros, which are the mean colour. Without windows
    the model sees each image whole.
    """
    window = model_size(model)
    height, width = pixel_values.shape[2:]
    if all(tuple(size) == window == (height, width) for size in sizes):
        return model(pixel_values).logits.float()
    batch = []
    for image, (own_height, own_width) in zip(pixel_values, sizes, strict=True):
        own = image[None, :, :own_height, :own_width]
        if in_windows:
            pieces = logits_by_rows(model, partial(_rows_of, own), (own_height, own_width))
            logits = torch.cat(list(pieces), 1)[None]
        else:
            logits = model(own).logits.float()
        batch.append(F.pad(logits, (0, width - own_width, 0, height - own_height)))
    return torch.cat(batch)


def _rows_of(image: torch.Tensor, top: int, end: int) -> torch.Tensor:
    return image[:, :, top:end]


def model_size(model) -> tuple[int, int]:
    """(height, width) in pixels, of a model that may be wrapped."""
    return getattr(model, "module", model).config.image_height_width


def classes_of(model, image: Any, normalised: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The likeliest class of each pixel, ``(height, width)`` uint8, of an image ``(channels, height, width)`` of any
    size, a tensor or `ImageRows`. ``normalised(rows)`` gives the pixel values of a part of it, ``(1, channels, rows,
    columns)``.

    A wide image is done in blocks of columns, so that the logits of a row of windows fit `LOGITS_AT_ONCE`.
    """
    (_, height, width), (high, side) = image.shape, model_size(model)
    lefts, classes = starts_of(width, side), torch.empty(height, width, dtype=torch.uint8)
    columns = max(side, LOGITS_AT_ONCE // (high * getattr(model, "module", model).config.num_labels))
    for first in range(0, width, columns):
        end = min(first + columns, width)
        seeing = [left for left in lefts if left < end and left + side > first]
        start, stop, row = seeing[0], min(seeing[-1] + side, width), 0

        def read(top: int, bottom: int, seen: slice = slice(start, stop)) -> torch.Tensor:
            return normalised(image[:, top:bottom][None, :, :, seen])

        at = [left - start for left in seeing]
        for logits in logits_by_rows(model, read, (height, stop - start), at):
            below = row + logits.shape[1]
            classes[row:below, first:end] = logits[:, :, first - start : end - start].argmax(0)
            row = below
    return classes


def model_device(model) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def logits_by_rows(
    model, read: Callable[[int, int], torch.Tensor], size: tuple[int, int], lefts: list[int] | None = None
) -> Iterator[torch.Tensor]:
    """The logits ``(classes, rows, width)`` of an image of `size` (height, width), from the top to the bottom: the
    memory that it takes does not depend on the height.

    ``read(top, end)`` gives the pixel values ``(1, channels, end - top, width)`` of these rows. The windows of a
    row begin at `lefts`, by default those of `starts_of`.
    """
    (height, width), window = size, model_size(model)
    tops, lefts = starts_of(height, window[0]), lefts or starts_of(width, window[1])
    right = max(0, window[1] - width)
    total = count = None
    for top, below in zip(tops, [*tops[1:], height], strict=True):
        rows = read(top, min(top + window[0], height))
        rows = F.pad(rows, (0, right, 0, window[0] - rows.shape[2]))
        summed, times = _row_of_windows(model, rows, lefts, window[1])
        if total is not None and count is not None:  # what is left of the windows above
            summed[:, : total.shape[1]] += total
            times[: len(count)] += count
        done = below - top
        yield (summed[:, :done] / times[:done])[:, :, :width]
        total, count = summed[:, done:], times[done:]


def _row_of_windows(model, rows: torch.Tensor, lefts: list[int], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums of logits ``(classes, rows, width)``, how many windows each pixel is in ``(rows, width)``) of pixel values
    ``(1, channels, rows, width)``."""
    total = count = None
    for first in range(0, len(lefts), AT_ONCE):
        some = lefts[first : first + AT_ONCE]
        logits = model(torch.cat([rows[:, :, :, left : left + side] for left in some])).logits.float()
        if total is None or count is None:
            total = logits.new_zeros(logits.shape[1], *rows.shape[2:])
            count = logits.new_zeros(rows.shape[2:])
        for one, left in zip(logits, some, strict=True):
            total[:, :, left : left + side] += one
            count[:, left : left + side] += 1
    assert total is not None and count is not None
    return total, count
