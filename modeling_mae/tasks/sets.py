"""A set to train on and a set to evaluate on, with labels that mean the same."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from ..data.fingerprint import fingerprint
from ..data.images import Images
from ..data.joined import load_eval_sources, load_sources
from ..data.sources import Source
from ..errors import UserError
from . import CLASSES, TASKS, Task, task_of_labels
from .evalnet import EvalNetTask


@dataclass(frozen=True)
class SetSettings:
    """Which images are trained and evaluated on. `train_split` None: nothing is trained. `problem_type` None: the
    label column tells."""

    train_split: str | None
    eval_split: str | None = None
    validation_dir: str | None = None  # evaluates on this folder
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    problem_type: str | None = None


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
    task: Task = CLASSES
    eval_dataset_id: str | None = None  # on the Hub

    def all(self) -> list[Images]:
        return [images for images in (self.train, self.evaluation) if images is not None]

    @property
    def frozen_task(self) -> EvalNetTask:
        """The task, where frozen features can be compared by it.

        Raises:
            UserError: they cannot.
        """
        if not isinstance(self.task, EvalNetTask):
            raise UserError(f"frozen features cannot be compared by {self.task.problem.labels}: give no --knn")
        return self.task

    @property
    def remarks(self) -> str:
        """How values are scaled and what is not among the images, of both sets, once each."""
        return "".join(dict.fromkeys(images.remarks for images in self.all()))

    @property
    def about_evaluation(self) -> dict:
        """What a report says of the set that was evaluated on."""
        return {
            "class_names": self.class_names,
            "problem": self.task.problem,
            "dataset_id": self.eval_dataset_id or self.eval_name,
            "dataset_name": self.eval_name,
            "split": self.eval_split,
            "eval_images": len(self.evaluation),
        }

    def __str__(self) -> str:
        return (
            f"{self.train_name}: {len(self.train or ()):,} training images, {len(self.evaluation):,} of "
            f"{self.eval_name} ({self.eval_split}) to evaluate on, {self.task.problem.count(len(self.class_names))}"
        )


@dataclass(frozen=True)
class MatchingLabels:
    """The labels of two sources, as `Task.read` gives them, under the same names. `train` is None where nothing is
    trained."""

    task: Task
    train: np.ndarray | None
    evaluation: np.ndarray
    eval_source: Source
    eval_split: str
    names: list[str]


def match_labels(
    source: Source | None,
    load_eval: Callable[[], tuple[Source, str]],
    task: Task | None = CLASSES,
    names: list[str] | None = None,
) -> MatchingLabels:
    """The labels of `source` and of the evaluation source that `load_eval` gives with its split.

    The classes are `names` where these are given, else those of `source`, else those of the evaluation source. `task`
    None: the first source that is read tells.

    Raises:
        UserError: as `load_eval` and `Task.read`.
    """
    train = loaded = None
    if source is None:
        loaded = load_eval()
        task = task or task_of_labels(loaded[0])
    else:
        task = task or task_of_labels(source)
        train, names = task.read(source, names)
    eval_source, split = loaded or load_eval()
    evaluation, names = task.read(eval_source, names)
    return MatchingLabels(task, train, evaluation, eval_source, split, names)


def load_labelled_sets(
    settings: SetSettings,
    source_options: dict,
    open_options: dict,
    *,
    class_names: list[str] | None,
    main_process_first: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
) -> LabelledSets:
    """Load both sets.

    `source_options` go to `load_sources`, `open_options` to `open_images`. One process reads first, so that the others
    find what `datasets` has cached. `class_names` are those of a classifier that is only tested. `say` prints what is
    worth a note.

    Raises:
        UserError: as `load_sources`, `Task.read` and `open_images`.
    """
    eval_options = {**source_options, "max_samples": settings.max_eval_samples}
    if settings.validation_dir:
        eval_options |= {"dataset_name": None, "dataset_config_name": None, "data_dir": settings.validation_dir}
        eval_options |= {"only_for_evaluation": True}
    with main_process_first():
        source = None
        if settings.train_split is not None:
            options = {**source_options, "max_samples": settings.max_train_samples}
            source = load_sources(split=settings.train_split, **options)
        task = TASKS[settings.problem_type] if settings.problem_type else None
        found = match_labels(source, lambda: load_eval_sources(settings.eval_split, **eval_options), task, class_names)
    task, train = found.task, None
    if source is not None and found.train is not None:
        train = task.open_images(source, found.train, open_options)
        open_options = {**open_options, "white": train.white}  # the same value is as bright in both sets
    evaluation = task.open_images(found.eval_source, found.evaluation, open_options)
    _note_absent(found, say)
    return LabelledSets(
        train=train,
        evaluation=evaluation,
        class_names=found.names,
        train_name=(source if source is not None else found.eval_source).name,
        train_fingerprint=fingerprint(source) if source is not None else None,
        eval_name=found.eval_source.name,
        eval_split="validation" if settings.validation_dir else found.eval_split,
        task=task,
        eval_dataset_id=found.eval_source.dataset_id,
    )


def _note_absent(found: MatchingLabels, say: Callable[[str], None]) -> None:
    """A note on the classes that one of the sets has no image of."""
    for kind, labels in (("training", found.train), ("evaluation", found.evaluation)):
        absent = found.task.absent(labels, found.names) if labels is not None else []
        if absent:
            rule = found.task.absent_note if kind == "evaluation" else ""
            say(
                f"note       {len(absent)} of {len(found.names)} classes have no {kind} image: "
                f"{', '.join(absent[:5])}{rule}"
            )
