"""Masks as people see them: their colours, over the image, and beside the truth."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch


MISSED = np.array([220, 30, 30], np.uint8)  # the colour of a pixel that the prediction has wrong
PALE = 6  # how much closer to white the pixels of other classes are, where one class is shown alone
MOST_NAMED = 24  # classes in a legend


def palette(classes: int) -> np.ndarray:
    """The colours ``(classes, 3)`` uint8 of Pascal VOC's masks: the bits of the class number, from the lowest on, are
    dealt to red, green and blue, from the highest on. Class 0 is black."""
    numbers = np.arange(classes)
    bits = numbers[:, None] >> np.arange(24) & 1  # (classes, 24)
    return (bits.reshape(classes, 8, 3) << np.arange(7, -1, -1)[:, None]).sum(1).astype(np.uint8)


def seen_by_people(image: torch.Tensor) -> np.ndarray:
    """``(height, width, 3)`` uint8 of an image ``(channels, height, width)`` where 255 is white. Of many bands the
    first three, else the first one in gray."""
    seen = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return seen.float().clamp(0, 255).round().permute(1, 2, 0).to(torch.uint8).cpu().numpy()


def overlay(image: torch.Tensor, mask: np.ndarray, colours: np.ndarray, strength: float) -> np.ndarray:
    """``(height, width, 3)`` uint8: the image ``(channels, height, width)`` under the colours of its classes
    ``(height, width)``. `strength` is 0 ... 1."""
    pixels = seen_by_people(image).astype(np.float32)
    return (pixels * (1 - strength) + colours[mask] * strength).round().astype(np.uint8)


def one_class(image: torch.Tensor, mask: np.ndarray, colours: np.ndarray, strength: float, number: int) -> np.ndarray:
    """As `overlay`, with the pixels of all other classes nearly white."""
    shown = overlay(image, mask, colours, strength)
    pale = 255 - (255 - seen_by_people(image)) // PALE
    return np.where((mask == number)[..., None], shown, pale)


def compared_masks(shown: list[tuple[torch.Tensor, np.ndarray, np.ndarray, str]], names: list[str]) -> Figure:
    """A row for each (image, its mask, the predicted one, title), and in red where they differ. Masks hold class
    numbers ``(height, width)``; numbers beyond the classes are pixels without one."""
    colours = np.concatenate([palette(len(names)), np.full((256 - len(names), 3), 128, np.uint8)])
    count, named = len(shown), names[:MOST_NAMED]
    figure = Figure(figsize=(9, 2.1 * count + 0.5 + 0.25 * (len(named) // 6)), dpi=110, layout="constrained")
    grid = figure.subplots(count, 4, squeeze=False)
    for axes, heading in zip(grid[0], ("image", "truth", "prediction", "difference"), strict=True):
        axes.set_title(heading, size=9)
    for row, (image, truth, predicted, title) in zip(grid, shown, strict=True):
        seen, known = seen_by_people(image), truth < len(names)
        gray = seen.mean(2, keepdims=True).astype(np.uint8) // 2 + 64  # so that nothing but errors is red
        wrong = np.where(((truth != predicted) & known)[..., None], MISSED, gray)
        for axes, picture in zip(row, (seen, colours[truth], colours[predicted], wrong), strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(title, size=8)
    patches = [Patch(facecolor=colours[i] / 255, edgecolor="gray", label=name) for i, name in enumerate(named)]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, framealpha=0)
    return figure
