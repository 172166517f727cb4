"""Groups, label fractions and folds by group, what stands on both sides, and when a training has had enough."""

import io
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from modeling_mae.data.find.groups import groups_of
from modeling_mae.data.find.joined import load_training_source
from modeling_mae.data.find.slices import VOLUME_OF_A_SLICE
from modeling_mae.data.find.sources import BUNDLED, Source, SourceSettings
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.errors import UserError
from modeling_mae.evaluation.classifier import is_over, with_patience
from modeling_mae.tasks import CLASSES, NUMBERS
from modeling_mae.tasks.sets import LabelledSets, match_labels
from modeling_mae.tasks.splits import fold_of, leaks, part_of, sets_of_fold


def sets_of(pixels, labels, groups=None, test=None) -> LabelledSets:
    """`pixels` ``(images, 1, 4, 4)`` to train on; `test` are the rows to evaluate on."""
    images = MemoryImages(torch.from_numpy(pixels), (4, 4), labels=torch.from_numpy(labels))
    rows = np.arange(len(pixels)) if test is None else test
    sets = LabelledSets(images, images.view(rows=rows), ["a", "b"], "x", None, "x", "test")
    sets.groups, sets.eval_groups = groups, None if groups is None else groups[rows]
    return sets


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), np.uint8)


# --- where groups come from ---


def test_groups_are_read_from_a_column_or_from_file_names(tmp_path):
    for folder in ("one", "two"):
        for name in ("p1_0", "p1_1", "p2_0"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("L", (4, 4)).save(tmp_path / folder / f"{name}.png")
    source = load_training_source(SourceSettings(train_dir=str(tmp_path / "one"), cache_dir=str(tmp_path / "cache")))
    assert groups_of(source, r"^(p\d+)_").tolist() == ["p1", "p1", "p2"]
    assert groups_of(source, r"p\d+").tolist() == ["p1", "p1", "p2"]
    with pytest.raises(UserError, match=r"finds no group for 1 of 3 images of one, as 'p2_0.png'"):
        groups_of(source, "p1")
    with pytest.raises(UserError, match=r"neither a column of one \(image\) nor a regular expression"):
        groups_of(source, "p(")
    joined = SourceSettings(
        train_dir=[str(tmp_path / "one"), str(tmp_path / "two")], cache_dir=str(tmp_path / "cache")
    )
    assert groups_of(load_training_source(joined), "p.").tolist() == ["p1", "p1", "p2"] * 2
    table = datasets.Dataset.from_dict({"image": ["x"] * 3, "site": [7, 7, 9]})
    assert groups_of(Source(table, "image", None, "x"), "site").tolist() == ["7", "7", "9"]
    empty = datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": "a"}] * 2, "site": [7, None]})
    with pytest.raises(UserError, match="finds no group for 1 of 2 images"):
        groups_of(Source(empty, "image", None, "x"), "site")


def test_the_slices_of_a_volume_are_a_group():
    names = ["a/scan.nii.gz#z=9", "a/scan.nii.gz#z=87", "b/scan.nii.gz#z=9", "photo#z.png"]
    volumes = ["a/scan.nii.gz", "a/scan.nii.gz", "b/scan.nii.gz", "photo#z.png"]
    assert [re.search(VOLUME_OF_A_SLICE, name)[1] for name in names] == volumes


# --- parts and folds ---


@pytest.mark.parametrize("seed", range(5))
def test_a_fraction_takes_whole_groups_and_every_class(seed):
    generator = np.random.default_rng(seed)
    groups = np.array([f"patient {n}" for n in generator.integers(0, 30, 300)])
    rare = groups == groups[0]
    labels = np.where(rare, 2, generator.integers(0, 2, 300))
    rows = part_of(CLASSES, labels, groups, 0.2, seed)
    chosen = np.isin(groups, groups[rows])
    assert np.array_equal(np.flatnonzero(chosen), rows)  # all of a group or nothing
    sizes = np.unique(groups, return_counts=True)[1]
    assert 60 <= len(rows) <= 60 + sizes.max() + rare.sum() and set(labels[rows]) == {0, 1, 2}
    assert np.array_equal(part_of(CLASSES, labels, None, 0.2, seed), CLASSES.part(labels, 0.2, seed))
    targets = generator.normal(size=(300, 1))
    assert 60 <= len(part_of(NUMBERS, targets, groups, 0.2, seed)) <= 60 + sizes.max()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("single", [False, True], ids=["numbers", "classes"])
def test_every_image_is_tested_once_and_no_group_is_on_both_sides(grouped, single):
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3 if single else generator.normal(size=(300, 2))
    groups = np.arange(300) // 6 if grouped else None
    folds = [fold_of(labels, groups, 5, fold) for fold in range(1, 6)]
    assert np.array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(300))
    for train, test in folds:
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(300))
        assert groups is None or not set(groups[train]) & set(groups[test])
        assert not single or np.bincount(labels[test]).tolist() == [20, 20, 20]
    again = fold_of(labels, groups, 5, 2)
    assert np.array_equal(again[1], folds[1][1])


