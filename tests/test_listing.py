"""Folders of images: what is taken and in which order, what is left out and why, which folders are splits."""

import os

import datasets
import numpy as np
import pandas
import pytest
from flat import load_eval_source, load_source
from PIL import Image, features

from modeling_mae.data.find.listing import list_place
from modeling_mae.data.find.sources import NoSplit
from modeling_mae.data.read.decode import decode
from modeling_mae.errors import UserError


PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(path)
    return folder


def paths(source):
    return [cell["path"] for cell in source.dataset[source.image_column]]


def names(source):
    return [os.path.basename(path) for path in paths(source)]


def load(folder, **options):
    return load_source(train_dir=str(folder), **options)


@pytest.mark.parametrize(
    "files",
    [
        ("cat/b.png", "cat/a.jpg", "cat 2/0.png", "Dog/10.png", "Dog/9.png", "cat.x/1.webp", "dog/é.bmp", "cat/C.PNG"),
        ("0.png", "1.png"),  # no class
        ("one/0.png", "one/1.png"),  # one folder is no class
        ("cat/0.png", "dog/deep/0.png"),  # not equally deep
        ("x/cat/0.png", "y/dog/0.png", "y/cat/1.png", "x/cat/2.tiff"),  # the nearest folder counts
        ("a-b/0.png", "a/0.png", "a/b.png", "a.b/0.png", "__x/0.png", "c/.hidden.png", ".c/0.png"),
    ],
)
@pytest.mark.parametrize("split", [None, "train"])
def test_order_and_classes_are_imagefolders(tmp_path, files, split):
    folder = put(tmp_path / "images", *files) if split is None else put(tmp_path / "images" / split, *files).parent
    root = folder if split is None else folder / split
    truth = datasets.load_dataset(
        "imagefolder", data_files={"train": f"{root}/**"}, split="train", cache_dir=str(tmp_path / "cache")
    ).cast_column("image", datasets.Image(decode=False))
    source = load(folder)
    assert source.dataset[:] == truth[:]
    assert source.dataset.features == truth.features


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_is_imagefolders(tmp_path, kind):
    folder = put(tmp_path / "images", "train/b.png", "train/sub/a.png", "train/c.png", "test/0.png")
    table = pandas.DataFrame({"label": [3, 1], "file_name": ["sub/a.png", "b.png"], "words": ["x, y", "z"]})
    file = folder / "train" / f"metadata.{kind}"
    if kind == "csv":
        table.to_csv(file, index=False)
    elif kind == "jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_parquet(file, index=False)
    truth = datasets.load_dataset(
        "imagefolder", data_files={"train": f"{folder}/train/**"}, split="train", cache_dir=str(tmp_path / "cache")
    ).cast_column("image", datasets.Image(decode=False))
    source = load(folder)
    assert source.dataset[:] == truth[:] and source.dataset.features == truth.features
    assert source.dataset["label"][:] == [3, 1] and source.label_column == "label"
    assert source.left_out == f"1 file left out: 1 not named by metadata.{kind}"


