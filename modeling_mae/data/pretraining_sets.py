"""The images of a pre-training, and where there are labels those that its features are compared on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..errors import UserError
from .find.joined import load_eval_source
from .find.sources import Source, SourceSettings
from .find.splits import NoSplit
from .serve.images import Images, Opening, open_images


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


def load_pretraining_sets(
    source: Source,
    settings: SourceSettings,
    opening: Opening,
    *,
    k: int | None,
    match_labels: Callable,
    main_process_first: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
) -> PretrainingSets:
    """Open the images of `source`, and load what a k-NN accuracy of `k` neighbours needs. If there can be none, `say`
    prints why. One process reads first, so that the others find what `datasets` has cached. `match_labels` is that of
    `tasks/sets.py`.

    Raises:
        UserError: as `load_eval_source` and `open_images`; NoSplit if there is no `eval_split`.
    """

    def load_eval() -> tuple[Source, str]:
        with main_process_first():
            return load_eval_source(settings)

    labels = None
    try:
        if k is not None and len(source) < k:
            raise UserError(f"{len(source)} training images are fewer than k = {k}")
        if k is not None:
            found = match_labels(source, load_eval)
            labels = found.train
    except UserError as reason:
        if settings.eval_split and isinstance(reason, NoSplit):
            raise
        say(f"no k-NN accuracy: {reason}")
    images = open_images(source, opening, labels)
    if labels is None:
        return PretrainingSets(source, images)
    # The same value is as bright in both sets.
    evaluation = open_images(found.eval_source, opening.with_white(images.white), found.evaluation)
    return PretrainingSets(source, images, evaluation, found.eval_split)
