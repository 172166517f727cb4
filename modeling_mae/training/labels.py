"""Labels of a source: read by name, checked, cut to a class-balanced part."""

import datasets
import numpy as np

from .data import Source


def read_labels(source: Source, known: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """(class numbers ``(images,)``, class names). With `known` names the numbers are places in them: two folders with
    other classes number them differently.

    Raises:
        ValueError: for no or an ambiguous label column, a column that holds no classes, unlabelled images, or a class
            that is not among the `known`.
    """
    features = source.dataset.features
    if source.label_column is None:
        columns = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        what = f"{len(columns)} columns of labels ({', '.join(columns)})" if columns else "no column of labels"
        raise ValueError(
            f"{source.name} has {what}; its columns are {', '.join(features)}: say which with --label_column_name, or "
            "put the images into a folder for each class"
        )
    values = np.asarray(source.dataset[source.label_column])
    feature = features[source.label_column]
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        numbers, names = values, list(feature.names)
    elif values.dtype.kind == "U":
        names, numbers = np.unique(values, return_inverse=True)
        names = names.tolist()
    elif values.dtype.kind in "iub" and len(values):
        numbers, names = values.astype(np.int64), [str(i) for i in range(max(0, int(values.max())) + 1)]
    else:
        raise ValueError(
            f"label column {source.label_column!r} of {source.name} holds {feature}: classes, whole numbers or words "
            "are needed in every row"
        )
    if (numbers < 0).any():
        raise ValueError(
            f"{int((numbers < 0).sum())} of {len(numbers)} images of {source.name} have a label below 0, which means "
            "none: choose another split with --train_split or --eval_split"
        )
    if known is None:
        return numbers.astype(np.int64), names
    used = [names[i] for i in np.unique(numbers)]
    numbered = [all(name.isdecimal() for name in either) for either in (names, known)]
    if any(numbered) and not all(numbered) and len(names) <= len(known):
        return numbers.astype(np.int64), known  # named in one of the two only: the numbers are all there is
    strange = [name for name in used if name not in known]
    if strange:
        raise ValueError(
            f"{source.name} has {len(strange)} classes that training has not ({', '.join(strange[:5])}): evaluate on "
            "images of the trained classes, or train on these too"
        )
    place = np.array([known.index(name) if name in known else -1 for name in names])
    return place[numbers], known


def missing_classes(labels: np.ndarray, names: list[str]) -> list[str]:
    """Names of the classes without an image."""
    counts = np.bincount(labels, minlength=len(names))
    return [name for name, count in zip(names, counts, strict=True) if not count]


def balanced_part(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Sorted places of a random `fraction` of the images of each class, at least one of each."""
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(places[: max(1, round(fraction * len(places)))])
    return np.sort(np.concatenate(chosen))
