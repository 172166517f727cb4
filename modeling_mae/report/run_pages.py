"""report.html of a run, made from the files in its folder alone. So its figures are those of the JSON files."""

from pathlib import Path

import numpy as np

from .advice import evaluation_advice, pretraining_advice
from .charts import features_curve, loss_curve, partial_curve, training_curve
from .figures import chart_uri, picture_uri
from .page import Folded, Picture, Row, Section, Table, Text, write_page
from .problem import Problem
from .results import images_by_blocks, results_cells, tuned_accuracies
from .run import PRETRAINING, RunFiles, Training, read_run
from .settings import setting_text, shown_settings


PAGE = "report.html"
EARLIER = 3  # pictures of reconstructions during the training
WORST = 10  # classes, of those the classifier does worst on


def write_run_page(folder: Path, *problems: Problem, out: Path | None = None) -> Path:
    """Writes the page of the run in `folder`: results, what to do next, curves, pictures, settings. Gives its path,
    `out` or report.html in the folder. What an evaluation has learnt is one of the `problems`.

    Raises:
        UserError: as `read_run` and `write_page`.
    """
    run = read_run(folder)
    name = run.summary.get("name") or run.name
    if run.kind == PRETRAINING:
        sections = _pretraining_sections(run)
    else:
        sections = _evaluation_sections(run, run.problem_among(problems))
    path = Path(out or Path(folder) / PAGE)
    write_page(path, name, _lead(run), sections)
    return path


def _lead(run: RunFiles) -> str:
    data = run.summary.get("data")
    if run.kind == PRETRAINING:
        images = f" on {run.summary['images']:,} images of {data}" if data else ""
        model = f" {run.summary['architecture']}." if "architecture" in run.summary else ""
        return f"A masked autoencoder pre-trained{images}.{model}"
    return f"An evaluation on {run.summary['images']:,} images of {data}." if data else "An evaluation."


# --- pre-training ---


def _pretraining_sections(run: RunFiles) -> list[Section]:
    training, summary = run.training, run.summary
    charts = []
    if training.losses:
        chart = loss_curve(training.log, normalised=summary.get("normalised", False))
        charts.append(Picture(chart_uri(chart), "Loss and learning rate by epoch"))
    if len(training.growth) > 1:
        chart = features_curve(training.growth, summary.get("k", 0))
        charts.append(Picture(chart_uri(chart), "k-NN accuracy and rank of the features by epoch"))
    neighbours = _picture(run.folder / "neighbours.png", "Images and their neighbours", summary.get("neighbours", ""))
    return [
        Section("Results", [Table(list(map(list, pretraining_figures(run).items())))]),
        Section("What to do next", pretraining_advice(run)),
        Section("Curves", [Row(charts, charts=True)] if charts else []),
        Section("Reconstructions", _reconstructions(run)),
        Section("Nearest neighbours", neighbours),
        Section("Settings", settings_parts({"": training})),
    ]


def pretraining_figures(run: RunFiles) -> dict[str, str]:
    """The results of a pre-training, as {title: value for people}."""
    summary, training = run.summary, run.training
    figures = {}
    if training.losses:
        figures["final loss"] = f"{training.losses[-1]['loss']:.4f}"
        figures["length"] = f"{training.losses[-1]['step']:,} updates, {training.losses[-1]['epoch']:g} epochs"
    for name, accuracy in run.knn.items():
        figures[f"k-NN accuracy (k = {summary.get('k', '?')}), {name}"] = f"{100 * accuracy:.1f} %"
    ranks = [entry["rank"] for entry in training.growth if "rank" in entry]
    if ranks:
        untrained = training.growth[0].get("rank_untrained")
        before = f", untrained {untrained:.1f}" if untrained else ""
        figures["effective rank of the features"] = f"{ranks[-1]:.1f}{before}"
    return figures | run_figures(summary)


def run_figures(summary: dict) -> dict[str, str]:
    """How long a run took and on what, and what was wrong with its images, as {title: value for people}."""
    figures = {}
    if "seconds" in summary:
        figures["time"] = f"{summary['seconds'] / 60:.1f} minutes on {summary['processes']} x {summary['device_type']}"
    if "precision" in summary:
        figures["precision"] = summary["precision"]
    if summary.get("waited") is not None:
        figures["time spent waiting for images"] = f"{100 * summary['waited']:.0f} %"
    if summary.get("skipped"):
        figures["bad images skipped"] = f"{summary['skipped']:,}"
    if summary.get("incomplete"):
        figures["images with missing values"] = f"{summary['incomplete']:,}, each filled with the mean of its band"
    return figures