def test_wrong_metadata(tmp_path):
    folder = put(tmp_path / "images", "a.png")
    for text, message in (
        ("file_name,label\nb.png,1\na.png,2\n", "names 1 of 2 images that are not there .* as 'b.png'"),
        ("file_name,label\n../images/../x.png,1\n", "names 1 of 1 images that are not there"),
        ("name,label\na.png,1\n", "has no column file_name, only name, label"),
        ("", "cannot be read"),
    ):
        (folder / "metadata.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            load(folder)
    put(folder, "train/0.png")
    (folder / "a.png").unlink()
    (folder / "metadata.csv").write_text("file_name,label\ntrain/0.png,1\n")
    with pytest.raises(UserError, match="beside it 1 other files, as 'metadata.csv'"):  # its labels would be lost
        load(folder)


def test_what_is_left_out_is_counted(tmp_path, monkeypatch):
    folder = put(tmp_path / "images", "cat/0.png", "dog/0.png", "dog/.hidden.png", "__macosx/1.png", ".git/2.png")
    for name in ("cat/1.heic", "cat/2.HEIC", "dog/3.xyz", "LICENSE"):
        (folder / name).write_bytes(b"?")
    (folder / "dog" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "linked").symlink_to("cat")
    (folder / "closed").mkdir()
    (folder / "dog" / os.fsdecode(b"\xff.png")).write_bytes(b"?")
    os.mkdir(os.fsencode(folder) + b"/b\xff")
    (folder / os.fsdecode(b"b\xff") / "0.png").write_bytes(b"?")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    source = load(folder)
    assert names(source) == ["0.png", "0.png"] and source.class_names == ["cat", "dog"]
    assert list_place(folder).left_out == {
        (".git", "hidden"): 1,
        ("", "without an ending (not an image)"): 1,
        ("__macosx", "in folders that begin with __"): 1,
        ("cat", ".heic (not readable here)"): 2,
        ("dog", "hidden"): 1,
        ("dog", ".xyz (not an image)"): 1,
        ("dog", "dangling (links to nothing)"): 1,
        ("dog", "with a name that is not UTF-8"): 1,
        (os.fsdecode(b"b\xff"), "in folders with a name that is not UTF-8"): 1,
        ("", "neither files nor folders"): 1,
    }
    assert source.left_out.startswith("11 files and 2 folders left out: 2 ")
    assert source.left_out.endswith(
        "folder 'closed' (Permission denied), folder 'linked' (a link to what is listed anyway)"
    )
    assert "2 .heic (not readable here)" in source.left_out and "2 hidden" in source.left_out


def test_kinds_of_image_files(tmp_path):
    kinds = ["avif", "bmp", "gif", "jp2", "jpg", "png", "ppm", "tga", "tif", "tiff", "webp"]
    if "avif" not in features.get_supported_modules():
        kinds.remove("avif")
    folder = put(tmp_path / "images", *(f"0.{kind}" for kind in kinds))
    source = load(folder)
    assert names(source) == [f"0.{kind}" for kind in kinds] and not source.left_out
    for path in paths(source):
        image = decode(None, path, 3)
        assert image.shape == (3, 8, 8)
        with Image.open(path) as truth:
            truth = np.asarray(truth.convert("RGB")).transpose(2, 0, 1).astype(int)
        assert np.abs(image.numpy() - truth).max() <= 2, path


@pytest.mark.parametrize("spelling", ["Train", "TRAIN", "training", "Training"])
@pytest.mark.parametrize("held_out", ["val", "Valid", "VALIDATION", "dev"])
def test_spellings_of_splits(tmp_path, spelling, held_out):
    folder = put(tmp_path, f"{spelling}/a/0.png", f"{spelling}/b/1.png", f"{held_out}/a/2.png", f"{held_out}/b/3.png")
    put(tmp_path, "Testing/a/4.png", "Testing/b/5.png")
    assert names(load(folder)) == ["0.png", "1.png"]
    source, split = load_eval_source(train_dir=str(folder))
    assert names(source) == ["2.png", "3.png"] and split == "validation"
    assert names(load(folder, split="test")) == ["4.png", "5.png"]
    assert load(folder).class_names == ["a", "b"]


def test_unclear_splits_are_asked(tmp_path):
    folder = put(tmp_path / "two", "train/0.png", "Train/1.png", "val/2.png", "validation/3.png")
    with pytest.raises(UserError, match="has 'Train' and 'train', both the split 'train': give the folder of one"):
        load(folder)
    assert names(load(folder, split="Train")) == ["1.png"]
    assert names(load(folder / "train")) == ["0.png"]
    with pytest.raises(UserError, match="has 'val' and 'validation'"):
        load_eval_source(train_dir=str(folder))
    assert names(load_eval_source(eval_split="validation", train_dir=str(folder))[0]) == ["3.png"]
    assert names(load_eval_source(eval_split="val", train_dir=str(folder))[0]) == ["2.png"]
    folder = put(tmp_path / "classes", "train/0.png", "bus/0.png", "plane/0.png")
    with pytest.raises(UserError, match=r"split train and beside it 2 other files, as 'bus/0.png': .* if it is a cl"):
        load(folder)
    folder = put(tmp_path / "coco", "train2017/0.png", "val2017/1.png")
    with pytest.raises(UserError, match="train2017, val2017, which may be splits or classes: give the folder of one"):
        load(folder)
    assert names(load(folder / "train2017")) == ["0.png"]
    folder = put(tmp_path / "tubes", "test tube/0.png", "flask/1.png")
    assert load(folder).class_names == ["flask", "test tube"]
    folder = put(tmp_path / "own", "unlabeled/0.png", "train/1.png")
    assert names(load(folder, split="unlabeled")) == ["0.png"]
    with pytest.raises(NoSplit, match="has no split 'test', only train"):
        load(put(tmp_path / "only", "train/0.png"), split="test")


def test_splits_may_be_links(tmp_path):
    put(tmp_path / "elsewhere", "a/0.png", "b/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path / "set").class_names == ["a", "b"]


def test_links_to_class_folders_are_followed(tmp_path):
    """A subset of a data set made of links, beside folders of its own, and links to single files."""
    put(
        tmp_path / "whole", "train/n01/0.png", "train/n01/1.png", "train/n02/2.png", "train/n03/3.png", "val/n01/4.png"
    )
    folder = put(tmp_path / "subset", "train/own/5.png")
    (folder / "val").mkdir()
    for place in ("train/n01", "train/n02", "val/n01"):
        (folder / place).symlink_to(tmp_path / "whole" / place)
    (folder / "train" / "own" / "6.png").symlink_to(tmp_path / "whole/train/n03/3.png")
    source = load(folder)
    assert names(source) == ["0.png", "1.png", "2.png", "5.png", "6.png"] and source.class_names == [
        "n01",
        "n02",
        "own",
    ]
    assert source.dataset["label"][:] == [0, 0, 1, 2, 2] and not source.left_out
    assert names(load_eval_source(train_dir=str(folder))[0]) == ["4.png"]


def test_circles_of_links_end(tmp_path):
    folder, other = put(tmp_path / "set", "cat/0.png", "dog/1.png"), put(tmp_path / "other", "2.png")
    (folder / "cat" / "here").symlink_to(".")
    (folder / "dog" / "above").symlink_to("../..")
    (folder / "cat2").symlink_to("cat")  # its images are there already
    (folder / "owl").symlink_to(other)
    (other / "back").symlink_to(folder)
    (folder / "one.png").symlink_to("two.png")
    (folder / "two.png").symlink_to("one.png")
    (folder / ".kept").mkdir()
    put(folder / ".kept", "3.png")
    (folder / "fox").symlink_to(".kept")  # listed nowhere else
    source = load(folder)
    assert names(source) == ["0.png", "1.png", "3.png", "2.png"] and source.class_names == ["cat", "dog", "fox", "owl"]
    assert list_place(folder).folders_left_out == [
        ("cat/here", "a link in a circle"),
        ("cat2", "a link to what is listed anyway"),
        ("dog/above", "a link in a circle"),
        ("owl/back", "a link in a circle"),
    ]
    assert "2 dangling" in source.left_out and "1 hidden" in source.left_out


def test_metadata_from_windows(tmp_path):
    folder = put(tmp_path, "sub/0.png", "sub/1.png", "2.png")
    (folder / "metadata.csv").write_text("file_name,label\n.\\sub\\0.png,1\nsub\\1.png,2\n./2.png,3\n")
    source = load(folder)
    assert paths(source) == [str(folder / name) for name in ("sub/0.png", "sub/1.png", "2.png")]
    assert source.dataset["label"][:] == [1, 2, 3]


def test_paths_with_wildcards(tmp_path, monkeypatch):
    folder = put(tmp_path / "run (1) [old] *?", "a::b.png", "[x].png")
    assert names(load(folder)) == ["[x].png", "a::b.png"]
    assert decode(None, paths(load(folder))[1], 3).shape == (3, 8, 8)
    table = datasets.Dataset.from_dict({"image": [Image.fromarray(PIXELS)] * 3, "label": [0, 1, 1]})
    parquet = tmp_path / "pq [1]"
    parquet.mkdir()
    table.to_parquet(parquet / "train-[0].parquet")
    options = {"cache_dir": str(tmp_path / "cache")}
    assert len(load(parquet, **options)) == 3
    (parquet / "train-[0].parquet").rename(parquet / "a::b.parquet")
    with pytest.raises(UserError, match="a::b.parquet' cannot be read: `datasets` takes :: for a chain"):
        load(parquet, **options)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("~/run (1) [old] *?")) == 2
    with pytest.raises(UserError, match="folder of images '' is empty"):
        load("")


def test_parquet_and_images(tmp_path):
    options = {"cache_dir": str(tmp_path / "cache")}
    folder = put(tmp_path / "images", "a/0.png", "b/1.png")
    pandas.DataFrame({"prediction": [1, 2]}).to_parquet(folder / "predictions.parquet")
    source = load(folder, **options)
    assert len(source) == 2 and source.left_out == "1 file left out: 1 .parquet (no column of images)"
    table = datasets.Dataset.from_dict({"image": [Image.fromarray(PIXELS)] * 3})
    table.to_parquet(folder / "predictions.parquet")
    source = load(folder, **options)
    assert len(source) == 3 and source.left_out == "2 files left out: 2 beside parquet files"
    (folder / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="predictions.parquet' cannot be read"):
        load(folder, **options)


def test_splits_of_parquet_files(tmp_path):
    table = datasets.Dataset.from_dict({"image": [Image.fromarray(PIXELS)] * 4})
    options = {"cache_dir": str(tmp_path / "cache")}
    for i, name in enumerate(["test/Training-0.parquet", "train/TEST.parquet", "train_x/Validation/0.parquet"], 1):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table.select(range(i)).to_parquet(tmp_path / name)
    for split, rows in (("train", 1), ("test", 2), ("validation", 3), ("val", 3)):
        assert len(load(tmp_path, split=split, **options)) == rows  # the deepest name decides
    table.to_parquet(tmp_path / "train_and_test.parquet")
    with pytest.raises(UserError, match="names the splits test, train: rename it"):
        load(tmp_path, **options)


def test_folders_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty' has no images \(empty\)"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "a.heic").write_bytes(b"?")
    with pytest.raises(UserError, match=r"no images \(1 file left out: 1 .heic \(not readable here\)\)"):
        load(tmp_path / "empty")
