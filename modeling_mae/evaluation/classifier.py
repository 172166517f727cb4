"""The training of a classifier: its images, its amount of work, and its evaluation."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from accelerate.utils import broadcast_object_list

from ..checkpoint import Checkpoint
from ..configuration_mae import MAEConfig
from ..data.serve.images import Images
from ..data.serve.order import split_batch
from ..errors import UserError
from ..report.facts import TrainingLog
from ..report.problem import Problem
from ..tasks import Task, task_of_checkpoint
from ..tasks.protocol import ViewSettings
from ..tasks.sets import LabelledSets
from ..tasks.splits import part_of
from ..training.augment import RandAugment
from ..training.loop import Update, updates
from ..training.optim import LengthSettings, Schedule
from ..training.resizing import Resizing
from ..training.state import Run, save_model
from .metrics import predict_with
from .reader import Reader


@dataclass(frozen=True)
class TrainingPlan:
    """What must be known about each training before the first one begins."""

    name: str
    n_partial: float | None  # blocks tuned; None: from scratch, all of them
    view: ViewSettings
    length: LengthSettings
    per_device_train_batch_size: int


@dataclass(frozen=True)
class TrainingWork:
    """What a training does: its images, its updates, and about how many times the forward pass of an image."""

    images: int
    updates: int
    passes: float


def is_classifier(config: MAEConfig) -> bool:
    """Whether the checkpoint of this configuration was trained for a task."""
    return task_of_checkpoint(config) is not None


def is_tested(config: MAEConfig, checkpoint: str | None, reads_features: bool) -> bool:
    """Whether `checkpoint` has a classifier to test, in a run that trains nothing.

    Raises:
        UserError: it has none, and the run does not evaluate frozen features either.
    """
    if not is_classifier(config) and not reads_features:
        raise UserError(
            f"model_name_or_path {checkpoint!r} has no classifier to test: train one with --do_train true, or give "
            "--knn true"
        )
    return is_classifier(config)


def describe_resizing(config: MAEConfig, checkpoint: Checkpoint | None) -> str:
    """A note if the checkpoint is for images of another size, else an empty text."""
    if checkpoint is None or checkpoint.own_size == config.image_height_width:
        return ""
    return (
        f"note       checkpoint for images of {checkpoint.own_size} pixels: its positions are interpolated to "
        f"{config.image_height_width}\n"
    )


def training_view(
    task: Task, images: Images, settings: ViewSettings, mean: list[float], groups: np.ndarray | None = None
) -> Images:
    """The images of a training with its random crops and augmentation: `label_fraction` of them, chosen by `part_of`
    with the `groups` of the images. Pixels that an augmentation leaves empty get the `mean` of their channel.

    Raises:
        UserError: as `RandAugment`.
    """
    rows = augment = None
    if settings.label_fraction < 1:
        rows = part_of(task, images.known_labels.numpy(), groups, settings.label_fraction, settings.seed)
    if settings.auto_augment != "none":
        augment = RandAugment(settings.auto_augment, images.size, mean, settings.seed)
    return images.view(task.crop_of(settings, mean, images.size), rows, augment)


def training_work(
    plan: TrainingPlan, sets: LabelledSets, mean: list[float], depth: int, processes: int
) -> TrainingWork:
    """The work of a training. The forward passes are those through an encoder of `depth` blocks. A backward pass
    through a block counts as two.

    Raises:
        UserError: as the training would raise, but before the first training does any work.
    """
    try:
        assert sets.train is not None
        seen = training_view(sets.task, sets.train, plan.view, mean, sets.groups)
        order = seen.order(plan.length.total_batch_size, plan.view.seed)
        split_batch(order.total_batch_size, plan.per_device_train_batch_size, processes)
        updates = Schedule.from_epochs(len(seen), plan.length).updates
    except UserError as error:
        raise UserError(f"{plan.name}: {error}") from None
    tuned = depth if plan.n_partial is None else plan.n_partial
    passes = updates * plan.length.total_batch_size * (1 + 2 * tuned / depth)
    return TrainingWork(len(seen), updates, passes)


def keep_if_best(run: Run, problem: Problem, results: dict) -> None:
    """Log the `results` of the epoch that has just ended. If they are the best so far, the model is saved in the run's
    folder."""
    update = run.progress.update
    epoch = run.schedule.epoch(update)
    values = {f"eval_{key}": value for key, value in results.items() if isinstance(value, float)}
    run.history.add({"step": update, "epoch": epoch, **values})
    run.accelerator.log(values, step=update)
    better = run.progress.best is None or problem.score(results) > run.progress.best
    best = "  (best so far)" if better else ""
    run.accelerator.print(f"epoch {epoch:g}  {problem.progress(results)}{best}", flush=True)
    if better:
        run.progress.best = problem.score(results)
        save_model(run.accelerator, run.model, run.place.folder)


def last_results(log: TrainingLog, problem: Problem) -> dict[str, float]:
    """The metric of the last epoch that was evaluated, and its number, for a row of results."""
    last = [entry for entry in log.log if f"eval_{problem.metric}" in entry][-1]
    return {f"last_{problem.metric}": last[f"eval_{problem.metric}"], "epochs": last["epoch"]}


@dataclass(frozen=True)
class PatienceSettings:
    """How often a classifier is evaluated, and when that ends its training."""

    eval_epochs: int  # between two evaluations
    patience: int | None = None  # evaluations without a better one, after which the training ends; None: never


def tested_updates(
    run: Run, reader: Reader, sets: LabelledSets, settings: PatienceSettings, later: float
) -> Iterator[Update]:
    """The `updates` of a run with images of one size. After its epochs the model is evaluated on `sets`, and the best
    one is saved in the run's folder."""

    def after_epoch(epoch: int, update: int) -> None:
        if epoch % settings.eval_epochs == 0 or update == run.schedule.updates:
            results, _ = evaluate_classifier(reader, run.model, sets)
            keep_if_best(run, sets.task.problem, results)

    all_updates = updates(run, Resizing(sets.evaluation.size, (1, 1)), after_epoch, later)
    return with_patience(all_updates, run, sets.task.problem, settings.patience)


