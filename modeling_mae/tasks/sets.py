"""A training and an evaluation set whose labels have the same meaning."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

from ..data.find.fingerprint import fingerprint
from ..data.find.groups import groups_of
from ..data.find.joined import load_eval_source, load_training_source, sample
from ..data.find.masks import NoMasks
from ..data.find.sources import Source, SourceSettings
from ..data.serve.images import Images, Opening
from ..data.serve.masked import MaskedImages
from ..errors import UserError
from ..report.facts import LabelledFacts
from ..words import counted
from . import CLASSES, Task, task_of_labels
from .evalnet import EvalNetTask
from .masks import MASKS, Masks


# Images with masks that k-NN of patches compares: more take long, and change little.
BANK_IMAGES, TEST_IMAGES = 256, 500


@dataclass
class LabelledSets:
    """Whole sets in their evaluation crop. `train` is None if nothing is trained; then `train_name` is `eval_name`.
    The names are for messages. In a regression `class_names` are the targets' names."""

    train: Images | None
    evaluation: Images
    class_names: list[str]
    train_name: str
    train_fingerprint: str | None
    eval_name: str
    eval_split: str
    task: Task = CLASSES
    eval_dataset_id: str | None = None  # its id on the Hub
    groups: np.ndarray | None = None  # (images,) names of what training images belong to, with --group_by
    eval_groups: np.ndarray | None = None

    @property
    def training(self) -> Images:
        """The training images, in a run that has some."""
        assert self.train is not None
        return self.train

    def all(self) -> list[Images]:
        return [images for images in (self.train, self.evaluation) if images is not None]

    @property
    def frozen_task(self) -> EvalNetTask:
        """The task, if frozen features can be evaluated with it.

        Raises:
            UserError: they cannot.
        """
        if not isinstance(self.task, EvalNetTask):
            raise UserError(f"frozen features cannot be evaluated with {self.task.problem.labels}: leave --knn out")
        return self.task

    @property
    def remarks(self) -> str:
        """How values are scaled and which files were left out, for both sets."""
        each = [remark for images in self.all() for remark in images.remarks.split("; ") if remark]
        return "".join(f"; {remark}" for remark in dict.fromkeys(each))

    def facts(self, skipped: int = 0, incomplete: int = 0) -> LabelledFacts:
        """What a report says about the evaluation set. The counts of faults may cover all images."""
        dataset_id, count = self.eval_dataset_id or self.eval_name, len(self.evaluation)
        faults = (skipped, incomplete)
        return LabelledFacts(
            self.eval_name, dataset_id, count, self.eval_split, *faults, self.class_names, self.task.problem
        )

    def __str__(self) -> str:
        return (
            f"{self.train_name}: {counted(len(self.train or ()), 'training image')}, {len(self.evaluation):,} of "
            f"{self.eval_name} ({self.eval_split}) to evaluate on, {self.task.problem.count(len(self.class_names))}"
        )


@dataclass(frozen=True)
class MatchingLabels:
    """The labels of two sources, as `Task.read` returns them, under the same names. `train` is None if nothing is
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
    """The labels of `source` and of the evaluation source that `load_eval` returns with its split.

    The classes are `names` if given, else those of `source`, else those of the evaluation source. With `task` None,
    the first source that is read decides.

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
    if eval_source is source and train is not None and names is not None:  # folds
        return MatchingLabels(task, train, train, eval_source, split, names)
    evaluation, names = task.read(eval_source, names)
    return MatchingLabels(task, train, evaluation, eval_source, split, names)


def load_labelled_sets(
    settings: SourceSettings,
    opening: Opening,
    task: Task | None,
    *,
    class_names: list[str] | None,
    main_process_first: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
    group_by: str | None = None,
    in_folds: bool = False,
) -> LabelledSets:
    """Load both sets. With `train_split` None there are no training images. With `task` None, the labels decide.
    `in_folds`: both sets are the same images, and each fold evaluates on a part of them.

    One process reads first, and the others read from the cache of `datasets`. `class_names` are those of a classifier
    that is only tested. `say` prints notes.

    Raises:
        UserError: as `load_training_source`, `load_eval_source`, `Task.read` and `open_images`.
    """
    with main_process_first():
        source = load_training_source(settings) if settings.train_split is not None else None
        if in_folds and source is not None:
            found = match_labels(source, lambda: (source, "folds"), task, class_names)
        else:
            found = match_labels(source, lambda: load_eval_source(settings), task, class_names)
    task, train = found.task, None
    if source is not None and found.train is not None:
        train = task.open_images(source, found.train, found.names, opening)
        opening = opening.with_white(train.white)  # both sets have the same white
    if in_folds and train is not None:
        evaluation = train
    else:
        evaluation = task.open_images(found.eval_source, found.evaluation, found.names, opening)
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
        groups=groups_of(source, group_by) if group_by and source is not None else None,
        eval_groups=groups_of(found.eval_source, group_by) if group_by else None,
    )


def _note_absent(found: MatchingLabels, say: Callable[[str], None]) -> None:
    """Prints a note about classes without an image in one of the sets."""
    for kind, labels in (("training", found.train), ("evaluation", found.evaluation)):
        absent = found.task.absent(labels, found.names) if labels is not None else []
        if absent:
            rule = found.task.absent_note if kind == "evaluation" else ""
            say(
                f"note       {len(absent)} of {len(found.names)} classes have no {kind} image: "
                f"{', '.join(absent[:5])}{rule}"
            )


@dataclass(frozen=True)
class MaskedSets:
    """Images with masks, a few of each set, for k-NN of patches: those of `evaluation` ask those of `bank`."""

    bank: MaskedImages
    evaluation: MaskedImages
    eval_split: str

    def __str__(self) -> str:
        asking = counted(len(self.evaluation), f"{self.eval_split} image")
        return f"k-NN of patches: {asking} among {counted(len(self.bank), 'training image')}{self.bank.remarks}"


def load_masked_sets(settings: SourceSettings, opening: Opening, task: Masks = MASKS) -> MaskedSets:
    """At most `BANK_IMAGES` training images with masks, and `TEST_IMAGES` to evaluate on. Folders without masks are
    left out.

    Raises:
        NoMasks: there are none.
        UserError: as `load_training_source`, `load_eval_source`, `Masks.read_both` and `open_images`.
    """
    settings = replace(settings, problem_type=task.name, mix=None)
    if isinstance(settings.train_dir, list):
        folders = [place for place in settings.train_dir if _has_masks(replace(settings, train_dir=place))]
        settings = replace(settings, train_dir=folders[0] if len(folders) == 1 else folders or settings.train_dir)
    source = replace(sample(load_training_source(settings), BANK_IMAGES), elsewhere=0)  # told of all images
    eval_source, split = load_eval_source(settings)
    eval_source = sample(eval_source, TEST_IMAGES)
    labels, eval_labels, names = task.read_both(source, eval_source)
    bank = task.open_images(source, labels, names, opening)
    return MaskedSets(bank, task.open_images(eval_source, eval_labels, names, opening), split)


def _has_masks(settings: SourceSettings) -> bool:
    try:
        load_training_source(settings)
    except NoMasks:
        return False
    return True
