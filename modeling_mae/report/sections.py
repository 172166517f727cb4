"""The sections of a run for card and page, made only from the files in its folder. So both show the numbers of the
JSON files."""

import re

import numpy as np

from ..words import counted
from .advice import evaluation_advice, judge_start, pretraining_advice
from .charts import features_curve, loss_curve, partial_curve, training_curve
from .parts import Folded, Part, Picture, Row, Section, Table, Text
from .problem import Problem
from .results import images_by_blocks, results_cells, tuned_accuracies
from .run import RunFiles, Training
from .settings import setting_text, shown_settings


EARLIER = 3  # number of reconstructions from earlier epochs
WORST = 10  # number of classes with the lowest accuracy
CITATION = """@inproceedings{he2022masked,
  title     = {Masked Autoencoders Are Scalable Vision Learners},
  author    = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and
               Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {CVPR},
  year      = {2022}
}"""


# --- pre-training ---


def pretraining_sections(run: RunFiles) -> list[Section]:
    neighbours = _picture(run, "neighbours.png", "Images and their nearest neighbours", run.summary.get("neighbours"))
    charts = pretraining_charts(run)
    use = "features = model(**inputs).pooler_output  # (1, width); last_hidden_state has one for each patch"
    encoder = (
        "`AutoModel` loads the encoder. It does not mask: an image always gives the same features, and its patches "
        "are in raster order. `AutoModelForPreTraining` loads the decoder too."
    )
    return [
        Section("Results", [_two_columns(pretraining_figures(run))]),
        Section("What to do next", pretraining_advice(run), only="page"),
        Section("Curves", [Row(charts, charts=True)] if charts else []),
        Section("Reconstructions", _reconstructions(run)),
        Section("Nearest neighbours", neighbours),
        use_section(run.summary.get("repo_id"), "AutoModel", use, encoder),
        Section("Settings", settings_parts({"": run.training})),
        citation_section(),
    ]


def pretraining_charts(run: RunFiles) -> list[Picture]:
    training, summary, charts = run.training, run.summary, []
    if training.losses:
        chart = loss_curve(training.log, normalised=summary.get("normalised", False))
        charts.append(Picture("loss.png", "Loss and learning rate by epoch", chart=chart))
    if len(training.growth) > 1:
        title = run.problem.knn_title
        chart = features_curve(training.growth, summary.get("k", 0), title)
        charts.append(Picture("features.png", f"{title} and rank of the features by epoch", chart=chart))
    return charts


def pretraining_figures(run: RunFiles) -> dict[str, str]:
    """The results of a pre-training as {title: text}."""
    summary, training = run.summary, run.training
    figures = {}
    if training.losses:
        last = training.losses[-1]
        figures["final loss"] = f"{last['loss']:.4f}"
        figures["length"] = f"{counted(last['step'], 'update')}, {counted(last['epoch'], 'epoch')}"
    for name, accuracy in run.knn.items():
        figures[f"{run.problem.knn_title} (k = {summary.get('k', '?')}), {name}"] = f"{100 * accuracy:.1f} %"
    if verdict := judge_start(training.growth, run.problem):
        figures["against the starting weights"] = verdict
    ranks = [entry["rank"] for entry in training.growth if "rank" in entry]
    if ranks:
        untrained = training.growth[0].get("rank_untrained")
        before = f", untrained {untrained:.1f}" if untrained else ""
        figures["effective rank of the features"] = f"{ranks[-1]:.1f}{before}"
    return figures | run_figures(run)


def run_figures(run: RunFiles) -> dict[str, str]:
    """Time and machine of a run, and faults of its images, as {title: text}."""
    summary, figures = run.summary, {}
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


def _reconstructions(run: RunFiles) -> list[Part]:
    title = "Original, masked and reconstructed images"
    parts: list[Part] = [*_picture(run, "reconstruction.png", title, run.summary.get("picture"), tall=True)]
    found = sorted((run.folder / "pictures").glob("reconstruction-epoch-*.png"))
    epochs = {int(match[1]): path.name for path in found if (match := re.search(r"-([0-9]{1,9})\.png$", path.name))}
    chosen = (
        [list(epochs)[i] for i in np.unique(np.linspace(0, len(epochs) - 1, EARLIER).astype(int))] if epochs else []
    )
    earlier = [
        picture
        for n in chosen
        for picture in _picture(run, f"pictures/{epochs[n]}", f"After epoch {n}", f"after epoch {n}")
    ]
    return [*parts, Folded("The same images during the training", [Row(earlier)])] if earlier else parts


def _picture(run: RunFiles, file: str, alt: str, caption: str | None = None, tall: bool = False) -> list[Picture]:
    return [Picture(file, alt, caption or "", tall=tall)] if run.holds(file) else []


# --- evaluation ---