def with_patience(updates: Iterator[Update], run: Run, problem: Problem, patience: int | None) -> Iterator[Update]:
    """The `updates` of the run, until `patience` evaluations in a row were no better than one before. None: all.

    Only the history decides, at the beginning of an epoch, so a run that goes on from a checkpoint ends where it would
    have ended.
    """
    with closing(updates):  # type: ignore[type-var]  # it is a generator
        for update in updates:
            if patience and update.number % run.schedule.updates_per_epoch == 0 and is_over(run, problem, patience):
                text = f"stopped    {patience} evaluations were no better than one before"
                run.accelerator.print(f"{text}: {update.number} of {run.schedule.updates} updates", flush=True)
                return
            yield update


def is_over(run: Run, problem: Problem, patience: int) -> bool:
    """Whether the last `patience` evaluations in the history are no better than one before. The same everywhere."""
    key, log = f"eval_{problem.metric}", run.history.read() if run.accelerator.is_main_process else []
    scores = [problem.score({problem.metric: entry[key]}) for entry in log if key in entry]
    over = len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])
    return bool(broadcast_object_list([over])[0])


def evaluate_classifier(
    reader: Reader, model, sets: LabelledSets, final: bool = False
) -> tuple[dict, dict[str, np.ndarray]]:
    """(results, columns) of the prepared `model` on the evaluation images of `sets`, computed by their task. `final`
    adds what takes too long for every epoch."""
    task, images, names = sets.task, sets.evaluation, len(sets.class_names)
    columns = task.tested_columns(len(images), names, reader.accelerator.print) if final else task.columns
    found = predict_with(reader, task, columns, model, images)
    return task.results(found, names), found
