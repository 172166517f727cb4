"""Whether one kind of training is better than another: a paired bootstrap over the evaluation images, and how many
times the labels the difference is worth."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from ..errors import UserError
from ..files import replacing, write_json
from ..report.worth import VERDICTS, Verdict
from ..tasks import Task
from ..tasks.metrics import drawn_sets


EACH_IMAGE = "each_image.npy"  # in the folder of a training
COVERED = 0.95  # the share of intervals that hold the truth
ROUNDING = 1e-12  # smaller shares of a metric are errors of rounding


def save_each_image(folder: Path, values: np.ndarray) -> None:
    """Keeps what a classifier got right, ``(images, n)``, in its folder."""
    with replacing(folder / EACH_IMAGE) as partial, partial.open("wb") as file:
        np.save(file, values.astype(np.float32))


@dataclass(frozen=True)
class Judged:
    """What one training got right. All arms are tested on the same images in the same order."""

    values: np.ndarray  # (images, n), those of `Task.each_image`
    arm: str  # own pre-training, from scratch, ...
    fraction: float  # of the labels
    seed: int
    labels: int  # images that it was trained on
    groups: np.ndarray | None = None  # (images,) of the images, drawn together


@dataclass(frozen=True)
class Curve:
    """An arm's metric by labels, the fewest labels first; more is better."""

    labels: np.ndarray  # (fractions,)
    scores: np.ndarray  # (fractions, seeds)
    drawn: np.ndarray  # (fractions, seeds, draws), on drawn sets of images
    units: int  # images, or groups of them, that a set draws


@dataclass(frozen=True)
class Comparison:
    """Which arms of a run are compared."""

    pairs: list[tuple[str, str]]  # the first of each with the second
    tune: str  # the option's value
    groups: dict[Path, np.ndarray | None]  # by the folder of each training: the groups of its evaluation images


def write_verdicts(folder: Path, comparison: Comparison | None, rows: list[dict], task: Task) -> None:
    """Writes worth.json, if anything is compared. `rows` are the results of its trainings, in their order.

    Raises:
        UserError: what a training got right is not in its folder.
    """
    if comparison is None:
        (folder / VERDICTS).unlink(missing_ok=True)  # of an earlier call that compared
        return
    tested = [
        Judged(_load_each_image(place, row), row["arm"], row["label_fraction"], row["seed"], row["images"], groups)
        for (place, groups), row in zip(comparison.groups.items(), rows, strict=True)
    ]
    written = verdicts(tested, comparison.pairs, task.resampled, task.problem.lower_is_better)
    write_json(folder / VERDICTS, [asdict(replace(verdict, tune=comparison.tune)) for verdict in written])


def _load_each_image(folder: Path, row: dict) -> np.ndarray:
    """What `save_each_image` kept, ``(images, n)`` float64. `row` are the training's results."""
    path = folder / EACH_IMAGE
    try:
        if path.is_symlink() or "arm" not in row:
            raise ValueError("a link, or of an earlier version")
        values = np.load(path, allow_pickle=False)
        if values.ndim != 2:
            raise ValueError(f"{values.ndim} axes")
        return values.astype(np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error}), and without it this training cannot be compared: remove its "
            "folder and go on with --resume_from_checkpoint auto"
        ) from None


def verdicts(
    tested: Sequence[Judged],
    pairs: Sequence[tuple[str, str]],
    resampled: Callable[[np.ndarray, np.ndarray], np.ndarray],
    lower_is_better: bool = False,
) -> list[Verdict]:
    """Compares the first arm of each pair with the second. Several trainings of an arm with the same fraction and seed
    are those of folds, whose images together are one set. `resampled` is that of the task."""
    curves = {}
    for arm in dict.fromkeys(arm for pair in pairs for arm in pair):
        curves[arm] = _curve([one for one in tested if one.arm == arm], resampled, -1 if lower_is_better else 1)
    return [compare(first, second, curves[first], curves[second]) for first, second in pairs]


