"""Evaluates frozen features by k-NN and linear models. Both scripts use the same table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint, open_checkpoint
from ..configuration_mae import MAEConfig
from ..data.serve.images import Images
from ..data.serve.masked import MaskedImages
from ..modeling_mae import EvalNet, MAEModel
from ..readout import CHUNK, nearest, pooled_output
from ..tasks import CLASSES, Task
from ..tasks.evalnet import EvalNetTask
from ..tasks.masks import MASKS
from .dense import TEMPERATURE, dense_metrics, tokens_of
from .reader import FrozenSet, Reader


K = 20  # neighbours of the k-NN accuracy that tables and cards show
KS = (10, K, 100, 200)
RAW = "raw pixels"  # as features
LOGISTIC_LIMIT = 2 * 10**10  # images x width x classes: beyond it the fit takes hours
RAW_PIXELS_LIMIT = 8 << 30  # bytes


@dataclass(frozen=True)
class JudgeSettings:
    """How frozen features are evaluated."""

    seed: int  # seed of the untrained encoder and of the probes
    task: Task = CLASSES
    ks: tuple[int, ...] = KS  # neighbours of the k-NN; values above the number of training images are left out
    linear: bool = True  # also fit a linear model: logistic regression, or ridge regression for numbers

    @property
    def image_task(self) -> EvalNetTask:
        """The task, whose labels are of whole images."""
        assert isinstance(self.task, EvalNetTask), self.task
        return self.task


def frozen_encoder(
    checkpoint: Checkpoint, config: MAEConfig | None = None, say: Callable[[str], None] = lambda text: None
) -> MAEModel:
    """The encoder of `checkpoint`, also if that is a classifier. `config` replaces the checkpoint's.

    If the configuration has an untrained attention pooling, the mean of the patches replaces it, and `say` prints
    that.

    Raises:
        UserError: as `Checkpoint.encoder`.
    """
    if checkpoint.kind is EvalNet:
        encoder = checkpoint.classifier(config, new_head=config is not None).mae
    else:
        encoder = checkpoint.encoder(config)
    if encoder.pooler is None and encoder.config.pooling == "attention":
        say("note       the checkpoint has no trained attention pooling: frozen features are the mean of the patches")
        encoder.config.pooling = "mean"
    return encoder.eval()


def frozen_table(
    reader: Reader,
    encoder: MAEModel,
    train: Images,
    evaluation: Images,
    name: str,
    settings: JudgeSettings,
    known: list[FrozenSet] | None = None,
) -> list[dict]:
    """Compares raw pixels, the same encoder untrained (initialised by the seed), and `encoder`, called `name`.
    `known` are the features of `encoder` for the images of `train` and `evaluation`, if they were computed before.

    Returns a row for each: `name`, `knn` {k: accuracy}, and with `linear` also `logistic_regression`. Accuracies are
    in 0..1. Problems other than one class per image have their own metric instead of the accuracy, and a regression
    has `ridge_regression` instead of `logistic_regression`. With masks, patches are the neighbours, as in
    `dense_metrics`. Only the main process gets the rows.
    """
    accelerator, problem = reader.accelerator, settings.task.problem
    torch.manual_seed(settings.seed)
    untrained = MAEModel(encoder.config)
    encoders: dict[str, nn.Module] = {RAW: nn.Flatten(), "untrained encoder": untrained, name: encoder}
    size = len(train) * encoder.config.num_patches * encoder.config.patch_dim * 4
    if size >= RAW_PIXELS_LIMIT:
        accelerator.print(f"note       no baseline of raw pixels: they would take {size >> 30} GiB")
        del encoders[RAW]
    rows = []
    for title, model in encoders.items():
        features = known if model is encoder else None
        if isinstance(model, MAEModel) and features is None:
            model = accelerator.prepare_model(model, evaluation_mode=True).eval()
        if features is not None:
            metrics = judge(reader, features[0], features[1], settings) if accelerator.is_main_process else {}
        elif isinstance(train, MaskedImages) and isinstance(evaluation, MaskedImages):
            encode = untrained.patchify if title == RAW else tokens_of(model)
            metrics = dense_metrics(reader, encode, train, evaluation, encoder.config.grid, settings.ks)
        else:
            metrics = frozen_metrics(reader, features_of(model), train, evaluation, settings)
        rows.append({"name": title, **metrics})
        unit = " %" if problem.is_share else ""
        shown = "  ".join(f"k={k} {problem.shown(value)}{unit}" for k, value in metrics.get("knn", {}).items())
        accelerator.print(f"k-NN       {title}: {shown}", flush=True)
    accelerator.wait_for_everyone()
    return rows


def knn_of_saved(
    reader: Reader, checkpoint: Path, train: Images, evaluation: Images | None, seed: int
) -> dict[str, float]:
    """The k-NN accuracy in 0..1 of each row of `frozen_table`, for the encoder in `checkpoint`; with masks, the mean
    IoU. Empty without evaluation images, and on all but the main process."""
    if evaluation is None:
        return {}
    task = MASKS if isinstance(evaluation, MaskedImages) else CLASSES
    settings = JudgeSettings(seed, task, ks=(K,), linear=False)
    encoder = frozen_encoder(open_checkpoint(checkpoint))
    rows = frozen_table(reader, encoder, train, evaluation, "trained encoder", settings)
    return {row["name"]: row["knn"][K] for row in rows if K in row.get("knn", {})}


def features_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """``(batch, channels, height, width) -> (batch, width)``: the model's output, or an encoder's pooled features."""

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = model(pixel_values)
        return outputs if isinstance(outputs, torch.Tensor) else pooled_output(outputs)

    return encode


def frozen_metrics(
    reader: Reader,
    encode: Callable[[torch.Tensor], torch.Tensor],
    train: Images,
    evaluation: Images,
    settings: JudgeSettings,
) -> dict:
    """The metrics of a row of `frozen_table`, for the features that `encode` computes from ``(batch, channels, height,
    width)``. Empty on all but the main process."""
    sets = [reader.features(encode, images) for images in (train, evaluation)]
    return judge(reader, sets[0], sets[1], settings) if reader.accelerator.is_main_process else {}


def judge(reader: Reader, train: FrozenSet, test: FrozenSet, settings: JudgeSettings) -> dict:
    """Evaluates labelled features ``(images, width)``: `knn` {k: metric}, and the linear model's metric."""
    labels, task = train.known_labels, settings.image_task
    ks = tuple(k for k in settings.ks if k <= len(train))
    metrics: dict[str, Any] = {"knn": knn_metrics(train, test, ks, task, reader.accelerator.device)}
    classes = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
    if settings.linear and train.features.size * classes > LOGISTIC_LIMIT:
        reader.accelerator.print(f"note       no logistic regression: {len(train):,} images would take hours to fit")
    elif settings.linear:
        metrics[task.linear_name] = linear_metric(train, test, task)
    return metrics


