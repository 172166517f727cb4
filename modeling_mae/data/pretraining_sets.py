"""The images of a pre-training, and labelled images that evaluate its features."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..errors import UserError
from .find.joined import load_eval_source
from .find.masks import NoMasks
from .find.sources import Source, SourceSettings
from .find.splits import NoSplit
from .serve.images import Images, Opening, open_images
from .serve.masked import MaskedImages


@dataclass
class PretrainingSets:
    """`source` as it was found, and its `images` in their evaluation crop. Without k-NN, `evaluation` and its
    `eval_split` are None. With it, both sets have labels that mean the same. With masks, k-NN compares the patches of
    `evaluation` with those of `bank`, which are training images with masks."""

    source: Source
    images: Images
    evaluation: Images | None = None
    eval_split: str | None = None
    bank: Images | None = None

    @property
    def compared(self) -> Images:
        """The images that k-NN compares those of `evaluation` with."""
        return self.images if self.bank is None else self.bank

    @property
    def pictured(self) -> Images | None:
        """The evaluation images in their evaluation crop, without masks."""
        evaluation = self.evaluation
        return evaluation.images if isinstance(evaluation, MaskedImages) else evaluation


def load_pretraining_sets(
    source: Source,
    settings: SourceSettings,
    opening: Opening,
    *,
    k: int | None,
    match_labels: Callable,
    load_masked: Callable[[SourceSettings, Opening], Any],
    main_process_first: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
) -> PretrainingSets:
    """Opens the images of `source`, and loads what a k-NN of `k` neighbours needs: labels of images, or masks if there
    are no labels, or if `settings` name masks. If there are neither, `say` prints why. One process reads first, so
    that the others find what `datasets` has cached. `match_labels` is that of `tasks/sets.py`, `load_masked` calls
    `load_masked_sets` there.

    Raises:
        UserError: as `load_eval_source` and `open_images`; NoSplit if there is no `eval_split`; if `settings` name
            masks, as `load_masked_sets`.
    """

    def load_eval() -> tuple[Source, str]:
        with main_process_first():
            return load_eval_source(settings)

    found, reason = None, UserError()
    try:
        if k is not None and len(source) < k:
            raise UserError(f"{len(source)} training images are fewer than k = {k}")
        if k is not None and not settings.names_masks:
            found = match_labels(source, load_eval)
    except UserError as error:
        if settings.eval_split and isinstance(error, NoSplit):
            raise
        reason = error
    images = open_images(source, opening, found.train if found else None)
    opening = opening.with_white(images.white)  # the same value is as bright in both sets
    if found:
        evaluation = open_images(found.eval_source, opening, found.evaluation)
        return PretrainingSets(source, images, evaluation, found.eval_split)
    sets = PretrainingSets(source, images)
    return _with_masks(sets, partial(load_masked, settings, opening), reason, settings.names_masks, say) if k else sets


def _with_masks(
    sets: PretrainingSets, load: Callable[[], Any], reason: UserError, named: bool, say: Callable[[str], None]
) -> PretrainingSets:
    """The sets with masks, if there are any. `reason`: why there are no labels. Errors end the run if options have
    `named` the masks."""
    try:
        masked = load()
    except UserError as error:
        if named:
            raise
        say(f"no k-NN accuracy: {reason if isinstance(error, NoMasks) else error}")
        return sets
    say(f"masks      {masked}")
    return replace(sets, evaluation=masked.evaluation, eval_split=masked.eval_split, bank=masked.bank)
