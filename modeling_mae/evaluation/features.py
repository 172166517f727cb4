"""What frozen features tell about the labels: k-NN and logistic regression, one table for both scripts."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from ..checkpoint import Checkpoint, open_checkpoint
from ..configuration_mae import MAEConfig
from ..data.serve.images import Images
from ..modeling_mae import MAEModel
from ..tasks import CLASSES, Task
from .metrics import compute_over


EVAL_BATCH = 256  # images; without gradients it takes less memory than a training batch of usual size
K = 20  # of the k-NN accuracy that tables and cards show
KS = (10, K, 100, 200)
TEMPERATURE = 0.07  # of the k-NN votes (Wu et al., arXiv 1805.01978)
LOGISTIC_LIMIT = 2 * 10**10  # images x width x classes: beyond it the fit takes hours
RAW_PIXELS_LIMIT = 8 << 30  # bytes


def frozen_encoder(checkpoint: Checkpoint, config: MAEConfig, say: Callable[[str], None]) -> MAEModel:
    """The encoder of `checkpoint` for `frozen_table`. Where `config` asks for an attention pooling that the checkpoint
    does not have, nothing has trained it yet: the features are then the mean.

    Raises:
        UserError: as `Checkpoint.encoder`.
    """
    encoder = checkpoint.encoder(config)
    if encoder.pooler is not None or config.pooling != "attention":
        return encoder
    say("note       the checkpoint has no trained attention pooling: frozen features are the mean of the patches")
    config = copy.deepcopy(config)
    config.pooling = "mean"
    return checkpoint.encoder(config)


def frozen_table(
    accelerator: Accelerator,
    encoder: MAEModel,
    train: Images,
    evaluation: Images,
    transform: Callable[[dict], torch.Tensor],
    *,
    name: str,
    seed: int,
    ks: tuple[int, ...] = KS,
    logistic: bool = False,
    task: Task = CLASSES,
    batch_size: int,
    num_workers: int,
) -> list[dict]:
    """What raw pixels, the same encoder untrained (from `seed`) and `encoder` (called `name`) tell about the labels.

    A row each: `name`, `knn` {k: accuracy} for those of `ks` that there are images for, and with `logistic`
    `logistic_regression`; accuracies in 0..1. Of other problems than one class an image, their metric takes the place
    of the accuracy, and in a regression `ridge_regression` that of `logistic_regression`. They are on the main process
    only.
    """
    problem = task.problem
    torch.manual_seed(seed)
    encoders = {"raw pixels": nn.Flatten(), "untrained encoder": MAEModel(encoder.config), name: encoder}
    size = len(train) * encoder.config.num_patches * encoder.config.patch_dim * 4
    if size >= RAW_PIXELS_LIMIT:
        accelerator.print(f"note       no baseline of raw pixels: they would take {size >> 30} GiB")
        del encoders["raw pixels"]
    rows = []
    for title, model in encoders.items():
        if isinstance(model, MAEModel):
            model = accelerator.prepare_model(model, evaluation_mode=True).eval()
        accuracies = frozen_accuracies(
            accelerator,
            features_of(model),
            train,
            evaluation,
            transform,
            ks=ks,
            batch_size=batch_size,
            num_workers=num_workers,
            logistic=logistic,
            task=task,
        )
        rows.append({"name": title, **accuracies})
        unit = " %" if problem.is_share else ""
        figures = "  ".join(f"k={k} {problem.shown(value)}{unit}" for k, value in accuracies.get("knn", {}).items())
        accelerator.print(f"k-NN       {title}: {figures}", flush=True)
    accelerator.wait_for_everyone()
    return rows


def knn_of_saved(
    accelerator: Accelerator,
    checkpoint: Path,
    train: Images,
    evaluation: Images | None,
    transform: Callable[[dict], torch.Tensor],
    **options,
) -> dict[str, float]:
    """The k-NN accuracy in 0..1 of each row of `frozen_table`, for the encoder in `checkpoint`. Empty where there is
    nothing to evaluate on, and on all but the main process. `options` are those of `frozen_table`."""
    if evaluation is None:
        return {}
    options |= {"name": "trained encoder", "ks": (K,)}
    encoder = open_checkpoint(checkpoint).encoder()
    rows = frozen_table(accelerator, encoder, train, evaluation, transform, **options)
    return {row["name"]: row["knn"][K] for row in rows} if accelerator.is_main_process else {}


def features_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """``(batch, channels, height, width) -> (batch, width)``: what the model outputs, of an encoder what it pools."""

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = model(pixel_values)
        return outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output

    return encode


def frozen_features(
    accelerator: Accelerator,
    encode: Callable[[torch.Tensor], torch.Tensor],
    images: Images,
    transform: Callable[[dict], torch.Tensor],
    batch_size: int,
    num_workers: int,
) -> list[np.ndarray]:
    """Features ``(images, width)`` and, where the set has them, labels ``(images, ...)``, on every process."""

    def compute(batch: dict) -> dict[str, torch.Tensor]:
        # The labels come from the batch: an image that stands in for an unreadable one brings its own.
        labels = {key: batch[key] for key in ("labels",) if key in batch}
        return {"features": encode(transform(batch)).float(), **labels}

    arrays = compute_over(accelerator, images, batch_size, num_workers, compute)
    return [arrays[key] for key in ("features", "labels") if key in arrays]


def frozen_accuracies(
    accelerator: Accelerator,
    encode: Callable[[torch.Tensor], torch.Tensor],
    train: Images,
    evaluation: Images,
    transform: Callable[[dict], torch.Tensor],
    *,
    ks: tuple[int, ...],
    batch_size: int,
    num_workers: int,
    logistic: bool = False,
    task: Task = CLASSES,
) -> dict:
    """`knn` {k: accuracy} and with `logistic` `logistic_regression` of the features that `encode` gives for
    ``(batch, channels, height, width)``, as in `frozen_table`; on the main process, elsewhere nothing."""

    features_and_labels = []  # of the training images, then of those to evaluate on
    for images in (train, evaluation):
        features_and_labels += frozen_features(accelerator, encode, images, transform, batch_size, num_workers)
    if not accelerator.is_main_process:
        return {}
    return array_accuracies(accelerator, features_and_labels, ks=ks, logistic=logistic, task=task)


def array_accuracies(
    accelerator: Accelerator,
    features_and_labels: list[np.ndarray],
    *,
    ks: tuple[int, ...],
    logistic: bool,
    task: Task = CLASSES,
) -> dict:
    """As `frozen_accuracies`, of features ``(images, width)`` and labels: of the training images, then of those to
    evaluate on."""
    train_features, train_labels = features_and_labels[:2]
    images = len(train_features)
    ks = tuple(k for k in ks if k <= images)
    tensors = list(map(torch.from_numpy, features_and_labels))
    results: dict = {"knn": knn_accuracies(*tensors, ks, device=accelerator.device, task=task) if ks else {}}
    if logistic:
        classes = int(train_labels.max()) + 1 if train_labels.ndim == 1 else train_labels.shape[1]
        if train_features.size * classes > LOGISTIC_LIMIT:
            accelerator.print(f"note       no logistic regression: {images:,} images would take hours to fit")
        else:
            predictions = task.linear(*features_and_labels[:3])
            results[task.linear_name] = task.score(predictions, features_and_labels[3])
    return results


def knn_accuracies(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    ks: tuple[int, ...] = KS,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
    task: Task = CLASSES,
) -> dict[int, float]:
    """Accuracy in 0..1, or the metric of the `task`, of weighted k-nearest neighbours for each of `ks` (Wu et al.,
    arXiv 1805.01978, Section 3.4).

    Each of the k training images with the largest cosine similarity s votes with exp(s / temperature). Features are
    ``(images, width)``, labels ``(images, ...)``.

    Raises:
        ValueError: there are fewer training images than the largest k.
    """
    if max(ks) > len(train_features):
        raise ValueError(f"k={max(ks)} neighbours of {len(train_features)} training images: give a smaller k")
    bank, bank_labels = F.normalize(train_features.to(device), dim=1), train_labels.to(device)
    predictions: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    for queries in F.normalize(test_features, dim=1).split(1024):
        similarity, nearest = (queries.to(device) @ bank.T).topk(max(ks), dim=1)  # (chunk, largest k)
        weights = ((similarity - 1) / temperature).exp()  # the constant factor keeps exp in range
        for k in ks:
            predictions[k].append(task.vote(weights[:, :k], bank_labels[nearest[:, :k]]).cpu())
    labels = test_labels.numpy()
    return {k: task.score(torch.cat(parts).numpy(), labels) for k, parts in predictions.items()}


def logistic_accuracy(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray
) -> float:
    """Accuracy in 0..1 of the logistic regression that `Classes.linear` fits to features ``(images, width)``."""
    return CLASSES.score(CLASSES.linear(train_features, train_labels, test_features), test_labels)
