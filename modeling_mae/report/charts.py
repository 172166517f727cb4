"""Charts of a run: loss, accuracy by epoch, accuracy by tuned blocks, confusion matrix. Each function gives a figure;
`figures.py` makes files and parts of pages of them."""

from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from .problem import Problem


COLOURS = 10  # that matplotlib draws one line after the other in
LINE_STYLES = ("-", "--", ":", "-.")
BEGINNING = 0.1  # of a run: its losses are far above all others, and would flatten the rest of the curve


def loss_curve(log_history: list[dict], *, normalised: bool = False) -> Figure:
    """Loss and learning rate against epochs. The learning rate has its own axis.

    The loss's axis leaves out what only the beginning reaches. With `normalised` patches a line at 1 shows the loss of
    predicting each patch's mean. Where the images change their size, there is a line too.
    """
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    log_history = [entry for entry in log_history if "loss" in entry]
    epochs = [entry["epoch"] for entry in log_history]
    losses = [entry["loss"] for entry in log_history]
    rates = [entry["learning_rate"] for entry in log_history]
    axes.plot(epochs, losses, color="tab:blue", marker=_marker(losses))
    axes.set(xlabel="epoch", ylabel="loss on masked patches")
    low, high = _without_beginning([losses])
    axes.set_ylim(low, high)
    if normalised:
        place = "" if low < 1 < high else " (above)" if high <= 1 else " (below)"
        axes.axhline(1, color="tab:red", linestyle=":", linewidth=1, label=f"loss of the patch's mean: 1{place}")
    changes = [a["epoch"] for a, b in pairwise(log_history) if a.get("image_size") != b.get("image_size")]
    for epoch in changes:
        label = "images of another size" if epoch == changes[0] else None
        axes.axvline(epoch, color="tab:green", linestyle=":", linewidth=1, label=label)
    if normalised or changes:
        axes.legend(loc="upper right", fontsize="small", framealpha=0)
    axes.grid(alpha=0.3)
    rate_axes = axes.twinx()
    rate_axes.plot(epochs, rates, color="tab:gray", linestyle="--", linewidth=1)
    rate_axes.set_ylabel("learning rate (dashed)")
    return figure


def features_curve(log_history: list[dict], k: int) -> Figure:
    """k-NN accuracy (`k` neighbours) of the features against epochs, from the untrained encoder on, and their
    effective rank on an axis of its own. A line shows raw pixels. Entries as `FeatureGrowth` measures them."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    baselines = log_history[0]
    start = {key.removesuffix("_untrained"): value for key, value in baselines.items() if key.endswith("_untrained")}
    entries = [{"epoch": 0.0, **start}, *log_history[1:]]
    accuracies = [(entry["epoch"], 100 * entry["knn"]) for entry in entries if "knn" in entry]
    ranks = [(entry["epoch"], entry["rank"]) for entry in entries if "rank" in entry]
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    rank_axes = axes
    if accuracies:
        axes.plot(*_columns(accuracies), color="tab:blue", marker=_marker(accuracies))
        axes.set_ylabel(f"k-NN accuracy, k = {k} (%)")
        if "knn_raw_pixels" in baselines:
            height = 100 * baselines["knn_raw_pixels"]
            axes.axhline(height, color="tab:gray", linestyle=":", linewidth=1)
            axes.annotate("raw pixels", (0.01, height), xycoords=("axes fraction", "data"), size="small", va="bottom")
        rank_axes = axes.twinx()
    rank_axes.plot(*_columns(ranks), color="tab:orange", linestyle="--")
    rank_axes.set_ylabel("effective rank (dashed)")
    return figure


def training_curve(log_history: list[dict], problem: Problem) -> Figure:
    """Training loss and accuracy on the evaluation images against epochs. The accuracy, or the
    problem's own metric, has its own axis."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    losses = [(entry["epoch"], entry["loss"]) for entry in log_history if "loss" in entry]
    key, scale = f"eval_{problem.metric}", 100 if problem.is_share else 1
    accuracies = [(entry["epoch"], scale * entry[key]) for entry in log_history if key in entry]
    axes.plot(*_columns(losses), color="tab:gray")
    axes.set(xlabel="epoch", ylabel="training loss (gray)")
    accuracy_axes = axes.twinx()
    accuracy_axes.plot(*_columns(accuracies), color="tab:blue", marker=_marker(accuracies))
    accuracy_axes.set_ylabel(_axis_title(problem))
    accuracy_axes.grid(alpha=0.3)
    return figure


