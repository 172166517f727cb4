"""Labels of a source: what they are, their numbers and their names, matched between training and evaluation."""

import datasets
import numpy as np

from ..errors import UserError
from ..problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .class_names import only_one_is_named, refuse_unknown, refuse_unlabelled
from .find.sources import Source
from .multi_labels import holds_lists, read_class_lists, read_targets


MAX_NUMBERED_CLASSES = 100_000  # larger whole numbers are names: a list of all smaller ones would fill the memory


def problem_of(source: Source) -> str:
    """The `problem_type` that the label column tells: lists of classes are several labels, fractions are regression,
    all else is one class an image.

    A list of fractions is several targets. Where all of them are 0 and 1, it is several labels.
    """
    if source.parts:
        problems = [problem_of(part) for part in source.parts]
        return MULTI_LABEL if set(problems) == {MULTI_LABEL} else problems[0]
    if source.label_column is None and source.only_folder:
        return SINGLE_LABEL
    feature = _label_feature(source)
    if holds_lists(feature):
        if not str(getattr(feature.feature, "dtype", "")).startswith("float"):
            return MULTI_LABEL
        values = np.array([value for row in source.dataset[source.label_column] for value in row or []])
        return MULTI_LABEL if np.isin(values, (0, 1)).all() else REGRESSION
    return REGRESSION if str(getattr(feature, "dtype", "")).startswith("float") else SINGLE_LABEL


def read_labels(
    source: Source, known_names: list[str] | None = None, problem_type: str = SINGLE_LABEL
) -> tuple[np.ndarray, list[str]]:
    """(labels, names). Labels are class numbers ``(images,)`` int64; for several labels 0 and 1 ``(images, classes)``
    float32; for regression ``(images, targets)`` float32, whose names are the targets'.

    With `known_names` the numbers are positions in them. Two folders that lack different classes number the rest
    differently, so only the names tell which classes are the same.

    Raises:
        UserError: no label column or several, a column that does not hold such labels, images without a label, or a
            class that is not among the `known_names`.
    """
    if source.parts:
        return _labels_of_parts(source, known_names, problem_type)
    if source.label_column is None and problem_type == SINGLE_LABEL and known_names and source.only_folder:
        return _one_class(source, known_names), known_names
    feature = _label_feature(source)
    if problem_type == REGRESSION:
        return read_targets(source, feature, known_names)
    if problem_type == MULTI_LABEL:
        return read_class_lists(source, feature, known_names)
    numbers, names = _numbers_and_names(source, feature)
    if known_names is None:
        return numbers, names
    if only_one_is_named(names, known_names):
        return numbers, known_names
    position_of = {name: i for i, name in enumerate(known_names)}
    refuse_unknown(source, [names[i] for i in np.unique(numbers) if names[i] not in position_of])
    positions = np.array([position_of.get(name, -1) for name in names])
    return positions[numbers], known_names


def _labels_of_parts(source: Source, known_names: list[str] | None, problem_type: str) -> tuple[np.ndarray, list[str]]:
    """As `read_labels`, of a joined source: a class has the number that it has in the first of its parts.

    Raises:
        UserError: as `read_labels`, or the parts have different classes.
    """
    read = [read_labels(part, known_names, problem_type) for part in source.parts]
    names = read[0][1]
    labels = []
    for part, (own_labels, own_names) in zip(source.parts, read, strict=True):
        alone = sorted({*names} ^ {*own_names})
        if alone:
            raise UserError(
                f"{source.parts[0].name} and {part.name} have different classes: {', '.join(alone[:5])} "
                f"{'are' if len(alone) > 1 else 'is'} in one alone; labels need the same classes in all folders"
            )
        number = {name: i for i, name in enumerate(own_names)}
        order = [number[name] for name in names]  # own numbers of the classes, in the first part's order
        labels.append(own_labels[:, order] if own_labels.ndim == 2 else np.argsort(order)[own_labels])
    return np.concatenate(labels), names


def _one_class(source: Source, known_names: list[str]) -> np.ndarray:
    """The class numbers of images that all lie in one folder.

    Raises:
        UserError: the folder's name is not a class.
    """
    name = source.only_folder
    if name not in known_names:
        raise UserError(
            f"{source.name} has images in one folder, {name!r}, which is not one of the {len(known_names)} classes "
            f"({', '.join(known_names[:5])}): name the folder after a class, or put the images into one for each"
        )
    return np.full(len(source), known_names.index(name), np.int64)


def _label_feature(source: Source):
    """What `datasets` knows of the label column.

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


def _numbers_and_names(source: Source, feature) -> tuple[np.ndarray, list[str]]:
    kind = str(getattr(feature, "dtype", ""))
    if not kind.startswith(("int", "uint", "bool", "string", "large_string", "null")):
        raise UserError(
            f"label column {source.label_column!r} of {source.name} holds {feature}: classes, whole numbers or words "
            "are needed"
        )
    values = source.dataset[source.label_column][:]  # all at once: the column alone reads the file for each element
    unlabelled = sum(value is None or (not isinstance(value, str) and value < 0) for value in values)
    refuse_unlabelled(source, unlabelled, len(values), "empty, or below 0")
    if source.class_names:
        return np.asarray(values, dtype=np.int64), source.class_names
    if "string" not in kind and max(values) < MAX_NUMBERED_CLASSES:
        numbers = np.asarray(values, dtype=np.int64)
        return numbers, [str(i) for i in range(int(numbers.max()) + 1)]
    distinct, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64), [str(value) for value in distinct]


def missing_classes(labels: np.ndarray, names: list[str]) -> list[str]:
    """Names of the classes without an image, of class numbers ``(images,)`` or of 0 and 1 ``(images, classes)``."""
    counts = np.bincount(labels, minlength=len(names)) if labels.ndim == 1 else labels.sum(0)
    return [name for name, count in zip(names, counts, strict=True) if not count]


def balanced_part(numbers: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sorted positions of a random `fraction` of the images of each class, at least one of each."""
    generator = np.random.default_rng(seed)
    chosen = []
    for number in np.unique(numbers):
        positions = generator.permutation(np.flatnonzero(numbers == number))
        chosen.append(positions[: max(1, round(fraction * len(positions)))])
    return np.sort(np.concatenate(chosen))


def random_part(num_images: int, fraction: float, seed: int) -> np.ndarray:
    """Sorted positions of a random `fraction` of all images, at least one."""
    count = max(1, round(fraction * num_images))
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:count])
