"""What an evaluation leaves: the pictures, predictions and card of each classifier, and the results of all."""

from pathlib import Path

import datasets

from ..files import replacing, write_json, write_text
from .cards import MAX_CLASSES_SHOWN, Base, write_classifier_card, write_overview_card
from .charts import confusion_picture, partial_curve, training_curve
from .figures import save_figure
from .problem import Problem
from .results import images_by_blocks, probe_name, results_cells, results_table, tuned_accuracies
from .run import EVALUATION, write_run
from .run_pages import write_run_page


# --- one classifier ---


def report_training(
    *,
    folder: Path,
    name: str,
    repo_id: str | None,
    arguments: dict,
    results: dict,
    class_names: list[str],
    problem: Problem,
    dataset_id: str,
    dataset_name: str,
    split: str,
    eval_images: int,
    predictions: dict | None = None,
    training: str | None = None,
    log: list[dict] | None = None,
    updates: int = 0,
    updates_per_epoch: int = 1,
    license: str | None = None,
    base: Base | None = None,
) -> None:
    """Writes confusion.png, predictions.parquet, training.png, README.md, arguments.json and trainer_state.json.

    `results` are the metrics on `eval_images` images of `split`. confusion.png is for at most 100 classes, where the
    results have a confusion matrix. predictions.parquet is written only if `predictions`, its columns, are given.
    `training` (from `describe_training`), `log`, `updates` and `updates_per_epoch` are for a classifier that was
    trained: without `log`, training.png and the two JSON files are left out."""
    if "confusion_matrix" in results and len(class_names) <= MAX_CLASSES_SHOWN:
        save_figure(confusion_picture(results["confusion_matrix"], class_names), folder / "confusion.png")
    if predictions is not None:
        _write_predictions(folder / "predictions.parquet", predictions)
    if log is not None:
        save_figure(training_curve(log, problem), folder / "training.png")
        write_run(folder, arguments=arguments, updates=updates, updates_per_epoch=updates_per_epoch, log=log)
    write_classifier_card(
        folder,
        name=name,
        training=training,
        data=f"{eval_images:,} images of {dataset_name}, split {split}",
        dataset_id=dataset_id,
        dataset_name=dataset_name,
        split=split,
        results=results,
        class_names=class_names,
        problem=problem,
        arguments=arguments,
        repo_id=repo_id,
        license=license,
        base=base,
    )


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


def _write_predictions(path: Path, columns: dict) -> None:
    with replacing(path) as partial:
        datasets.Dataset.from_dict(columns).to_parquet(partial)


# --- the whole call ---


def report_evaluation(
    *,
    output_dir: Path,
    name: str,
    rows: list[dict],
    folders: list[str],
    dataset_name: str,
    skipped: int,
    k: int,
    problem: Problem,
    incomplete: int = 0,
    eval_images: int = 0,
    class_names: list[str] | None = None,
    dataset_id: str | None = None,
    split: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
) -> None:
    """Writes results.json, results.txt, partial.png, summary.json, report.html and README.md, and prints the results.

    `rows` are the results of frozen features and of classifiers, see `results_table`. `folders` are the folders of
    the trained classifiers in `output_dir`: with fewer than two, README.md is the classifier's own and stays as it
    is. They were evaluated on `eval_images` images, of the classes `class_names`. partial.png is drawn if more than
    one number of blocks was tuned. `skipped` images, of training and evaluation together, could not be decoded;
    `incomplete` had missing values. `repo_id` is the Hub repository of `output_dir`, None if there is none."""
    write_json(output_dir / "results.json", rows)
    tuned, from_scratch = tuned_accuracies(rows, problem)
    has_picture = len(tuned) > 1
    if has_picture:
        figure = partial_curve(tuned, problem, from_scratch, images_by_blocks(rows))
        save_figure(figure, output_dir / "partial.png")
        print(f"picture    {output_dir / 'partial.png'}")
    table = results_table(rows, k=k, problem=problem)
    if len(folders) > 1:
        cells = results_cells(rows, k=k, problem=problem)
        options = {"picture": has_picture, "problem": problem, "license": license}
        write_overview_card(output_dir, name, cells, folders, dataset_name, **options)
    write_text(output_dir / "results.txt", table + "\n")
    summary = {"kind": EVALUATION, "name": name, "data": dataset_name, "repo_id": repo_id}
    summary |= {"images": eval_images, "dataset_id": dataset_id, "split": split}
    summary |= {"problem": problem.problem_type, "k": k, "class_names": class_names}
    write_json(output_dir / "summary.json", summary | {"skipped": skipped, "incomplete": incomplete})
    page = write_run_page(output_dir, problem)
    if skipped:
        print(f"skipped    {skipped} images, which cannot be decoded")
    if incomplete:
        print(f"filled     {incomplete} images, whose missing values became the mean of their band")
    print(f"\n{table}\n\nresults    {output_dir / 'results.json'}\nreport     {page}")