def runs_curve(series: dict[str, list[tuple[float, float]]], title: str, *, settles: bool = False) -> Figure:
    """Curves of several runs over each other: `series` are {run: [(epoch, value), ...]}.

    `settles`: the axis of the values leaves out what only the beginning reaches."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        style = LINE_STYLES[number // COLOURS % len(LINE_STYLES)]  # where the colours begin anew
        label = name if not name.startswith("_") else f" {name}"  # matplotlib leaves out names that begin so
        axes.plot(*_columns(points), color=f"C{number}", linestyle=style, marker=_marker(points), label=label)
    axes.set(xlabel="epoch", ylabel=title)
    if settles:
        axes.set_ylim(*_without_beginning([_columns(points)[1] for points in series.values()]))
    for text in axes.legend(framealpha=0, fontsize="small").get_texts():
        text.set_parse_math(False)  # a name with a dollar is no formula
    axes.grid(alpha=0.3)
    return figure


def _without_beginning(curves: list[list[float]]) -> tuple[float, float]:
    """The smallest and the largest value that an axis shows."""
    later = [value for curve in curves for value in curve[int(BEGINNING * len(curve)) :]]
    margin = 0.05 * (max(later) - min(later)) or 0.05 * abs(later[0]) or 0.05
    return min(later) - margin, max(later) + margin


def _marker(points: list) -> str | None:
    return "." if len(points) < 50 else None  # more markers would run into each other


def _axis_title(problem: Problem) -> str:
    return f"{problem.metric_title} (%)" if problem.is_share else problem.metric_title


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def partial_curve(
    accuracies: dict[float, float],
    problem: Problem,
    from_scratch: float | None = None,
    images: dict[float | None, int] | None = None,
) -> Figure:
    """Accuracy against the number of tuned blocks (the paper's Figure 9).

    `accuracies` is {tuned blocks: accuracy in 0..1, or the problem's own metric}. `from_scratch`, that of
    training from scratch, is drawn as a horizontal line. `images` is {tuned blocks: images trained on}, None
    being from scratch: points of different numbers of images are not joined."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    blocks = sorted(accuracies)
    scale = 100 if problem.is_share else 1
    percents = [scale * accuracies[n] for n in blocks]
    places = range(len(blocks))  # equal steps: on a true scale 0, 0.5 and 1 would crowd together beside 12
    images = images or {}
    counts = [images.get(n) for n in blocks]
    several = len(set(counts)) > 1

    def label(title: str, count: int | None) -> str:
        return f"{title}, {count:,} labelled images" if several and count else title

    for count in dict.fromkeys(counts):
        points = [(place, percents[place]) for place in places if counts[place] == count]
        axes.plot(*_columns(points), marker="o", label=label("pre-trained", count))
    for place, percent in zip(places, percents, strict=True):
        axes.annotate(
            problem.shown(percent / scale), (place, percent), (0, 6), textcoords="offset points", ha="center", size=8
        )
    if from_scratch is not None:
        axes.axhline(
            scale * from_scratch,
            color="tab:gray",
            linestyle="--",
            label=label("from scratch, all blocks", images.get(None)),
        )
    if from_scratch is not None or several:
        axes.legend(framealpha=0)
    axes.set_xticks(places, [f"{n:g}" for n in blocks])
    axes.set(xlabel="blocks tuned", ylabel=_axis_title(problem))
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    return figure


def confusion_picture(confusion: list[list[int]], names: list[str]) -> Figure:
    """The confusion matrix. Its rows are the true classes, its columns the predicted ones.

    A cell's colour is its share of the images of its row. With at most 20 classes there is room for the counts."""
    counts = np.asarray(confusion)  # (classes, classes)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    inches = 3 + min(12, 0.35 * len(names))
    figure = Figure(figsize=(inches, inches), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    size = 8 if len(names) <= 40 else 4
    as_it_is = {"size": size, "parse_math": False}  # a name with a dollar is no formula
    axes.set_xticks(range(len(names)), names, rotation=90, **as_it_is)
    axes.set_yticks(range(len(names)), names, **as_it_is)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= 20:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", size=7, color=color)
    return figure
