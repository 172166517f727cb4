"""Writes a page that compares runs: results side by side, curves in one chart, settings that differ."""

from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..words import counted
from .charts import runs_curve
from .page import Page, write_page
from .parts import Part, Picture, Row, Section, Table
from .problem import PROBLEMS, Problem
from .results import row_title
from .run import EVALUATION, PRETRAINING, RunFiles, Training, read_run
from .sections import pretraining_figures, run_figures, settings_parts


def compare_runs(folders: list[Path], out: Path) -> None:
    """Writes the page `out` about the runs in `folders`, pre-trainings and evaluations.

    Raises:
        UserError: a folder holds no run or is given twice, only one folder is given, or as `write_page`.
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
        *_results(runs),
        Section("Curves", [Row(_charts(runs), charts=True)]),
        Section("Settings of pre-training", settings_parts(_trainings(runs, PRETRAINING))),
        Section("Settings of evaluation", settings_parts(_trainings(runs, EVALUATION))),
        Section("Reconstructions", _reconstructions(runs)),
    ]
    write_page(Path(out), Page(f"{len(runs)} runs compared", ", ".join(runs), sections))


def _names(places: list[Path]) -> list[str]:
    """The last part of each path. Paths with the same last part get as many parts as they need to differ."""
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


def _results(runs: dict[str, RunFiles]) -> list[Section]:
    pretrained = {name: run for name, run in runs.items() if run.kind == PRETRAINING}
    sections = []
    if pretrained:
        about = {
            name: {"data": _data(run), "model": run.summary.get("architecture", "")} | pretraining_figures(run)
            for name, run in pretrained.items()
        }
        sections.append(Section("Pre-training", [_side_by_side(about)]))
    for problem in PROBLEMS.values():
        same = {name: run for name, run in runs.items() if run.kind != PRETRAINING and run.problem is problem}
        if same:
            about = {name: {"data": _data(run)} | run_figures(run) for name, run in same.items()}
            scores = _best_marked(_side_by_side({name: _scores(run) for name, run in same.items()}), problem)
            sections.append(Section("Evaluation", [scores, _side_by_side(about)]))
    return sections


def _data(run: RunFiles) -> str:
    images = f"{counted(run.summary['images'], 'image')} of " if run.summary.get("images") else ""
    return f"{images}{run.summary.get('data', '')}"


def _scores(run: RunFiles) -> dict[str, str]:
    """The metrics of each row of results as {"row, metric": text}."""
    problem, scores = run.problem, {}
    for row in run.rows:
        title = row_title(row)
        for k, value in row.get("knn", {}).items():
            scores[f"{title}, k-NN ({k})"] = problem.shown(value)
        for key, column in problem.columns.items():
            if row.get(key) is not None:
                scores[f"{title}, {column}"] = problem.shown(row[key])
    return scores


def _side_by_side(figures: dict[str, dict[str, str]]) -> Table:
    """`figures` is {run: {title: value}}."""
    titles = list(dict.fromkeys(title for values in figures.values() for title in values))
    rows = [[title, *(values.get(title, "") for values in figures.values())] for title in titles]
    return Table(rows, ["", *figures])


def _best_marked(table: Table, problem: Problem) -> Table:
    """The table with the best value of each row marked."""
    marked = set()
    for number, row in enumerate(table.rows):
        values = {column: float(cell) for column, cell in enumerate(row) if column and cell}
        lower = problem.lower_is_better and not row[0].endswith(problem.columns.get("r2", "%"))
        best = (min if lower else max)(values.values())
        if len(set(values.values())) > 1:
            marked |= {(number, column) for column, value in values.items() if value == best}
    return replace(table, numbers=True, marked=frozenset(marked))


# --- curves ---


def _charts(runs: dict[str, RunFiles]) -> list[Picture]:
    """A chart for each quantity that a run has logged."""
    pretrained, trained = _trainings(runs, PRETRAINING), _trainings(runs, EVALUATION)
    charts = [
        _chart(pretrained, "loss", "loss on masked patches", zoomed=True),
        _chart(pretrained, "knn", f"{_knn_title(runs)} (%)", scale=100),
        _chart(pretrained, "rank", "effective rank"),
        _chart(trained, "loss", "training loss", zoomed=True),
    ]
    for problem in PROBLEMS.values():
        charts.append(_chart(trained, f"eval_{problem.metric}", problem.axis_title, scale=problem.scale))
    return [chart for chart in charts if chart is not None]


def _knn_title(runs: dict[str, RunFiles]) -> str:
    """Names the metric if all pre-trainings have the same."""
    titles = {run.problem.knn_title for run in runs.values() if run.kind == PRETRAINING}
    return titles.pop() if len(titles) == 1 else "k-NN"


def _trainings(runs: dict[str, RunFiles], kind: str) -> dict[str, Training]:
    return {
        name if len(run.trainings) == 1 else f"{name}, {training_name}": training
        for name, run in runs.items()
        for training_name, training in run.trainings.items()
        if run.kind == kind
    }


def _chart(
    trainings: dict[str, Training], key: str, title: str, scale: float = 1, zoomed: bool = False
) -> Picture | None:
    series = {
        name: [(entry["epoch"], scale * entry[key]) for entry in training.log if key in entry]
        for name, training in trainings.items()
    }
    series = {name: points for name, points in series.items() if points}
    return Picture("", f"{title} of each run", chart=runs_curve(series, title, zoomed=zoomed)) if series else None


# --- pictures ---


def _reconstructions(runs: dict[str, RunFiles]) -> list[Part]:
    file = "reconstruction.png"
    pictures = [
        Picture(str(run.folder / file), f"Reconstructions of {name}", name)
        for name, run in runs.items()
        if run.holds(file)
    ]
    return [Row(pictures)] if pictures else []
