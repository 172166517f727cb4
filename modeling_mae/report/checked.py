"""What the files of a run hold, by the names of their values."""

from ..checked import (
    Kind,
    count,
    digits,
    figure,
    flag,
    folder,
    listed,
    mapped,
    number,
    optional,
    share,
    square,
    text,
)
from .problem import PROBLEMS
from .settings import MERGED, NAMED_FOLDERS


SUMMARY: dict[str, Kind] = {
    **dict.fromkeys(("name", "data", "architecture", "device_type", "precision", "picture", "neighbours"), text),
    **dict.fromkeys(("repo_id", "dataset_id", "split"), optional(text)),
    **dict.fromkeys(("images", "k", "updates_per_epoch", "processes", "skipped", "incomplete"), count),
    "depth": optional(count),
    "normalised": flag,
    "seconds": number,
    "waited": optional(share),
    "problem": lambda value: value is None or (text(value) and value in PROBLEMS),
    "class_names": optional(listed(text)),
}
SETTINGS: dict[str, Kind] = {
    **dict.fromkeys(NAMED_FOLDERS, folder),
    MERGED: optional(listed(text)),
    "output_dir": text,
    "warmup_epochs": optional(number),
}
ENTRY: dict[str, Kind] = {  # what the report reads of an entry; others may stand beside it
    "step": count,
    **dict.fromkeys(("epoch", "loss", "learning_rate", "rank", "rank_untrained", "rank_start"), number),
    **dict.fromkeys(("knn", "knn_untrained", "knn_start", "knn_raw_pixels"), share),
    **dict.fromkeys(("knn_images", "knn_patches"), lambda value: count(value) and value > 0),
}
ROW: dict[str, Kind] = {
    "name": text,
    "n_partial": optional(number),
    "pooling": optional(text),
    "tune": text,
    "images": count,
    "knn": mapped(figure, digits),
    "confusion_matrix": square,
    **dict.fromkeys(("per_class_accuracy", "per_class_iou", "per_class_dice"), listed(optional(share))),
    "mean_iou_interval": listed(share),
}


def entry_kinds() -> dict[str, Kind]:
    """The kinds in a log entry, with the metric of each task."""
    return ENTRY | {f"eval_{problem.metric}": share if problem.is_share else figure for problem in PROBLEMS.values()}


def row_kinds() -> dict[str, Kind]:
    """The kinds in a row of results, with the metrics of each task."""
    kinds = dict(ROW)
    for problem in PROBLEMS.values():
        kinds |= dict.fromkeys((*problem.columns, *problem.imbalanced_columns, *problem.titles), optional(figure))
        metric = share if problem.is_share else figure
        kinds |= dict.fromkeys((problem.metric, f"last_{problem.metric}"), optional(metric))
    return kinds
