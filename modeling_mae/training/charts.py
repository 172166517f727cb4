"""Charts of an evaluation: accuracy by epoch, by blocks tuned (the paper's Figure 9), confusion matrix."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .pictures import save_figure


def training_curve(path: Path, log_history: list[dict]) -> None:
    """Training loss, and accuracy on the evaluation images on an axis of its own, against epochs."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    losses = [entry for entry in log_history if "loss" in entry]
    axes.plot([entry["epoch"] for entry in losses], [entry["loss"] for entry in losses], color="tab:gray")
    axes.set(xlabel="epoch", ylabel="training loss (gray)")
    accuracies = [entry for entry in log_history if "eval_accuracy" in entry]
    other = axes.twinx()
    other.plot(
        [entry["epoch"] for entry in accuracies],
        [100 * entry["eval_accuracy"] for entry in accuracies],
        color="tab:blue",
        marker="." if len(accuracies) < 50 else None,
    )
    other.set_ylabel("accuracy (%)")
    other.grid(alpha=0.3)
    save_figure(figure, path)


def partial_curve(path: Path, accuracies: dict[float, float], from_scratch: float | None = None) -> None:
    """Accuracy (0..1) against the blocks tuned, with training from scratch as a line where it is given."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    blocks = sorted(accuracies)
    places = range(len(blocks))  # 0, 0.5 and 1 would crowd together beside 12
    axes.plot(places, [100 * accuracies[n] for n in blocks], marker="o", color="tab:blue", label="pre-trained")
    for place, n in zip(places, blocks, strict=True):
        text = f"{100 * accuracies[n]:.1f}"
        axes.annotate(text, (place, 100 * accuracies[n]), (0, 6), textcoords="offset points", ha="center", size=8)
    if from_scratch is not None:
        axes.axhline(100 * from_scratch, color="tab:gray", linestyle="--", label="from scratch, all blocks")
        axes.legend()
    axes.set_xticks(places, [f"{n:g}" for n in blocks])
    axes.set(xlabel="blocks tuned", ylabel="accuracy (%)")
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def confusion_picture(path: Path, confusion: list[list[int]], names: list[str]) -> None:
    """Rows the true classes, each as parts of its images; numbers in the cells where there is room."""
    counts = np.asarray(confusion)
    parts = counts / np.maximum(1, counts.sum(1, keepdims=True))
    inches = 3 + min(12, 0.35 * len(names))
    figure = Figure(figsize=(inches, inches), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(parts, vmin=0, vmax=1, cmap="Blues")
    size = 8 if len(names) <= 40 else 4
    axes.set_xticks(range(len(names)), names, rotation=90, size=size)
    axes.set_yticks(range(len(names)), names, size=size)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= 20:
        for row, column in np.ndindex(counts.shape):
            color = "white" if parts[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", size=7, color=color)
    save_figure(figure, path)
