"""Several classes per image."""

import numpy as np
import pyarrow
import torch
import torch.nn.functional as F

from ..data.find.sources import Source
from ..errors import UserError
from ..report.problem import Problem
from . import reading
from .evalnet import LINEAR_PENALTY, LOGISTIC_ITERATIONS, MULTI_LABEL, EvalNetTask, fitted
from .protocol import Answers, distinct


THRESHOLD = 0.5  # an image has a class if its score is above this
KINDS = ("int", "uint", "bool", "float", "string", "large_string", "null")  # types of the lists' elements


class SeveralClasses(EvalNetTask):
    """Labels are 0 and 1 ``(images, classes)`` float32."""

    linear_name = "logistic_regression"
    predicted = "scores"
    problem = Problem(
        MULTI_LABEL,
        label="class, several per image",
        labels="classes, several per image",
        metric="mean_average_precision",
        metric_title="mean average precision",
        lower_is_better=False,
        is_share=True,
        unit="Figures are in %.",
        titles={
            "mean_average_precision": "mean average precision",
            "f1_micro": "F1 (micro, threshold 0.5)",
            "f1_macro": "F1 (macro, threshold 0.5)",
            "loss": "binary cross-entropy",
        },
        shares=("mean_average_precision", "f1_micro", "f1_macro"),
        columns={
            "logistic_regression": "logistic regr.",
            "probe": "probe",
            "mean_average_precision": "mAP",
            "f1_micro": "F1 micro",
            "f1_macro": "F1 macro",
        },
        each=("per_class_average_precision", "class", "average precision"),
        model="An image classifier",
        usage="scores = model(**inputs).logits.sigmoid()[0]  # (classes,)\n"
        "print({model.config.id2label[i]: score for i, score in enumerate(scores.tolist()) if score > 0.5})",
    )

    # --- labels ---

    def recognises(self, source: Source) -> bool:
        """Lists of classes, or of 0 and 1 for each class."""
        feature = reading.label_feature(source)
        if not reading.holds_lists(feature):
            return False
        if not reading.holds_fractions(feature):
            return True
        return all(value in (0, 1) for row in reading.cells_of(source) for value in row or [])

    def read_one(self, source: Source, known_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
        """A list holds an image's classes, as numbers or names, and may be empty. Or it holds 0 or 1 (false or true)
        for each class: equally long lists of only 0 and 1 are read this way."""
        feature = reading.label_feature(source)
        kind = reading.kind_of(feature)
        if not reading.holds_lists(feature) or not kind.startswith(KINDS):
            raise UserError(
                f"{reading.described(source)} holds {feature}: several labels per image need lists of class numbers "
                "or names, or of 0 and 1 for each class"
            )
        lists = reading.cells_of(source)
        missing = sum(row is None or any(value is None for value in row) for row in lists)
        reading.refuse_unlabelled(source, missing, len(lists), "empty")
        own_names = list(getattr(feature.feature, "names", None) or [])
        if not own_names and "string" not in kind and _are_vectors(lists, kind, known_names):
            matrix, names = _matrix_of_vectors(source, lists, known_names)
        else:
            matrix, names = _matrix_of_lists(source, lists, own_names, known_names)
        if not matrix.any():
            raise UserError(
                f"no image of {source.name} has a class in {source.label_column!r}: {reading.OTHER_COLUMN}"
            )
        return matrix, names

    def absent(self, labels: np.ndarray, names: list[str]) -> list[str]:
        return [name for name, count in zip(names, labels.sum(0), strict=True) if not count]

    # --- evaluation ---

    def columns(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """From ``logits (batch, classes)`` and 0 and 1 ``(batch, classes)``: `label`, `scores` (sigmoid), and ``loss
        (batch,)`` (binary cross-entropy)."""
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        return {"label": labels, "scores": self.scores(logits), "loss": loss}

    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict:
        """The metrics of `MultiLabelMetric` for scores ``(images, classes)``."""
        from .metrics import MultiLabelMetric

        metric = MultiLabelMetric(keep_in_memory=True)
        return metric.compute(predictions=predictions, references=labels, threshold=THRESHOLD)

    def each_image(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """The scores of all classes, then the labels."""
        return np.concatenate([columns["scores"], columns["label"]], 1).astype(np.float64)

    def resampled(self, values: np.ndarray, times: np.ndarray) -> np.ndarray:
        from .metrics import resampled_precision

        scores, truth = np.split(values, 2, axis=1)  # (images, classes)
        return resampled_precision(scores, truth, times)

    def written(self, columns: dict[str, np.ndarray]) -> dict:
        """`label` and `prediction` are lists of class numbers, `scores` has a number for each class."""
        scores = columns["scores"]  # (images, classes)
        return {
            "label": [np.flatnonzero(row).tolist() for row in columns["label"]],
            "prediction": [np.flatnonzero(row > THRESHOLD).tolist() for row in scores],
            "scores": list(scores),
            "loss": columns["loss"],
        }

    # --- frozen features ---

    def linear(self, train_features: np.ndarray, labels: np.ndarray, test_features: np.ndarray) -> np.ndarray:
        """Scores ``(test images, classes)`` from a logistic regression for each class."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        each = OneVsRestClassifier(LogisticRegression(C=1 / LINEAR_PENALTY, max_iter=LOGISTIC_ITERATIONS))
        scores = fitted(each, train_features, labels.astype(int)).predict_proba(test_features)
        return scores[:, 1:] if labels.shape[1] == 1 else scores

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels)

    # --- readable predictions ---

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def answers(self, names: list[str]) -> Answers:
        """`prediction`, the list of classes with a score above 0.5, and `score_NAME` for each class."""
        named = [f"score_{name}" for name in distinct(names)]

        def words(columns: dict) -> dict:
            scores = columns["scores"]  # (images, classes)
            said = {key: value for key, value in columns.items() if key != "scores"}
            said["prediction"] = [[names[i] for i in np.flatnonzero(row > THRESHOLD)] for row in scores]
            return said | {name: scores[:, i] for i, name in enumerate(named)}

        types = {"prediction": pyarrow.list_(pyarrow.string())}
        return Answers(types, lambda logits: {"scores": self.scores(logits)}, words)


def _are_vectors(lists: list[list], kind: str, known_names: list[str] | None) -> bool:
    """Whether the lists hold 0 or 1 for each class, instead of classes."""
    if kind.startswith(("bool", "float")):
        return True
    lengths = {len(row) for row in lists}
    if len(lengths) != 1 or not all(value in (0, 1) for row in lists for value in row):
        return False
    # One number per image is its class. Two classes that every image has would not be worth labels.
    (length,) = lengths
    return length > 1 if known_names is None else length == len(known_names)


def _matrix_of_vectors(
    source: Source, lists: list[list], known_names: list[str] | None
) -> tuple[np.ndarray, list[str]]:
    lengths = {len(row) for row in lists}
    if len(lengths) != 1 or not all(value in (0, 1) for row in lists for value in row):
        raise UserError(
            f"{reading.described(source)} holds lists of {min(lengths)} to {max(lengths)} numbers: several labels per "
            "image need 0 or 1 for each class; for other numbers give --problem_type regression"
        )
    (length,) = lengths
    if known_names is not None and length != len(known_names):
        raise UserError(
            f"{reading.described(source)} has {length} numbers per image, but there are {len(known_names)} classes: "
            "evaluate on labels of the trained classes"
        )
    matrix = np.asarray(lists, dtype=np.float32)  # (images, classes)
    return matrix, known_names or [str(i) for i in range(length)]


def _matrix_of_lists(
    source: Source, lists: list[list], own_names: list[str], known_names: list[str] | None
) -> tuple[np.ndarray, list[str]]:
    values = sorted({value for row in lists for value in row})
    if values and not isinstance(values[0], str):
        if values[0] < 0 or values[-1] >= reading.MAX_CLASSES:
            raise UserError(
                f"{reading.described(source)} holds {values[0]} ... {values[-1]}: class numbers are 0 ... "
                f"{reading.MAX_CLASSES - 1}"
            )
        own_names = own_names or [str(i) for i in range(values[-1] + 1)]
        if known_names is not None and reading.only_one_is_named(own_names, known_names):
            own_names = known_names
        lists = [[own_names[value] for value in row] for row in lists]
    names = known_names or own_names or values
    positions = {name: i for i, name in enumerate(names)}
    reading.refuse_unknown(source, sorted({name for row in lists for name in row} - set(positions)))
    matrix = np.zeros((len(lists), len(names)), dtype=np.float32)
    for image, row in enumerate(lists):
        matrix[image, [positions[name] for name in row]] = 1
    return matrix, list(names)


SEVERAL_CLASSES = SeveralClasses()
