"""Writes the report of an evaluation: pictures, predictions and card of each classifier, and the results of all."""

from pathlib import Path
from typing import Any

import datasets

from ..files import replacing, write_json, write_text
from ..words import counted
from .card import PAPER, Card, write_card
from .charts import confusion_picture
from .facts import Identity, LabelledFacts, TrainingLog
from .figures import save_charts
from .parts import Part, Picture, Section, Table, Text
from .problem import Problem
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


WORST = "worst.png"  # the worst images, if the task draws them
MAX_CLASSES_SHOWN = 100  # with more, a confusion matrix is unreadable


def report_training(
    folder: Path,
    identity: Identity,
    arguments: dict[str, Any],
    data: LabelledFacts,
    results: dict[str, Any],
    predictions: dict[str, Any] | None = None,
    log: TrainingLog | None = None,
    training: str = "",
) -> None:
    """Writes confusion.png, predictions.parquet, training.png, README.md, arguments.json and trainer_state.json.

    `results` are the metrics on the images of `data`. confusion.png is for one class per image and at most 100
    classes. predictions.parquet is written only if `predictions` are given. `log` and `training` (from
    `describe_training`) belong to a trained classifier. Without them, training.png and the two JSON files are not
    written."""
    metrics = [
        (metric, title, results[metric])
        for metric, title in data.problem.titles.items()
        if results.get(metric) is not None
    ]
    parts: list[Part] = [Table([[title, _figure(metric, value, data.problem)] for metric, title, value in metrics])]
    if predictions is not None:
        _write_predictions(folder / "predictions.parquet", predictions)
    if log is not None:
        write_training(folder, arguments, log)
        best = f"These weights are from the epoch with the best {data.problem.metric_title} on these images."
        parts.append(Text(f"{best} Those of the last epoch are in `last/`."))
        parts.append(training_picture("", Training(arguments, log.log), data.problem))
    if len(data.class_names) <= MAX_CLASSES_SHOWN:
        parts += _each_label(results, data)
    save_charts(folder, parts)
    if (folder / WORST).exists():
        parts.append(Picture(WORST, "The images with the lowest mean IoU: image, truth, prediction, difference"))
    sections = [
        Section(f"Results on {counted(data.images, 'image')} of {data.name}, split {data.split}", parts),
        use_section(identity.repo_id, data.problem.auto_class, data.problem.usage),
        Section("Settings", settings_parts({"": Training(arguments, [])})),
        citation_section(),
    ]
    lead = f"{data.problem.model} on the encoder of a masked autoencoder ({PAPER}). {training}".strip()
    tags = ["mae", "masked-autoencoder", "vision"]
    write_card(folder, Card(identity, lead, sections, tags, data.problem.hub_task, data=data, metrics=metrics))


def _figure(metric: str, value: float, problem: Problem) -> str:
    return _percent(value, 2) if metric in problem.shares else f"{value:.4f}"


def _each_label(results: dict[str, Any], data: LabelledFacts) -> list[Part]:
    """The confusion matrix, and the table of the classes or the regression targets."""
    parts: list[Part] = []
    if "confusion_matrix" in results:
        chart = confusion_picture(results["confusion_matrix"], data.class_names)
        parts.append(Picture("confusion.png", "Confusion matrix", chart=chart))
    key, word, title = data.problem.each
    if key in results:
        shown = _percent if data.problem.is_share else "{:.4f}".format
        rows = [[name, shown(value)] for name, value in zip(data.class_names, results[key], strict=True)]
        parts.append(Table(rows, [word, title]))
    return parts


def _percent(accuracy: float | None, digits: int = 1) -> str:
    """None is the accuracy of a class without images."""
    return "no image" if accuracy is None else f"{100 * accuracy:.{digits}f} %"


def describe_training(
    n_partial: float | None,
    images: int,
    label_fraction: float,
    source_name: str,
    reads: str = "mean",
    adapters: str = "",
) -> str:
    """A sentence for the card about what was trained, and on which images.

    `n_partial` is the number of tuned blocks, None for training from scratch. `reads` is as in `probe_name`.
    `adapters` says what trained, if the blocks have adapters."""
    share = f", {100 * label_fraction:g}% of all" if label_fraction < 1 else ""
    if n_partial is None:
        how = "from scratch, with all blocks"
    elif n_partial == 0:
        how = f"by {probe_name(reads)}"
    elif adapters:
        how = f"end to end, by {adapters}"
    else:
        how = f"with {counted(n_partial, 'block')} tuned"
    return f"Trained {how}, on {counted(images, 'image')} of {source_name}{share}."


def _write_predictions(path: Path, columns: dict[str, Any]) -> None:
    with replacing(path) as partial:
        datasets.Dataset.from_dict(columns).to_parquet(partial)


# --- the whole run ---


def report_evaluation(
    output_dir: Path, identity: Identity, rows: list[dict[str, Any]], data: LabelledFacts, folders: list[str], k: int
) -> None:
    """Writes results.json, results.txt, partial.png, summary.json, report.html and README.md, and prints the results.

    `rows` are the results of frozen features, with `k` neighbours, and of classifiers, see `results_table`. `folders`
    are the folders of the trained classifiers in `output_dir`. With fewer than two, README.md is the classifier's own
    and is not changed. partial.png is drawn if several numbers of blocks were tuned. `data` counts faults in all
    images, including training images."""
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
        print(f"skipped    {counted(data.skipped, 'image')}: cannot be decoded")
    if data.incomplete:
        print(f"filled     {counted(data.incomplete, 'image')}: missing values became the mean of their band")
    print(f"\n{table}\n\nresults    {output_dir / 'results.json'}\nreport     {page}")


def write_overview_card(run: RunFiles, identity: Identity, folders: list[str]) -> None:
    """Writes README.md about several classifiers. Each also has its own folder and card."""
    links = ", ".join(f"[{folder}]({folder}/README.md)" for folder in folders)
    each = Text(f"Each classifier has its own folder with its weights and its card: {links}.")
    lead = f"Classifiers on the encoder of a masked autoencoder, evaluated on {run.summary['data']}."
    sections = [*evaluation_sections(run), Section("Classifiers", [each])]
    write_card(run.folder, Card(identity, lead, sections, tags=["mae", "vision"]))