def _reconstructions(run: RunFiles) -> list:
    caption = run.summary.get("picture", "")
    final = _picture(run.folder / "reconstruction.png", "Images, masked and reconstructed", caption, tall=True)
    earlier = sorted((run.folder / "pictures").glob("reconstruction-epoch-*.png"))
    if not earlier:
        return final
    chosen = [earlier[i] for i in np.unique(np.linspace(0, len(earlier) - 1, EARLIER).astype(int))]
    epochs = {path: int(path.stem.rpartition("-")[2]) for path in chosen}
    pictures = [part for path, n in epochs.items() for part in _picture(path, f"After epoch {n}", f"after epoch {n}")]
    return [*final, Folded("The same images during the training", [Row(pictures)])]


def _picture(path: Path, alt: str, caption: str, tall: bool = False) -> list[Picture]:
    return [Picture(picture_uri(path), alt, caption, on_paper=True, tall=tall)] if path.exists() else []


# --- evaluation ---


def _evaluation_sections(run: RunFiles, problem: Problem) -> list[Section]:
    cells = results_cells(run.rows, k=run.summary.get("k", 20), problem=problem)
    results = [Table(cells[1:], cells[0], numbers=True)] if len(cells[0]) > 1 else []
    if results and problem.is_share:
        results.append(Text("Figures but the number of images are in %."))
    figures = run_figures(run.summary)
    results += [Table(list(map(list, figures.items())))] if figures else []
    return [
        Section("Results", results),
        Section("What to do next", evaluation_advice(run, problem)),
        Section("Curves", _evaluation_charts(run, problem)),
        Section("Classes", _classes(run, problem)),
        Section("Settings", settings_parts(run.trainings)),
    ]


def _evaluation_charts(run: RunFiles, problem: Problem) -> list:
    tuned, from_scratch = tuned_accuracies(run.rows, problem)
    charts = []
    if len(tuned) > 1:
        chart = partial_curve(tuned, problem, from_scratch, images_by_blocks(run.rows))
        charts.append(Picture(chart_uri(chart), f"{problem.metric_title} by blocks tuned"))
    curves = [
        Picture(chart_uri(training_curve(training.log, problem)), f"Curves of {name}", name)
        for name, training in run.trainings.items()
        if training.losses
    ]
    return [*charts, Row(curves, charts=True)] if curves else charts


def _classes(run: RunFiles, problem: Problem) -> list:
    """The confusion matrix of each classifier, and of the best the classes that it does worst on."""
    tested = [row for row in run.rows if "confusion_matrix" in row]
    parts = []
    for row in tested:
        folder = run.folder / row["name"] if len(run.trainings) > 1 else run.folder
        parts += _picture(folder / "confusion.png", f"Confusion matrix of {row['name']}", row["name"])
    names = run.summary.get("class_names") or []
    best = max(tested, key=problem.score, default={})
    key, _, title = problem.each
    known = [(value, name) for value, name in zip(best.get(key) or [], names, strict=False) if value is not None]
    table = [Table([[name, f"{100 * value:.1f} %"] for value, name in sorted(known)[:WORST]])] if known else []
    caption = [Text(f"{title.capitalize()} of {best['name']} on the classes that it does worst on:")] if known else []
    return [*([Row(parts, charts=True)] if parts else []), *caption, *table]


# --- what both share ---


def settings_parts(trainings: dict[str, Training]) -> list:
    """The settings of each training. Those of which all have the same stand below the others."""
    columns = {name: shown_settings(training.arguments) for name, training in trainings.items()}
    unknown = [name for name, settings in columns.items() if not settings]
    columns = {name: settings for name, settings in columns.items() if settings}
    rows = settings_rows(list(columns.values()))
    if len(columns) < 2:
        return [Table(rows)] if rows else []
    differ = [row for row in rows if len(set(row[1:])) > 1]
    same = [row[:2] for row in rows if len(set(row[1:])) == 1]
    parts = [Table(differ, ["", *columns]) if differ else Text("No setting differs.")]
    parts += [Text(f"The settings of {', '.join(unknown)} are not known yet.")] if unknown else []
    return [*parts, *([Folded(f"{len(same)} settings that all have alike", [Table(same)])] if same else [])]


def settings_rows(columns: list[dict]) -> list[list[str]]:
    """A row for each setting that a column has: its name, and its value in each column, empty where it has none."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [[name, *(setting_text(column.get(name, "")) for column in columns)] for name in names]
