"""Metrics of whole sets. Imported late, because the app does not have `evaluate`.

Not from `evaluate.load`, because that fetches a metric's code from the network."""

from collections.abc import Iterator

import datasets
import evaluate
import numpy as np


DRAWS, AT_ONCE = 1000, 50  # sets of the bootstrap, and how many of them are in memory


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


class SegmentationMetric(evaluate.Metric):
    """Mean IoU and mean Dice over the classes that a mask or a prediction has, both of each class (None for others),
    pixel accuracy, and the confusion matrix (rows are the true classes). `mean_iou_interval` holds 95% of the mean IoU
    of sets as large that are drawn from these images, with the same image several times (bootstrap).

    `predictions` are the confusion matrices of the images ``(images, classes * classes)``, `references` the pixels of
    each image that have a class. Pixels themselves would be copied several times by `evaluate`'s tables."""

    def _info(self):
        return metric_info(self.__doc__, datasets.Sequence(datasets.Value("int64")), datasets.Value("int64"))

    def _compute(self, predictions, references) -> dict:
        confusion = np.asarray(predictions, np.int64)  # (images, classes * classes)
        classes = round(confusion.shape[1] ** 0.5)
        confusion = confusion.reshape(-1, classes, classes)
        total = confusion.sum(0)
        iou = iou_of(total)
        dice = 2 * iou / (1 + iou)
        return {
            "mean_iou": _mean(iou),
            "mean_dice": _mean(dice),
            "pixel_accuracy": float(total.trace() / max(1, np.sum(references))),
            "mean_iou_interval": _bootstrap(confusion),
            "per_class_iou": _present(iou),
            "per_class_dice": _present(dice),
            "confusion_matrix": total.tolist(),
        }


def iou_of(confusion: np.ndarray) -> np.ndarray:
    """``(..., classes)`` of confusion matrices ``(..., classes, classes)``: what is right over all that is said or
    true; NaN for a class that is neither."""
    return _shares(*right_and_either(confusion))


def right_and_either(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pixels that are right, pixels that are said or true) of each class, ``(..., classes)``, of confusion matrices
    ``(..., classes, classes)``."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return right, confusion.sum(-1) + confusion.sum(-2) - right


def _shares(right: np.ndarray, either: np.ndarray) -> np.ndarray:
    return np.where(either > 0, right / np.maximum(either, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else 0.0


def _present(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _bootstrap(confusion: np.ndarray) -> list[float]:
    """Quantiles of the mean IoU of sets of as many images."""
    right, either = (values.astype(np.float64) for values in right_and_either(confusion))  # (images, classes)
    means = [resampled_iou(right, either, times) for times in drawn_sets(len(confusion))]
    return np.quantile(np.concatenate(means), [0.025, 0.975]).tolist()


def drawn_sets(images: int, groups: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """How often each image is in `DRAWS` sets that are drawn from these with replacement (bootstrap): arrays ``(sets,
    images)``, always the same.

    `groups` ``(images,)`` are numbers from 0 on. With them, whole groups are drawn, as many as there are.
    """
    generator, units = np.random.default_rng(0), images if groups is None else int(groups.max()) + 1
    for first in range(0, DRAWS, AT_ONCE):
        count = min(AT_ONCE, DRAWS - first)
        drawn = [np.bincount(generator.integers(0, units, units), minlength=units) for _ in range(count)]
        times = np.stack(drawn).astype(np.float64)  # (sets, units)
        yield times if groups is None else times[:, groups]


def resampled_iou(right: np.ndarray, either: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The mean IoU ``(sets,)`` of sets that have each image so many `times` ``(sets, images)``. `right` and `either`
    are those of `right_and_either`, ``(images, classes)``."""
    iou = _shares(times @ right, times @ either)  # (sets, classes)
    present = ~np.isnan(iou)
    return np.where(present, iou, 0).sum(1) / np.maximum(1, present.sum(1))


def resampled_precision(scores: np.ndarray, truth: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The mean average precision ``(sets,)`` of `scores` and 0 and 1, ``(images, classes)``, in sets that have each
    image so many `times` ``(sets, images)``. A set leaves out classes that none of its images has."""
    total, classes = np.zeros(len(times)), np.zeros(len(times))
    for score, true in zip(scores.T, truth.T, strict=True):
        order = np.argsort(-score, kind="stable")
        # Images with the same score count together: the last of them has the precision of all.
        last = np.searchsorted(-score[order], -score[order], side="right") - 1
        said = times[:, order]  # (sets, images), the highest score first
        right = said * true[order]
        precision = (right.cumsum(1) / np.maximum(1, said.cumsum(1)))[:, last]
        positives = right.sum(1)
        total += np.where(positives > 0, (right * precision).sum(1) / np.maximum(1, positives), 0)
        classes += positives > 0
    return total / np.maximum(1, classes)
