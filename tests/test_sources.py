import datasets
import numpy as np
import pytest
from flat import load_eval_source, load_source
from PIL import Image

from modeling_mae.data.find.sources import NoSplit, find_image_column, find_label_column
from modeling_mae.errors import UserError


PICTURE = Image.fromarray(np.full((8, 12, 3), (200, 40, 10), np.uint8))
CLASSES = datasets.ClassLabel(names=["cat", "dog", "owl"])


def test_folders(tmp_path):
    with pytest.raises(UserError, match=r"pictures' does not exist: .*exists"):
        load_source(train_dir=str(tmp_path / "pictures"))
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="pictures' has no images .empty"):
        load_source(train_dir=str(tmp_path / "pictures"))
    with pytest.raises(UserError, match="did you mean .*pictures"):
        load_source(train_dir=str(tmp_path / "picture"))
    (tmp_path / "pictures" / "notes.txt").touch()
    with pytest.raises(UserError, match="1 file left out: 1 .txt"):
        load_source(train_dir=str(tmp_path / "pictures"))
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir()
        for i in range(3):
            PICTURE.save(tmp_path / "pictures" / name / f"{i}.png")
    options = {"train_dir": str(tmp_path / "pictures"), "cache_dir": str(tmp_path / "cache")}
    source = load_source(**options)
    assert len(source) == 6 and source.class_names == ["cat", "dog"] and source.name == "pictures"
    assert source.dataset[source.label_column][:] == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="'picture' is not a column of images: those are image"):
        load_source(image_column_name="picture", **options)
    with pytest.raises(NoSplit, match="no split 'test', no folders of splits"):
        load_source(split="test", **options)
    with pytest.raises(NoSplit, match="to evaluate on"):
        load_eval_source(**options)
    # A folder of nothing but images to evaluate on needs no splits.
    source, split = load_eval_source(validation_dir=options["train_dir"], cache_dir=options["cache_dir"])
    assert len(source) == 6 and split == "train"


def test_folders_of_splits(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(count):
                PICTURE.save(tmp_path / "pictures" / split / name / f"{i}.png")
    options = {"train_dir": str(tmp_path / "pictures"), "cache_dir": str(tmp_path / "cache")}
    assert len(load_source(**options)) == 6
    source, split = load_eval_source(**options)
    assert split == "validation" and len(source) == 4 and source.class_names == ["cat", "dog"]
    with pytest.raises(NoSplit, match="no split 'test', only train, val"):
        load_eval_source(eval_split="test", **options)


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_source(dataset_name="cifar1O")
    with pytest.raises(UserError, match="give cifar10, .*or a Hub id"):
        load_source(dataset_name="xyzzy")


def test_a_folder_given_as_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="'pictures' is a folder here: give it as --train_dir"):
        load_source(dataset_name="pictures")


def test_splits_to_evaluate_on(tmp_path):
    table = datasets.Dataset.from_dict({"image": [PICTURE] * 3, "label": [0, 1, 1]})
    table.to_parquet(tmp_path / "train-0.parquet")
    options = {"train_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(NoSplit, match="no split validation, val, test .*--validation_dir"):
        load_eval_source(**options)
    table.select([0, 1]).to_parquet(tmp_path / "test-0.parquet")
    source, split = load_eval_source(**options)
    assert split == "test" and len(source) == 2 and len(load_source(**options)) == 3
    with pytest.raises(NoSplit, match="'validation'.*train-0.parquet"):
        load_eval_source(eval_split="validation", **options)
    assert load_eval_source()[1] == "test"  # the bundled images


def test_parquet_files_as_the_hub_converts_data_sets(tmp_path):
    """A folder a split, with names that say nothing; `constrained` is not `train`."""
    table = datasets.Dataset.from_dict({"image": [PICTURE] * 3, "label": [0, 1, 1]})
    for name, rows in (("train/0000.parquet", [0, 1, 2]), ("test/0000.parquet", [0]), ("constrained.parquet", [1])):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        table.select(rows).to_parquet(tmp_path / "hub" / name)
    options = {"train_dir": str(tmp_path / "hub"), "cache_dir": str(tmp_path / "cache")}
    assert len(load_source(**options)) == 3
    assert len(load_source(split="test", **options)) == 1


def test_samples_are_spread_over_the_set():
    labels = load_source().dataset["label"]
    assert load_source(max_samples=3).dataset["label"][:] == [labels[0], labels[6000], labels[11999]]


def test_image_columns():
    one, two = {"image": datasets.Image()}, {"left": datasets.Image(), "right": datasets.Image()}
    assert find_image_column(datasets.Features(one), None) == "image"
    assert find_image_column(datasets.Features(two), "right") == "right"
    with pytest.raises(UserError, match="2 columns of images, in left, right: .*--image_column_name"):
        find_image_column(datasets.Features(two), None)
    with pytest.raises(UserError, match="0 columns of images, in label"):
        find_image_column(datasets.Features({"label": CLASSES}), None)


def test_label_columns():
    both = datasets.Features({"fine_label": CLASSES, "coarse_label": CLASSES})  # of CIFAR-100
    assert find_label_column(both, None) == "fine_label"
    assert find_label_column(both, "coarse_label") == "coarse_label"
    with pytest.raises(UserError, match="label_column_name 'lable' is not a column"):
        find_label_column(both, "lable")
    assert find_label_column(datasets.Features({"kind": CLASSES, "size": datasets.Value("int64")}), None) == "kind"
    assert find_label_column(datasets.Features({"label": datasets.Value("int64")}), None) == "label"
    assert find_label_column(datasets.Features({"left": CLASSES, "right": CLASSES}), None) is None
    assert find_label_column(datasets.Features({"image": datasets.Image()}), None) is None
