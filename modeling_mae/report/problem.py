"""What a report has to know of a task, as plain values: its figures, its words, and how its model is used."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """The figures of a task. `titles` are those to show, as {key of the results: title}."""

    problem_type: str  # as in --problem_type
    label: str  # what one of the labels' names is the name of, as in "1 class"
    labels: str  # the same of several
    metric: str  # the key of the results by which the best epoch is chosen
    metric_title: str
    lower_is_better: bool
    is_share: bool  # the metric is a part of 1, for people a percentage
    unit: str  # a sentence on the table of results, or empty
    titles: dict[str, str]
    shares: tuple[str, ...]  # the keys of `titles` that are parts of 1
    columns: dict[str, str]  # of the table of results, as {key of a row: title}; all are shares, or none
    each: tuple[str, str, str]  # a figure of each label: the key of the results, the label's word, the figure's title
    model: str  # what the card calls the model
    usage: str  # Python lines that show what to do with `model` and the `inputs` made of an image
    auto_class: str = "AutoModelForImageClassification"  # of transformers, that loads the model
    hub_task: str = "image-classification"  # what the Hub calls the task, and pipelines do
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

    def count(self, number: int) -> str:
        """So many labels, in words."""
        return f"{number} {self.label if number == 1 else self.labels}"


# By `problem_type`. `tasks/__init__.py` fills it, since this room does not import that one.
PROBLEMS: dict[str, Problem] = {}


def problem_named(problem_type: str | None) -> Problem:
    """None is one class an image, which early results do not name."""
    return PROBLEMS[problem_type or "single_label_classification"]
