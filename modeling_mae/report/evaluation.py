"""What an evaluation leaves: the pictures, predictions and card of each classifier, and the results of all."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..files import replacing, write_json, write_text
from ..problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL, THRESHOLD, Problem
from .card import PAPER, Card, write_card
from .charts import confusion_picture
from .facts import Identity, LabelledFacts, TrainingLog
from .figures import save_charts
from .parts import Part, Picture, Section, Table, Text
from .results import probe_name, results_table
from .run import EVALUATION, RunFiles, Training, read_run, write_training
from .run_page import write_run_page
from .sections import (
    citation_section,
    evaluation_sections,
    partial_chart,
    settings_parts,
    training_picture,
    use_section,
)


MAX_CLASSES_SHOWN = 100  # more make a confusion matrix that nobody can read
# What to do with a classifier's `model` and `inputs`, by problem.
USAGE = {
    SINGLE_LABEL: "logits = model(**inputs).logits  # (1, classes)\n"
    "print(model.config.id2label[logits.argmax(-1).item()])",
    MULTI_LABEL: "scores = model(**inputs).logits.sigmoid()[0]  # (classes,)\n"
    "print({model.config.id2label[i]: score for i, score in enumerate(scores.tolist()) if score > 0.5})",
    REGRESSION: "values = model(**inputs).logits[0]  # (targets,)\n"
    "print({model.config.id2label[i]: value for i, value in enumerate(values.tolist())})",
}


# --- one classifier ---


def report_training(
    folder: Path,
    identity: Identity,
    arguments: dict[str, Any],
    data: LabelledFacts,
    results: dict[str, Any],
    predictions: dict[str, np.ndarray] | None = None,
    log: TrainingLog | None = None,
    training: str = "",
) -> None:
    """Writes confusion.png, predictions.parquet, training.png, README.md, arguments.json and trainer_state.json.

    `results` are the metrics on the images of `data`. confusion.png is for the problem of one class an image, with at
    most 100 classes. predictions.parquet is written only if `predictions` are given. `log` and `training` (from
    `describe_training`) are for a classifier that was trained: without them, training.png and the two JSON files are
    left out."""
    metrics = [
        (metric, title, results[metric])
        for metric, title in data.problem.titles.items()
        if results.get(metric) is not None
    ]
    parts: list[Part] = [Table([[title, _figure(metric, value, data.problem)] for metric, title, value in metrics])]
    if predictions is not None:
        _write_predictions(folder / "predictions.parquet", predictions, data.problem)
    if log is not None:
        write_training(folder, arguments, log)
        best = f"These weights are from the epoch with the best {data.problem.metric_title} on these images."
        parts.append(Text(f"{best} Those of the last epoch are in `last/`."))
        parts.append(training_picture("", Training(arguments, log.log), data.problem))
    if len(data.class_names) <= MAX_CLASSES_SHOWN:
        parts += _each_class(results, data.class_names)
    save_charts(folder, parts)
    sections = [
        Section(f"Results on {data.images:,} images of {data.name}, split {data.split}", parts),
        use_section(identity.repo_id, "AutoModelForImageClassification", USAGE[data.problem.problem_type]),
        Section("Settings", settings_parts({"": Training(arguments, [])})),
        citation_section(),
    ]
    kind = "A regression" if data.problem.problem_type == REGRESSION else "An image classifier"
    lead = f"{kind} on the encoder of a masked autoencoder ({PAPER}). {training}".strip()
    tags = ["mae", "masked-autoencoder", "vision"]
    write_card(folder, Card(identity, lead, sections, tags, "image-classification", data=data, metrics=metrics))


def _figure(metric: str, value: float, problem: Problem) -> str:
    return _percent(value, 2) if metric in problem.shares else f"{value:.4f}"


def _each_class(results: dict[str, Any], names: list[str]) -> list[Part]:
    """The confusion matrix, and the table of the classes, or of the targets of a regression."""
    parts: list[Part] = []
    if "confusion_matrix" in results:
        chart = confusion_picture(results["confusion_matrix"], names)
        parts.append(Picture("confusion.png", "Confusion matrix", chart=chart))
    for key, title, shown in (
        ("per_class_accuracy", ["class", "accuracy"], _percent),
        ("per_class_average_precision", ["class", "average precision"], _percent),
        ("per_target_absolute_error", ["target", "mean absolute error"], "{:.4f}".format),
    ):
        if key in results:
            parts.append(Table([[name, shown(value)] for name, value in zip(names, results[key], strict=True)], title))
    return parts


def _percent(accuracy: float | None, digits: int = 1) -> str:
    """None is the accuracy of a class without an image."""
    return "no image" if accuracy is None else f"{100 * accuracy:.{digits}f} %"


def describe_training(
    n_partial: float | None, images: int, label_fraction: float, source_name: str, pooling: str = "mean"
) -> str:
    """A sentence for the card: what was trained, and on which images.

    `n_partial` is the number of blocks tuned, None if the classifier was trained from scratch. `pooling` is that of
    its MAEConfig."""
    share = f", {100 * label_fraction:g}% of all" if label_fraction < 1 else ""
    if n_partial is None:
        how = "from scratch, with all blocks"
    elif n_partial == 0:
        how = f"by {probe_name(pooling)}"
    else:
        how = f"with {n_partial:g} block{'' if n_partial == 1 else 's'} tuned"
    return f"Trained {how}, on {images:,} images of {source_name}{share}."


def _write_predictions(path: Path, predictions: dict[str, np.ndarray], problem: Problem) -> None:
    with replacing(path) as partial:
        datasets.Dataset.from_dict(prediction_columns(predictions, problem)).to_parquet(partial)


def prediction_columns(predictions: dict[str, np.ndarray], problem: Problem) -> dict:
    """The columns of predictions.parquet, one row for each image.

    Several labels an image: `label` and `prediction` are lists of class numbers, `scores` has a number for each class.
    Regression: `label` and `prediction` are numbers, or lists of several targets."""
    if problem.problem_type == SINGLE_LABEL:
        top5 = predictions["top5"]  # (images, at most 5)
        return {
            "label": predictions["label"],
            "prediction": top5[:, 0],
            "confidence": predictions["confidence"],
            "top5": list(top5),
            "loss": predictions["loss"],
        }
    if problem.problem_type == MULTI_LABEL:
        scores = predictions["scores"]  # (images, classes)
        return {
            "label": [np.flatnonzero(row).tolist() for row in predictions["label"]],
            "prediction": [np.flatnonzero(row > THRESHOLD).tolist() for row in scores],
            "scores": list(scores),
            "loss": predictions["loss"],
        }
    numbers = {key: predictions[key] for key in ("label", "prediction")}  # (images, targets)
    if numbers["label"].shape[1] == 1:
        return {**{key: value[:, 0] for key, value in numbers.items()}, "loss": predictions["loss"]}
    return {**{key: list(value) for key, value in numbers.items()}, "loss": predictions["loss"]}


# --- the whole call ---


def report_evaluation(
    output_dir: Path, identity: Identity, rows: list[dict[str, Any]], data: LabelledFacts, folders: list[str], k: int
) -> None:
    """Writes results.json, results.txt, partial.png, summary.json, report.html and README.md, and prints the results.

    `rows` are the results of frozen features, with `k` neighbours, and of classifiers, see `results_table`. `folders`
    are the folders of the trained classifiers in `output_dir`: with fewer than two, README.md is the classifier's own
    and stays as it is. partial.png is drawn if more than one number of blocks was tuned. The faults that `data`
    counts are those of all images, also of training."""
    write_json(output_dir / "results.json", rows)
    summary = {"kind": EVALUATION, "name": identity.name, "repo_id": identity.repo_id, **data.summary, "k": k}
    write_json(output_dir / "summary.json", summary)
    run = read_run(output_dir)
    partial = partial_chart(run)
    if partial:
        save_charts(output_dir, [partial])
        print(f"picture    {output_dir / partial.file}")
    table = results_table(run.rows, k=k, problem=data.problem)
    write_text(output_dir / "results.txt", table + "\n")
    if len(folders) > 1:
        write_overview_card(run, identity, folders)
    page = write_run_page(output_dir)
    if data.skipped:
        print(f"skipped    {data.skipped} images, which cannot be decoded")
    if data.incomplete:
        print(f"filled     {data.incomplete} images, whose missing values became the mean of their band")
    print(f"\n{table}\n\nresults    {output_dir / 'results.json'}\nreport     {page}")


def write_overview_card(run: RunFiles, identity: Identity, folders: list[str]) -> None:
    """Writes README.md over several classifiers. Each has its own folder and card."""
    links = ", ".join(f"[{folder}]({folder}/README.md)" for folder in folders)
    each = Text(f"Each classifier has its own folder with its weights and its card: {links}.")
    lead = f"Classifiers on the encoder of a masked autoencoder, evaluated on {run.summary['data']}."
    sections = [*evaluation_sections(run), Section("Classifiers", [each])]
    write_card(run.folder, Card(identity, lead, sections, tags=["mae", "vision"]))
