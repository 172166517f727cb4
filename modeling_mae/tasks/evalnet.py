"""Base of the tasks that an EvalNet learns: one or several labels for the whole image."""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..checkpoint import Checkpoint
from ..configuration_mae import PROBLEM_TYPES, MAEConfig
from ..errors import UserError
from ..modeling_mae import EvalNet
from .protocol import Task


SINGLE_LABEL, MULTI_LABEL, REGRESSION = PROBLEM_TYPES
LINEAR_PENALTY = 10.0  # penalty of scikit-learn's linear models on standardised features; C is its inverse
LOGISTIC_ITERATIONS = 300  # enough for a comparison, because all features get the same number


class EvalNetTask(Task):
    """Labels belong to the whole image, so frozen features can be evaluated with them too."""

    model_class = EvalNet
    linear_name: str  # the key of the `linear` model's metric in a row of results
    predicted: str  # the column that `metrics` takes

    @abstractmethod
    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Readable scores of logits ``(..., n)``: probabilities, or the logits themselves."""

    @abstractmethod
    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict:
        """The metrics of `problem`, without the loss, for predictions and labels ``(images, n)``."""

    @abstractmethod
    def linear(self, train_features: np.ndarray, labels: np.ndarray, test_features: np.ndarray) -> np.ndarray:
        """Predictions ``(test images, ...)`` of scikit-learn's linear model for features ``(images, width)``."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss ``()`` of a probe's logits ``(batch, n)``."""

    def first_bias(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Initial bias ``(n,)`` of a new head for training `labels`. None for 0."""
        return None

    def notes(self, labels: torch.Tensor, label_fraction: float, mixes: bool, label_smoothing: float) -> list[str]:
        notes = []
        if label_fraction < 1:
            notes.append(
                f"label_fraction {label_fraction:g}: a random part, because only single classes can be balanced"
            )
        if mixes:
            notes.append("mixup and cutmix mix the labels as they mix the images; --mixup 0 --cutmix 0 turns that off")
        if label_smoothing:
            notes.append(f"label_smoothing {label_smoothing:g} is for one class per image and does nothing here")
        return notes

    def config_value(self, names: list[str]) -> Any:
        """`problem_type` in the configuration of a model for these names: one of transformers' words. It decides the
        model's loss. A task with another name returns the word of the task by which its checkpoints are used."""
        return self.name

    def new_model(
        self,
        config: MAEConfig,
        checkpoint: Checkpoint | None,
        names: list[str],
        n_partial: float | None,
        labels: torch.Tensor,
        say: Callable[[str], None],
    ) -> EvalNet:
        """The head is newly initialised if the task or the classes differ, even if their number is the same."""
        from ..training.batch_norm import share_statistics  # late: the app has no training libraries

        trained = checkpoint is not None and EvalNet.__name__ in (config.architectures or [])
        # By what the checkpoint says: a task may share its model's problem with another task.
        before, now = (value or SINGLE_LABEL for value in (config.problem_type, self.config_value(names)))
        same = names_of(config) == names and before == now
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in config.id2label.items()}
        config.problem_type = self.config_value(names)
        new_head = trained and not same
        model = EvalNet(config) if checkpoint is None else checkpoint.classifier(config, new_head)
        if new_head:
            say("note       the checkpoint's classifier has other classes: its head is newly initialised")
            model.reset_head()
        bias = self.first_bias(labels)
        if bias is not None and not (trained and same):
            model.head.bias.data.copy_(bias)
        share_statistics(model)
        return model.freeze(config.num_hidden_layers if n_partial is None else n_partial)

    def outputs(self, model, transform: Callable[..., torch.Tensor], batch: dict) -> torch.Tensor:
        """Logits of images, or of precomputed features."""
        output = model(features=batch["features"]) if "features" in batch else model(transform(batch))
        return output.logits.float()

    def results(self, columns: dict[str, np.ndarray], names: int) -> dict:
        return {"loss": float(columns["loss"].mean()), **self.metrics(columns[self.predicted], columns["label"])}

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        """The metric of `problem` for predictions and labels ``(images, ...)``."""
        return self.metrics(predictions, labels)[self.problem.metric]

    def vote(self, weights: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Predictions ``(queries, ...)`` from the neighbours' labels ``(queries, k, ...)`` and `weights` ``(queries,
        k)``: the weighted mean. For labels 0 and 1 it is a score, for targets a prediction."""
        shares = weights / weights.sum(1, keepdim=True)  # (queries, k)
        return (shares[:, :, None] * labels).sum(1)

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        """The predictions that `score` takes, from logits ``(batch, n)``."""
        return self.scores(logits)

    def shown(self, logits: torch.Tensor, names: list[str], count: int = 5) -> dict[str, float] | str:
        scores = self.scores(logits.float())
        values, places = scores.topk(min(count, len(scores)))
        return {names[i]: value for i, value in zip(places.tolist(), values.tolist(), strict=True)}


def fitted(model, features: np.ndarray, labels: np.ndarray):
    """The linear `model` of scikit-learn, fitted to standardised features ``(images, width)``. Its warnings (about
    convergence, or classes that all images have or none) are silenced."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(StandardScaler(), model).fit(features, labels)


def names_of(config: MAEConfig) -> list[str]:
    """The names of a checkpoint's outputs.

    Raises:
        UserError: one of them has no name.
    """
    id2label: dict = config.id2label or {}
    names = [id2label.get(i) for i in range(len(id2label))]
    for i, name in enumerate(names):
        if not isinstance(name, (str, int)):
            raise UserError(f"the checkpoint's id2label has {name!r} as the name of class {i}: fix its config.json")
    return [str(name) for name in names]
