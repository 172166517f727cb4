"""Draws the charts of a run: loss, accuracy by epoch, accuracy by tuned blocks, confusion matrix. Each function
returns a figure. `figures.py` saves it as a file or as part of a page."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .problem import Problem


COLOURS = 10  # line colours before matplotlib repeats them
LINE_STYLES = ("-", "--", ":", "-.")
BEGINNING = 0.1  # share of a run; its losses are so high that they would flatten the rest of the curve
Log = list[dict[str, Any]]
Points = Sequence[tuple[float, float]]


def loss_curve(log: Log, *, normalised: bool = False) -> Figure:
    """Loss and learning rate against epochs. The learning rate has its own axis.

    The loss's axis leaves out values that only the beginning reaches. With `normalised` patches, a line at 1 shows the
    loss of predicting each patch's mean. Vertical lines show where the image size changes.
    """
    figure, axes = _axes("loss on masked patches")
    losses = _points(log, "loss")
    _plot(axes, losses, color="tab:blue")
    low, high = _without_beginning([losses])
    axes.set_ylim(low, high)
    if normalised:
        place = "" if low < 1 < high else " (above)" if high <= 1 else " (below)"
        axes.axhline(1, color="tab:red", linestyle=":", linewidth=1, label=f"loss of the patch's mean: 1{place}")
    entries = [entry for entry in log if "loss" in entry]
    changes = [a["epoch"] for a, b in pairwise(entries) if a.get("image_size") != b.get("image_size")]
    for epoch in changes:
        label = "images of another size" if epoch == changes[0] else None
        axes.axvline(epoch, color="tab:green", linestyle=":", linewidth=1, label=label)
    if normalised or changes:
        axes.legend(loc="upper right", fontsize="small", framealpha=0)
    rate_axes = axes.twinx()
    rate_axes.plot(*_columns(_points(entries, "learning_rate")), color="tab:gray", linestyle="--", linewidth=1)
    rate_axes.set_ylabel("learning rate (dashed)")
    return figure


def features_curve(log: Log, k: int, title: str = "k-NN accuracy") -> Figure:
    """k-NN accuracy (`k` neighbours; `title` names another metric) of the features against epochs, beginning with the
    untrained encoder or the starting weights, and their effective rank on a second axis. Lines show raw pixels and the
    starting weights. `log` has the entries of `FeatureGrowth`."""
    baselines, *later = log
    first = "_start" if "rank_start" in baselines else "_untrained"
    start = {key.removesuffix(first): value for key, value in baselines.items() if key.endswith(first)}
    entries = [{"epoch": 0.0, **start}, *later]
    accuracies = _points(entries, "knn", 100)
    figure, axes = _axes(f"{title}, k = {k} (%)" if accuracies else "")
    rank_axes = axes
    if accuracies:
        _plot(axes, accuracies, color="tab:blue")
        _baseline(axes, baselines.get("knn_raw_pixels"), "raw pixels", 0.01)
        _baseline(axes, baselines.get("knn_start"), "starting weights", 0.99)
        rank_axes = axes.twinx()
    rank_axes.plot(*_columns(_points(entries, "rank")), color="tab:orange", linestyle="--")
    rank_axes.set_ylabel("effective rank (dashed)")
    return figure


def _baseline(axes: Axes, accuracy: float | None, name: str, place: float) -> None:
    """A horizontal line, whose name is at this place, 0..1, of the width."""
    if accuracy is not None:
        axes.axhline(100 * accuracy, color="tab:gray", linestyle=":" if place < 0.5 else "--", linewidth=1)
        side, where = "left" if place < 0.5 else "right", ("axes fraction", "data")
        axes.annotate(name, (place, 100 * accuracy), xycoords=where, size="small", va="bottom", ha=side)


def training_curve(log: Log, problem: Problem) -> Figure:
    """Training loss and the problem's metric on the evaluation images against epochs, each with its own axis."""
    figure, axes = _axes("training loss (gray)")
    axes.grid(visible=False)
    axes.plot(*_columns(_points(log, "loss")), color="tab:gray")
    metric_axes = axes.twinx()
    _plot(metric_axes, _points(log, f"eval_{problem.metric}", problem.scale), color="tab:blue")
    metric_axes.set_ylabel(problem.axis_title)
    metric_axes.grid(alpha=0.3)
    return figure