def _curve(trained: list[Judged], resampled: Callable, sign: int) -> Curve:
    fractions, seeds = sorted({one.fraction for one in trained}), sorted({one.seed for one in trained})
    cells = [[[one for one in trained if (one.fraction, one.seed) == (f, s)] for s in seeds] for f in fractions]
    values = [[np.concatenate([one.values for one in folds]) for folds in row] for row in cells]
    groups, first = None, cells[0][0]
    if first[0].groups is not None:
        groups = np.unique(np.concatenate([one.groups for one in first]), return_inverse=True)[1]
    everything = np.ones((1, len(values[0][0])))
    scores = np.array([[resampled(each, everything)[0] for each in row] for row in values])
    drawn = [
        [[resampled(each, times) for each in row] for row in values] for times in drawn_sets(everything.size, groups)
    ]
    labels = np.array([np.mean([one.labels for folds in row for one in folds]) for row in cells])
    units = everything.size if groups is None else int(groups.max()) + 1
    return Curve(labels, sign * scores, sign * np.concatenate([np.array(block) for block in drawn], 2), units)


def interval(drawn: np.ndarray, units: int, noise: float = 0.0) -> list:
    """95% of values on drawn sets ``(..., draws)``, as lists of two. An end that is smaller than `noise` is 0.

    The quantiles are those of Hesterberg's expanded percentile interval (arXiv 1411.5279): sets drawn from few `units`
    differ a little less than sets of new ones would.
    """
    widened = np.sqrt(units / max(1, units - 1)) * stats.t.ppf((1 + COVERED) / 2, max(1, units - 1))
    ends = np.quantile(drawn, stats.norm.cdf([-widened, widened]), axis=-1)
    return np.moveaxis(np.where(np.abs(ends) < noise, 0.0, ends), 0, -1).tolist()


def compare(arm: str, against: str, first: Curve, second: Curve) -> Verdict:
    """The verdict on `arm` with the curve `first`, and on `against`, which had the same labels and seeds."""
    gains, drawn = first.scores - second.scores, first.drawn - second.drawn
    signs = np.sign(gains.mean(0))  # (seeds,)
    noise = ROUNDING * float(max(np.abs(curve.drawn).max() for curve in (first, second)))
    verdict = Verdict(
        arm=arm,
        against=against,
        labels=first.labels.round().astype(int).tolist(),
        differences=gains.mean(1).tolist(),
        intervals=interval(drawn.mean(1), first.units, noise),
        difference=float(gains.mean()),
        interval=interval(drawn.mean((0, 1)), first.units, noise),
        seeds_agree=not signs.min() < 0 < signs.max(),
        units=first.units,
    )
    return _with_times(verdict, first, second) if len(first.labels) > 1 else verdict


def _with_times(verdict: Verdict, first: Curve, second: Curve) -> Verdict:
    """The verdict with how many times the labels the second arm needs for the same metric."""
    firsts, seconds = (np.maximum.accumulate(curve.scores.mean(1)) for curve in (first, second))
    low, high = max(firsts[0], seconds[0]), min(firsts[-1], seconds[-1])
    if low > high:  # the curves have no value in common
        more = firsts[0] > seconds[-1]
        ratio = second.labels[-1] / first.labels[0] if more else second.labels[0] / first.labels[-1]
        return replace(verdict, times=float(ratio), bound="more" if more else "less")
    level = float(low) if low == high else round_level(low, high)
    times = labels_for(level, second.labels, seconds) / labels_for(level, first.labels, firsts)
    drawn = [
        labels_for(level, second.labels, b) / labels_for(level, first.labels, a)
        for a, b in zip(first.drawn.mean(1).T, second.drawn.mean(1).T, strict=True)
    ]
    times_interval = interval(np.array(drawn), first.units)
    return replace(verdict, level=abs(level), times=times, times_interval=times_interval)


def labels_for(level: float, labels: np.ndarray, scores: np.ndarray) -> float:
    """The labels with which a curve first reaches `level`, on a line between its points over the logarithm of the
    labels. Beyond its ends, the labels of the end."""
    reached = np.maximum.accumulate(scores)
    first = int(np.searchsorted(reached, level))
    ends = slice(max(0, first - 1), first + 1)
    return float(np.exp(np.interp(level, reached[ends], np.log(labels[ends]))))


def round_level(low: float, high: float) -> float:
    """A round number near the middle of `low` and `high`, and between them."""
    middle, step = (low + high) / 2, 10.0 ** math.ceil(math.log10(high - low))
    while True:
        for part in (1, 2, 5):
            level = round(middle / step * part) * step / part
            if low <= level <= high:
                return round(level, 12)
        step /= 10
