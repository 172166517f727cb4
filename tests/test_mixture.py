"""Several sources in given shares: who comes when, counted by hand, and the same with any processes and workers."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from flat import load_eval_source, load_training_source, open_images
from PIL import Image
from test_streams import make_shards, picture

from modeling_mae.data.find.fingerprint import fingerprint
from modeling_mae.data.find.joined import exact_shares
from modeling_mae.data.find.sources import SourceSettings
from modeling_mae.data.pretraining_sets import load_pretraining_sets
from modeling_mae.data.serve.crops import RandomResizedCrop
from modeling_mae.data.serve.images import Opening
from modeling_mae.data.serve.mixture import Mixture
from modeling_mae.errors import UserError
from modeling_mae.evaluation.classifier import ViewSettings, training_view
from modeling_mae.tasks import CLASSES, task_of_labels
from modeling_mae.tasks.sets import load_labelled_sets, load_masked_sets, match_labels


UNITS = (4, 0, 1, 7, 30, 9)  # 51 images
BATCH = 8


def visits(order, updates):
    """(update, epoch, image) of everything that comes, in this order."""
    seen = []
    for update in updates:
        epochs, images = order.images_of(update)
        assert epochs.shape == images.shape == (order.total_batch_size,)
        seen += [(update, *pair) for pair in zip(epochs.tolist(), images.tolist(), strict=True)]
    return seen


@pytest.mark.parametrize("units", [None, UNITS])
def test_every_image_of_a_source_comes_once_before_any_comes_again(units):
    order = Mixture((10, 51), exact_shares((0.7, 0.3)), (None, units)).order(None, BATCH, seed=3)
    assert (order.num_images, order.updates_per_epoch) == (61, 7)
    seen = visits(order, range(200))  # 1,600 images: 1,120 and 480
    for first, size, given in ((0, 10, 1120), (10, 51, 480)):
        own = [(epoch, image) for _, epoch, image in seen if first <= image < first + size]
        assert len(own) == given
        whole = given // size  # epochs of this source
        assert sorted(own)[: whole * size] == [(e, i) for e in range(whole) for i in range(first, first + size)]
        assert len(set(own)) == len(own) and max(own)[0] == (given - 1) // size
        epochs = [[e for u, e, i in seen if u == update and first <= i < first + size] for update in range(200)]
        assert all(max(now) <= min(later) for now, later in zip(epochs[:-1], epochs[1:], strict=True))
    orders = [[i for _, e, i in seen if e == epoch and i < 10] for epoch in range(100)]
    assert len({tuple(images) for images in orders}) > 95  # each time in another order


@pytest.mark.parametrize(
    ("weights", "per_update"),
    [((0.7, 0.3), (5.6, 2.4)), ((1, 3), (2, 6)), ((2, 1, 1), (4, 2, 2)), ((0.01, 0.98, 0.01), (0.08, 7.84, 0.08))],
)
def test_shares(weights, per_update):
    sizes = (40,) * len(weights)
    order = Mixture(sizes, exact_shares(weights), (None,) * len(weights)).order(None, BATCH, seed=0)
    sums = np.zeros(len(weights))
    for update in range(1000):
        counts = np.bincount(order.images_of(update)[1] // 40, minlength=len(weights))
        assert (np.abs(counts - per_update) < (1 if len(weights) == 2 else 2)).all()
        sums += counts
        assert (np.abs(sums - np.multiply(update + 1, per_update)) <= 1 + 1e-9).all()
    places = np.mean([np.arange(8)[order.images_of(u)[1] < 40].mean() for u in range(200) if weights[0] > 0.1] or 3.5)
    assert abs(places - 3.5) < 0.4  # the sources are mixed within the batch


def test_position_and_seed_decide_alone():
    mixture = Mixture((10, 51, 10), exact_shares((1, 1, 1)), (None, UNITS, None))
    walked = visits(mixture.order(None, BATCH, 5), range(40))
    assert visits(mixture.order(None, BATCH, 5), [39, 12, 38]) == [
        seen for update in (39, 12, 38) for seen in walked if seen[0] == update
    ]
    assert visits(mixture.order(None, BATCH, 6), range(40)) != walked
    first, last = ([i % 61 for _, e, i in walked if e == 0 and (i < 10 if k == 0 else i >= 61)] for k in (0, 1))
    assert sorted(first) == sorted(last) and first != last  # sources of one size have orders of their own


def test_a_part_of_the_images():
    rows = np.array([0, 3, 9, 10, 20, 60])
    order = Mixture((10, 51), exact_shares((0.5, 0.5)), (None, UNITS)).order(rows, 2, seed=0)
    seen = visits(order, range(30))
    assert {i for *_, i in seen} == set(range(6)) and sum(i < 3 for *_, i in seen) == 30


@pytest.fixture(params=["files", "parquet", "tar"])
def sources(request, tmp_path):
    """Options of `load_sources` for the pictures 0 to 63 and, elsewhere, 100 to 129. Their labels are i % 10."""
    options = {"cache_dir": str(tmp_path / "cache"), "streaming": request.param != "files"}
    places = []
    for name, counts, first in (("one", (5, 1, 17, 9, 30, 2), 0), ("two", (12, 18), 100)):
        folder = tmp_path / name
        if request.param != "files":
            make_shards(folder, request.param, counts, first=first)
        else:
            folder.mkdir()
            for i in range(first, first + sum(counts)):
                (folder / str(i % 10)).mkdir(exist_ok=True)
                (folder / str(i % 10) / f"{i:03}.png").write_bytes(picture(i)[1])
        places.append(str(folder))
    return {**options, "train_dir": places, "mix": [0.5, 0.5]}


def open_both(sources, budget=0, **options):
    source = load_training_source(**sources)
    return source, open_images(source, (28, 28), 1, memory_budget=budget, **options)


def test_images_labels_and_names(sources):
    source, images = open_both(sources)
    assert source.name == "one (0.5) + two (0.5)" and len(images) == 94
    labels, names = CLASSES.read(source)
    assert task_of_labels(source).name == "single_label_classification" and names == [str(i) for i in range(10)]
    pictures = {picture(i)[0].tobytes(): i for i in [*range(64), *range(100, 130)]}
    numbers = [pictures[images.read(i)[0].numpy().tobytes()] for i in range(94)]
    assert sorted(numbers) == [*range(64), *range(100, 130)] and all(number < 64 for number in numbers[:64])
    assert labels.tolist() == [number % 10 for number in numbers]
    assert fingerprint(source).startswith("94 images, ")
    other = load_training_source(**{**sources, "train_dir": sources["train_dir"][::-1]})
    assert fingerprint(other) != fingerprint(source)


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_batches_do_not_depend_on_processes_workers_and_start(sources, budget):
    _, images = open_both(sources, budget)
    options = {"seed": 1, "batch_size": 4, "total_batch_size": 16}
    view = images.view(crop=RandomResizedCrop(0))

    def batches(updates, process=0, processes=1, workers=0):
        shares = {"process_index": process, "num_processes": processes, "num_workers": workers}
        loader = view.training_loader(updates=updates, **shares, **options)
        return [torch.cat([batch[key].flatten().float() for key in sorted(batch)]) for batch in loader]

    alone = batches(range(8))
    assert len(alone) == 32 and len({batch.numpy().tobytes() for batch in alone}) == 32
    for processes, workers in ((1, 3), (2, 1), (4, 0)) if budget == 0 else ((2, 0),):
        shares = [batches(range(8), p, processes, workers) for p in range(processes)]
        dealt = [batch for turn in zip(*shares, strict=True) for batch in turn]
        assert all(torch.equal(one, other) for one, other in zip(dealt, alone, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(batches(range(3, 8)), alone[12:], strict=True))


def test_an_image_that_comes_again_has_another_crop(tmp_path):
    crop = RandomResizedCrop(0)
    boxes, _ = crop([0, 1, 1, 7], [5, 5, 6, 5], 100, 80)
    for row, (epoch, image) in enumerate(((0, 5), (1, 5), (1, 6), (7, 5))):
        assert torch.equal(boxes[row], crop(epoch, [image], 100, 80)[0][0])
    assert len({tuple(box) for box in boxes.tolist()}) == 4


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(len(name))[0]).save(folder / name)
    return str(folder)


def test_classes_are_matched_by_name(tmp_path):
    files = put(tmp_path / "files", "ant/0.png", "bee/1.png")
    rows = {"picture": [{"bytes": picture(i)[1], "path": None} for i in range(3)], "kind": [0, 0, 1]}
    kinds = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["bee", "ant"])}
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "parquet" / "a.parquet")
    options = {"cache_dir": str(tmp_path / "cache"), "mix": [2, 1]}
    source = load_training_source(train_dir=[files, str(tmp_path / "parquet")], **options)
    labels, names = CLASSES.read(source)
    assert (labels.tolist(), names) == ([0, 1, 1, 1, 0], ["ant", "bee"])
    assert CLASSES.read(source, ["cow", "bee", "ant"])[0].tolist() == [2, 1, 1, 1, 2]
    other = put(tmp_path / "other", "ant/0.png", "cow/1.png")
    with pytest.raises(UserError, match="files and other have different classes: bee, cow are in one only"):
        CLASSES.read(load_training_source(train_dir=[files, other], **options))
    with pytest.raises(UserError, match="other has 1 classes that the training images do not have"):
        CLASSES.read(load_training_source(train_dir=[files, other], **options), ["ant", "bee"])


def test_images_to_evaluate_on_are_joined(tmp_path):
    places = [
        put(tmp_path / "one", "train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png", "test/a/4.png"),
        put(tmp_path / "two", "train/a/0.png", "train/b/1.png", "test/b/5.png", "test/a/6.png"),
    ]
    source, split = load_eval_source(train_dir=places, mix=[1, 2])
    assert split == "test" and source.shares is None
    assert [cell["path"][-10:] for cell in source.dataset["image"]] == ["st/a/4.png", "st/a/6.png", "st/b/5.png"]
    assert CLASSES.read(source, ["a", "b"])[0].tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="two' has no split 'validation'"):
        load_eval_source(train_dir=places, eval_split="validation")
    with pytest.raises(UserError, match="have no split validation, val, test that is in all of them"):
        load_eval_source(train_dir=[places[0], put(tmp_path / "three", "train/a/0.png")])


def test_without_the_same_classes_there_is_no_knn(tmp_path, capsys):
    places = [put(tmp_path / "one", "train/a/0.png", "train/b/1.png"), put(tmp_path / "two", "train/c/0.png")]
    said = []
    options = {"train_dir": places, "mix": [1, 1]}
    sets = load_pretraining_sets(
        load_training_source(**options),
        SourceSettings(**options),
        Opening((28, 28), 1),
        k=1,
        match_labels=match_labels,
        load_masked=load_masked_sets,
        main_process_first=torch.no_grad,  # any context
        say=said.append,
    )
    assert len(sets.images) == 3 and sets.evaluation is None
    assert said == [
        "no k-NN accuracy: two has no column of labels; its columns are image: name one with "
        "--label_column_name, or put the images into a folder for each class"
    ]


def test_what_cannot_be_joined(tmp_path):
    rows = {"image": [np.zeros((1, 4, 4), np.uint8)] * 2}
    features = datasets.Features({"image": datasets.Array3D((1, 4, 4), "uint8")})
    (tmp_path / "arrays").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "arrays" / "a.parquet")
    files = put(tmp_path / "files", *(f"{i}.png" for i in range(9)))
    options = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(
        UserError, match=r"files holds encoded images and arrays arrays of shape \(1, 4, 4\) and uint8"
    ):
        load_training_source(train_dir=[files, str(tmp_path / "arrays")], **options)
    assert load_training_source(train_dir=str(tmp_path / "arrays"), **options).only_folder is None
    other = put(tmp_path / "other", "0.png")
    assert len(load_training_source(train_dir=[files, other], max_train_samples=5, **options)) == 5
    with pytest.raises(UserError, match="2 samples leave none of other"):
        load_training_source(train_dir=[files, other, put(tmp_path / "last", "0.png")], max_train_samples=2, **options)
    joined = load_training_source(train_dir=[files, other], **options)  # without shares
    order = open_images(joined, (28, 28), 1, memory_budget=0).order(10, 0)
    assert sorted(order.images_of(0)[1].tolist()) == list(range(10))


def test_labelled_sets_of_several_folders(tmp_path):
    places = [
        put(tmp_path / "one", "train/a/0.png", "train/b/1.png", "test/a/4.png", "test/b/5.png"),
        put(tmp_path / "two", "train/b/0.png", "train/a/1.png", "train/a/2.png", "test/b/5.png"),
    ]
    options = {"class_names": None, "main_process_first": torch.no_grad, "say": print}
    settings, opening = SourceSettings(train_dir=places, mix=[1, 4]), Opening((28, 28), 1)
    sets = load_labelled_sets(settings, opening, None, **options)
    assert sets.train.labels.tolist() == [0, 1, 0, 0, 1] and sets.evaluation.labels.tolist() == [0, 1, 1]
    assert (sets.train_name, sets.eval_name, sets.eval_split) == ("one (0.2) + two (0.8)", "one + two", "test")
    shares = [(sets.train.order(5, 0).images_of(update)[1] < 2).sum() for update in range(20)]
    assert shares == [1] * 20
    sets = load_labelled_sets(replace(settings, validation_dir=f"{places[0]}/test"), opening, None, **options)
    assert sets.evaluation.labels.tolist() == [0, 1] and sets.evaluation.mixture is None
    look = ViewSettings(0, [0.2, 1], True, 0.9, "rand-m9-mstd0.5-inc1")
    part = training_view(CLASSES, sets.train, look, [0.5])
    batches = part.training_loader(seed=0, batch_size=2, total_batch_size=2, updates=range(5))
    assert [len(batch["images"]) for batch in batches] == [2] * 5
    with pytest.raises(UserError, match="the 2 images of this training are none of folder 1 in train_dir"):
        training_view(CLASSES, sets.train, replace(look, label_fraction=0.4), [0.5]).order(2, 0)
