"""Charts of a run: loss, accuracy by epoch, accuracy by tuned blocks, confusion matrix."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

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


def training_curve(path: Path, log_history: list[dict]) -> None:
    """Training loss and accuracy on the evaluation images against epochs. The accuracy has its own axis."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    losses = [(entry["epoch"], entry["loss"]) for entry in log_history if "loss" in entry]
    accuracies = [(entry["epoch"], 100 * entry["eval_accuracy"]) for entry in log_history if "eval_accuracy" in entry]
    axes.plot(*_columns(losses), color="tab:gray")
    axes.set(xlabel="epoch", ylabel="training loss (gray)")
    accuracy_axes = axes.twinx()
    marker = "." if len(accuracies) < 50 else None  # more markers would run into each other
    accuracy_axes.plot(*_columns(accuracies), color="tab:blue", marker=marker)
    accuracy_axes.set_ylabel("accuracy (%)")
    accuracy_axes.grid(alpha=0.3)
    save_figure(figure, path)


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def partial_curve(path: Path, accuracies: dict[float, float], from_scratch: float | None = None) -> None:
    """Accuracy against the number of tuned blocks (the paper's Figure 9).

    `accuracies` is {tuned blocks: accuracy in 0..1}. `from_scratch`, the accuracy of training from scratch, is drawn
    as a horizontal line."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    blocks = sorted(accuracies)
    percents = [100 * accuracies[n] for n in blocks]
    places = range(len(blocks))  # equal steps: on a true scale 0, 0.5 and 1 would crowd together beside 12
    axes.plot(places, percents, marker="o", color="tab:blue", label="pre-trained")
    for place, percent in zip(places, percents, strict=True):
        axes.annotate(f"{percent:.1f}", (place, percent), (0, 6), textcoords="offset points", ha="center", size=8)
    if from_scratch is not None:
        axes.axhline(100 * from_scratch, color="tab:gray", linestyle="--", label="from scratch, all blocks")
        axes.legend()
    axes.set_xticks(places, [f"{n:g}" for n in blocks])
    axes.set(xlabel="blocks tuned", ylabel="accuracy (%)")
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
