"""Regression of one or several numbers."""

import datasets
import numpy as np
import torch
import torch.nn.functional as F

from ..data.find.sources import Source
from ..errors import UserError
from ..report.problem import Problem
from . import reading
from .evalnet import LINEAR_PENALTY, REGRESSION, EvalNetTask, fitted
from .protocol import Answers, distinct


SMALL_DEVIATION, LARGE_DEVIATION = 0.05, 20.0  # deviation of the targets; outside, a note warns the user
NO_NUMBER = "empty, or not finite"


class Numbers(EvalNetTask):
    """Labels are targets ``(images, targets)`` float32."""

    linear_name = "ridge_regression"
    predicted = "prediction"
    problem = Problem(
        REGRESSION,
        label="target",
        labels="targets",
        metric="mean_squared_error",
        metric_title="mean squared error",
        lower_is_better=True,
        is_share=False,
        unit="",
        titles={
            "mean_squared_error": "mean squared error",
            "mean_absolute_error": "mean absolute error",
            "r2": "R2 (1 = perfect, 0 = the mean)",
        },
        shares=(),
        columns={
            "ridge_regression": "ridge regr.",
            "probe": "probe",
            "mean_squared_error": "MSE",
            "mean_absolute_error": "MAE",
            "r2": "R2",
        },
        each=("per_target_absolute_error", "target", "mean absolute error"),
        model="A regression",
        usage="values = model(**inputs).logits[0]  # (targets,)\n"
        "print({model.config.id2label[i]: value for i, value in enumerate(values.tolist())})",
    )

    # --- labels ---

    def recognises(self, source: Source) -> bool:
        """Fractions, or lists of them."""
        return reading.holds_fractions(reading.label_feature(source))

    def read_one(self, source: Source, known_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
        """Reads a column of numbers, or of equally long lists of numbers. A single target is named like the column."""
        feature, column, place = reading.label_feature(source), source.label_column, reading.described(source)
        inner = feature.feature if reading.holds_lists(feature) else feature
        if isinstance(inner, datasets.ClassLabel) or not reading.kind_of(feature).startswith(("float", "int", "uint")):
            raise UserError(
                f"{place} holds {feature}: regression needs numbers, or a list of as many numbers for each image"
            )
        cells = reading.cells_of(source)
        rows = cells if reading.holds_lists(feature) else [[cell] for cell in cells]
        reading.refuse_unlabelled(source, sum(not row or None in row for row in rows), len(rows), NO_NUMBER)
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise UserError(
                f"{place} has {lengths[0]} to {lengths[-1]} numbers per image: regression needs as many for each image"
            )
        targets = np.asarray(rows, dtype=np.float32)  # (images, targets)
        reading.refuse_unlabelled(source, int((~np.isfinite(targets)).any(1).sum()), len(rows), NO_NUMBER)
        names = [str(column)] if lengths == [1] else [f"{column} {i}" for i in range(lengths[0])]
        if known_names is not None and len(names) != len(known_names):
            raise UserError(
                f"{place} has {len(names)} targets, but there are {len(known_names)} "
                f"({', '.join(known_names[:5])}): evaluate on the trained targets"
            )
        return targets, known_names or names

    # --- training ---

    def notes(self, labels: torch.Tensor, label_fraction: float, mixes: bool, label_smoothing: float) -> list[str]:
        notes = super().notes(labels, label_fraction, mixes, label_smoothing)
        largest = labels.std(0, correction=0).max().item()
        if not SMALL_DEVIATION <= largest <= LARGE_DEVIATION:
            notes.append(
                f"the targets deviate by {largest:.3g}, but learning rates suit about 1: scale the column if the loss "
                "falls slowly or not at all"
            )
        return notes

    def first_bias(self, labels: torch.Tensor) -> torch.Tensor | None:
        """The mean of the targets, because at usual learning rates the bias would take long to get there."""
        return labels.float().mean(0)

    # --- evaluation ---

    def columns(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """From ``logits (batch, targets)`` and targets of that shape: `label`, `prediction`, and ``loss (batch,)``
        (squared error)."""
        return {"label": labels, "prediction": logits, "loss": (logits - labels).square().mean(1)}

    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict:
        """The metrics of `RegressionMetric` for predictions ``(images, targets)``."""
        from .metrics import RegressionMetric

        return RegressionMetric(keep_in_memory=True).compute(predictions=predictions, references=labels)

    def each_image(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        errors = columns["prediction"].astype(np.float64) - columns["label"]  # (images, targets)
        return np.square(errors).mean(1, keepdims=True)

    def written(self, columns: dict[str, np.ndarray]) -> dict:
        """`label` and `prediction` are numbers, or lists for several targets."""
        numbers = {key: columns[key] for key in ("label", "prediction")}  # (images, targets)
        one = numbers["label"].shape[1] == 1
        return {
            **{key: value[:, 0] if one else list(value) for key, value in numbers.items()},
            "loss": columns["loss"],
        }

    # --- frozen features ---

    def linear(self, train_features: np.ndarray, labels: np.ndarray, test_features: np.ndarray) -> np.ndarray:
        """Targets ``(test images, targets)`` predicted by a ridge regression."""
        from sklearn.linear_model import Ridge

        ridge = fitted(Ridge(alpha=LINEAR_PENALTY), train_features, labels)
        return ridge.predict(test_features).reshape(len(test_features), -1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(logits, labels)

    # --- readable predictions ---

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def answers(self, names: list[str]) -> Answers:
        """`prediction`, or `prediction_NAME` for each target."""
        named = [f"prediction_{name}" for name in distinct(names)] if len(names) > 1 else ["prediction"]

        def words(columns: dict) -> dict:
            said = {key: value for key, value in columns.items() if key != "values"}
            return said | {name: columns["values"][:, i] for i, name in enumerate(named)}  # of (images, targets)

        return Answers({}, lambda logits: {"values": logits}, words)

    def shown(self, logits: torch.Tensor, names: list[str], count: int = 5) -> dict[str, float] | str:
        """The values of all targets."""
        return "\n".join(f"{name}: {value:.4g}" for name, value in zip(names, logits.tolist(), strict=True))


NUMBERS = Numbers()
