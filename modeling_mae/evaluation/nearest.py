"""Finds the nearest neighbours of a few images by their features, for a picture."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import send_to_device

from ..data.serve.images import Images
from ..modeling_mae import MAEForPreTraining
from ..readout import nearest
from ..training.sharded import whole_weights
from .features import features_of
from .reader import Reader


QUERIES, NEIGHBOURS = 6, 6  # images that fit a page
COMPARED = 1_000  # images, evenly spaced; this takes seconds


@dataclass(frozen=True)
class Nearest:
    """Images are normalised, as the model sees them. Neighbours are in order, the nearest first."""

    queries: torch.Tensor  # (queries, channels, height, width)
    neighbours: torch.Tensor  # (queries, neighbours, channels, height, width)
    similarity: torch.Tensor  # (queries, neighbours), cosines of the features
    same_class: torch.Tensor | None  # bool (queries, neighbours); None unless each image has one class
    compared: int  # number of images that were searched
    from_evaluation: bool  # whether the queries are evaluation images, else training images


def nearest_images(
    reader: Reader, model: MAEForPreTraining, train: Images, evaluation: Images | None
) -> Nearest | None:
    """`QUERIES` images of `evaluation`, and the training images with the most similar features, by cosine. Without
    `evaluation` the queries are training images, which are then left out of the comparison.

    `model` is not wrapped. All processes compute the features. The main process gets the result, the others None. Too
    few images also give None.
    """
    rows, asked = np.unique(train.spread(COMPARED)), train if evaluation is None else evaluation
    query_rows = np.unique(asked.spread(QUERIES))
    if evaluation is None:
        rows = np.setdiff1d(rows, query_rows)
    if not len(rows):
        return None
    bank, queries = train.view(rows=rows), asked.view(rows=query_rows)
    with whole_weights(model):
        encode = features_of(model.mae.eval())
        of_bank, of_queries = (reader.features(encode, images) for images in (bank, queries))
    if not reader.accelerator.is_main_process:
        return None
    queried, compared = torch.from_numpy(of_queries.features), torch.from_numpy(of_bank.features)
    similarity, positions = nearest(queried, compared, NEIGHBOURS)  # (queries, neighbours)
    same_class = None
    if of_bank.labels is not None and of_queries.labels is not None and of_bank.labels.ndim == 1:
        same_class = torch.from_numpy(of_bank.labels[positions.numpy()] == of_queries.labels[:, None])

    def pixels(images: Images, indices: list[int]) -> torch.Tensor:
        return reader.transform(send_to_device(images.batch(0, indices), reader.accelerator.device)).cpu()

    neighbours = pixels(bank, positions.flatten().tolist()).unflatten(0, tuple(positions.shape))
    query_pixels = pixels(queries, list(range(len(query_rows))))
    return Nearest(query_pixels, neighbours, similarity, same_class, len(rows), evaluation is not None)
