"""Labels of which an image has several (lists of classes) or that are numbers (targets of a regression)."""

import datasets
import numpy as np

from ..errors import UserError
from .class_names import OTHER_COLUMN, only_one_is_named, refuse_unknown, refuse_unlabelled
from .find.sources import Source


MAX_CLASSES = 100_000  # larger numbers are no class numbers: a table with a column for each would fill the memory
NO_NUMBER = "empty, or not finite"


def holds_lists(feature) -> bool:
    """Whether each cell of a column is a list: `Sequence`, `List`, `LargeList`."""
    return hasattr(feature, "feature")


def read_class_lists(source: Source, feature, known_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """(0 and 1 ``(images, classes)`` float32, class names) of a column of lists.

    A list holds an image's classes, as numbers or names; it may be empty. Or it holds 0 or 1 (false or true) for each
    class: lists of one length that hold only 0 and 1 are read this way.

    Raises:
        UserError: a column that does not hold such lists, an image without a list, no image with a class, or a class
            that is not among the `known_names`.
    """
    kind = str(getattr(getattr(feature, "feature", None), "dtype", "")) if holds_lists(feature) else ""
    if not kind.startswith(("int", "uint", "bool", "float", "string", "large_string", "null")):
        raise UserError(
            f"label column {source.label_column!r} of {source.name} holds {feature}: several labels an image need "
            "lists of class numbers or names, or of 0 and 1 for each class"
        )
    lists = source.dataset[source.label_column][:]
    missing = sum(row is None or any(value is None for value in row) for row in lists)
    refuse_unlabelled(source, missing, len(lists), NO_NUMBER)
    own_names = list(getattr(feature.feature, "names", None) or [])
    if not own_names and "string" not in kind and _are_vectors(lists, kind, known_names):
        matrix, names = _matrix_of_vectors(source, lists, known_names)
    else:
        matrix, names = _matrix_of_lists(source, lists, own_names, known_names)
    if not matrix.any():
        raise UserError(f"no image of {source.name} has a class in {source.label_column!r}: {OTHER_COLUMN}")
    return matrix, names


def _are_vectors(lists: list[list], kind: str, known_names: list[str] | None) -> bool:
    """Whether the lists hold 0 or 1 for each class, and not classes."""
    if kind.startswith(("bool", "float")):
        return True
    lengths = {len(row) for row in lists}
    if len(lengths) != 1 or not all(value in (0, 1) for row in lists for value in row):
        return False
    # One number an image is its class. If every image had both of two classes, nobody would write them down.
    (length,) = lengths
    return length > 1 if known_names is None else length == len(known_names)


def _matrix_of_vectors(
    source: Source, lists: list[list], known_names: list[str] | None
) -> tuple[np.ndarray, list[str]]:
    place = f"label column {source.label_column!r} of {source.name}"
    lengths = {len(row) for row in lists}
    if len(lengths) != 1 or not all(value in (0, 1) for row in lists for value in row):
        raise UserError(
            f"{place} holds lists of {min(lengths)} to {max(lengths)} numbers: several labels an image need 0 or 1 "
            "for each class; for other numbers give --problem_type regression"
        )
    (length,) = lengths
    if known_names is not None and length != len(known_names):
        raise UserError(
            f"{place} has {length} numbers an image, there are {len(known_names)} classes: evaluate on labels of the "
            "trained classes"
        )
    matrix = np.asarray(lists, dtype=np.float32)  # (images, classes)
    return matrix, known_names or [str(i) for i in range(length)]


def _matrix_of_lists(
    source: Source, lists: list[list], own_names: list[str], known_names: list[str] | None
) -> tuple[np.ndarray, list[str]]:
    values = sorted({value for row in lists for value in row})
    if values and not isinstance(values[0], str):
        if values[0] < 0 or values[-1] >= MAX_CLASSES:
            raise UserError(
                f"label column {source.label_column!r} of {source.name} holds {values[0]} ... {values[-1]}: class "
                f"numbers are 0 ... {MAX_CLASSES - 1}"
            )
        own_names = own_names or [str(i) for i in range(values[-1] + 1)]
        if known_names is not None and only_one_is_named(own_names, known_names):
            own_names = known_names
        lists = [[own_names[value] for value in row] for row in lists]
    names = known_names or own_names or values
    positions = {name: i for i, name in enumerate(names)}
    refuse_unknown(source, sorted({name for row in lists for name in row} - set(positions)))
    matrix = np.zeros((len(lists), len(names)), dtype=np.float32)
    for image, row in enumerate(lists):
        matrix[image, [positions[name] for name in row]] = 1
    return matrix, list(names)


def read_targets(source: Source, feature, known_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """(targets ``(images, targets)`` float32, their names) of a column of numbers, or of lists of as many numbers. The
    name of a single target is the column's.

    Raises:
        UserError: a column that does not hold such numbers, an image without one, or another number of targets than of
            `known_names`.
    """
    inner = feature.feature if holds_lists(feature) else feature
    if isinstance(inner, datasets.ClassLabel) or not str(getattr(inner, "dtype", "")).startswith(
        ("float", "int", "uint")
    ):
        raise UserError(
            f"label column {source.label_column!r} of {source.name} holds {feature}: regression needs numbers, or "
            "lists of as many numbers for each image"
        )
    cells = source.dataset[source.label_column][:]
    rows = cells if holds_lists(feature) else [[cell] for cell in cells]
    missing = sum(not row or any(value is None for value in row) for row in rows)
    refuse_unlabelled(source, missing, len(rows), NO_NUMBER)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise UserError(
            f"label column {source.label_column!r} of {source.name} has {lengths[0]} to {lengths[-1]} numbers an "
            "image: regression needs as many for each"
        )
    targets = np.asarray(rows, dtype=np.float32)  # (images, targets)
    refuse_unlabelled(source, int((~np.isfinite(targets)).any(1).sum()), len(rows), NO_NUMBER)
    column = source.label_column
    names = [column] if lengths == [1] else [f"{column} {i}" for i in range(lengths[0])]
    if known_names is not None and len(names) != len(known_names):
        raise UserError(
            f"label column {column!r} of {source.name} has {len(names)} targets, there are {len(known_names)} "
            f"({', '.join(known_names[:5])}): evaluate on the trained targets"
        )
    return targets, known_names or names
