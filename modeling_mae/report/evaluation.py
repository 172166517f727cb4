"""What an evaluation leaves: the pictures, predictions and card of each classifier, and the results of all."""

from pathlib import Path

import datasets
import numpy as np

from ..files import replacing, write_json, write_text
from ..problems import MULTI_LABEL, PROBLEMS, SINGLE_LABEL, THRESHOLD, Problem
from .cards import MAX_CLASSES_SHOWN, write_classifier_card, write_overview_card
from .charts import confusion_picture, partial_curve, training_curve
from .run import write_run


# --- one classifier ---


def report_training(
    *,
    folder: Path,
    name: str,
    repo_id: str | None,
    arguments: dict,
    results: dict,
    class_names: list[str],
    problem: Problem = PROBLEMS[SINGLE_LABEL],
    dataset_id: str,
    dataset_name: str,
    split: str,
    eval_images: int,
    predictions: dict[str, np.ndarray] | None = None,
    training: str | None = None,
    log: list[dict] | None = None,
    updates: int = 0,
    updates_per_epoch: int = 1,
) -> None:
    """Writes confusion.png, predictions.parquet, training.png, README.md, arguments.json and trainer_state.json.

    `results` are the metrics on `eval_images` images of `split`. confusion.png is for at most 100 classes,
    and for the problem of one class an image alone.
    predictions.parquet is written only if `predictions` are given. `training` (from `describe_training`), `log`,
    `updates` and `updates_per_epoch` are for a classifier that was trained: without `log`, training.png and the two
    JSON files are left out."""
    if "confusion_matrix" in results and len(class_names) <= MAX_CLASSES_SHOWN:
        confusion_picture(folder / "confusion.png", results["confusion_matrix"], class_names)
    if predictions is not None:
        _write_predictions(folder / "predictions.parquet", predictions, problem)
    if log is not None:
        training_curve(folder / "training.png", log, problem)
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
        how = f"by {_probe(pooling)}"
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
    *,
    output_dir: Path,
    name: str,
    rows: list[dict],
    folders: list[str],
    dataset_name: str,
    skipped: int,
    k: int,
    problem: Problem = PROBLEMS[SINGLE_LABEL],
    incomplete: int = 0,
) -> None:
    """Writes results.json, results.txt, partial.png and README.md, and prints the results.

    `rows` are the results of frozen features and of classifiers, see `results_table`. `folders` are the folders of
    the trained classifiers in `output_dir`: with fewer than two, README.md is the classifier's own and stays as it
    is. `dataset_name` is what they were evaluated on. partial.png is drawn if more than one number of blocks was
    tuned. `skipped` images, of training and evaluation together, could not be decoded; `incomplete` had missing
    values."""
    write_json(output_dir / "results.json", rows)
    tuned = {row["n_partial"]: row[problem.metric] for row in rows if row.get("n_partial") is not None}
    has_picture = len(tuned) > 1
    if has_picture:
        from_scratch = next((row[problem.metric] for row in rows if row["name"] == "from-scratch"), None)
        partial_curve(output_dir / "partial.png", tuned, from_scratch, problem)
        print(f"picture    {output_dir / 'partial.png'}")
    table = results_table(rows, k=k, problem=problem)
    if len(folders) > 1:
        write_overview_card(output_dir, name, table, folders, dataset_name, picture=has_picture, problem=problem)
    write_text(output_dir / "results.txt", table + "\n")
    if skipped:
        print(f"skipped    {skipped} images, which cannot be decoded")
    if incomplete:
        print(f"filled     {incomplete} images, whose missing values became the mean of their band")
    print(f"\n{table}\n\nresults    {output_dir / 'results.json'}")


def results_table(rows: list[dict], *, k: int, problem: Problem = PROBLEMS[SINGLE_LABEL]) -> str:
    """The rows as text, parts of 1 in %. Columns that no row fills are left out.

    A row has a "name" and, where they apply, "n_partial" (blocks tuned), "pooling", "images", "knn" ({k: accuracy}),
    "logistic_regression" or "ridge_regression", "accuracy" and "last_accuracy"; of other problems than one class an
    image, their metric in place of the accuracy, and their other figures. Where the largest class to evaluate on has
    more than twice the images of the smallest, the problem's `imbalanced_columns` are there too."""
    columns = problem.columns | (problem.imbalanced_columns if any(map(_is_imbalanced, rows)) else {})
    lines = [["", "images", f"k-NN ({k})", *columns.values(), "last epoch"]]
    for row in rows:
        values = [row.get("knn", {}).get(k), *map(row.get, columns), row.get(f"last_{problem.metric}")]
        images = f"{row['images']:,}" if "images" in row else ""
        lines.append([_row_title(row), images, *map(problem.shown, values)])
    titles, *columns = zip(*lines, strict=True)
    columns = [column for column in columns if any(column[1:])]
    width = max(map(len, titles))
    text = [title.ljust(width) for title in titles]
    for column in columns:
        width = max(map(len, column))
        text = [f"{line}  {cell.rjust(width)}" for line, cell in zip(text, column, strict=True)]
    return "\n".join(text)


def _is_imbalanced(row: dict) -> bool:
    counts = [sum(counts_of_class) for counts_of_class in row.get("confusion_matrix", [])]
    present = [count for count in counts if count]
    return bool(present) and max(present) > 2 * min(present)


def _row_title(row: dict) -> str:
    n_partial = row.get("n_partial")
    if n_partial is None:
        return row["name"]
    return _probe(row.get("pooling")) if n_partial == 0 else f"fine-tuned blocks: {n_partial:g}"


def _probe(pooling: str | None) -> str:
    return "attentive probing" if pooling == "attention" else "linear probing"
