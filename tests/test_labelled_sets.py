import contextlib

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from flat import load_eval_source, load_source, open_images
from PIL import Image

from modeling_mae.data.find.sources import SourceSettings
from modeling_mae.data.serve.decoded import Memory
from modeling_mae.data.serve.images import Opening
from modeling_mae.errors import UserError
from modeling_mae.evaluation.features import JudgeSettings, features_of, frozen_metrics
from modeling_mae.evaluation.reader import Reader
from modeling_mae.tasks.sets import LabelledSets, load_labelled_sets, match_labels
from modeling_mae.training.augment import BatchTransform


COLOURS = {"a": (250, 10, 10), "b": (10, 250, 10), "c": (10, 10, 250)}
SIZE = (8, 8)
PLENTY = 1 << 30  # bytes


def make_folder(folder, classes, count=3):
    """`count` plain images of each class, each class in its colour."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8, 3), COLOURS[name], np.uint8)).save(folder / name / f"{i}.png")


def load(tmp_path, **options) -> LabelledSets:
    """The sets of the folder `pictures`; `options` replace the defaults."""
    class_names, say = options.pop("class_names", None), options.pop("say", lambda text: None)
    settings = SourceSettings(train_dir=str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"), **options)
    opening = Opening(SIZE, 3, memory=Memory(PLENTY))
    first = contextlib.nullcontext
    return load_labelled_sets(settings, opening, None, class_names=class_names, main_process_first=first, say=say)


def test_test_images_are_matched_to_the_training_classes_by_name(tmp_path):
    """A folder without class a numbers b and c as 0 and 1. Their nearest neighbours are b and c all the same."""
    make_folder(tmp_path / "pictures" / "train", "abc")
    make_folder(tmp_path / "pictures" / "test", "bc", count=2)
    options = {"train_dir": str(tmp_path / "pictures"), "cache_dir": str(tmp_path / "cache")}
    source = load_source(**options)
    found = match_labels(source, lambda: load_eval_source(**options))
    assert found.eval_source.dataset["label"][:] == [0, 0, 1, 1] and found.eval_split == "test"
    assert found.train.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and found.names == ["a", "b", "c"]
    assert found.evaluation.tolist() == [1, 1, 2, 2]

    train = open_images(source, SIZE, 3, memory_budget=PLENTY, labels=found.train)
    evaluation = open_images(found.eval_source, SIZE, 3, memory_budget=PLENTY, labels=found.evaluation)
    reader = Reader(Accelerator(cpu=True), BatchTransform([0.5] * 3, [0.5] * 3, SIZE), 4, 0)
    settings = JudgeSettings(seed=0, ks=(1, 3), linear=False)
    figures = frozen_metrics(reader, features_of(torch.nn.Flatten()), train, evaluation, settings)
    assert figures == {"knn": {1: 1.0, 3: 1.0}}


def test_a_folder_of_one_class_to_evaluate_on(tmp_path):
    make_folder(tmp_path / "pictures" / "train", "abc")
    make_folder(tmp_path / "pictures" / "test", "b", count=2)
    told = []
    sets = load(tmp_path, say=told.append)
    assert sets.evaluation.labels.tolist() == [1, 1] and sets.class_names == ["a", "b", "c"]
    assert len(told) == 1 and told[0].startswith("note       2 of 3 classes have no evaluation image: a, c")
    alone = load(tmp_path, train_split=None, class_names=["c", "b"])  # a classifier that is only tested
    assert alone.evaluation.labels.tolist() == [1, 1]
    (tmp_path / "pictures" / "test" / "b").rename(tmp_path / "pictures" / "test" / "birds")
    with pytest.raises(UserError, match=r"one folder, 'birds', .* one of the 3 classes \(a, b, c\): name the folder"):
        load(tmp_path)


def test_given_class_names_win(tmp_path):
    make_folder(tmp_path / "pictures" / "train", "bc")
    make_folder(tmp_path / "pictures" / "test", "ca")
    said = []
    sets = load(tmp_path, class_names=["c", "b", "a"], say=said.append)
    assert sets.class_names == ["c", "b", "a"]
    assert sets.train.labels.tolist() == [1, 1, 1, 0, 0, 0] and sets.evaluation.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert said == [
        "note       1 of 3 classes have no training image: a",
        "note       1 of 3 classes have no evaluation image: b; means over classes leave them out",
    ]


def test_the_evaluation_images_name_the_classes_where_nothing_is_trained(tmp_path):
    make_folder(tmp_path / "pictures" / "train", "abc")
    make_folder(tmp_path / "pictures" / "test", "bc")
    sets = load(tmp_path, train_split=None)
    assert sets.train is None and sets.all() == [sets.evaluation]
    assert sets.class_names == ["b", "c"] and sets.evaluation.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert str(sets).startswith("pictures: 0 training images, 6 of pictures (test) to evaluate on, 2 classes")


def test_another_folder_to_evaluate_on(tmp_path):
    make_folder(tmp_path / "pictures", "abc")
    make_folder(tmp_path / "others", "bc", count=2)
    with pytest.raises(UserError, match="to evaluate on"):
        load(tmp_path)
    sets = load(tmp_path, validation_dir=str(tmp_path / "others"))
    assert sets.evaluation.labels.tolist() == [1, 1, 2, 2] and len(sets.train) == 9
    assert (sets.train_name, sets.eval_name, sets.eval_split) == ("pictures", "others", "validation")
    assert sets.all() == [sets.train, sets.evaluation]


def test_fewer_samples(tmp_path):
    make_folder(tmp_path / "pictures" / "train", "abc")
    make_folder(tmp_path / "pictures" / "test", "abc")
    sets = load(tmp_path, max_train_samples=3, max_eval_samples=2)
    assert len(sets.train) == 3 and len(sets.evaluation) == 2


def test_a_class_that_is_only_evaluated_on_is_refused(tmp_path):
    make_folder(tmp_path / "pictures" / "train", "ab")
    make_folder(tmp_path / "pictures" / "test", "bc")
    with pytest.raises(UserError, match=r"1 classes that the training images do not have \(c\)"):
        load(tmp_path)
