"""Reads labels for all tasks: the label column, matching class names, and images without a label."""

import datasets

from ..data.find.sources import Source
from ..errors import UserError


MAX_CLASSES = 100_000  # larger numbers are not class numbers: a score for each would fill the memory
OTHER_COLUMN = "choose another split with --train_split or --eval_split, or another column with --label_column_name"


def label_feature(source: Source):
    """The `datasets` feature of the label column.

    Raises:
        UserError: there is no such column, or several.
    """
    features = source.dataset.features
    if source.label_column is None:
        columns = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        reason = f"{len(columns)} columns of labels ({', '.join(columns)})" if columns else "no column of labels"
        raise UserError(
            f"{source.name} has {reason}; its columns are {', '.join(features)}: name one with --label_column_name, "
            "or put the images into a folder for each class"
        )
    return features[source.label_column]


def cells_of(source: Source) -> list:
    """The label column, read at once. Indexing it would read the file for each element."""
    assert source.label_column is not None  # `label_feature` has checked this
    return source.dataset[source.label_column][:]


def holds_lists(feature) -> bool:
    """Whether each cell of a column is a list: `Sequence`, `List`, `LargeList`."""
    return hasattr(feature, "feature")


def kind_of(feature) -> str:
    """The type of the cells or of their lists' elements. Empty for structures."""
    return str(getattr(feature.feature if holds_lists(feature) else feature, "dtype", ""))


def holds_fractions(feature) -> bool:
    return kind_of(feature).startswith("float")


def described(source: Source) -> str:
    """The label column's name for messages."""
    return f"label column {source.label_column!r} of {source.name}"


def only_one_is_named(names: list[str], known_names: list[str]) -> bool:
    """Whether one list has names and the other only numbers, so that only the numbers can be compared."""
    numbered = [all(name.isdecimal() for name in either) for either in (names, known_names)]
    return any(numbered) and not all(numbered) and len(names) <= len(known_names)


def refuse_unknown(source: Source, unknown: list[str]) -> None:
    if unknown:
        raise UserError(
            f"{source.name} has {len(unknown)} classes that the training images do not have "
            f"({', '.join(unknown[:5])}): evaluate on images of the trained classes, or train on these too"
        )


def refuse_unlabelled(source: Source, missing: int, total: int, what_is_none: str) -> None:
    if missing:
        raise UserError(f"{missing} of {total} images of {source.name} have no label ({what_is_none}): {OTHER_COLUMN}")
