"""Whether pre-training was worth it: a figure of the metric against labels, a table, and a sentence."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .parts import Part, Picture, Table, Text
from .problem import Problem


VERDICTS, PICTURE = "worth.json", "worth.png"
FEWEST = 6  # images or groups: five agree by chance in 6% of cases, six in 3%
OWN, START, SCRATCH = "n_partial-", "start-", "from-scratch"  # how the names of the arms begin


@dataclass(frozen=True)
class Verdict:
    """`arm` compared with `against`. Differences are those of the metric, above 0 where `arm` is better."""

    arm: str
    against: str
    labels: list[int]  # images of the trainings, the fewest first
    differences: list[float]  # for each of these, the mean over the seeds
    intervals: list[list[float]]  # 95% of each
    difference: float  # the mean of all
    interval: list[float]
    seeds_agree: bool  # whether no two seeds have opposite signs
    level: float | None = None  # the value of the metric at which `times` is read from the curves
    times: float | None = None  # how many times the labels `against` needs; None for a single number of labels
    times_interval: list[float] | None = None
    bound: str = ""  # more or less, if the curves have no value in common: `times` is only a bound
    units: int | None = None  # images to evaluate on, or groups of them; None: not known
    tune: str = "all"  # the option's value; it does not concern training from scratch

    @property
    def is_whole(self) -> bool:
        """Whether the lists have the lengths that belong together, as a file may not."""
        intervals = [*self.intervals, self.interval, self.times_interval or self.interval]
        return len(self.labels) == len(self.differences) == len(self.intervals) > 0 and {*map(len, intervals)} == {2}

    @property
    def is_clear(self) -> bool:
        """Whether the difference is beyond chance."""
        return self.seeds_agree and not self.is_of_few and self.interval[0] * self.interval[1] > 0

    @property
    def is_of_few(self) -> bool:
        """Whether the evaluation set is too small to tell a difference from chance."""
        return self.units is not None and self.units < FEWEST


def arm_title(arm: str, tune: str = "all") -> str:
    """An arm in words. `tune` is the option with which it was trained."""
    if arm == SCRATCH:
        return "training from scratch"
    start = "the starting weights" if arm.startswith(START) else "own pre-training"
    return f"{start} ({_blocks(arm, tune)})"


def _blocks(arm: str, tune: str) -> str:
    count = arm.removeprefix(START).removeprefix(OWN)
    if count == "0":
        return "no block tuned"
    return f"{count} block{'s' * (count not in ('0.5', '1'))}{' tuned' if tune == 'all' else f', by {tune}'}"


def verdict_text(verdict: Verdict, problem: Problem) -> str:
    """The verdict as a sentence."""
    arm, against = (arm_title(each, verdict.tune) for each in (verdict.arm, verdict.against))
    arm = arm[0].upper() + arm[1:]
    interval, labels = _interval(verdict.interval, problem), f"{verdict.labels[-1]:,} labels"
    if not verdict.is_clear:
        seeds = "" if verdict.seeds_agree else "; the seeds disagree"
        few = f"; {verdict.units} images or groups are too few to tell" if verdict.is_of_few else ""
        return f"{arm} and {against}: no difference beyond chance ({interval}{seeds}{few})."
    if verdict.difference < 0:
        return f"{arm} is {_points(-verdict.difference, problem)} worse than {against} ({interval})."
    if verdict.times is None:
        return f"{arm} is {_points(verdict.difference, problem)} better than {against} with {labels} ({interval})."
    bound = f"{verdict.bound} than " if verdict.bound else ""
    text = f"{arm} is worth {bound}{_times(verdict.times)} times the labels"
    if verdict.level is not None and verdict.times_interval is not None:
        low, high = verdict.times_interval
        text += f" at {_value(verdict.level, problem)} (95%: {_times(low)} to {_times(high)})"
    low, high = verdict.intervals[-1]
    last = _signed(verdict.differences[-1], problem) if low * high > 0 else "no difference beyond chance"
    interval = _interval(verdict.intervals[-1], problem)
    return f"{text}, compared with {against}. With all {labels}: {last} ({interval})."


def _signed(value: float, problem: Problem) -> str:
    value *= problem.scale
    return f"{value:+.1f}" if problem.is_share else f"{value:+.3g}"


def _interval(interval: list[float], problem: Problem) -> str:
    low, high = (_signed(value, problem) for value in interval)
    return f"95%: {low} to {high}"


def _times(value: float) -> str:
    """Rounded to two digits, without an exponent: 4.1, 12, 1,200."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _points(value: float, problem: Problem) -> str:
    return f"{100 * value:.1f} points" if problem.is_share else f"{value:.3g}"


