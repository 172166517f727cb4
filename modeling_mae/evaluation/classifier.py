"""An EvalNet to train or to test, and its results on a labelled set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ..checkpoint import Checkpoint
from ..configuration_mae import MAEConfig
from ..data.crops import training_crop
from ..data.images import Images
from ..data.labelled_sets import LabelledSets
from ..data.labels import balanced_part, random_part
from ..data.order import MicroBatches
from ..errors import UserError
from ..modeling_mae import EvalNet
from ..problems import REGRESSION, SINGLE_LABEL, Problem
from ..training.augment import RandAugment
from ..training.optim import Schedule
from ..training.state import Run, save_model
from .metrics import class_scores, predict_with
from .problem_metrics import EVALUATIONS


SCORES_LIMIT = 1 << 30  # bytes; 50,000 images of 1,000 classes take a fifth of it
SMALL_DEVIATION, LARGE_DEVIATION = 0.05, 20.0  # of a regression's targets; outside, the user is told


def is_classifier(config: MAEConfig) -> bool:
    """Whether the checkpoint of this configuration has a trained head."""
    return "EvalNet" in (config.architectures or [])


def is_tested(config: MAEConfig, checkpoint: str | None, reads_features: bool) -> bool:
    """Whether `checkpoint`, which is not trained further, has a classifier to test.

    Raises:
        UserError: it has none, and no frozen features are read either.
    """
    if not is_classifier(config) and not reads_features:
        raise UserError(
            f"model_name_or_path {checkpoint!r} has no classifier to test: train one with --do_train true, or give "
            "--knn true"
        )
    return is_classifier(config)


def class_names_of(config: MAEConfig) -> list[str]:
    return [config.id2label[i] for i in range(config.num_labels)]


def describe_resizing(config: MAEConfig, checkpoint: Checkpoint | None) -> str:
    """A note where the checkpoint was made for images of another size; else empty."""
    if checkpoint is None or checkpoint.own_size == config.image_height_width:
        return ""
    return (
        f"note       checkpoint for images of {checkpoint.own_size} pixels: its positions are interpolated to "
        f"{config.image_height_width}\n"
    )


def training_view(
    images: Images,
    *,
    mean: list[float],
    seed: int,
    crop_scale: list[float],
    horizontal_flip: bool,
    label_fraction: float,
    auto_augment: str,
) -> Images:
    """The part of the images that a training sees, under its random crops and augmentation. The part has the same
    share of each class. Several labels an image, or numbers, have no such shares: then it is a random part.

    Raises:
        UserError: as `RandAugment`.
    """
    rows = augment = None
    if label_fraction < 1:
        labels = images.labels.numpy()
        balanced = labels.ndim == 1
        rows = (
            balanced_part(labels, label_fraction, seed) if balanced else random_part(len(labels), label_fraction, seed)
        )
    if auto_augment != "none":
        augment = RandAugment(auto_augment, images.size, mean, seed)
    return images.view(training_crop(seed, crop_scale, horizontal_flip, images.size), rows, augment)


def training_work(
    name: str,
    images: Images,
    n_partial: float | None,
    *,
    depth: int,
    mean: list[float],
    processes: int,
    view: dict,
    schedule: dict,
    batch_size: int,
) -> float:
    """About how much work the training `name` is, in forward passes of an image: a backward pass through a block takes
    twice its forward pass. `view` goes to `training_view`, `schedule` to `Schedule.from_epochs`.

    Raises:
        UserError: what the training would raise, which may be the last of several, before the first does any work.
    """
    try:
        seen = training_view(images, mean=mean, **view)
        order = seen.order(schedule["total_batch_size"], view["seed"])
        MicroBatches(order, batch_size, range(1), num_processes=processes)
        updates = Schedule.from_epochs(len(seen), **schedule).updates
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    tuned = depth if n_partial is None else n_partial
    return updates * schedule["total_batch_size"] * (1 + 2 * tuned / depth)


def problem_notes(
    problem: Problem, images: Images, label_fraction: float, mixes: float, label_smoothing: float
) -> list[str]:
    """Notes for the user: what differs when an image has several labels, or numbers."""
    notes = []
    if problem.problem_type == SINGLE_LABEL:
        return notes
    if label_fraction < 1:
        notes.append(f"label_fraction {label_fraction:g}: a random part, as there are no single classes to balance")
    if mixes:
        notes.append("mixup and cutmix mix the labels in the shares of the images; --mixup 0 --cutmix 0 ends that")
    if label_smoothing:
        notes.append(f"label_smoothing {label_smoothing:g} is for one class an image and does nothing here")
    if problem.problem_type == REGRESSION:
        largest = images.labels.std(0, correction=0).max().item()
        if not SMALL_DEVIATION <= largest <= LARGE_DEVIATION:
            notes.append(
                f"the targets deviate by {largest:.3g}, and learning rates are made for about 1: scale the column if "
                "the loss falls slowly or not at all"
            )
    return notes


def make_classifier(
    config: MAEConfig,
    checkpoint: Checkpoint | None,
    class_names: list[str],
    n_partial: float | None,
    say: Callable[[str], None],
    *,
    problem_type: str = SINGLE_LABEL,
    target_means: torch.Tensor | None = None,
) -> EvalNet:
    """An EvalNet for `class_names` that trains `n_partial` blocks: with the encoder of `checkpoint`, or from scratch
    where that is None. `n_partial` None: all blocks.

    The head starts anew if the classes or the problem differ, even if the number of classes is the same. A new head of
    a regression begins at `target_means (targets,)`: rates that suit the rest of the model would take long to get
    there.
    """
    other_classes = class_names_of(config) != class_names or (config.problem_type or SINGLE_LABEL) != problem_type
    config.id2label = dict(enumerate(class_names))
    config.label2id = {label: i for i, label in config.id2label.items()}
    # transformers refuses a single label with one class.
    config.problem_type = None if problem_type == SINGLE_LABEL and len(class_names) == 1 else problem_type
    keeps_head = checkpoint is not None and is_classifier(config) and not other_classes
    other_head = checkpoint is not None and is_classifier(config) and other_classes
    model = EvalNet(config) if checkpoint is None else checkpoint.classifier(config, new_head=other_head)
    if other_head:
        say("note       the checkpoint's classifier has other classes: its head starts anew")
        model.reset_head()
    if problem_type == REGRESSION and target_means is not None and not keeps_head:
        model.head.bias.data.copy_(target_means)
    return model.freeze(config.num_hidden_layers if n_partial is None else n_partial)


def keep_if_best(run: Run, folder: Path, problem: Problem, results: dict) -> None:
    """Log the `results` of the epoch that has just ended. If they are the best so far, the model goes to `folder`."""
    update, epoch = run.progress.update, run.schedule.epoch(run.progress.update)
    values = {f"eval_{key}": value for key, value in results.items() if isinstance(value, float)}
    run.history.add({"step": update, "epoch": epoch, **values})
    run.accelerator.log(values, step=update)
    better = run.progress.best is None or problem.score(results) > run.progress.best
    best = "  (best so far)" if better else ""
    run.accelerator.print(f"epoch {epoch:g}  {problem.progress(results)}{best}", flush=True)
    if better:
        run.progress.best = problem.score(results)
        save_model(run.accelerator, run.model, folder)


def evaluate_classifier(
    accelerator: Accelerator,
    model,
    sets: LabelledSets,
    transform,
    batch_size: int,
    num_workers: int,
    with_auroc: bool = False,
) -> tuple[dict, dict[str, np.ndarray]]:
    """(results, predictions) of the prepared `model` on the evaluation images, as `EVALUATIONS` gives them for the
    problem. `with_auroc`: of one class an image also the AUROC. It needs all scores on every process and takes half a
    minute for 50,000 images of 1,000 classes, so it is not for every epoch."""
    evaluation = EVALUATIONS[sets.problem.problem_type]
    columns = evaluation.columns
    if with_auroc and sets.problem.problem_type == SINGLE_LABEL:
        size = len(sets.evaluation) * len(sets.class_names) * 4
        if size <= SCORES_LIMIT:
            columns = class_scores
        else:
            accelerator.print(f"note       no AUROC: its scores would take {size / 2**30:.1f} GiB on every process")
    predictions = predict_with(columns, accelerator, model, sets.evaluation, transform, batch_size, num_workers)
    return evaluation.results(predictions, len(sets.class_names)), predictions
