"""What labels can be: one class an image, several classes, or numbers; and the figures that matter for each."""

from dataclasses import dataclass, field

from .configuration_mae import PROBLEM_TYPES


SINGLE_LABEL, MULTI_LABEL, REGRESSION = PROBLEM_TYPES
THRESHOLD = 0.5  # of a class's score among several labels: above it the image is taken to have the class


@dataclass(frozen=True)
class Problem:
    """A kind of labels. `titles` are the figures to show, as {key of the results: title}."""

    problem_type: str  # of transformers' configurations
    metric: str  # the key of the results by which the best epoch is chosen
    metric_title: str
    lower_is_better: bool
    is_share: bool  # the metric is a part of 1, for people a percentage
    titles: dict[str, str]
    shares: tuple[str, ...]  # the keys of `titles` that are parts of 1
    columns: dict[str, str]  # of the table of results, as {key of a row: title}; all are shares, or none
    labels: str  # what the names of the labels are the names of
    # More columns, where some classes have many more images to evaluate on than others.
    imbalanced_columns: dict[str, str] = field(default_factory=dict)

    def score(self, results: dict) -> float:
        """The metric, so that more is better."""
        return -results[self.metric] if self.lower_is_better else results[self.metric]

    def shown(self, value: float | None, digits: int = 1) -> str:
        """A value of the metric for people, empty for None. `digits` are those of a percentage."""
        if value is None:
            return ""
        return f"{100 * value:.{digits}f}" if self.is_share else f"{value:.4g}"

    def progress(self, results: dict) -> str:
        """The results of an epoch in a line."""
        metric = self.shown(results[self.metric], 2) + (" %" if self.is_share else "")
        return f"{self.metric_title} {metric}  loss {results['loss']:.4f}"


PROBLEMS = {
    problem.problem_type: problem
    for problem in (
        Problem(
            SINGLE_LABEL,
            metric="accuracy",
            metric_title="accuracy",
            lower_is_better=False,
            is_share=True,
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
            labels="classes",
            imbalanced_columns={"balanced_accuracy": "balanced", "f1_macro": "F1 macro", "auroc": "AUROC"},
        ),
        Problem(
            MULTI_LABEL,
            metric="mean_average_precision",
            metric_title="mean average precision",
            lower_is_better=False,
            is_share=True,
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
            labels="classes, several an image",
        ),
        Problem(
            REGRESSION,
            metric="mean_squared_error",
            metric_title="mean squared error",
            lower_is_better=True,
            is_share=False,
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
            labels="targets",
        ),
    )
}
