"""Metrics of whole sets. Imported late, because the app does not have `evaluate`.

Not from `evaluate.load`, because that fetches a metric's code from the network."""

import datasets
import evaluate
import numpy as np


class ClassificationMetric(evaluate.Metric):
    """Top-1 and top-5 accuracy, accuracy of each class (None for a class without images), and the confusion matrix
    (rows are the true classes). `predictions` are the likeliest classes of each image, best first."""

    def _info(self):
        return metric_info(self.__doc__, datasets.Sequence(datasets.Value("int64")), datasets.Value("int64"))

    def _compute(self, predictions, references, num_classes: int) -> dict:
        predictions, references = np.asarray(predictions), np.asarray(references)
        hits = predictions == references[:, None]  # (images, k)
        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(confusion, (references, predictions[:, 0]), 1)
        counts, right = confusion.sum(1), confusion.diagonal()
        results = {"accuracy": float(hits[:, 0].mean())}
        if num_classes > predictions.shape[1]:
            results["top5_accuracy"] = float(hits.any(1).mean())
        accuracies = [float(r / n) if n else None for r, n in zip(right, counts, strict=True)]
        return {**results, "per_class_accuracy": accuracies, "confusion_matrix": confusion.tolist()}


class ImbalanceMetric(evaluate.Metric):
    """Balanced accuracy and macro F1; with `scores` also `auroc`, the area under the ROC curve of each class against
    the rest. Each is a mean over the classes, so rare classes count as much as frequent ones. The means leave out
    classes without images. AUROC is None if one class has all images, or a score is not a number.

    `predictions` are the likeliest classes, `scores` ``(images, classes)``. The scores do not go through `evaluate`'s
    tables, which would copy them several times."""

    def _info(self):
        return metric_info(self.__doc__, datasets.Value("int64"), datasets.Value("int64"))

    def _compute(self, predictions, references, scores: np.ndarray | None = None) -> dict:
        from sklearn.metrics import f1_score, recall_score, roc_auc_score

        predictions, references = np.asarray(predictions), np.asarray(references)
        present = np.unique(references)
        means = {"labels": present, "average": "macro", "zero_division": 0}
        results: dict[str, float | None] = {
            "balanced_accuracy": float(recall_score(references, predictions, **means)),
            "f1_macro": float(f1_score(references, predictions, **means)),
        }
        if scores is not None:
            possible = len(present) > 1 and not np.isnan(scores).any()
            areas = [roc_auc_score(references == i, scores[:, i]) for i in present] if possible else []
            results["auroc"] = float(np.mean(areas)) if areas else None
        return results


class MultiLabelMetric(evaluate.Metric):
    """Average precision of each class (None for a class without images), its mean over the classes with images, and F1
    at the `threshold`: over all decisions (micro), and as a mean over the classes (macro).

    `predictions` are scores in 0..1, `references` 0 and 1, both ``(images, classes)``."""

    def _info(self):
        return floats_info(self.__doc__)

    def _compute(self, predictions, references, threshold: float) -> dict:
        from sklearn.metrics import average_precision_score, f1_score

        scores, truth = np.asarray(predictions), np.asarray(references).astype(int)
        precisions = [
            float(average_precision_score(truth[:, i], scores[:, i])) if truth[:, i].any() else None
            for i in range(truth.shape[1])
        ]
        present = [precision for precision in precisions if precision is not None]
        chosen = (scores > threshold).astype(int)
        results = {"mean_average_precision": float(np.mean(present)) if present else 0.0}
        for average in ("micro", "macro"):
            results[f"f1_{average}"] = float(f1_score(truth, chosen, average=average, zero_division=0))
        return {**results, "per_class_average_precision": precisions}


class RegressionMetric(evaluate.Metric):
    """Mean squared and mean absolute error, and R2 (None for fewer than two images), over all targets, and with
    several targets the mean absolute error of each. `predictions` and `references` are ``(images, targets)``."""

    def _info(self):
        return floats_info(self.__doc__)

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


def metric_info(description: str | None, predictions, references) -> evaluate.MetricInfo:
    """What `evaluate` must know about a metric."""
    features = datasets.Features({"predictions": predictions, "references": references})
    return evaluate.MetricInfo(description=description or "", citation="", inputs_description="", features=features)


def floats_info(description: str | None) -> evaluate.MetricInfo:
    """`metric_info` for predictions and references ``(images, n)``."""
    floats = datasets.Sequence(datasets.Value("float32"))
    return metric_info(description, floats, floats)
