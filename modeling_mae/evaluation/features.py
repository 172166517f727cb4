"""What frozen features tell about the labels: k-NN and linear models, one table for both scripts."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ..configuration_mae import MAEConfig
from ..data.images import Images
from ..modeling_mae import MAEModel
from ..problems import MULTI_LABEL, PROBLEMS, SINGLE_LABEL
from ..readout import CHUNK, nearest, pooled_output
from ..training.state import load_model
from .frozen_problems import linear_predictions, metric_of
from .reader import FrozenSet, Reader


EVAL_BATCH = 256  # images; without gradients it takes less memory than a training batch of usual size
K = 20  # of the k-NN accuracy that tables and cards show
KS = (10, K, 100, 200)
TEMPERATURE = 0.07  # of the k-NN votes (Wu et al., arXiv 1805.01978)
LOGISTIC_C = 0.1  # inverse strength of the logistic regression's penalty, on standardised features
LOGISTIC_ITERATIONS = 300  # enough for a comparison in which all features get the same
LOGISTIC_LIMIT = 2 * 10**10  # images x width x classes: beyond it the fit takes hours
RAW_PIXELS_LIMIT = 8 << 30  # bytes


@dataclass(frozen=True)
class JudgeSettings:
    """How frozen features are judged."""

    seed: int  # of the untrained encoder and of the probes
    problem_type: str = SINGLE_LABEL
    ks: tuple[int, ...] = KS  # neighbours of the k-NN; more than there are training images are left out
    linear: bool = True  # also fit a linear model: logistic regression, or of numbers ridge regression


def frozen_encoder(
    checkpoint: str, config: MAEConfig | None = None, say: Callable[[str], None] = lambda text: None
) -> MAEModel:
    """The encoder of `checkpoint` as it was trained; of a classifier the one that its head reads. `config` takes the
    place of the checkpoint's.

    Where the configuration asks for an attention pooling that nothing has trained, the mean of the patches takes its
    place, and `say` tells.

    Raises:
        UserError: as `load_model`.
    """
    options = {} if config is None else {"config": config}
    loaded: Any = load_model(MAEModel, checkpoint, output_loading_info=True, **options)
    encoder, missing = cast(MAEModel, loaded[0]), loaded[1]["missing_keys"]
    if any(name.startswith("layernorm.") for name in missing):
        # A classifier's head has a norm of its own in place of the encoder's.
        encoder.register_module("layernorm", nn.Identity())
    if any(name.startswith("pooler.") for name in missing):
        say("note       the checkpoint has no trained attention pooling: frozen features are the mean of the patches")
        encoder.pooler, encoder.config.pooling = None, "mean"
    return encoder.eval()


def frozen_table(
    reader: Reader, encoder: MAEModel, train: Images, evaluation: Images, name: str, settings: JudgeSettings
) -> list[dict]:
    """What raw pixels, the same encoder untrained (from the seed) and `encoder` (called `name`) tell about the labels.

    A row each: `name`, `knn` {k: accuracy}, and `logistic_regression` where it is asked for; accuracies in 0..1. Of
    other problems than one class an image, their metric takes the place of the accuracy, and in a regression
    `ridge_regression` that of `logistic_regression`. They are on the main process only.
    """
    accelerator, problem = reader.accelerator, PROBLEMS[settings.problem_type]
    torch.manual_seed(settings.seed)
    untrained = MAEModel(cast(MAEConfig, encoder.config))
    encoders: dict[str, nn.Module] = {"raw pixels": nn.Flatten(), "untrained encoder": untrained, name: encoder}
    size = len(train) * encoder.config.num_patches * encoder.config.patch_dim * 4
    if size >= RAW_PIXELS_LIMIT:
        accelerator.print(f"note       no baseline of raw pixels: they would take {size >> 30} GiB")
        del encoders["raw pixels"]
    rows = []
    for title, model in encoders.items():
        if isinstance(model, MAEModel):
            model = accelerator.prepare_model(model, evaluation_mode=True).eval()
        figures = frozen_figures(reader, features_of(model), train, evaluation, settings)
        rows.append({"name": title, **figures})
        unit = " %" if problem.is_share else ""
        shown = "  ".join(f"k={k} {problem.shown(value)}{unit}" for k, value in figures.get("knn", {}).items())
        accelerator.print(f"k-NN       {title}: {shown}", flush=True)
    accelerator.wait_for_everyone()
    return rows


def knn_of_saved(
    reader: Reader, checkpoint: Path, train: Images, evaluation: Images | None, seed: int
) -> dict[str, float]:
    """The k-NN accuracy in 0..1 of each row of `frozen_table`, for the encoder in `checkpoint`. Empty where there is
    nothing to evaluate on, and on all but the main process."""
    if evaluation is None:
        return {}
    settings = JudgeSettings(seed, ks=(K,), linear=False)
    rows = frozen_table(reader, frozen_encoder(str(checkpoint)), train, evaluation, "trained encoder", settings)
    return {row["name"]: row["knn"][K] for row in rows} if reader.accelerator.is_main_process else {}


def features_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """``(batch, channels, height, width) -> (batch, width)``: what the model outputs, of an encoder what it pools."""

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = model(pixel_values)
        return outputs if isinstance(outputs, torch.Tensor) else pooled_output(outputs)

    return encode


def frozen_figures(
    reader: Reader,
    encode: Callable[[torch.Tensor], torch.Tensor],
    train: Images,
    evaluation: Images,
    settings: JudgeSettings,
) -> dict:
    """The figures of a row of `frozen_table`, for the features that `encode` gives for ``(batch, channels, height,
    width)``; on the main process, elsewhere nothing."""
    sets = [reader.features(encode, images) for images in (train, evaluation)]
    return judge(reader, sets[0], sets[1], settings) if reader.accelerator.is_main_process else {}


def judge(reader: Reader, train: FrozenSet, test: FrozenSet, settings: JudgeSettings) -> dict:
    """`knn` {k: metric} and the linear model's metric of labelled features ``(images, width)``."""
    labels, problem_type = train.known_labels, settings.problem_type
    ks = tuple(k for k in settings.ks if k <= len(train))
    figures: dict[str, Any] = {"knn": knn_metrics(train, test, ks, problem_type, reader.accelerator.device)}
    classes = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
    if settings.linear and train.features.size * classes > LOGISTIC_LIMIT:
        reader.accelerator.print(f"note       no logistic regression: {len(train):,} images would take hours to fit")
    elif settings.linear and problem_type == SINGLE_LABEL:
        figures["logistic_regression"] = logistic_accuracy(train, test)
    elif settings.linear:
        key = "logistic_regression" if problem_type == MULTI_LABEL else "ridge_regression"
        arrays = (train.features, labels, test.features)
        predictions = linear_predictions(problem_type, *arrays, LOGISTIC_C, LOGISTIC_ITERATIONS)
        figures[key] = metric_of(problem_type, predictions, test.known_labels)
    return figures


