"""Checks a run's JSON files when they are read: a changed file gives a one-line error, not a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from .problem import PROBLEMS
from .settings import MERGED, NAMED_FOLDERS


MAX_BYTES = 2**28  # per file; a log of a million lines takes half of it
Kind = Callable[[Any], bool]


# --- kinds of values ---


def text(value: Any) -> bool:
    return isinstance(value, str)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def figure(value: Any) -> bool:
    """A metric: any number, also NaN."""
    return isinstance(value, (int, float)) and not flag(value) and not abs(value) > 1e300


def number(value: Any) -> bool:
    return figure(value) and value == value


def share(value: Any) -> bool:
    return number(value) and 0 <= value <= 1


def count(value: Any) -> bool:
    return isinstance(value, int) and number(value) and 0 <= value < 1e15


def optional(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def listed(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def mapped(kind: Kind, names: Kind = text) -> Kind:
    return lambda value: isinstance(value, dict) and all(names(key) and kind(item) for key, item in value.items())


def plain(value: Any) -> bool:
    """A setting: one value, or a list of values."""
    return all(item is None or text(item) or flag(item) or figure(item) for item in _items(value))


def folder(value: Any) -> bool:
    return value is None or all(map(text, _items(value)))


def square(value: Any) -> bool:
    return listed(listed(count))(value) and all(len(row) == len(value) for row in value)


def digits(value: Any) -> bool:
    return text(value) and value.isascii() and value.isdigit() and len(value) < 10


def _items(value: Any) -> list:
    return value if isinstance(value, list) else [value]


# --- what the files hold ---


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
    **dict.fromkeys(("epoch", "loss", "learning_rate", "rank", "rank_untrained"), number),
    **dict.fromkeys(("knn", "knn_untrained", "knn_raw_pixels"), share),
    "knn_images": lambda value: count(value) and value > 0,
}
ROW: dict[str, Kind] = {
    "name": text,
    "n_partial": optional(number),
    "pooling": optional(text),
    "images": count,
    "knn": mapped(figure, digits),
    "confusion_matrix": square,
    "per_class_accuracy": listed(optional(share)),
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


def read_json(path: Path) -> Any:
    """The content of the file, or None if there is no file.

    Raises:
        UserError: it is a link, too large, or not JSON.
    """
    if path.is_symlink():
        raise UserError(f"{str(path)!r} is a link, which may lead anywhere: put the file itself there")
    if not path.exists():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): fix or remove it") from None


def invalid_file(path: Path, what: str) -> UserError:
    return UserError(f"{str(path)!r} is not a file of a run ({what}): fix or remove it")


def check(path: Path, content: Any, kinds: dict[str, Kind], *, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """The `content` of the file `path`, checked: each named value has its kind.

    Raises:
        UserError: a value has another kind, or one that is `needed` is missing. The message names it.
    """
    if not isinstance(content, dict):
        raise invalid_file(path, f"a {type(content).__name__} instead of names and values")
    for name in needed:
        if name not in content:
            raise invalid_file(path, f"{name} is missing")
    for name, kind in kinds.items():
        if name in content and not kind(content[name]):
            raise invalid_file(path, f"{name} cannot be {str(content[name])[:40]!r}")
    return content
