"""The listing of a large folder that is kept in the cache: it saves reading the folders, and misses no change."""

import os
import shutil
import time

import pytest
from PIL import Image

from modeling_mae.data import kept_listing, listing
from modeling_mae.data.listing import list_folder
from modeling_mae.data.sources import load_source


TICK = 0.03  # seconds; longer than the clock of a file system stands still


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two splits of two classes, with files that are left out. Any number of files is kept, and at once."""
    monkeypatch.setattr(kept_listing, "KEPT_FROM", 1)
    monkeypatch.setattr(kept_listing, "SETTLED", 0)
    folder = tmp_path / "images"
    for path in ("train/cat/0.png", "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(folder / path)
    (folder / "train" / "cat" / "notes.txt").touch()
    (folder / "train" / "cat" / ".hidden.png").touch()
    (folder / "train" / "gone.png").symlink_to("nowhere")
    (folder / "train" / os.fsdecode(b"\xff.png")).touch()
    (folder / "linked").symlink_to("train")
    time.sleep(TICK)
    return folder


@pytest.fixture
def reads(monkeypatch):
    """The folders that are read."""
    read, scandir = [], os.scandir

    def reading(path):
        read.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", reading)
    return read


def load(folder, cache):
    return load_source(data_dir=str(folder), cache_dir=str(cache))


def names(folder, cache):
    return [os.path.relpath(cell["path"], folder / "train") for cell in load(folder, cache).dataset["image"]]


def test_the_second_time_no_folder_is_read_and_all_is_told_again(tmp_path, folder, reads):
    first = load(folder, tmp_path / "cache")
    assert len(reads) == 7  # images, two splits, four classes
    second = load(folder, tmp_path / "cache")
    assert len(reads) == 7
    assert second.dataset[:] == first.dataset[:] and second.dataset.features == first.dataset.features
    assert second.dataset["label"][:] == [0, 0, 1] and second.class_names == ["cat", "dog"]
    assert second.left_out == first.left_out
    assert second.left_out == (
        "4 files and 1 folder left out: 1 .txt (not an image), 1 dangling (links to nothing), 1 hidden, 1 with a name "
        "that is not UTF-8, folder 'linked' (a link, not followed)"
    )
    (folder / "train" / "metadata.csv").write_text("file_name,label\ncat/1.png,7\n")
    for _ in range(2):
        source = load(folder, tmp_path / "cache")
        assert source.dataset["label"][:] == [7] and "2 not named by metadata.csv" in source.left_out
        time.sleep(TICK)
    assert len(reads) == 14


def test_every_change_of_a_folder_is_seen(tmp_path, folder, reads):
    cache, train = tmp_path / "cache", folder / "train"

    def set_back(path, change):
        """As rsync and tar do, which give a folder the time it had elsewhere."""
        times = os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns
        change()
        os.utime(path, ns=times)

    image = train / "cat" / "0.png"
    changes = [
        (lambda: None, ["cat/0.png", "cat/1.png", "dog/2.png"]),
        (lambda: shutil.copy(image, train / "dog" / "5.png"), ["cat/0.png", "cat/1.png", "dog/2.png", "dog/5.png"]),
        (lambda: (train / "dog" / "2.png").unlink(), ["cat/0.png", "cat/1.png", "dog/5.png"]),
        (lambda: (train / "dog" / "5.png").rename(train / "dog" / "6.png"), ["cat/0.png", "cat/1.png", "dog/6.png"]),
        (lambda: shutil.copytree(train / "dog", train / "cat" / "deep"), 4),
        (lambda: shutil.rmtree(train / "cat" / "deep"), ["cat/0.png", "cat/1.png", "dog/6.png"]),
        (lambda: set_back(train / "dog", lambda: shutil.copy(image, train / "dog" / "7.png")), 4),
        (lambda: (train / "dog").chmod(0o750), 4),
        (lambda: (train.rename(folder / "test"), shutil.copytree(folder / "val", train)), ["cat/3.png", "dog/4.png"]),
        (lambda: shutil.rmtree(folder / "test"), ["cat/3.png", "dog/4.png"]),
    ]
    for change, expected in changes:
        before = len(reads)
        change()
        found = names(folder, cache)
        assert (len(found) if isinstance(expected, int) else found) == expected
        assert len(reads) > before
        before = len(reads)
        assert names(folder, cache) == found and len(reads) == before
        time.sleep(TICK)
    (train / "cat" / "3.png").write_bytes(image.read_bytes() if image.exists() else b"anything")
    names(folder, cache)
    assert len(reads) == before  # written anew in place: the same listing


def test_a_folder_that_has_just_changed_is_not_kept(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(kept_listing, "SETTLED", 2_000_000_000)
    list_folder(folder, str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(listing, "now", lambda: time.time_ns() + 3_000_000_000)
    list_folder(folder, str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache" / "listings").iterdir())) == 1


def test_few_files_are_not_kept(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(kept_listing, "KEPT_FROM", 10)  # five images and four files that are left out
    list_folder(folder, str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(kept_listing, "KEPT_FROM", 9)
    list_folder(folder, str(tmp_path / "cache"))
    assert (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["short", "empty", "flipped", "other"])
def test_a_damaged_index_is_made_anew(tmp_path, folder, reads, damage):
    expected = names(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "listings").iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    damaged = {"short": whole[:-20], "empty": b"", "flipped": bytes(flipped), "other": b"no index" * 20}
    file.write_bytes(damaged[damage])
    before = len(reads)
    assert names(folder, tmp_path / "cache") == expected and len(reads) == before + 7
    assert file.read_bytes() == whole
    assert names(folder, tmp_path / "cache") == expected and len(reads) == before + 7


def test_a_cache_that_cannot_be_written(tmp_path, folder):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert names(folder, tmp_path / "cache") == ["cat/0.png", "cat/1.png", "dog/2.png"]


def test_other_rules_make_another_listing(tmp_path, folder, monkeypatch):
    assert len(names(folder, tmp_path / "cache")) == 3
    monkeypatch.setattr(listing, "image_endings", lambda: frozenset({".txt"}))
    assert names(folder, tmp_path / "cache") == ["cat/notes.txt"]


def test_a_folder_that_could_not_be_read(tmp_path, folder, reads, monkeypatch):
    counting = os.scandir

    def closed(path):
        if str(path).endswith("train/dog"):
            raise PermissionError(13, "Permission denied")
        return counting(path)

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for _ in range(2):
        assert "folder 'train/dog' (Permission denied)" in load(folder, tmp_path / "cache").left_out
    assert len(reads) == 6
    monkeypatch.setattr(os, "access", lambda path, mode: True)  # for another user
    monkeypatch.setattr(os, "scandir", counting)
    assert names(folder, tmp_path / "cache") == ["cat/0.png", "cat/1.png", "dog/2.png"]
