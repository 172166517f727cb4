"""The images of a pre-training, and where there are labels those that its features are compared on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..errors import UserError
from .images import Images, open_images
from .joined import load_eval_sources, load_sources
from .listing import NoSplit
from .sources import Source


@dataclass
class PretrainingSets:
    """`source` as it was found, and its `images` in their evaluation crop. `evaluation` and its `eval_split` are None
    where there is no k-NN accuracy; else both sets have labels that mean the same."""

    source: Source
    images: Images
    evaluation: Images | None = None
    eval_split: str | None = None

    @property
    def about(self) -> dict:
        """What a report says of the images."""
        return {
            "images": len(self.images),
            "source_name": self.source.name,
            "dataset_id": self.source.dataset_id or self.source.name,
            "knn_split": self.eval_split,
        }


def load_training_source(
    source_options: dict,
    *,
    train_split: str,
    max_train_samples: int | None,
    main_process_first: Callable[[], AbstractContextManager],
) -> Source:
    """The images to train on, still encoded. One process reads first, so that the others find what `datasets` has
    cached.

    Raises:
        UserError: as `load_sources`.
    """
    with main_process_first():
        return load_sources(split=train_split, max_samples=max_train_samples, **source_options)


def load_pretraining_sets(
    source: Source,
    source_options: dict,
    *,
    eval_split: str | None,
    k: int | None,
    white: float | None,
    open_options: dict,
    match_labels: Callable,
    main_process_first: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
) -> PretrainingSets:
    """Open the images of `source`, and load what a k-NN accuracy of `k` neighbours needs. If there can be none, `say`
    prints why.

    `source_options` go to `load_eval_sources`, `open_options` and `white` to `open_images`. `match_labels` is that of
    `tasks/sets.py`.

    Raises:
        UserError: as `load_eval_sources` and `open_images`; NoSplit where there is no `eval_split`.
    """

    def load_eval() -> tuple[Source, str]:
        with main_process_first():
            return load_eval_sources(eval_split, **source_options)

    labels = None
    try:
        if k is not None and len(source) < k:
            raise UserError(f"{len(source)} training images are fewer than k = {k}")
        if k is not None:
            found = match_labels(source, load_eval)
            labels = found.train
    except UserError as reason:
        if eval_split and isinstance(reason, NoSplit):
            raise
        say(f"no k-NN accuracy: {reason}")
    images = open_images(source, labels=labels, white=white, **open_options)
    if labels is None:
        return PretrainingSets(source, images)
    # The same value is as bright in both sets.
    evaluation = open_images(found.eval_source, labels=found.evaluation, white=images.white, **open_options)
    return PretrainingSets(source, images, evaluation, found.eval_split)