def test_more_folds_than_images_or_groups_are_refused():
    labels = np.array([0] * 9 + [1] * 3)
    with pytest.raises(UserError, match="folds 5 are more than the 3 images of a class: give --folds 3"):
        fold_of(labels, None, 5, 1)
    with pytest.raises(
        UserError, match="folds 2 are more than the 1 image of a class: leave folds out, and give --validation_dir"
    ):
        fold_of(labels[:10], None, 2, 1)
    with pytest.raises(UserError, match="folds 3 are more than the 2 groups"):
        fold_of(labels, np.arange(12) % 2, 3, 1)


def test_the_labels_of_folds_are_read_once():
    """Masks take long."""
    source, read = object(), []

    class Labels:
        def read(self, source, names):
            read.append(source)
            return np.arange(3), ["a", "b", "c"]

    found = match_labels(source, lambda: (source, "folds"), Labels())
    assert read == [source] and found.train.tolist() == found.evaluation.tolist() == [0, 1, 2]
    assert (found.names, found.eval_split, found.eval_source) == (["a", "b", "c"], "folds", source)


def test_the_sets_of_a_fold_hold_its_images(pixels):
    labels, groups = np.arange(60) % 2, np.array([f"g{n}" for n in np.arange(60) // 4])
    sets = sets_of(pixels, labels, groups)
    fold = sets_of_fold(sets, 5, 2)
    train, test = fold_of(labels, groups, 5, 2)
    assert fold.eval_split == "fold 2 of 5"
    assert torch.equal(fold.evaluation.batch(0, [0, 3])["images"], torch.from_numpy(pixels[test[[0, 3]]]))
    assert fold.training.labels.tolist() == labels[train].tolist()
    assert fold.groups.tolist() == groups[train].tolist() and fold.eval_groups.tolist() == groups[test].tolist()
    # a part of it, as a training takes it
    rows = part_of(CLASSES, labels[train], fold.groups, 0.5, 0)
    assert torch.equal(
        fold.training.view(rows=rows).batch(0, [1])["images"][0], torch.from_numpy(pixels[train[rows[1]]])
    )
    assert not list(leaks(fold))


# --- what stands on both sides ---


def test_groups_and_copies_on_both_sides_are_said(pixels):
    labels, groups = np.arange(60) % 2, np.array([f"g{n}" for n in np.arange(60) // 20])
    pixels[50] = pixels[3]
    sets = sets_of(pixels, labels, groups, test=np.arange(30, 60))
    sets.train, sets.groups = sets.training.view(rows=np.arange(30)), groups[:30]
    first, second = leaks(sets)
    assert first.startswith("1 of 2 groups have training images too, as 'g1': results on their 10 evaluation images")
    assert second.startswith("1 of 30 evaluation images are training images too, pixel by pixel")


def drawn(count: int) -> np.ndarray:
    """Smooth random pictures ``(count, 32, 32)``."""
    values = np.random.default_rng(1).normal(size=(count, 9, 9))
    return np.stack([np.asarray(Image.fromarray(v.astype(np.float32)).resize((32, 32), 3)) for v in values])


def eight_bits(values: np.ndarray) -> np.ndarray:
    return (128 + 30 * values).clip(0, 255).astype(np.uint8)


def note_on(train: np.ndarray, test: np.ndarray) -> list[str]:
    both = torch.from_numpy(np.concatenate([train, test]))[:, None]
    sets = sets_of(both.numpy(), np.zeros(len(both), np.int64), test=np.arange(len(train), len(both)))
    sets.train = sets.training.view(rows=np.arange(len(train)))
    return list(leaks(sets))


def test_images_that_were_saved_again_are_said_and_others_not():
    """As JPEG, larger, brighter; and a copy, which is counted once."""
    train, new = eight_bits(drawn(40)[:30]), eight_bits(drawn(40)[30:])
    Image.fromarray(train[0]).save(file := io.BytesIO(), "JPEG", quality=75)
    larger = Image.fromarray(train[1]).resize((48, 48), 3).resize((32, 32), 3)
    again = [np.asarray(Image.open(file)), np.asarray(larger), (20 + 0.8 * train[2]).astype(np.uint8)]
    assert not note_on(train, new) and not note_on(train, np.full_like(new, 7))
    copies, almost = note_on(train, np.stack([*again, train[3], *new]))
    assert copies.startswith("1 of 14 evaluation images are training images too, pixel by pixel")
    assert almost.startswith("3 of 14 evaluation images look almost like a training image")


def test_none_of_the_bundled_garments_is_said_to_be_on_both_sides():
    def pixels_of(split: str, count: int) -> np.ndarray:
        cells = parquet.read_table(next(BUNDLED.glob(f"{split}-*.parquet")))["image"][:count].to_pylist()
        return np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells])

    assert not note_on(pixels_of("train", 4000), pixels_of("test", 2000))


# --- patience ---


class History:
    def __init__(self, values):
        self.values = values

    def read(self):
        return [{"step": 3 * i, "loss": 1.0} | {"eval_accuracy": value} for i, value in enumerate(self.values)]


class Run:
    """What `is_over` needs of a run, after so many evaluations."""

    class schedule:  # noqa: N801
        updates_per_epoch, updates = 2, 20

    class accelerator:  # noqa: N801
        is_main_process = True
        print = staticmethod(lambda *words, **options: None)

    def __init__(self, *values):
        self.history = History(values)


def test_patience_counts_evaluations_since_the_best():
    assert not is_over(Run(), CLASSES.problem, 1)
    assert not is_over(Run(0.5, 0.6), CLASSES.problem, 1) and is_over(Run(0.6, 0.6), CLASSES.problem, 1)
    assert not is_over(Run(0.5, 0.7, 0.6), CLASSES.problem, 2) and is_over(Run(0.7, 0.6, 0.65), CLASSES.problem, 2)
    assert not is_over(Run(0.7, 0.6, 0.8), CLASSES.problem, 2)


def test_a_training_ends_at_the_same_update_from_wherever_it_goes_on():
    class Update:
        def __init__(self, number):
            self.number = number

    accuracies = [0.5, 0.7, 0.6, 0.65, 0.9]  # after each epoch of two updates

    def trained(start, patience):
        run, done = Run(*accuracies[: start // 2]), []
        for update in with_patience((Update(n) for n in range(start, 10)), run, CLASSES.problem, patience):
            done.append(update.number)
            if update.number % 2:
                run.history.values = accuracies[: (update.number + 1) // 2]
        return done

    assert trained(0, 2) == list(range(8)) and trained(0, None) == trained(0, 3) == list(range(10))
    assert trained(6, 2) == [6, 7] and trained(7, 2) == [7] and trained(8, 2) == []
