import datasets
import numpy as np
import pytest

from modeling_mae.training.data import Source, find_label_column
from modeling_mae.training.labels import balanced_part, missing_classes, read_labels


def source(column, values, feature=None, name="pets", **others):
    features = {column: feature} if feature else None
    data = {column: values, **{key: [0] * len(values) for key in others}}
    if features:
        features.update(others)
    loaded = datasets.Dataset.from_dict(data, features=datasets.Features(features) if features else None)
    return Source(loaded, "image", find_label_column(loaded.features, None if others else column), None, name)


CLASSES = datasets.ClassLabel(names=["cat", "dog", "owl"])


def test_labels_of_every_kind():
    for values, feature, numbers, names in (
        ([2, 0, 2], CLASSES, [2, 0, 2], ["cat", "dog", "owl"]),
        ([1, 0, 2], None, [1, 0, 2], ["0", "1", "2"]),
        (["b", "a", "b"], None, [1, 0, 1], ["a", "b"]),
        ([True, False, True], None, [1, 0, 1], ["0", "1"]),
        (list(range(100)), None, list(range(100)), [str(i) for i in range(100)]),
    ):
        found, found_names = read_labels(source("label", values, feature))
        assert found.tolist() == numbers and found_names == names


def test_classes_are_matched_by_name():
    """Two folders number the same classes otherwise when one of them has fewer."""
    test = source("label", [0, 1, 1], datasets.ClassLabel(names=["dog", "owl"]))
    numbers, names = read_labels(test, ["cat", "dog", "owl"])
    assert numbers.tolist() == [1, 2, 2] and names == ["cat", "dog", "owl"]
    assert missing_classes(numbers, names) == ["cat"]
    numbers, _ = read_labels(source("label", [0, 2]), ["cat", "dog", "owl"])  # numbers without names
    assert numbers.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"2 classes that training has not \(red, blue\)"):
        read_labels(source("label", [0, 1], datasets.ClassLabel(names=["red", "blue"])), ["cat", "dog", "owl"])
    # a name that no image has does no harm
    read_labels(source("label", [0, 0], datasets.ClassLabel(names=["cat", "yak"])), ["cat", "dog"])


@pytest.mark.parametrize(
    "given, message",
    [
        (source("label", [0, -1, -1]), r"2 of 3 images of pets have a label below 0"),
        (source("label", [0.5, 1.0]), r"label column 'label' of pets holds"),
        (source("label", ["a", None]), r"words are needed in every row"),
        (
            source("fine", [0, 1], CLASSES, coarse=CLASSES),
            r"2 columns of labels \(fine, coarse\).*--label_column_name",
        ),
        (
            Source(datasets.Dataset.from_dict({"image": [1]}), "image", None, None, "pets"),
            r"no column of labels; its columns are image.*--label_column_name",
        ),
    ],
)
def test_what_is_no_label_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        read_labels(given)


def test_a_class_that_training_has_not():
    with pytest.raises(ValueError, match=r"pets has 1 classes that training has not \(owl\)"):
        read_labels(source("label", [0, 2], CLASSES), ["cat", "dog"])
    with pytest.raises(ValueError, match=r"classes that training has not \(2\)"):
        read_labels(source("label", [0, 2]), ["0", "1"])


def test_named_column_and_cifar100():
    features = datasets.Features({"fine_label": CLASSES, "coarse_label": CLASSES})
    assert find_label_column(features, None) == "fine_label" and find_label_column(features, "coarse_label")
    with pytest.raises(ValueError, match="label_column_name 'lable' is not a column"):
        find_label_column(features, "lable")


def test_balanced_part():
    labels = np.array([0] * 40 + [1] * 20 + [2] * 3)
    chosen = balanced_part(labels, 0.1, 0)
    assert np.bincount(labels[chosen]).tolist() == [4, 2, 1] and len(set(chosen)) == 7 and (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, balanced_part(labels, 0.1, 0))
    assert not np.array_equal(chosen, balanced_part(labels, 0.1, 1))
    assert np.array_equal(balanced_part(labels, 1.0, 5), np.arange(63))
