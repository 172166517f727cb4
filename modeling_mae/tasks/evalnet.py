"""What the tasks have in common that an EvalNet learns: a label, or several, for the whole image."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

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
    model_class = EvalNet

    @abstractmethod
    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """What people read, of logits ``(..., n)``: probabilities, or the logits themselves."""

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
        """`problem_type` in the configuration of a model for these names."""
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
        trained = checkpoint is not None and EvalNet.__name__ in (config.architectures or [])
        same = names_of(config) == names and (config.problem_type or SINGLE_LABEL) == self.name
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
        return model.freeze(config.num_hidden_layers if n_partial is None else n_partial)

    def outputs(self, model, transform: Callable[[dict], torch.Tensor], batch: dict) -> torch.Tensor:
        """Of images, or of features that were computed once."""
        output = model(features=batch["features"]) if "features" in batch else model(transform(batch))
        return output.logits.float()

    def vote(self, weights: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean of the labels ``(queries, k, n)``: of 0 and 1 a score, of targets a prediction."""
        shares = weights / weights.sum(1, keepdim=True)  # (queries, k)
        return (shares[:, :, None] * labels).sum(1)

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        return self.scores(logits)

    def shown(self, logits: torch.Tensor, names: list[str], count: int = 5) -> dict[str, float] | str:
        scores = self.scores(logits.float())
        values, places = scores.topk(min(count, len(scores)))
        return {names[i]: value for i, value in zip(places.tolist(), values.tolist(), strict=True)}


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