def _value(value: float, problem: Problem) -> str:
    return f"{100 * value:.4g}%" if problem.is_share else f"{problem.metric_title} {value:.4g}"


# --- curves ---


def curves_of(rows: list[dict[str, Any]], problem: Problem) -> dict[str, list[tuple[float, list[float]]]]:
    """{arm: [(labels, the metric of each seed and fold), ...]}, the fewest labels first."""
    curves: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for row in rows:
        if {"arm", "label_fraction", "images", problem.metric} <= row.keys():
            curves.setdefault(row["arm"], {}).setdefault(row["label_fraction"], []).append(row)
    return {
        arm: [
            (float(np.mean([row["images"] for row in same])), [row[problem.metric] for row in same])
            for _, same in sorted(points.items())
        ]
        for arm, points in curves.items()
    }


def worth_figure(rows: list[dict[str, Any]], problem: Problem) -> Figure:
    """The metric against the number of labels, on a log axis: the mean of each arm, and its range."""
    figure = Figure(figsize=(6.5, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    titles = _titles(rows)
    for number, (arm, points) in enumerate(curves_of(rows, problem).items()):
        labels = [count for count, _ in points]
        values = [problem.scale * np.array(each) for _, each in points]
        axes.plot(labels, [each.mean() for each in values], marker="o", color=f"C{number}", label=titles[arm])
        lowest, highest = ([edge(each) for each in values] for edge in (np.min, np.max))
        axes.fill_between(labels, lowest, highest, color=f"C{number}", alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    ticks = sorted({count for points in curves_of(rows, problem).values() for count, _ in points})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.set_xticks([], minor=True)
    direction = " (lower is better)" if problem.lower_is_better and not problem.is_share else ""
    axes.set(xlabel="labelled images", ylabel=f"{problem.axis_title}{direction}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def worth_table(rows: list[dict[str, Any]], problem: Problem, verdicts: list[Verdict]) -> Table:
    """A row for each arm and one for each comparison, a column for each number of labels."""
    curves, titles = curves_of(rows, problem), _titles(rows)
    counts = [f"{count:,.0f}" for count, _ in next(iter(curves.values()))]
    cells = [
        [titles[arm], *(_mean_and_range(values, problem) for _, values in points)] for arm, points in curves.items()
    ]
    several = len({verdict.arm for verdict in verdicts}) > 1
    for verdict in verdicts:
        whose = f"{_blocks(verdict.arm, verdict.tune)}: " if several and verdict.against == SCRATCH else ""
        pairs = zip(verdict.differences, verdict.intervals, strict=True)
        shown = [f"{_signed(value, problem)} ({_interval(interval, problem)})" for value, interval in pairs]
        cells.append([f"{whose}better than {arm_title(verdict.against, verdict.tune)} by", *shown])
    return Table(cells, ["labelled images", *counts], numbers=True)


def _titles(rows: list[dict[str, Any]]) -> dict[str, str]:
    """{arm: its title}"""
    return {row["arm"]: arm_title(row["arm"], row.get("tune", "all")) for row in rows if "arm" in row}


def _mean_and_range(values: list[float], problem: Problem) -> str:
    mean = problem.shown(float(np.mean(values)))
    return mean if len(values) == 1 else f"{mean} ({problem.shown(min(values))}-{problem.shown(max(values))})"


def worth_parts(rows: list[dict[str, Any]], problem: Problem, verdicts: list[Verdict]) -> list[Part]:
    """Sentences, table and figure. Empty if the run has only one training of each arm and compares nothing."""
    curves = curves_of(rows, problem)
    several = any(len(points) > 1 or len(points[0][1]) > 1 for points in curves.values())
    if not curves or not (verdicts or several):
        return []
    parts: list[Part] = [Text(verdict_text(verdict, problem)) for verdict in verdicts]
    parts.append(worth_table(rows, problem, verdicts))
    if any(len(points) > 1 for points in curves.values()):
        title = f"{problem.metric_title[0].upper()}{problem.metric_title[1:]} by labelled images: mean and range"
        parts.append(Picture(PICTURE, title, chart=worth_figure(rows, problem)))
    return parts