def knn_metrics(
    train: FrozenSet,
    test: FrozenSet,
    ks: tuple[int, ...] = KS,
    problem_type: str = SINGLE_LABEL,
    device: torch.device | str = "cpu",
    temperature: float = TEMPERATURE,
) -> dict[int, float]:
    """For each of `ks` the metric of `knn_predictions`: the accuracy in 0..1 for one class an image."""
    predictions = knn_predictions(train, test.features, ks, problem_type, device, temperature)
    if problem_type == SINGLE_LABEL:
        return {k: float((classes == test.known_labels).mean()) for k, classes in predictions.items()}
    return {k: metric_of(problem_type, values, test.known_labels) for k, values in predictions.items()}


def knn_predictions(
    train: FrozenSet,
    features: np.ndarray,
    ks: tuple[int, ...],
    problem_type: str,
    device: torch.device | str = "cpu",
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """For each of `ks` what weighted k-nearest neighbours (Wu et al., arXiv 1805.01978, Section 3.4) say of
    `features`: classes ``(images,)``, or scores or numbers ``(images, n)``.

    Each of the k training images with the largest cosine similarity s has the weight exp(s / temperature): of its vote
    for a class, or in the mean of several labels or numbers.

    Raises:
        ValueError: there are fewer training images than the largest k.
    """
    if not ks:
        return {}
    if max(ks) > len(train):
        raise ValueError(f"k={max(ks)} neighbours of {len(train)} training images: give a smaller k")
    bank, labels = torch.from_numpy(train.features).to(device), torch.from_numpy(train.known_labels).to(device)
    cosines, positions = nearest(torch.from_numpy(features), bank, max(ks))  # (images, largest k)
    weights = ((cosines - 1) / temperature).exp()  # the constant factor keeps exp in range
    vote = most_votes if problem_type == SINGLE_LABEL else weighted_mean
    predictions: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    for weight, near in zip(weights.split(CHUNK), positions.split(CHUNK), strict=True):
        for k in ks:
            predictions[k].append(vote(weight[:, :k], labels[near[:, :k]]).cpu())
    return {k: torch.cat(parts).numpy() for k, parts in predictions.items()}


def most_votes(weights: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The class ``(queries,)`` that gets most of the `weights` ``(queries, k)``, of class numbers ``(queries, k)``."""
    votes = torch.zeros(len(weights), int(labels.max()) + 1, device=weights.device)  # (queries, classes)
    return votes.scatter_add_(1, labels, weights).argmax(1)


def weighted_mean(weights: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean ``(queries, n)`` of ``labels (queries, k, n)`` by `weights` ``(queries, k)``. Of labels of 0 and 1 the
    means are scores, of targets predictions."""
    shares = weights / weights.sum(1, keepdim=True)
    return (shares[:, :, None] * labels).sum(1)


def logistic_accuracy(train: FrozenSet, test: FrozenSet) -> float:
    """Accuracy in 0..1 of scikit-learn's logistic regression on standardised features.

    It is fitted to the training images as they are: a linear probe without augmentation, quick, and without a learning
    rate to choose.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=LOGISTIC_C, max_iter=LOGISTIC_ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(train.features, train.labels)
    return float(classifier.score(test.features, test.labels))
