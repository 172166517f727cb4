"""k-NN of patches: what the classes of similar patches of other images say of a patch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.serve.image_set import Images
from ..data.serve.masked import IGNORED, MaskedImages, ScaledCrop
from ..readout import CHUNK, nearest
from ..tasks.masks import MASKS
from ..tasks.sets import BANK_IMAGES, TEST_IMAGES
from .reader import Reader


TEMPERATURE = 0.07  # of the votes of neighbours, of images too (Wu et al., arXiv 1805.01978)


def tokens_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """``(batch, channels, height, width) -> (batch, patches, width)``: the encoder's tokens after its final norm."""

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values).last_hidden_state[:, 1:]

    return encode


def dense_metrics(
    reader: Reader,
    encode: Callable[[torch.Tensor], torch.Tensor],
    train: MaskedImages,
    evaluation: MaskedImages,
    grid: tuple[int, int],
    ks: tuple[int, ...],
) -> dict:
    """`knn` {k: mean IoU}: each patch of at most `TEST_IMAGES` images gets the class that most pixels of its k nearest
    patches in at most `BANK_IMAGES` others have, weighted as in the k-NN of images. Images that are larger than the
    model's size are seen in one crop. On the main process, elsewhere nothing."""
    bank, bank_masks = _patches(reader, encode, train, BANK_IMAGES)
    tests, masks = _patches(reader, encode, evaluation, TEST_IMAGES)
    if not reader.accelerator.is_main_process:
        return {}
    classes = evaluation.known_labels.shape[1]
    shares = _shares(bank_masks, grid, classes)  # (bank patches, classes)
    known = shares.sum(1) > 0
    bank, shares = bank.flatten(0, 1)[known], shares[known]
    ks = tuple(k for k in ks if k <= len(bank))
    if not ks:
        return {"knn": {}}
    device = reader.accelerator.device
    said: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    bank, shares = bank.to(device), shares.to(device)
    for queries in tests.flatten(0, 1).split(CHUNK):
        cosines, places = nearest(queries, bank, max(ks))  # (queries, largest k)
        weights = ((cosines - 1) / TEMPERATURE).exp()
        for k in ks:
            votes = (weights[:, :k, None] * shares[places[:, :k]]).sum(1)  # (queries, classes)
            said[k].append(votes.argmax(1).cpu())
    return {"knn": {k: _mean_iou(torch.cat(parts), masks, grid, classes) for k, parts in said.items()}}


def _patches(
    reader: Reader, encode: Callable[[torch.Tensor], torch.Tensor], images: MaskedImages, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens ``(images, patches, width)``, masks ``(images, height, width)``) of evenly spaced images."""
    rows = np.linspace(0, len(images) - 1, min(len(images), most)).astype(int)
    crop = ScaledCrop(0, images.size, [1.0, 1.0], False, False, [0.5])
    view: Images = images.view(crop, rows)

    def compute(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"tokens": encode(reader.transform(batch)).float(), "masks": batch["masks"]}

    arrays = reader.map(view, compute)
    return torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["masks"])


def _shares(masks: torch.Tensor, grid: tuple[int, int], classes: int) -> torch.Tensor:
    """The share of each class in the pixels of each patch: ``(images * patches, classes)`` of ``(images, height,
    width)``. Without a known pixel it is 0 of each."""
    rows, columns = grid
    patches = masks.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).movedim(3, 2).flatten(3).flatten(0, 2)
    counts = torch.stack([(patches == i).float().mean(1) for i in range(classes)], 1)
    return counts / (patches != IGNORED).float().mean(1, keepdim=True).clamp(min=1e-6)


def _mean_iou(said: torch.Tensor, masks: torch.Tensor, grid: tuple[int, int], classes: int) -> float:
    """Of a class for each patch ``(images * patches,)``, which all its pixels get."""
    height, width = masks.shape[1:]
    patches = said.view(len(masks), *grid)
    predicted = patches.repeat_interleave(height // grid[0], 1).repeat_interleave(width // grid[1], 2)
    logits = nn.functional.one_hot(predicted, classes).movedim(-1, 1).float()
    columns = MASKS.columns(logits, masks.long())
    return MASKS.results({name: value.numpy() for name, value in columns.items()}, classes)[MASKS.problem.metric]