def knn_metrics(
    train: FrozenSet,
    test: FrozenSet,
    ks: tuple[int, ...] = KS,
    task: EvalNetTask = CLASSES,
    device: torch.device | str = "cpu",
    temperature: float = TEMPERATURE,
) -> dict[int, float]:
    """For each of `ks`, the metric of weighted k-nearest neighbours (Wu et al., arXiv 1805.01978, Section 3.4): for
    one class per image, the accuracy in 0..1.

    The k training images with the largest cosine similarity s vote for their class with weight exp(s / temperature).
    For several labels or numbers, their labels are averaged with these weights.

    Raises:
        ValueError: there are fewer training images than the largest k.
    """
    if not ks:
        return {}
    if max(ks) > len(train):
        raise ValueError(f"k={max(ks)} neighbours, but only {len(train)} training images: give a smaller k")
    bank, labels = torch.from_numpy(train.features).to(device), torch.from_numpy(train.known_labels).to(device)
    cosines, positions = nearest(torch.from_numpy(test.features), bank, max(ks))  # (test images, largest k)
    weights = ((cosines - 1) / temperature).exp()  # the constant factor keeps exp in range
    predictions: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    for weight, near in zip(weights.split(CHUNK), positions.split(CHUNK), strict=True):
        for k in ks:
            predictions[k].append(task.vote(weight[:, :k], labels[near[:, :k]]).cpu())
    return {k: task.score(torch.cat(parts).numpy(), test.known_labels) for k, parts in predictions.items()}


def linear_metric(train: FrozenSet, test: FrozenSet, task: EvalNetTask = CLASSES) -> float:
    """The metric of the `task`'s linear model on `test`: for one class per image, the accuracy in 0..1."""
    return task.score(task.linear(train.features, train.known_labels, test.features), test.known_labels)
