"""What the tasks have in common that an EvalNet learns: a label, or several, for the whole image."""

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
LINEAR_PENALTY = 10.0  # of scikit-learn's linear models, on standardised features; C is its inverse
LOGISTIC_ITERATIONS = 300  # enough for a comparison in which all features get the same


class EvalNetTask(Task):
    """Its labels are numbers of the whole image, so frozen features can be compared by them too."""

    model_class = EvalNet
    linear_name: str  # the key of `linear`'s figure in a row of results
    predicted: str  # the one of `columns` that `figures` takes

    @abstractmethod
    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """What people read, of logits ``(..., n)``: probabilities, or the logits themselves."""

    @abstractmethod
    def figures(self, predictions: np.ndarray, labels: np.ndarray) -> dict:
        """Those of `problem` but the loss, for predictions and labels ``(images, n)``."""

    @abstractmethod
    def linear(self, train_features: np.ndarray, labels: np.ndarray, test_features: np.ndarray) -> np.ndarray:
        """Predictions ``(test images, ...)`` of scikit-learn's linear model for features ``(images, width)``."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss ``()`` of a probe's logits ``(batch, n)``."""

    def first_bias(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Where the bias ``(n,)`` of a new head begins, for training `labels`; None at 0."""
        return None

    def reordered(self, labels: np.ndarray, order: list[int]) -> np.ndarray:
        return labels[:, order]

    def notes(self, labels: torch.Tensor, label_fraction: float, mixes: bool, label_smoothing: float) -> list[str]:
        notes = []
        if label_fraction < 1:
            notes.append(
                f"label_fraction {label_fraction:g}: a random part, as there are no single classes to balance"
            )
        if mixes:
            notes.append("mixup and cutmix mix the labels in the shares of the images; --mixup 0 --cutmix 0 ends that")
        if label_smoothing:
            notes.append(f"label_smoothing {label_smoothing:g} is for one class an image and does nothing here")
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
        """The head starts anew if the classes or the task differ, even if the number of classes is the same."""
        from ..training.batch_norm import share_statistics  # late: the app has no libraries of the training

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
            say("note       the checkpoint's classifier has other classes: its head starts anew")
            model.reset_head()
        bias = self.first_bias(labels)
        if bias is not None and not (trained and same):
            model.head.bias.data.copy_(bias)
        share_statistics(model)
        return model.freeze(config.num_hidden_layers if n_partial is None else n_partial)

    def outputs(self, model, transform: Callable[[dict], torch.Tensor], batch: dict) -> torch.Tensor:
        """Of images, or of features that were computed once."""
        output = model(features=batch["features"]) if "features" in batch else model(transform(batch))
        return output.logits.float()

    def results(self, columns: dict[str, np.ndarray], names: int) -> dict:
        return {"loss": float(columns["loss"].mean()), **self.figures(columns[self.predicted], columns["label"])}

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        """The metric of `problem` for predictions and labels ``(images, ...)``."""
        return self.figures(predictions, labels)[self.problem.metric]

    def vote(self, weights: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Predictions ``(queries, ...)`` of the labels ``(queries, k, ...)`` of their neighbours, which have the
        `weights` ``(queries, k)``: the mean, of 0 and 1 a score, of targets a prediction."""
        shares = weights / weights.sum(1, keepdim=True)  # (queries, k)
        return (shares[:, :, None] * labels).sum(1)

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        """What `score` takes, of logits ``(batch, n)``."""
        return self.scores(logits)

    def shown(self, logits: torch.Tensor, names: list[str], count: int = 5) -> dict[str, float] | str:
        scores = self.scores(logits.float())
        values, places = scores.topk(min(count, len(scores)))
        return {names[i]: value for i, value in zip(places.tolist(), values.tolist(), strict=True)}


def fitted(model, features: np.ndarray, labels: np.ndarray):
    """The linear `model` of scikit-learn, fitted to standardised features ``(images, width)``. Warnings, as of no
    convergence, or of classes that all images have or none, tell nothing new."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(StandardScaler(), model).fit(features, labels)


def names_of(config: MAEConfig) -> list[str]:
    """What the outputs of a checkpoint are called.

    Raises:
        UserError: one of them has no name.
    """
    id2label: dict = config.id2label or {}
    names = [id2label.get(i) for i in range(len(id2label))]
    for i, name in enumerate(names):
        if not isinstance(name, (str, int)):
            raise UserError(f"the checkpoint's id2label has {name!r} as the name of class {i}: mend its config.json")
    return [str(name) for name in names]
