"""The table of an evaluation's results, as cells and as text."""

from .problem import Problem
from .worth import SCRATCH, START


def results_table(rows: list[dict], *, k: int, problem: Problem) -> str:
    """The rows as text, shares in %. Empty columns are left out.

    A row has a "name" and, if they apply, "n_partial" (tuned blocks), "pooling", "images", "knn" ({k: accuracy}),
    "logistic_regression" or "ridge_regression", "accuracy" and "last_accuracy". Other problems have their own metrics
    instead of the accuracy. The problem's `imbalanced_columns` are added if the largest class of the evaluation set
    has more than twice the images of the smallest."""
    return aligned(results_cells(rows, k=k, problem=problem))


def aligned(cells: list[list[str]]) -> str:
    """The rows of a table as lines of text, in columns."""
    titles, *columns = zip(*cells, strict=True)
    width = max(map(len, titles))
    text = [title.ljust(width) for title in titles]
    for column in columns:
        width = max(map(len, column))
        text = [f"{line}  {cell.rjust(width)}" for line, cell in zip(text, column, strict=True)]
    return "\n".join(text)


def results_cells(rows: list[dict], *, k: int, problem: Problem) -> list[list[str]]:
    """The cells of `results_table`. The first row is the header, the first column has the titles."""
    columns = problem.columns | (problem.imbalanced_columns if any(map(_is_imbalanced, rows)) else {})
    lines = [["", "images", f"k-NN ({k})", *columns.values(), "last epoch"]]
    for row in rows:
        values = [row.get("knn", {}).get(k), *map(row.get, columns), row.get(f"last_{problem.metric}")]
        images = f"{row['images']:,}" if "images" in row else ""
        lines.append([row_title(row), images, *map(problem.shown, values)])
    filled = [True, *(any(column[1:]) for column in list(zip(*lines, strict=True))[1:])]
    return [[cell for cell, kept in zip(line, filled, strict=True) if kept] for line in lines]


def _is_imbalanced(row: dict) -> bool:
    counts = [sum(counts_of_class) for counts_of_class in row.get("confusion_matrix", [])]
    present = [count for count in counts if count]
    return bool(present) and max(present) > 2 * min(present)


def row_title(row: dict) -> str:
    n_partial = row.get("n_partial")
    if n_partial is None or "_" in row["name"].removeprefix("n_partial"):  # one of several of its kind
        return row["name"]
    if row.get("tune", "all") != "all":
        return f"fine-tuned blocks: {n_partial:g}, by {row['tune']}"
    return probe_name(row.get("pooling")) if n_partial == 0 else f"fine-tuned blocks: {n_partial:g}"


def probe_name(reads: str | None) -> str:
    """The name of a head on the frozen encoder, which it `reads` by this pooling or head for pixels."""
    if reads in ("multiscale", "upernet"):
        return f"{reads} head, frozen encoder"
    return "attentive probing" if reads == "attention" else "linear probing"


def tuned_accuracies(rows: list[dict], problem: Problem) -> tuple[dict[float, float], float | None]:
    """({tuned blocks: the problem's metric}, the metric of training from scratch or None)."""
    tuned = {row["n_partial"]: row[problem.metric] for row in rows if row.get("n_partial") is not None}
    if any(row.get("arm", row["name"]) != row["name"] or row["name"].startswith(START) for row in rows):
        return {}, None  # several of each: `worth.py` shows them
    return tuned, next((row[problem.metric] for row in rows if row["name"] == SCRATCH), None)


def images_by_blocks(rows: list[dict]) -> dict[float | None, int]:
    """{tuned blocks, or None for from scratch: images trained on}."""
    return {row["n_partial"]: row["images"] for row in rows if "n_partial" in row and "images" in row}