def runs_curve(series: Mapping[str, Points], title: str, *, zoomed: bool = False) -> Figure:
    """Curves of several runs in one chart: `series` is {run: [(epoch, value), ...]}.

    With `zoomed`, the value axis leaves out values that only the beginning reaches."""
    figure, axes = _axes(title, (8, 4.5))
    for number, (name, points) in enumerate(series.items()):
        style = LINE_STYLES[number // COLOURS % len(LINE_STYLES)]  # another style when the colours repeat
        label = name if not name.startswith("_") else f" {name}"  # matplotlib leaves out names that begin so
        _plot(axes, points, color=f"C{number}", linestyle=style, label=label)
    if zoomed:
        axes.set_ylim(*_without_beginning(list(series.values())))
    axes.legend(framealpha=0, fontsize="small")
    return figure


def partial_curve(
    accuracies: dict[float, float],
    problem: Problem,
    from_scratch: float | None = None,
    images: dict[float | None, int] | None = None,
) -> Figure:
    """Accuracy against the number of tuned blocks (the paper's Figure 9).

    `accuracies` is {tuned blocks: accuracy in 0..1, or the problem's own metric}. `from_scratch`, the accuracy of
    training from scratch, is a horizontal line. `images` is {tuned blocks, or None for from scratch: images trained
    on}. Points with different numbers of images are not joined."""
    figure, axes = _axes(problem.axis_title, (6, 4))
    blocks, scale, images = sorted(accuracies), problem.scale, images or {}
    # Equal steps, because on a true scale 0, 0.5 and 1 would crowd together.
    points = [(place, scale * accuracies[n]) for place, n in enumerate(blocks)]
    counts = [images.get(n) for n in blocks]
    several = len(set(counts)) > 1

    def label(title: str, count: int | None) -> str:
        return f"{title}, {count:,} labelled images" if several and count else title

    for count in dict.fromkeys(counts):
        same = [point for point, images_of_it in zip(points, counts, strict=True) if images_of_it == count]
        axes.plot(*_columns(same), marker="o", label=label("pre-trained", count))
    for place, value in points:
        text = problem.shown(value / scale)
        axes.annotate(text, (place, value), (0, 6), textcoords="offset points", ha="center", size=8)
    if from_scratch is not None:
        title = label("from scratch, all blocks", images.get(None))
        axes.axhline(scale * from_scratch, color="tab:gray", linestyle="--", label=title)
    if from_scratch is not None or several:
        axes.legend(framealpha=0)
    axes.set_xticks(range(len(blocks)), [f"{n:g}" for n in blocks])
    axes.set_xlabel("blocks tuned")
    axes.margins(y=0.15)
    return figure


def confusion_picture(confusion: list[list[int]], names: list[str]) -> Figure:
    """The confusion matrix. Its rows are the true classes, its columns the predicted ones.

    A cell's colour shows its share of its row. With at most 20 classes the cells also show the counts."""
    counts = np.asarray(confusion)  # (classes, classes)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    inches = 3 + min(12, 0.35 * len(names))
    figure = Figure(figsize=(inches, inches), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    size = 8 if len(names) <= 40 else 4
    # Without `parse_math`, matplotlib does not read a name with a dollar as a formula.
    axes.set_xticks(range(len(names)), names, rotation=90, size=size, parse_math=False)
    axes.set_yticks(range(len(names)), names, size=size, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= 20:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", size=7, color=color)
    return figure


# --- shared by all charts ---


def _axes(title: str, size: tuple[float, float] = (7, 4)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="epoch", ylabel=title)
    axes.grid(alpha=0.3)
    return figure, axes


def _plot(axes: Axes, points: Points, **style: Any) -> None:
    marker = "." if len(points) < 50 else None  # more markers would overlap
    axes.plot(*_columns(points), marker=marker, **style)


def _points(log: Log, key: str, scale: float = 1) -> Points:
    return [(entry["epoch"], scale * entry[key]) for entry in log if key in entry]


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _without_beginning(curves: list[Points]) -> tuple[float, float]:
    """The smallest and the largest value that an axis shows."""
    later = [value for curve in curves for _, value in curve[int(BEGINNING * len(curve)) :]]
    margin = 0.05 * (max(later) - min(later)) or 0.05 * abs(later[0]) or 0.05
    return min(later) - margin, max(later) + margin
