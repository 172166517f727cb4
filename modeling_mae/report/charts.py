"""Charts of a run: loss, accuracy by epoch, accuracy by tuned blocks, confusion matrix."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..problems import PROBLEMS, SINGLE_LABEL, Problem
from .figures import save_figure


def loss_curve(path: Path, log_history: list[dict]) -> None:
    """Loss and learning rate against epochs. The learning rate has its own axis."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    epochs = [entry["epoch"] for entry in log_history]
    losses = [entry["loss"] for entry in log_history]
    rates = [entry["learning_rate"] for entry in log_history]
    axes.plot(epochs, losses, color="tab:blue")
    axes.set(xlabel="epoch", ylabel="loss on masked patches")
    axes.grid(alpha=0.3)
    rate_axes = axes.twinx()
    rate_axes.plot(epochs, rates, color="tab:gray", linestyle="--", linewidth=1)
    rate_axes.set_ylabel("learning rate (dashed)")
    save_figure(figure, path)


def training_curve(path: Path, log_history: list[dict], problem: Problem = PROBLEMS[SINGLE_LABEL]) -> None:
    """Training loss and accuracy on the evaluation images against epochs. The accuracy, or what else the problem goes
    by, has its own axis."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    losses = [(entry["epoch"], entry["loss"]) for entry in log_history if "loss" in entry]
    key, scale = f"eval_{problem.metric}", 100 if problem.is_share else 1
    accuracies = [(entry["epoch"], scale * entry[key]) for entry in log_history if key in entry]
    axes.plot(*_columns(losses), color="tab:gray")
    axes.set(xlabel="epoch", ylabel="training loss (gray)")
    accuracy_axes = axes.twinx()
    marker = "." if len(accuracies) < 50 else None  # more markers would run into each other
    accuracy_axes.plot(*_columns(accuracies), color="tab:blue", marker=marker)
    accuracy_axes.set_ylabel(_axis_title(problem))
    accuracy_axes.grid(alpha=0.3)
    save_figure(figure, path)


def _axis_title(problem: Problem) -> str:
    return f"{problem.metric_title} (%)" if problem.is_share else problem.metric_title


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def partial_curve(
    path: Path,
    accuracies: dict[float, float],
    from_scratch: float | None = None,
    problem: Problem = PROBLEMS[SINGLE_LABEL],
) -> None:
    """Accuracy against the number of tuned blocks (the paper's Figure 9).

    `accuracies` is {tuned blocks: accuracy in 0..1, or what else the problem goes by}. `from_scratch`, that of
    training from scratch, is drawn as a horizontal line."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    blocks = sorted(accuracies)
    scale = 100 if problem.is_share else 1
    percents = [scale * accuracies[n] for n in blocks]
    places = range(len(blocks))  # equal steps: on a true scale 0, 0.5 and 1 would crowd together beside 12
    axes.plot(places, percents, marker="o", color="tab:blue", label="pre-trained")
    for place, percent in zip(places, percents, strict=True):
        axes.annotate(
            problem.shown(percent / scale), (place, percent), (0, 6), textcoords="offset points", ha="center", size=8
        )
    if from_scratch is not None:
        axes.axhline(scale * from_scratch, color="tab:gray", linestyle="--", label="from scratch, all blocks")
        axes.legend()
    axes.set_xticks(places, [f"{n:g}" for n in blocks])
    axes.set(xlabel="blocks tuned", ylabel=_axis_title(problem))
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def confusion_picture(path: Path, confusion: list[list[int]], names: list[str]) -> None:
    """The confusion matrix. Its rows are the true classes, its columns the predicted ones.

    A cell's colour is its share of the images of its row. With at most 20 classes there is room for the counts."""
    counts = np.asarray(confusion)  # (classes, classes)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    inches = 3 + min(12, 0.35 * len(names))
    figure = Figure(figsize=(inches, inches), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    size = 8 if len(names) <= 40 else 4
    axes.set_xticks(range(len(names)), names, rotation=90, size=size)
    axes.set_yticks(range(len(names)), names, size=size)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= 20:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", size=7, color=color)
    save_figure(figure, path)
