"""Images of any size through a model of one size: in overlapping windows, whose logits are averaged."""

import torch
import torch.nn.functional as F


STRIDE = 2 / 3  # of the window, as published comparisons on ADE20K have it
AT_ONCE = 64  # windows


def starts_of(length: int, window: int) -> list[int]:
    """Where the windows begin on an axis of so many pixels. The last ends with the axis."""
    last = max(0, length - window)
    stride = max(1, int(window * STRIDE))
    return [*range(0, last, stride), last]


@torch.no_grad()
def logits_of(model, pixel_values: torch.Tensor, sizes: list[list[int]], in_windows: bool) -> torch.Tensor:
    """``(batch, classes, height, width)`` float32 of ``pixel_values (batch, channels, height, width)``, of which each
    image has its own of `sizes` (height, width) and nothing beyond.

    An image that is smaller than the model's size is filled up with zeros, which are the mean colour. Without windows
    the model sees each image whole.
    """
    window = model_size(model)
    batch = []
    height, width = pixel_values.shape[2:]
    if all(tuple(size) == window == (height, width) for size in sizes):
        return model(pixel_values).logits.float()
    for image, (own_height, own_width) in zip(pixel_values, sizes, strict=True):
        own = image[None, :, :own_height, :own_width]
        logits = _windowed(model, own, window) if in_windows else model(own).logits.float()
        batch.append(F.pad(logits, (0, width - own_width, 0, height - own_height)))
    return torch.cat(batch)


def model_size(model) -> tuple[int, int]:
    """(height, width) in pixels, of a model that may be wrapped."""
    return getattr(model, "module", model).config.image_height_width


def _windowed(model, image: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """``(1, channels, height, width)`` -> ``(1, classes, height, width)``."""
    height, width = image.shape[2:]
    padded = F.pad(image, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    tops, lefts = (starts_of(length, side) for length, side in zip(padded.shape[2:], window, strict=True))
    places = [(top, left) for top in tops for left in lefts]
    total: torch.Tensor | None = None
    count = padded.new_zeros(1, 1, *padded.shape[2:])
    for first in range(0, len(places), AT_ONCE):
        some = places[first : first + AT_ONCE]
        seen = torch.cat([padded[:, :, top : top + window[0], left : left + window[1]] for top, left in some])
        for logits, (top, left) in zip(model(seen).logits.float(), some, strict=True):
            if total is None:
                total = logits.new_zeros(1, len(logits), *padded.shape[2:])
            total[0, :, top : top + window[0], left : left + window[1]] += logits
            count[:, :, top : top + window[0], left : left + window[1]] += 1
    assert total is not None
    return (total / count)[:, :, :height, :width]
