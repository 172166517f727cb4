import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pytest

from modeling_mae.data.find.sources import Source
from modeling_mae.errors import UserError
from modeling_mae.tasks import CLASSES


NAMED = datasets.ClassLabel(names=["cat", "dog", "owl"])


def source(values, feature=None):
    """`pets` with a label column of these values."""
    features = datasets.Features({"label": feature}) if feature is not None else None
    return Source(datasets.Dataset.from_dict({"label": values}, features=features), "image", "label", "pets")


@pytest.mark.parametrize(
    "values, feature, numbers, names",
    [
        ([2, 0, 2], NAMED, [2, 0, 2], ["cat", "dog", "owl"]),
        ([1, 0, 2], None, [1, 0, 2], ["0", "1", "2"]),
        ([1, 3], datasets.Value("uint8"), [1, 3], ["0", "1", "2", "3"]),
        (["b", "a", "b"], None, [1, 0, 1], ["a", "b"]),
        (["b", "a"], datasets.Value("large_string"), [1, 0], ["a", "b"]),
        ([True, False, True], None, [1, 0, 1], ["0", "1"]),
        (list(range(100)), None, list(range(100)), [str(i) for i in range(100)]),
        ([2, 0], datasets.ClassLabel(num_classes=3), [2, 0], ["0", "1", "2"]),
    ],
)
def test_labels_of_every_kind(values, feature, numbers, names):
    class_numbers, class_names = CLASSES.read(source(values, feature))
    assert class_numbers.tolist() == numbers and class_names == names and class_numbers.dtype == np.int64


def test_large_whole_numbers_are_names():
    """A list of all the smaller numbers would fill the memory."""
    given = source([10**9, 7, 10**9, 123_456])
    tracemalloc.start()
    numbers, names = CLASSES.read(given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers.tolist() == [2, 0, 2, 1] and names == ["7", "123456", "1000000000"]
    assert peak < 10_000_000  # bytes
    assert CLASSES.read(source([10**9, 7]), names)[0].tolist() == [2, 0]
    assert CLASSES.read(source([7, 7]), names)[0].tolist() == [0, 0]
    with pytest.raises(UserError, match=r"1 classes that the training images do not have \(8\)"):
        CLASSES.read(source([8, 7]), names)


def test_the_largest_whole_numbers_stay_apart():
    column = pa.array([2**63 + 2, 7, 2**63 + 1], pa.uint64())  # two of them are equal as decimals
    given = Source(datasets.Dataset(pa.table({"label": column})), "image", "label", "pets")
    numbers, names = CLASSES.read(given)
    assert numbers.tolist() == [2, 0, 1] and names == ["7", str(2**63 + 1), str(2**63 + 2)]


def test_classes_are_matched_by_name():
    """Two folders number the same classes differently when one of them has fewer."""
    test = source([0, 1, 1], datasets.ClassLabel(names=["dog", "owl"]))
    numbers, names = CLASSES.read(test, ["cat", "dog", "owl"])
    assert numbers.tolist() == [1, 2, 2] and names == ["cat", "dog", "owl"]
    assert CLASSES.absent(numbers, names) == ["cat"]
    numbers, names = CLASSES.read(source([0, 2]), ["cat", "dog", "owl"])  # numbers without names
    assert numbers.tolist() == [0, 2] and names == ["cat", "dog", "owl"]
    with pytest.raises(UserError, match=r"2 classes that the training images do not have \(red, blue\)"):
        CLASSES.read(source([0, 1], datasets.ClassLabel(names=["red", "blue"])), ["cat", "dog", "owl"])
    # A name that no image has does no harm.
    numbers, _ = CLASSES.read(source([0, 0], datasets.ClassLabel(names=["cat", "yak"])), ["cat", "dog"])
    assert numbers.tolist() == [0, 0]


def test_a_class_that_the_training_images_do_not_have():
    with pytest.raises(UserError, match=r"pets has 1 classes that the training images do not have \(owl\)"):
        CLASSES.read(source([0, 2], NAMED), ["cat", "dog"])
    with pytest.raises(UserError, match=r"classes that the training images do not have \(2\)"):
        CLASSES.read(source([0, 2]), ["0", "1"])


@pytest.mark.parametrize(
    "values, feature, message",
    [
        ([0, -1, -1], None, r"2 of 3 images of pets have no label \(empty, or below 0\).*--train_split"),
        ([0, -1, 1], NAMED, r"1 of 3 images of pets have no label"),
        ([0, None, None], NAMED, r"2 of 3 images of pets have no label"),
        ([0, None], None, r"1 of 2 images of pets have no label"),
        (["a", None], None, r"1 of 2 images of pets have no label"),
        ([None, None], None, r"2 of 2 images of pets have no label"),
        ([0.5, 1.0], None, r"label column 'label' of pets holds .*float.*: classes, whole numbers or words"),
        ([[0], [1]], None, r"label column 'label' of pets holds .*: classes, whole numbers or words"),
        ([{"a": 1}], None, r"label column 'label' of pets holds .*: classes, whole numbers or words"),
    ],
)
def test_what_is_no_label_is_said(values, feature, message):
    with pytest.raises(UserError, match=message):
        CLASSES.read(source(values, feature))


def test_without_a_label_column_the_columns_are_named():
    two = datasets.Dataset.from_dict({"fine": [0], "coarse": [0]}, datasets.Features(fine=NAMED, coarse=NAMED))
    with pytest.raises(UserError, match=r"2 columns of labels \(fine, coarse\).*--label_column_name"):
        CLASSES.read(Source(two, "image", None, "pets"))
    none = datasets.Dataset.from_dict({"image": [1]})
    with pytest.raises(UserError, match=r"no column of labels; its columns are image.*--label_column_name"):
        CLASSES.read(Source(none, "image", None, "pets"))


def test_balanced_part():
    labels = np.array([0] * 40 + [1] * 20 + [2] * 3)
    chosen = CLASSES.part(labels, 0.1, 0)
    assert np.bincount(labels[chosen]).tolist() == [4, 2, 1] and len(set(chosen)) == 7 and (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, CLASSES.part(labels, 0.1, 0))
    assert not np.array_equal(chosen, CLASSES.part(labels, 0.1, 1))
    assert np.array_equal(CLASSES.part(labels, 1.0, 5), np.arange(63))