def evaluation_sections(run: RunFiles) -> list[Section]:
    problem, results = run.problem, list[Part]()
    cells = results_cells(run.rows, k=run.summary.get("k", 20), problem=problem)
    if len(cells[0]) > 1:
        results.append(Table(cells[1:], cells[0], numbers=True))
        results += [Text("All figures except the number of images are in %.")] if problem.is_share else []
    results += [_two_columns(figures)] if (figures := run_figures(run)) else []
    partial = partial_chart(run)
    curves = [
        training_picture(run.folder_of(name), training, problem, name)
        for name, training in run.trainings.items()
        if training.losses
    ]
    charts: list[Part] = [partial] if partial else []
    charts += [Row(curves, charts=True)] if curves else []
    return [
        Section("Results", results),
        Section("What to do next", evaluation_advice(run), only="page"),
        Section("Curves", charts),
        Section("Classes", _classes(run)),
        Section("Worst images", _worst_images(run)),
        Section("Settings", settings_parts(run.trainings)),
    ]


def partial_chart(run: RunFiles) -> Picture | None:
    """The metric against the tuned blocks, if several numbers of blocks were tuned."""
    tuned, from_scratch = tuned_accuracies(run.rows, run.problem)
    if len(tuned) < 2:
        return None
    chart = partial_curve(tuned, run.problem, from_scratch, images_by_blocks(run.rows))
    return Picture("partial.png", f"{run.problem.metric_title.capitalize()} by blocks tuned", chart=chart)


def training_picture(folder: str, training: Training, problem: Problem, caption: str = "") -> Picture:
    """The curves of a classifier's training, whose files are in the subfolder `folder`."""
    title = f"Training loss and {problem.metric_title} by epoch"
    return Picture(_below(folder, "training.png"), title, caption, chart=training_curve(training.log, problem))


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _classes(run: RunFiles) -> list[Part]:
    """The confusion matrix of each classifier, and the best classifier's worst classes."""
    tested = [row for row in run.rows if "confusion_matrix" in row]
    places = {row["name"]: _below(run.folder_of(row["name"]), "confusion.png") for row in tested}
    pictures = [
        picture
        for name, place in places.items()
        for picture in _picture(run, place, f"Confusion matrix of {name}", name)
    ]
    parts: list[Part] = [Row(pictures, charts=True)] if pictures else []
    names = run.summary.get("class_names") or []
    best = max(tested, key=run.problem.score, default={})
    key, _, title = run.problem.each
    known = [(value, name) for value, name in zip(best.get(key) or [], names, strict=False) if value is not None]
    if known:
        parts.append(Text(f"{title[0].upper()}{title[1:]} of {best['name']} on its worst classes:"))
        parts.append(Table([[name, f"{100 * value:.1f} %"] for value, name in sorted(known)[:WORST]]))
    return parts


def _worst_images(run: RunFiles) -> list[Part]:
    """The worst images of each model, if its task draws them."""
    places = {row["name"]: _below(run.folder_of(row["name"]), "worst.png") for row in run.rows if "loss" in row}
    return [
        picture
        for name, place in places.items()
        for picture in _picture(run, place, f"Worst images of {name}", name, tall=True)
    ]


# --- shared by all runs ---


def settings_parts(trainings: dict[str, Training]) -> list[Part]:
    """The settings of each training. Settings that all share are folded below the others."""
    columns = {name: shown_settings(training.arguments) for name, training in trainings.items()}
    unknown = [name for name, settings in columns.items() if not settings]
    columns = {name: settings for name, settings in columns.items() if settings}
    rows = _settings_rows(list(columns.values()))
    if len(columns) < 2:
        return [Table(rows, ["setting", "value"], typed=True)] if rows else []
    differ = [row for row in rows if len(set(row[1:])) > 1]
    same = [row[:2] for row in rows if len(set(row[1:])) == 1]
    parts: list[Part] = [Table(differ, ["", *columns], typed=True) if differ else Text("No setting differs.")]
    parts += [Text(f"The settings of {', '.join(unknown)} are not known yet.")] if unknown else []
    return [*parts, *([Folded(f"{len(same)} settings that are the same in all", [Table(same)])] if same else [])]


def _settings_rows(columns: list[dict]) -> list[list[str]]:
    """A row for each setting: its name, and its value in each column, empty if missing."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [[name, *(setting_text(column.get(name, "")) for column in columns)] for name in names]


def use_section(repo_id: str | None, auto_class: str, lines: str, note: str = "") -> Section:
    """How to load the checkpoint. `lines` use `model`, an `image` and the `inputs` made from it."""
    place = repo_id or "PATH_OR_HUB_ID"
    code = f"""from PIL import Image
from transformers import AutoImageProcessor, {auto_class}

processor = AutoImageProcessor.from_pretrained("{place}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{place}", trust_remote_code=True).eval()
image = Image.open("photograph.jpg")
inputs = processor(image, return_tensors="pt")
{lines}"""
    trust = (
        "`trust_remote_code=True` runs the Python files that are stored with the weights. If you have installed the "
        "package `modeling_mae`, write `import modeling_mae` instead: the same classes then come from the package."
    )
    return Section("Use", [Text("", code, "python"), Text(trust), *([Text(note)] if note else [])], only="card")


def citation_section() -> Section:
    return Section("Citation", [Text("", CITATION, "bibtex")], only="card")


def _two_columns(figures: dict[str, str]) -> Table:
    return Table([[title, value] for title, value in figures.items()])
