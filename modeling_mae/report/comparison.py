"""A page that compares runs: results side by side, curves over each other, the settings that differ."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .charts import runs_curve
from .figures import chart_uri, picture_uri
from .page import Picture, Row, Section, Table, write_page
from .problem import Problem
from .results import row_title
from .run import EVALUATION, PRETRAINING, RunFiles, read_run
from .run_pages import pretraining_figures, run_figures, settings_parts


def compare_runs(folders: list[Path], out: Path, problems: Sequence[Problem]) -> None:
    """Writes the page `out` about the runs in `folders`, pre-trainings and evaluations. What each evaluation has
    learnt is one of the `problems`.

    Raises:
        UserError: a folder holds no run, is given twice, or there is only one; or as `write_page`.
    """
    folders = [Path(folder) for folder in folders]
    places = [folder.resolve() for folder in folders]
    again = next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None)
    if again is not None:
        raise UserError(f"{str(again)!r} is given twice: give each run once")
    if len(folders) < 2:
        raise UserError("only one run is given: give two or more; the page of one is report.html in its folder")
    runs = dict(zip(_names(places), map(read_run, folders), strict=True))
    sections = [
        *_results(runs, problems),
        Section("Curves", [Row(_charts(runs, problems), charts=True)]),
        Section("Settings of pre-training", _settings(runs, PRETRAINING)),
        Section("Settings of evaluation", _settings(runs, EVALUATION)),
        Section("Reconstructions", _reconstructions(runs)),
    ]
    write_page(Path(out), f"{len(runs)} runs compared", ", ".join(runs), sections)


def _names(places: list[Path]) -> list[str]:
    """The last part of each path; of those that share it, as many parts as tell them apart."""
    names = []
    for place in places:
        length = next(
            n
            for n in range(1, len(place.parts) + 1)
            if [other.parts[-n:] for other in places].count(place.parts[-n:]) == 1
        )
        names.append("/".join(place.parts[-length:]))
    return names


# --- results ---


def _results(runs: dict[str, RunFiles], problems: Sequence[Problem]) -> list[Section]:
    pretrained = {name: run for name, run in runs.items() if run.kind == PRETRAINING}
    evaluated = {name: run for name, run in runs.items() if run.kind != PRETRAINING}
    sections = []
    if pretrained:
        about = {name: {"data": _data(run), "model": run.summary.get("architecture", "")} | pretraining_figures(run)
                 for name, run in pretrained.items()}  # fmt: skip
        sections.append(Section("Pre-training", [_side_by_side(about)]))
    for problem in problems:
        same = {name: run for name, run in evaluated.items() if run.problem_among(problems) is problem}
        if same:
            about = {name: {"data": _data(run)} | run_figures(run.summary) for name, run in same.items()}
            parts = [_side_by_side({name: _scores(run, problem) for name, run in same.items()}, mark=problem)]
            parts += [_side_by_side(about)]
            sections.append(Section("Evaluation", parts))
    return sections


def _data(run: RunFiles) -> str:
    images = f"{run.summary['images']:,} images of " if run.summary.get("images") else ""
    return f"{images}{run.summary.get('data', '')}"


def _scores(run: RunFiles, problem: Problem) -> dict[str, str]:
    """The figures of each row of the results, as {row and figure: value for people}."""
    scores = {}
    for row in run.rows:
        title = row_title(row)
        for k, value in row.get("knn", {}).items():
            scores[f"{title}, k-NN ({k})"] = problem.shown(value)
        for key, column in problem.columns.items():
            if row.get(key) is not None:
                scores[f"{title}, {column}"] = problem.shown(row[key])
    return scores


def _side_by_side(figures: dict[str, dict[str, str]], mark: Problem | None = None) -> Table:
    """`figures` are {run: {title: value}}. With `mark` the best value of each row stands out."""
    titles = list(dict.fromkeys(title for values in figures.values() for title in values))
    rows = [[title, *(values.get(title, "") for values in figures.values())] for title in titles]
    marked = set()
    for number, row in enumerate(rows if mark else []):
        values = {column: float(cell) for column, cell in enumerate(row) if column and cell}
        lower = mark.lower_is_better and not row[0].endswith(mark.columns.get("r2", "%"))
        best = min(values.values()) if lower else max(values.values())
        if len(values) > 1 and len(set(values.values())) > 1:
            marked |= {(number, column) for column, value in values.items() if value == best}
    return Table(rows, ["", *figures], numbers=mark is not None, marked=frozenset(marked))


# --- curves ---


def _charts(runs: dict[str, RunFiles], problems: Sequence[Problem]) -> list[Picture]:
    """A chart of each quantity that a run has logged."""
    pretrained = {name: run.training.log for name, run in runs.items() if run.kind == PRETRAINING}
    trained = {
        name if len(run.trainings) == 1 else f"{name}, {training_name}": training.log
        for name, run in runs.items()
        if run.kind != PRETRAINING
        for training_name, training in run.trainings.items()
    }
    charts = [
        _chart(pretrained, "loss", "loss on masked patches", settles=True),
        _chart(pretrained, "knn", "k-NN accuracy (%)", scale=100),
        _chart(pretrained, "rank", "effective rank"),
        _chart(trained, "loss", "training loss", settles=True),
    ]
    for problem in problems:
        unit, scale = (" (%)", 100) if problem.is_share else ("", 1)
        charts.append(_chart(trained, f"eval_{problem.metric}", f"{problem.metric_title}{unit}", scale=scale))
    return [chart for chart in charts if chart is not None]


def _chart(logs: dict[str, list], key: str, title: str, scale: float = 1, settles: bool = False) -> Picture | None:
    series = {}
    for name, log in logs.items():
        series[name] = [(entry["epoch"], scale * entry[key]) for entry in log if key in entry]
    series = {name: points for name, points in series.items() if points}
    return Picture(chart_uri(runs_curve(series, title, settles=settles)), f"{title} of each run") if series else None


# --- settings and pictures ---


def _settings(runs: dict[str, RunFiles], kind: str) -> list:
    trainings = {}
    for name, run in runs.items():
        for training_name, training in run.trainings.items() if run.kind == kind else ():
            trainings[name if len(run.trainings) == 1 else f"{name}, {training_name}"] = training
    return settings_parts(trainings)


def _reconstructions(runs: dict[str, RunFiles]) -> list:
    pictures = [
        Picture(picture_uri(path), f"Reconstructions of {name}", name, on_paper=True)
        for name, run in runs.items()
        if (path := run.folder / "reconstruction.png").exists()
    ]
    return [Row(pictures)] if pictures else []
