"""A picture of images beside those that are like them."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from .figures import save_figure
from .reconstruction import STRETCH


INCHES = 1.5  # of an image in the picture
LETTERS = 22  # of a name that fit under it


def neighbours_picture(path: Path, rows: list[list[tuple[torch.Tensor, str]]]) -> None:
    """Writes `rows` of (image, what it is called) as PNG: an image, then those that are like it.

    Images are ``(channels, height, width)``, white is 1. Of more than three channels the first three are shown.
    """
    columns = max(map(len, rows))
    figure = Figure(figsize=(INCHES * columns, (INCHES + 0.4) * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for cell in line:
            cell.axis("off")
        for cell, (image, name) in zip(line, row, strict=False):
            cell.imshow(shown(image), interpolation="nearest")
            cell.set_title(name, size=7, parse_math=False)  # a name with a dollar is no formula
    save_figure(figure, path)


def shown(image: torch.Tensor) -> np.ndarray:
    """``(channels, height, width)`` as ``(height, width, 3)`` in 0..1. Values that are not are stretched."""
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    pixels = image.permute(1, 2, 0).float().numpy()  # (height, width, 3)
    if pixels.min() < 0 or pixels.max() > 1:
        low, high = np.percentile(pixels, STRETCH)
        pixels = (pixels - low) / max(high - low, 1e-12)
    return pixels.clip(0, 1)


def shortened(name: str) -> str:
    """The end of a path, which tells more than its beginning."""
    return name if len(name) <= LETTERS else f"...{name[3 - LETTERS :]}"
