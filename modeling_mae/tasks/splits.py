"""Parts of a set by class and group: label fractions and folds; and what stands in both of two sets."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from ..data.serve.images import Images, MemoryImages
from ..data.serve.masked import MaskedImages
from ..errors import UserError
from ..words import counted
from .protocol import Task
from .sets import LabelledSets


MOST_BYTES = 1 << 32  # of pixels that are compared, which takes seconds
SHOWN = 3  # groups or images that a note names
# Images count as alike by the correlation of their thumbnails. None of the 24 million pairs of bundled images is so
# alike. Of these images saved as JPEG of quality 75, 99% are; moved by a pixel, none.
THUMBNAIL, ALIKE = 16, 0.998
MOST_PAIRS = 1 << 27  # that are compared by thumbnails, which takes two seconds
AT_ONCE = 512  # images


def part_of(task: Task, labels: np.ndarray, groups: np.ndarray | None, fraction: float, seed: int) -> np.ndarray:
    """Sorted positions of a random `fraction` of the images: those of `Task.part`, or with `groups` ``(images,)``
    whole groups, in a random order, until there are enough images, at least one group; then for each class that is
    missing the next group that has it."""
    if groups is None:
        return task.part(labels, fraction, seed)
    names, number = np.unique(groups, return_inverse=True)  # number: (images,)
    order, sizes = np.random.default_rng(seed).permutation(len(names)), np.bincount(number)
    enough = int(np.searchsorted(sizes[order].cumsum(), round(fraction * len(groups)))) + 1
    chosen = set(order[:enough].tolist())
    if labels.ndim == 1:  # single classes
        for missing in np.setdiff1d(labels, labels[np.isin(number, list(chosen))]):
            having = number[labels == missing]
            chosen.add(next(int(group) for group in order if group in having))
    return np.flatnonzero(np.isin(number, list(chosen)))


def fold_of(labels: np.ndarray, groups: np.ndarray | None, folds: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions to train on, positions to evaluate on) of a cross-validation. `fold` is counted from 1. Each fold has
    its share of each single class; no group is in two.

    Raises:
        UserError: there are fewer images, groups, or images of a class than folds.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    single = labels.ndim == 1
    fewest = int(np.unique(labels, return_counts=True)[1].min()) if single else len(labels)
    if fewest < folds:
        what = "a class" if single else "the set"
        remedy = f"give --folds {fewest}" if fewest > 1 else "leave folds out, and give --validation_dir"
        raise UserError(f"folds {folds} are more than the {counted(fewest, 'image')} of {what}: {remedy}")
    if groups is not None and len(np.unique(groups)) < folds:
        raise UserError(f"folds {folds} are more than the {len(np.unique(groups))} groups: give fewer")
    options = {"n_splits": folds, "shuffle": True, "random_state": 0}
    if groups is not None:
        splitter = StratifiedGroupKFold(**options) if single else GroupKFold(**options)
    else:
        splitter = StratifiedKFold(**options) if single else KFold(**options)
    positions = np.zeros(len(labels))
    return list(splitter.split(positions, labels if single else None, groups))[fold - 1]


def sets_of_fold(sets: LabelledSets, folds: int, fold: int) -> LabelledSets:
    """The sets of one training of a cross-validation on the training images of `sets`."""
    whole, groups = sets.training, sets.groups
    train, test = fold_of(whole.known_labels.numpy(), groups, folds, fold)
    return replace(
        sets,
        train=whole.view(rows=train),
        evaluation=whole.view(rows=test),
        eval_split=f"fold {fold} of {folds}",
        groups=None if groups is None else groups[train],
        eval_groups=None if groups is None else groups[test],
    )


def leaks(sets: LabelledSets) -> Iterator[str]:
    """Notes about groups and images that are in both sets, so that results are too good.

    Images are compared by their pixels and by thumbnails, and only if both sets lie decoded in memory, in
    `MOST_BYTES`. `mae neighbours --duplicates` finds more that are alike.
    """
    if sets.groups is not None and sets.eval_groups is not None:
        both = np.intersect1d(sets.groups, sets.eval_groups)
        if len(both):
            images = int(np.isin(sets.eval_groups, both).sum())
            yield (
                f"{len(both):,} of {len(np.unique(sets.eval_groups)):,} groups have training images too, as "
                f"{', '.join(map(repr, both[:SHOWN].tolist()))}: results on their {images:,} evaluation images are "
                "too good; split by group, as with --folds 5"
            )
    copies = _copies(sets.training, sets.evaluation)
    count, tested = int(copies.sum()), f"{len(sets.evaluation):,} evaluation images"
    if count:
        yield (
            f"{count:,} of {tested} are training images too, pixel by pixel: results on them are too good; `mae "
            "neighbours --duplicates` lists images that are alike"
        )
    almost = int((_alike(sets.training, sets.evaluation) & ~copies).sum())
    if almost:
        yield (
            f"{almost:,} of {tested} look almost like a training image, as if saved again: results on them may be "
            "too good; `mae neighbours --duplicates` lists such images"
        )


def _copies(train: Images, evaluation: Images) -> np.ndarray:
    """Which images of `evaluation` are in `train` too, bool ``(images,)``. All False if a set is not in memory."""
    known = set(_digests(train))
    copies = [digest in known for digest in _digests(evaluation)] if known else []
    return np.array(copies or [False] * len(evaluation))


def _digests(images: Images) -> Iterator[bytes]:
    """A checksum of each image. Nothing if they are not in memory, or too many."""
    whole = _in_memory(images)
    if whole is None:
        return
    for row in _rows(images):
        yield hashlib.blake2b(whole.pixels[row].numpy().tobytes(), digest_size=16).digest()


def _alike(train: Images, evaluation: Images) -> np.ndarray:
    """Which images of `evaluation` have almost the thumbnail of one of `train`, bool ``(images,)``. Brightness and
    contrast may differ. All False if a set is not in memory, or if there are too many images, or too small ones."""
    few = len(train) * len(evaluation) <= MOST_PAIRS
    bank, tested = (_thumbnails(train), _thumbnails(evaluation)) if few else (None, None)
    if bank is None or tested is None:
        return np.zeros(len(evaluation), bool)
    return torch.cat([(some @ bank.T).amax(1) > ALIKE for some in tested.split(AT_ONCE)]).numpy()


def _thumbnails(images: Images) -> torch.Tensor | None:
    """Gray thumbnails ``(images, THUMBNAIL ** 2)`` with mean 0 and length 1, so that their products are correlations.
    None if the images are not in memory, or smaller."""
    whole = _in_memory(images)
    if whole is None or min(whole.pixels.shape[2:]) < THUMBNAIL:
        return None
    small = [
        F.adaptive_avg_pool2d(whole.pixels[rows].float().nan_to_num().mean(1, keepdim=True), THUMBNAIL).flatten(1)
        for rows in torch.tensor(_rows(images)).split(AT_ONCE)
    ]
    return F.normalize(torch.cat([each - each.mean(1, keepdim=True) for each in small]))


def _in_memory(images: Images) -> MemoryImages | None:
    whole = images.images if isinstance(images, MaskedImages) else images
    return whole if isinstance(whole, MemoryImages) and whole.pixels.nbytes <= MOST_BYTES else None


def _rows(images: Images) -> list[int]:
    return list(range(len(images))) if images.rows is None else images.rows.tolist()
