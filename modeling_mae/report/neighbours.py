"""Draws images with their nearest neighbours in feature space."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .reconstruction import save_sheet, visible_colours


CELL = 96  # smallest shorter side of an image in pixels, so that small images are visible
FRAME = 5  # pixels around an image
SAME_CLASS = (46, 160, 67)  # frame colour of neighbours of the query's class
BETWEEN = 4 * FRAME  # pixels between a query and its neighbours


LETTERS = 22  # longest title above an image
TITLE = 0.28  # height of a row's titles, as a share of an image's width
TITLED_WIDTH = 1.2  # width of an image with a title, in inches


@dataclass(frozen=True)
class NeighbourRows:
    """Rows of images, each followed by the images that are like it, the nearest first.

    Images are normalised. `same_class` marks neighbours that get a frame. Each row of `titles` has the titles of the
    image and of its neighbours. With None, one line is written above all rows.
    """

    queries: torch.Tensor  # (rows, channels, height, width)
    neighbours: torch.Tensor  # (rows, neighbours, channels, height, width)
    same_class: torch.Tensor | None = None  # (rows, neighbours)
    titles: list[list[str]] | None = None


def save_neighbours(path: Path, shown: NeighbourRows, mean: list[float], std: list[float]) -> None:
    """Writes a PNG with a row per image: the image, then its neighbours. `mean` and `std` undo the normalisation."""
    count = shown.neighbours.shape[1]
    colours = visible_colours(shown.queries, shown.neighbours.flatten(0, 1), mean=mean, std=std)
    originals, others = (images.permute(0, 2, 3, 1).numpy() for images in colours)  # (n, height, width, 3)
    rows = []
    for row, query in enumerate(originals):
        cells = [framed(query), np.full((framed(query).shape[0], BETWEEN, 3), 255, np.uint8)]
        for column in range(count):
            same = shown.same_class is not None and bool(shown.same_class[row, column])
            cells.append(framed(others[row * count + column], SAME_CLASS if same else (255, 255, 255)))
        rows.append(np.concatenate(cells, axis=1))
    height, width = framed(originals[0]).shape[:2]
    if shown.titles is None:
        sheet = np.concatenate(rows)
        middles = {
            width / 2: "image",
            width + BETWEEN + count * width / 2: "its nearest neighbours, the nearest first",
        }
        save_sheet(path, sheet, {place / sheet.shape[1]: title for place, title in middles.items()})
        return
    space = round(TITLE * width)  # pixels
    rows = [np.pad(row, ((space, 0), (0, 0), (0, 0)), constant_values=255) for row in rows]
    places = [width / 2, *(BETWEEN + (column + 1.5) * width for column in range(count))]
    labels = {
        (place, row * (height + space) + space): title
        for row, titles in enumerate(shown.titles)
        for place, title in zip(places, titles, strict=True)
    }
    save_sheet(path, np.concatenate(rows), labels=labels, inches=TITLED_WIDTH * (count + 1))


def shortened(name: str) -> str:
    """The end of a path, which is more informative than its beginning."""
    return name if len(name) <= LETTERS else f"...{name[3 - LETTERS :]}"


def save_nearest(path: Path, nearest, mean: list[float], std: list[float]) -> str:
    """Draws a `Nearest`, and returns a description of the picture. For None, no picture and an empty text."""
    if nearest is None:
        return ""
    save_neighbours(path, NeighbourRows(nearest.queries, nearest.neighbours, nearest.same_class), mean, std)
    return describe_neighbours(len(nearest.queries), nearest.compared, nearest.same_class, nearest.from_evaluation)


def framed(image: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """``(height, width, 3)`` enlarged by a whole factor, with a frame and a white line around it."""
    factor = -(-CELL // min(image.shape[:2]))
    image = image.repeat(factor, 0).repeat(factor, 1)
    height, width = image.shape[:2]
    cell = np.full((height + 2 * FRAME + 2, width + 2 * FRAME + 2, 3), 255, np.uint8)
    cell[1:-1, 1:-1] = colour
    cell[1 + FRAME : 1 + FRAME + height, 1 + FRAME : 1 + FRAME + width] = image
    return cell


def describe_neighbours(queries: int, compared: int, same_class: torch.Tensor | None, from_evaluation: bool) -> str:
    """Describes what `save_neighbours` shows and how the neighbours were found. `compared` is the number of training
    images. The queries are training images too, or evaluation images with `from_evaluation`."""
    kind, others = ("images to evaluate on", "") if from_evaluation else ("training images", "other ")
    sentence = (
        f"{queries} {kind}, evenly spaced, and the nearest of {compared:,} {others}training images (cosine of the "
        "encoder's pooled features)."
    )
    if same_class is None:
        return sentence
    return f"{sentence} A green frame marks the same class: {int(same_class.sum())} of {same_class.numel()} have it."
