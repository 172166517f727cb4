"""One class per image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import torch
import torch.nn.functional as F

from ..data.find.sources import Source
from ..errors import UserError
from ..report.problem import Problem
from . import reading
from .evalnet import LINEAR_PENALTY, LOGISTIC_ITERATIONS, SINGLE_LABEL, EvalNetTask, fitted
from .protocol import Answers, Columns


TOP = 5  # likeliest classes of an image that are reported
SCORES_LIMIT = 1 << 30  # bytes; 50,000 images of 1,000 classes take a fifth of it
KINDS = ("int", "uint", "bool", "string", "large_string", "null")  # types of a column of classes


class Classes(EvalNetTask):
    """Labels are class numbers ``(images,)`` int64."""

    absent_note = "; means over classes leave them out"
    linear_name = "logistic_regression"
    problem = Problem(
        SINGLE_LABEL,
        label="class",
        labels="classes",
        metric="accuracy",
        metric_title="accuracy",
        lower_is_better=False,
        is_share=True,
        unit="Accuracies are in %.",
        titles={
            "accuracy": "top-1 accuracy",
            "top5_accuracy": "top-5 accuracy",
            "balanced_accuracy": "balanced accuracy",
            "f1_macro": "F1 (macro)",
            "auroc": "AUROC (one against the rest)",
            "loss": "cross-entropy",
        },
        shares=("accuracy", "top5_accuracy", "balanced_accuracy", "f1_macro", "auroc"),
        columns={"logistic_regression": "logistic regr.", "probe": "probe", "accuracy": "accuracy"},
        imbalanced_columns={"balanced_accuracy": "balanced", "f1_macro": "F1 macro", "auroc": "AUROC"},
        each=("per_class_accuracy", "class", "accuracy"),
        model="An image classifier",
        usage="logits = model(**inputs).logits  # (1, classes)\n"
        "print(model.config.id2label[logits.argmax(-1).item()])",
    )

    # --- labels ---

    def recognises(self, source: Source) -> bool:
        if source.label_column is None and source.only_folder:
            return True
        feature = reading.label_feature(source)
        return not reading.holds_lists(feature) and not reading.holds_fractions(feature)

    def read_one(self, source: Source, known_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
        if source.label_column is None and known_names and source.only_folder:
            return _one_class(source, known_names), known_names
        numbers, names = _numbers_and_names(source)
        if known_names is None:
            return numbers, names
        if reading.only_one_is_named(names, known_names):
            return numbers, known_names
        position_of = {name: i for i, name in enumerate(known_names)}
        reading.refuse_unknown(source, [names[i] for i in np.unique(numbers) if names[i] not in position_of])
        positions = np.array([position_of.get(name, -1) for name in names])
        return positions[numbers], known_names

    def reordered(self, labels: np.ndarray, order: list[int]) -> np.ndarray:
        return np.argsort(order)[labels]

    def absent(self, labels: np.ndarray, names: list[str]) -> list[str]:
        counts = np.bincount(labels, minlength=len(names))
        return [name for name, count in zip(names, counts, strict=True) if not count]

    # --- training ---

    def part(self, labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        """Sorted positions of a random `fraction` of the images of each class, at least one per class."""
        generator = np.random.default_rng(seed)
        chosen = []
        for number in np.unique(labels):
            positions = generator.permutation(np.flatnonzero(labels == number))
            chosen.append(positions[: max(1, round(fraction * len(positions)))])
        return np.sort(np.concatenate(chosen))

    def notes(self, labels: torch.Tensor, label_fraction: float, mixes: bool, label_smoothing: float) -> list[str]:
        return []

    def config_value(self, names: list[str]) -> Any:
        return self.name if len(names) > 1 else None  # transformers refuses single-label classification with one class

    # --- evaluation ---

    def columns(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """From ``logits (batch, classes)`` and class numbers ``(batch,)``: `label`, `loss` (cross-entropy) and
        `confidence` ``(batch,)``, and ``top5 (batch, at most 5)`` classes, the likeliest first."""
        confidence, top = logits.softmax(-1).topk(min(TOP, logits.shape[-1]))
        loss = F.cross_entropy(logits, labels, reduction="none")
        return {"label": labels, "loss": loss, "confidence": confidence[:, 0], "top5": top}

    def columns_with_scores(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `columns`, with ``scores (batch, classes)``: log probabilities, because in float32 many probabilities
        would be equal to 1."""
        return {**self.columns(logits, labels), "scores": logits.log_softmax(-1)}

    def tested_columns(self, images: int, names: int, say: Callable[[str], None]) -> Columns:
        """Adds the scores that AUROC needs, of all images on every process. AUROC takes half a minute for 50,000
        images of 1,000 classes."""
        size = 4 * images * names
        if size <= SCORES_LIMIT:
            return self.columns_with_scores
        say(f"note       no AUROC: its scores would take {size / 2**30:.1f} GiB on every process")
        return self.columns

    def results(self, columns: dict[str, np.ndarray], names: int) -> dict:
        """The metrics of `ClassificationMetric` and `ImbalanceMetric`, and the mean `loss`. AUROC needs the scores."""
        from .metrics import ClassificationMetric, ImbalanceMetric

        top, labels = columns["top5"], columns["label"]
        metric, imbalance = ClassificationMetric(keep_in_memory=True), ImbalanceMetric(keep_in_memory=True)
        results = metric.compute(predictions=top, references=labels, num_classes=names)
        results |= imbalance.compute(predictions=top[:, 0], references=labels, scores=columns.get("scores"))
        return {"loss": float(columns["loss"].mean()), **results}

    def each_image(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        return (columns["top5"][:, :1] == columns["label"][:, None]).astype(np.float64)

    def written(self, columns: dict[str, np.ndarray]) -> dict:
        top5 = columns["top5"]  # (images, at most 5)
        named = {"label": columns["label"], "prediction": top5[:, 0], "confidence": columns["confidence"]}
        return {**named, "top5": list(top5), "loss": columns["loss"]}

    # --- frozen features ---

    def metrics(self, predictions: np.ndarray, labels: np.ndarray) -> dict:
        """Accuracy in 0..1 of class numbers ``(images,)``."""
        return {"accuracy": float((predictions == labels).mean())}

    def vote(self, weights: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The class ``(queries,)`` with the most votes."""
        votes = torch.zeros(len(weights), int(labels.max()) + 1, device=weights.device)  # (queries, classes)
        return votes.scatter_add_(1, labels, weights).argmax(1)

    def linear(self, train_features: np.ndarray, labels: np.ndarray, test_features: np.ndarray) -> np.ndarray:
        """Class numbers ``(test images,)`` predicted by a logistic regression: a linear probe without augmentation,
        quick, and without a learning rate to choose."""
        from sklearn.linear_model import LogisticRegression

        regression = LogisticRegression(C=1 / LINEAR_PENALTY, max_iter=LOGISTIC_ITERATIONS)
        return fitted(regression, train_features, labels).predict(test_features)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels)

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(1)

    # --- readable predictions ---

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)

    def answers(self, names: list[str]) -> Answers:
        """`prediction` and `confidence` (its probability), then `prediction_2`, `confidence_2` ... for the next
        likeliest."""
        ends = ["", *(f"_{place}" for place in range(2, min(TOP, len(names)) + 1))]

        def numbers(logits: torch.Tensor) -> dict[str, torch.Tensor]:
            confidence, top = self.scores(logits).topk(len(ends))
            return {"confidence": confidence, "top": top}

        def words(columns: dict) -> dict:
            confidence, top = columns["confidence"], columns["top"].astype(int)  # (images, at most 5)
            said = {key: value for key, value in columns.items() if key not in ("confidence", "top")}
            for place, end in enumerate(ends):
                said[f"prediction{end}"] = [names[number] for number in top[:, place]]
                said[f"confidence{end}"] = confidence[:, place]
            return said

        return Answers({f"prediction{end}": pyarrow.string() for end in ends}, numbers, words)


def _one_class(source: Source, known_names: list[str]) -> np.ndarray:
    """The class numbers of images that are all in one folder.

    Raises:
        UserError: the folder's name is not a class.
    """
    name = source.only_folder
    if name not in known_names:
        raise UserError(
            f"{source.name} has images in one folder, {name!r}, which is not one of the {len(known_names)} classes "
            f"({', '.join(known_names[:5])}): name the folder after a class, or make a folder for each class"
        )
    return np.full(len(source), known_names.index(name), np.int64)


def _numbers_and_names(source: Source) -> tuple[np.ndarray, list[str]]:
    feature = reading.label_feature(source)
    kind = reading.kind_of(feature)
    if reading.holds_lists(feature) or not kind.startswith(KINDS):
        raise UserError(f"{reading.described(source)} holds {feature}: classes, whole numbers or words are needed")
    values = reading.cells_of(source)
    unlabelled = sum(value is None or (not isinstance(value, str) and value < 0) for value in values)
    reading.refuse_unlabelled(source, unlabelled, len(values), "empty, or below 0")
    if source.class_names:
        return np.asarray(values, dtype=np.int64), source.class_names
    if "string" not in kind and max(values) < reading.MAX_CLASSES:
        numbers = np.asarray(values, dtype=np.int64)
        return numbers, [str(i) for i in range(int(numbers.max()) + 1)]
    # Whole numbers stay what they are: those from 2^63 on would become decimals, and some of them equal.
    exact = np.asarray(values, dtype=None if "string" in kind else object)
    distinct, numbers = np.unique(exact, return_inverse=True)
    return numbers.astype(np.int64), [str(value) for value in distinct]


CLASSES = Classes()
