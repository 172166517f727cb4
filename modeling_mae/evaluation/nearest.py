"""A few images and those that are nearest to them in the space of the features, for a picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device

from ..data.serve.images import Images
from ..modeling_mae import MAEForPreTraining
from ..training.sharded import whole_weights
from .features import features_of, frozen_features


QUERIES, NEIGHBOURS = 6, 6  # images that fit a page
COMPARED = 1_000  # images, evenly spaced: a matter of seconds


@dataclass(frozen=True)
class Nearest:
    """Images are normalised, as the model sees them. Neighbours are in order, the nearest first."""

    queries: torch.Tensor  # (queries, channels, height, width)
    neighbours: torch.Tensor  # (queries, neighbours, channels, height, width)
    similarity: torch.Tensor  # (queries, neighbours), cosines of the features
    same_class: torch.Tensor | None  # (queries, neighbours) of bool; None where images have no single class each
    compared: int  # images that the neighbours were chosen from
    from_evaluation: bool  # whether the queries are images to evaluate on; else they are training images


def nearest_images(
    accelerator: Accelerator,
    model: MAEForPreTraining,
    train: Images,
    evaluation: Images | None,
    transform: Callable[[dict], torch.Tensor],
    *,
    batch_size: int,
    num_workers: int,
) -> Nearest | None:
    """`QUERIES` images of `evaluation`, and the training images with the most similar features, by cosine. Without
    `evaluation` the queries are training images; they are no neighbours then.

    `model` is not wrapped. All processes compute the features. The main process has the result, the others get None,
    as it does where there are too few images.
    """
    rows = np.unique(train.spread(COMPARED))
    query_rows = np.unique((train if evaluation is None else evaluation).spread(QUERIES))
    if evaluation is None:
        rows = np.setdiff1d(rows, query_rows)
    if not len(rows):
        return None
    bank, queries = train.view(rows=rows), (train if evaluation is None else evaluation).view(rows=query_rows)
    loading = (transform, batch_size, num_workers)
    # Each has the features, and the labels where there are labels.
    with whole_weights(model):
        encode = features_of(model.mae.eval())
        of_bank, of_queries = (frozen_features(accelerator, encode, images, *loading) for images in (bank, queries))
    if not accelerator.is_main_process:
        return None
    cosines = normalised(of_queries[0]) @ normalised(of_bank[0]).T  # (queries, compared)
    similarity, places = cosines.topk(min(NEIGHBOURS, len(rows)), dim=1)  # (queries, neighbours)
    has_classes = len(of_bank) == len(of_queries) == 2 and of_bank[1].ndim == 1
    same_class = torch.from_numpy(of_bank[1][places.numpy()] == of_queries[1][:, None]) if has_classes else None

    def pixels(images: Images, indices: list[int]) -> torch.Tensor:
        return transform(send_to_device(images.batch(0, indices), accelerator.device)).cpu()

    neighbours = pixels(bank, places.flatten().tolist()).unflatten(0, tuple(places.shape))
    query_pixels = pixels(queries, list(range(len(query_rows))))
    return Nearest(query_pixels, neighbours, similarity, same_class, len(rows), evaluation is not None)


def normalised(features: np.ndarray) -> torch.Tensor:
    """``(images, width)`` of length 1."""
    return F.normalize(torch.from_numpy(features), dim=1)
