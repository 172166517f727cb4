"""A set to train on and a set to evaluate on, with labels that mean the same classes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from ..problems import PROBLEMS, REGRESSION, SINGLE_LABEL, Problem
from .find.fingerprint import fingerprint
from .find.joined import load_eval_source, load_training_source
from .find.sources import Source, SourceSettings
from .labels import missing_classes, problem_of, read_labels
from .serve.images import Images, Opening, open_images


@dataclass
class LabelledSets:
    """Whole sets in their evaluation crop. `train` is None where nothing is trained; then `train_name` is
    `eval_name`. The names are for people. `class_names` are the targets' in a regression."""

    train: Images | None
    evaluation: Images
    class_names: list[str]
    train_name: str
    train_fingerprint: str | None
    eval_name: str
    eval_split: str
    problem: Problem = PROBLEMS[SINGLE_LABEL]
    eval_dataset_id: str | None = None  # on the Hub

    def all(self) -> list[Images]:
        return [images for images in (self.train, self.evaluation) if images is not None]

    @property
    def remarks(self) -> str:
        """How values are scaled and what is not among the images, of both sets, once each."""
        return "".join(dict.fromkeys(images.remarks for images in self.all()))

    @property
    def about_evaluation(self) -> dict:
        """What a report says of the set that was evaluated on."""
        return {
            "class_names": self.class_names,
            "problem": self.problem,
            "dataset_id": self.eval_dataset_id or self.eval_name,
            "dataset_name": self.eval_name,
            "split": self.eval_split,
            "eval_images": len(self.evaluation),
        }

    def __str__(self) -> str:
        count, labels = len(self.class_names), self.problem.labels
        if self.problem.problem_type == REGRESSION and count == 1:
            labels = labels.removesuffix("s")
        return (
            f"{self.train_name}: {len(self.train or ()):,} training images, {len(self.evaluation):,} of "
            f"{self.eval_name} ({self.eval_split}) to evaluate on, {count} {labels}"
        )


def matching_labels(
    source: Source | None,
    load_eval: Callable[[], tuple[Source, str]],
    class_names: list[str] | None = None,
    problem_type: str = SINGLE_LABEL,
) -> tuple[np.ndarray | None, Source, str, np.ndarray, list[str]]:
    """(labels of `source`, evaluation source, its split, its labels, class names). Labels are as `read_labels` gives
    them for the `problem_type`.

    The classes are `class_names` where these are given, else those of `source`, else those of the evaluation source.

    Raises:
        UserError: as `load_eval_source` and `read_labels`.
    """
    labels = None
    if source is not None:
        labels, class_names = read_labels(source, class_names, problem_type)
    eval_source, split = load_eval()
    eval_labels, class_names = read_labels(eval_source, class_names, problem_type)
    return labels, eval_source, split, eval_labels, class_names


def load_labelled_sets(
    settings: SourceSettings,
    opening: Opening,
    *,
    class_names: list[str] | None,
    problem_type: str | None = None,
    main_process_first: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
) -> LabelledSets:
    """Load both sets. With the `train_split` None there are no training images.

    One process reads first, so that the others find what `datasets` has cached. `say` prints what is worth a note.
    `problem_type` None: the label column of the training images tells, or of the evaluation images if nothing is
    trained.

    Raises:
        UserError: as `load_training_source`, `load_eval_source`, `read_labels` and `open_images`.
    """
    with main_process_first():
        if settings.train_split is not None:
            source, loaded_eval = load_training_source(settings), None
            problem_type = problem_type or problem_of(source)
        else:
            source, loaded_eval = None, load_eval_source(settings)
            problem_type = problem_type or problem_of(loaded_eval[0])
        labels, eval_source, split, eval_labels, class_names = matching_labels(
            source, lambda: loaded_eval or load_eval_source(settings), class_names, problem_type
        )
    train = open_images(source, opening, labels) if source is not None else None
    if train is not None:
        opening = opening.with_white(train.white)  # the same value is as bright in both sets
    evaluation = open_images(eval_source, opening, eval_labels)
    for kind, numbers in (("training", labels), ("evaluation", eval_labels)):
        absent = [] if numbers is None or problem_type == REGRESSION else missing_classes(numbers, class_names)
        if absent:
            single = kind == "evaluation" and problem_type == SINGLE_LABEL
            rule = "; means over the classes leave them out" if single else ""
            say(
                f"note       {len(absent)} of {len(class_names)} classes have no {kind} image: "
                f"{', '.join(absent[:5])}{rule}"
            )
    return LabelledSets(
        train=train,
        evaluation=evaluation,
        class_names=class_names,
        train_name=(source or eval_source).name,
        train_fingerprint=fingerprint(source) if source is not None else None,
        eval_name=eval_source.name,
        eval_split="validation" if settings.validation_dir else split,
        problem=PROBLEMS[problem_type],
        eval_dataset_id=eval_source.dataset_id,
    )
