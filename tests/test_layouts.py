"""Splits, folds and masks by the names of folders at any depth: hand-counted, in folders and in tar files alike."""

import io
import tarfile

import numpy as np
import pytest
import torch
from flat import load_eval_source, load_source, open_images
from PIL import Image, features
from test_listing import PIXELS, load, names, put

from modeling_mae.data.find.layout import masks_among
from modeling_mae.data.find.places import open_place
from modeling_mae.data.find.sources import NoSplit
from modeling_mae.errors import UserError


def labels(source):
    return source.dataset[source.label_column][:] if source.label_column else None


def in_tar(file, *members):
    """A tar file of these members; a name without content is a picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(picture := io.BytesIO(), "png")
    with tarfile.open(file, "w") as tar:
        for member in members:
            name, data = (member, picture.getvalue()) if isinstance(member, str) else member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def pngs(words):
    return [f"{word}.png" for word in words.split()]


def placed(tmp_path, kind, files):
    """These pictures in a folder or in a tar file, in the same order."""
    return (
        put(tmp_path / "set", *pngs(files)) if kind == "folder" else in_tar(tmp_path / "set.tar", *sorted(pngs(files)))
    )


def taken(place, tmp_path, **options):
    """Files, labels in words, and what is left out of the training images; the files to evaluate on."""
    cache = {"cache_dir": str(tmp_path / "cache"), **options}
    source = load_source(train_dir=str(place), **cache)
    held_out = load_eval_source(train_dir=str(place), **cache)[0]
    words = [source.class_names[i] for i in labels(source)] if source.class_names else labels(source)
    return files_of(source), words, source.left_out, files_of(held_out)


def files_of(source):
    cells = (source.dataset[i][source.image_column] for i in range(len(source)))
    return [cell["path"].partition(" of ")[0].rpartition("/")[2] for cell in cells]


@pytest.mark.parametrize(
    "files, train, classes, test, masks",
    [
        # Detection: pictures beside text files of labels.
        ("images/train/0 images/val/1", "0", None, "1", 0),
        ("cat/train/0 cat/test/1 dog/train/2 dog/test/3", "0 2", "cat dog", "1 3", 0),
        ("data/train/a/0 data/train/b/1 data/val/a/2", "0 1", "a b", "2", 0),
        ("x/y/Train/a/0 x/y/Train/b/1 x/y/VAL/a/2", "0 1", "a b", "2", 0),
        ("data/training/a/0 data/training/b/1 valid/a/2", "0 1", "a b", "2", 0),
        # Classes called train and test on purpose, inside splits.
        ("train/train/0 train/test/1 val/train/2", "1 0", "test train", "2", 0),
        # Inspection: masks of the broken ones beside the splits, in one category and in several.
        ("train/good/0 test/good/1 test/bad/2 ground_truth/bad/3", "0", None, "2 1", 1),
        ("nut/train/good/0 nut/test/bad/1 nut/ground_truth/bad/2 pin/train/good/3", "0 3", None, "1", 1),
        # Segmentation.
        ("images/training/0 images/validation/1 annotations/training/2 annotations/validation/3", "0", None, "1", 2),
        ("train/images/0 train/masks/1 val/images/2 val/masks/3", "0", None, "2", 1),
        ("train/0 train_masks/1 test/2", "0", None, "2", 1),
        ("leftImg8bit/train/a/0 leftImg8bit/val/b/1 gtFine/train/a/2", "0", None, "1", 1),
        # Masks beside their pictures. The others have no picture of their name in their folder.
        (
            "train/0 train/0_mask train/1 train/1.seg train/cat_label train/_gt train/2-masks test/3",
            "0 1 2-masks _gt cat_label",
            None,
            "3",
            2,
        ),
        (
            "train/a/0 train/b/0_mask train/a/0_masked train/b/maskmask test/a/3",
            "0 0_masked 0_mask maskmask",
            "a a b b",
            "3",
            0,
        ),
        ("größe/train/Äpfel/ü größe/train/Öl/é größe/val/Öl/日", "ü é", "Äpfel Öl", "日", 0),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_splits_and_masks(tmp_path, kind, files, train, classes, test, masks):
    place = placed(tmp_path, kind, files)
    left_out = f"{masks} file{'s' * (masks != 1)} left out: {masks} masks beside images" if masks else ""
    found_train, found_classes, found_left_out, found_test = taken(place, tmp_path)
    assert (found_train, found_test, found_left_out) == (pngs(train), pngs(test), left_out)
    assert found_classes == (classes and classes.split())


@pytest.mark.parametrize(
    "files, message",
    [
        ("x/train/0 x/test/1 x/bus/2", "splits x/test, x/train and beside them 1 other files, as 'x/b"),
        ("images/train2017/0 images/val2017/1", "images/train2017, images/val2017, which may be splits or cl"),
        ("x/images_train/0 x/images_val/1", "x/images_train, x/images_val, which may be splits"),
        ("imagesTr/0 imagesTs/1 labelsTr/0", "imagesTr, imagesTs, which may be splits"),
        ("fold_0/train/0 fold_0/val/1 fold_1/train/2", "has the folds fold_0, fold_1: give those to"),
        ("x/fold1/a/0 x/fold2/a/1", "has the folds x/fold1, x/fold2"),
        ("x/train/0 x/Train/1", "has 'x/Train' and 'x/train', both the split 'train'"),
        ("raw/train/0 clean/v1/train/1", "has 'raw/train' and 'clean/v1/train', both the split 'train'"),
        ("x/test/0", "has no split 'train', only x/test: give another with the images, as .*x/test'"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_is_unclear_is_asked(tmp_path, kind, files, message):
    place = placed(tmp_path, kind, files)
    with pytest.raises(UserError, match=message) as raised:
        load_source(train_dir=str(place), cache_dir=str(tmp_path / "cache"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "files, classes",
    [
        (["with_mask/0.png", "without_mask/1.png"], ["with_mask", "without_mask"]),
        (["masks/0.png", "gloves/1.png"], ["gloves", "masks"]),
        (["x/test tube/0.png", "x/train station/1.png"], ["test tube", "train station"]),
        (["fold/0.png", "crease/1.png"], ["crease", "fold"]),
        (["train/fold1/0.png", "train/fold2/1.png", "test/fold1/2.png"], ["fold1", "fold2"]),  # all for training
    ],
)
def test_these_are_classes(tmp_path, files, classes):
    source = load(put(tmp_path, *files))
    assert source.class_names == classes and len(source) == 2 and not source.left_out


def test_all_splits_at_once_are_no_classes(tmp_path):
    """`mae features` and `predict` take all images of a folder."""
    source = open_place(
        put(tmp_path / "set", "cat/train/0.png", "cat/test/1.png", "dog/train/2.png", "dog/test/3.png")
    )
    assert labels(source) == [0, 0, 1, 1] and source.class_names == ["cat", "dog"]
    assert names(source) == ["1.png", "0.png", "3.png", "2.png"]
    source = open_place(put(tmp_path / "on_purpose", "x/train/0.png", "x/bus/1.png"))
    assert source.class_names == ["bus", "train"]


def test_masks_know_their_images():
    folders = ["a/images", "a/masks", "b/train", "b/train_masks", "c/test/bad", "c/ground_truth/bad", "d/labels"]
    assert masks_among(folders) == {"a/masks": "a/images", "b/train_masks": "b/train", "c/ground_truth": "c/test"}


def test_the_data_line_counts_other_splits(tmp_path):
    folder = put(tmp_path, "x/train/0.png", "x/train/1.png", "x/val/2.png", "x/test/3.png", "x/test/4.png")
    (folder / "x" / "a.svg").write_bytes(b"?")
    images = open_images(load(folder), (8, 8), 3, memory_budget=1 << 20)
    assert images.remarks.endswith("1 file left out: 1 .svg (not readable here); 3 images in other splits")


def test_metadata_may_name_masks(tmp_path):
    folder = put(tmp_path, "images/0.png", "images/1.png", "masks/0.png", "masks/1.png")
    (folder / "metadata.csv").write_text("file_name,label\nimages/0.png,1\nimages/1.png,2\n")
    source = load(folder)
    assert len(source) == 2 and source.left_out == "2 files left out: 2 not named by metadata.csv"


def test_a_tar_without_the_split(tmp_path):
    with pytest.raises(NoSplit, match="no split 'test'"):
        load_source(train_dir=str(in_tar(tmp_path / "a.tar", "cat/0.png")), split="test", cache_dir=str(tmp_path))


def test_the_same_files_count_in_a_tar_as_in_a_folder(tmp_path):
    """Names with dots, every kind of image, several pictures of a sample; what is left out is counted alike."""
    folder = put(tmp_path / "set", "photo.v1.jpg", "0.left.png", "0.right.png", "1.png", "1.webp", "2.tga", "3.png")
    put(folder, "3.seg.png", "4.jfif.jpg", ".hidden.png", "__MACOSX/5.png", "6.bmp")
    (folder / "4.jfif.jpg").rename(folder / "4.jfif")
    np.save(folder / "7.npy", PIXELS)
    np.savez(folder / "8.npz", PIXELS)
    for name in ("9.heic", "a.xml", "b.zip"):
        (folder / name).write_bytes(b"?")
    if "avif" in features.get_supported():
        put(folder, "c.avif")
    members = [
        (str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    packed = in_tar(tmp_path / "tar" / "set.tar", *members)
    truth = load(folder)
    found = load_source(train_dir=str(packed), cache_dir=str(tmp_path / "cache"))
    expected = ["0.left.png", "0.right.png", "1.png", "1.webp", "2.tga", "3.png", "4.jfif", "6.bmp", "7.npy", "8.npz"]
    expected += ["c.avif"] * ("avif" in features.get_supported()) + ["photo.v1.jpg"]
    assert names(truth) == files_of(found) == expected
    assert found.left_out == truth.left_out
    assert found.left_out == (
        "6 files left out: 1 .heic (not readable here), 1 .xml (not an image), 1 .zip (packed: unpack it), 1 hidden, "
        "1 in folders that begin with __, 1 masks beside images"
    )
    pixels = [open_images(source, (8, 8), 3, memory_budget=1 << 20) for source in (truth, found)]
    for i in range(len(expected)):
        assert torch.equal(pixels[0].read(i), pixels[1].read(i))


def test_labels_in_a_tar_go_by_the_sample(tmp_path):
    """The longest name of a sample that has a label; `.cls` before others; a label without an image is left out."""
    file = in_tar(
        tmp_path / "a.tar", "a.v1.png", ("a.v1.cls", b"1"), "a.v2.png", ("a.v2.cls", b"2"), "b/0.left.png",
        "b/0.right.png", ("b/0.json", b'{"label": 3}'), ("b/0.txt", b"a cat"), ("0.cls", b"9"), ("notes.txt", b"?"),
    )  # fmt: skip
    source = load_source(train_dir=str(file), cache_dir=str(tmp_path / "cache"))
    assert labels(source) == [1, 2, 3, 3]
    assert source.left_out == "2 files left out: 1 .cls (not an image), 1 .txt (not an image)"


def test_links_and_empty_tars_are_counted(tmp_path):
    file = in_tar(tmp_path / "tars" / "b.tar", "0.png", ("inside.tar", b"?"))
    with tarfile.open(file, "a") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    in_tar(tmp_path / "tars" / "a.tar")
    source = load_source(train_dir=str(tmp_path / "tars"), cache_dir=str(tmp_path / "cache"))
    assert files_of(source) == ["0.png"]
    assert source.left_out == "3 files left out: 1 .tar (packed: unpack it), 1 links in tar files, 1 without images"
    with pytest.raises(UserError, match="has no images in its 1 shards"):
        load_source(train_dir=str(tmp_path / "tars" / "a.tar"), cache_dir=str(tmp_path / "cache"))
