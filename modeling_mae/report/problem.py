"""What a report must know about a task, as plain values: its metrics, its words, and how to use its model."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """The metrics of a task. `titles` are the metrics to show, as {key of the results: title}."""

    problem_type: str  # as in --problem_type
    label: str  # the word for one label, as in "1 class"
    labels: str  # the word for several
    metric: str  # the key of the results that chooses the best epoch
    metric_title: str
    lower_is_better: bool
    is_share: bool  # the metric is in 0..1, and is shown as a percentage
    unit: str  # a sentence about the table of results, or empty
    titles: dict[str, str]
    shares: tuple[str, ...]  # the keys of `titles` with values in 0..1
    columns: dict[str, str]  # of the table of results: {key of a row: title}; all are shares, or none
    each: tuple[str, str, str]  # a metric per label: the key of the results, the word for a label, the metric's title
    model: str  # what the card calls the model
    usage: str  # Python lines that use `model`, an `image` and the `inputs` made from it
    confused: str = "images"  # what a confusion matrix counts
    auto_class: str = "AutoModelForImageClassification"  # transformers' class that loads the model
    hub_task: str = "image-classification"  # the name of the task on the Hub and in pipelines
    # Columns to add if some classes have many more evaluation images than others.
    imbalanced_columns: dict[str, str] = field(default_factory=dict)

    @property
    def scale(self) -> int:
        """The factor by which a value of the metric is shown."""
        return 100 if self.is_share else 1

    @property
    def axis_title(self) -> str:
        return f"{self.metric_title} (%)" if self.is_share else self.metric_title

    @property
    def knn_title(self) -> str:
        return f"k-NN {self.metric_title}"

    def score(self, results: dict) -> float:
        """The metric with the sign for which more is better."""
        return -results[self.metric] if self.lower_is_better else results[self.metric]

    def shown(self, value: float | None, digits: int = 1) -> str:
        """A value of the metric as text, empty for None. `digits` is the number of decimals of a percentage."""
        if value is None:
            return ""
        return f"{100 * value:.{digits}f}" if self.is_share else f"{value:.4g}"

    def progress(self, results: dict) -> str:
        """The results of an epoch in one line."""
        metric = self.shown(results[self.metric], 2) + (" %" if self.is_share else "")
        return f"{self.metric_title} {metric}  loss {results['loss']:.4f}"

    def count(self, number: int) -> str:
        """`number` labels in words, as "10 classes"."""
        return f"{number} {self.label if number == 1 else self.labels}"


# By `problem_type`. `tasks/__init__.py` fills it, because this room does not import that one.
PROBLEMS: dict[str, Problem] = {}


def problem_named(problem_type: str | None) -> Problem:
    """None means one class per image: early results do not name it."""
    return PROBLEMS[problem_type or "single_label_classification"]
