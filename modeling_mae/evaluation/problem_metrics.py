"""Predictions and metrics for each kind of labels: one class an image, several classes, or numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
import torch
import torch.nn.functional as F

from ..problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL, THRESHOLD
from .metrics import classification_results, top_classes


def label_scores(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of ``logits (batch, classes)`` and 0 and 1 ``(batch, classes)``: ``label``, ``scores`` (sigmoid), and ``loss
    (batch,)`` (binary cross-entropy)."""
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    return {"label": labels, "scores": logits.sigmoid(), "loss": loss}


def values(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of ``logits (batch, targets)`` and targets of that shape: ``label``, ``prediction``, and ``loss (batch,)``
    (squared error)."""
    return {"label": labels, "prediction": logits, "loss": (logits - labels).square().mean(1)}


def _floats_info(description: str) -> evaluate.MetricInfo:
    floats = datasets.Sequence(datasets.Value("float32"))
    features = datasets.Features({"predictions": floats, "references": floats})
    return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)


class MultiLabelMetric(evaluate.Metric):
    """Average precision of each class (None for a class without images), its mean over the classes that have some,
    and F1 at a score of 0.5: over all decisions together (micro), and the mean over the classes (macro).

    `predictions` are scores in 0..1, `references` 0 and 1, both ``(images, classes)``."""

    def _info(self):
        return _floats_info(self.__doc__)

    def _compute(self, predictions, references) -> dict:
        from sklearn.metrics import average_precision_score, f1_score

        scores, truth = np.asarray(predictions), np.asarray(references).astype(int)
        precisions = [
            float(average_precision_score(truth[:, i], scores[:, i])) if truth[:, i].any() else None
            for i in range(truth.shape[1])
        ]
        present = [precision for precision in precisions if precision is not None]
        chosen = (scores > THRESHOLD).astype(int)
        results = {"mean_average_precision": float(np.mean(present)) if present else 0.0}
        for average in ("micro", "macro"):
            f1 = f1_score(truth, chosen, average=average, zero_division=0)
            results[f"f1_{average}"] = float(f1)
        return {**results, "per_class_average_precision": precisions}


class RegressionMetric(evaluate.Metric):
    """Mean squared and mean absolute error, and R2 (None for fewer than two images), over all targets; of several
    targets also the mean absolute error of each. `predictions` and `references` are ``(images, targets)``."""

    def _info(self):
        return _floats_info(self.__doc__)

    def _compute(self, predictions, references) -> dict:
        from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

        predictions, references = (np.asarray(array, dtype=np.float64) for array in (predictions, references))
        results = {
            "mean_squared_error": float(mean_squared_error(references, predictions)),
            "mean_absolute_error": float(mean_absolute_error(references, predictions)),
            "r2": float(r2_score(references, predictions)) if len(references) > 1 else None,
        }
        if references.shape[1] > 1:
            errors = mean_absolute_error(references, predictions, multioutput="raw_values")
            results["per_target_absolute_error"] = errors.tolist()
        return results


def multi_label_results(predictions: dict[str, np.ndarray], num_classes: int) -> dict:
    """What `MultiLabelMetric` computes from the columns of `label_scores`, and the mean ``loss``."""
    metric = MultiLabelMetric(keep_in_memory=True)
    results = metric.compute(predictions=predictions["scores"], references=predictions["label"])
    return {"loss": float(predictions["loss"].mean()), **results}


def regression_results(predictions: dict[str, np.ndarray], num_targets: int) -> dict:
    """What `RegressionMetric` computes from the columns of `values`, and the mean ``loss``."""
    metric = RegressionMetric(keep_in_memory=True)
    results = metric.compute(predictions=predictions["prediction"], references=predictions["label"])
    return {"loss": float(predictions["loss"].mean()), **results}


@dataclass(frozen=True)
class Evaluation:
    """How the classifiers of a problem are evaluated."""

    columns: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]  # of logits and labels
    results: Callable[[dict[str, np.ndarray], int], dict]  # of the columns and the number of names


EVALUATIONS = {  # by problem_type
    SINGLE_LABEL: Evaluation(top_classes, classification_results),
    MULTI_LABEL: Evaluation(label_scores, multi_label_results),
    REGRESSION: Evaluation(values, regression_results),
}
