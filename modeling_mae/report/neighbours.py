"""The picture of images and their nearest neighbours in the space of the features."""

from pathlib import Path

import numpy as np
import torch

from .reconstruction import save_sheet, visible_colours


CELL = 96  # pixels at least of an image's shorter side, so that small images can be seen
FRAME = 5  # pixels around an image
SAME_CLASS = (46, 160, 67)  # the colour of the frame of a neighbour of the query's class
BETWEEN = 4 * FRAME  # pixels between a query and its neighbours


def save_neighbours(
    path: Path,
    queries: torch.Tensor,
    neighbours: torch.Tensor,
    same_class: torch.Tensor | None,
    mean: list[float],
    std: list[float],
) -> None:
    """Writes a PNG with a row for each query: the query, then its neighbours.

    ``queries (queries, channels, height, width)`` and ``neighbours (queries, neighbours, channels, height, width)``
    are normalised; `mean` and `std` undo that. A neighbour that ``same_class (queries, neighbours)`` marks has a
    frame.
    """
    count = neighbours.shape[1]
    colours = visible_colours(queries, neighbours.flatten(0, 1), mean=mean, std=std)
    originals, others = (images.permute(0, 2, 3, 1).numpy() for images in colours)  # (n, height, width, 3)
    rows = []
    for row, query in enumerate(originals):
        cells = [framed(query), np.full((framed(query).shape[0], BETWEEN, 3), 255, np.uint8)]
        for column in range(count):
            same = same_class is not None and bool(same_class[row, column])
            cells.append(framed(others[row * count + column], SAME_CLASS if same else (255, 255, 255)))
        rows.append(np.concatenate(cells, axis=1))
    sheet = np.concatenate(rows)
    width = framed(originals[0]).shape[1]
    titles = {width / 2: "image", width + BETWEEN + count * width / 2: "its nearest neighbours, the nearest first"}
    save_sheet(path, sheet, {place / sheet.shape[1]: title for place, title in titles.items()})


def save_nearest(path: Path, nearest, mean: list[float], std: list[float]) -> str:
    """The picture of a `Nearest`, and how it was made, for people. None makes no picture and no words."""
    if nearest is None:
        return ""
    save_neighbours(path, nearest.queries, nearest.neighbours, nearest.same_class, mean, std)
    return describe_neighbours(len(nearest.queries), nearest.compared, nearest.same_class, nearest.from_evaluation)


def framed(image: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """``(height, width, 3)`` enlarged by a whole number, with a frame and a white line around it."""
    factor = -(-CELL // min(image.shape[:2]))
    image = image.repeat(factor, 0).repeat(factor, 1)
    height, width = image.shape[:2]
    cell = np.full((height + 2 * FRAME + 2, width + 2 * FRAME + 2, 3), 255, np.uint8)
    cell[1:-1, 1:-1] = colour
    cell[1 + FRAME : 1 + FRAME + height, 1 + FRAME : 1 + FRAME + width] = image
    return cell


def describe_neighbours(queries: int, compared: int, same_class: torch.Tensor | None, from_evaluation: bool) -> str:
    """What `save_neighbours` shows and how the neighbours were found, for people. `compared` is the number of training
    images; the queries are training images too, or with `from_evaluation` images to evaluate on."""
    kind, others = ("images to evaluate on", "") if from_evaluation else ("training images", "other ")
    sentence = (
        f"{queries} {kind}, evenly spaced, and those of {compared:,} {others}training images whose features are most "
        "similar (cosine of the encoder's pooled features)."
    )
    if same_class is None:
        return sentence
    return f"{sentence} A green frame: the same class, as {int(same_class.sum())} of {same_class.numel()} have."
