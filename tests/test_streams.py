"""Streams of real shards, local and over HTTP, against the images that were put into them."""

import io
import pickle
import shutil
import tarfile

import datasets
import numpy as np
import pytest
import torch
from flat import load_source, open_images
from PIL import Image
from shard_server import serve

from modeling_mae.data.find.fingerprint import fingerprint
from modeling_mae.data.find.sources import NoSplit
from modeling_mae.data.find.streams import expand_braces
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.stream import shard_cache
from modeling_mae.data.stream.formats.tar import Members
from modeling_mae.errors import UserError
from modeling_mae.tasks import task_of_labels


UNEVEN = (5, 1, 17, 9, 30, 2)  # images of each shard


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(shard_cache, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(shard_cache, "SILENCE", 0.2)


def picture(i: int) -> tuple[np.ndarray, bytes]:
    pixels = np.random.default_rng(i).integers(0, 255, (28, 28), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return pixels, file.getvalue()


def make_shards(folder, kind: str, counts=UNEVEN, name: str = "part", first: int = 0):
    """Image i of all, counted from `first`, has the label i % 10. Parquet files hold row groups of 4 images."""
    folder.mkdir(exist_ok=True)
    ends = (first + np.cumsum(counts)).tolist()
    for shard, (end, count) in enumerate(zip(ends, counts, strict=True)):
        numbers = range(end - count, end)
        if kind == "parquet":
            features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
            rows = {"image": [{"bytes": picture(i)[1], "path": None} for i in numbers]}
            rows["label"] = [i % 10 for i in numbers]
            path = folder / f"{name}-{shard:03}.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path, batch_size=4)
            continue
        with tarfile.open(folder / f"{name}-{shard:03}.tar", "w") as tar:
            for i in numbers:
                for ending, data in (("png", picture(i)[1]), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"a.b/{i:05}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def open_stream(place, tmp_path, **options):
    source = load_source(train_dir=str(place), streaming=True, cache_dir=str(tmp_path / "cache"))
    return source, open_images(source, (28, 28), 1, memory_budget=1 << 30, **options)


def address(server: str, kind: str) -> str:
    return f"{server}/part-{{000..005}}.{kind}"


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("remote", [False, True])
def test_images_and_labels_are_those_put_in(tmp_path, kind, remote):
    folder = make_shards(tmp_path / "shards", kind)
    with serve(folder) as server:
        source, images = open_stream(address(server, kind) if remote else folder, tmp_path)
        assert (len(source), images.where) == (64, "streamed")
        for i in range(64):
            assert np.array_equal(images.read(i)[0].numpy(), picture(i)[0])
        assert task_of_labels(source).read(source)[0].tolist() == [i % 10 for i in range(64)]
        again, _ = open_stream(address(server, kind) if remote else folder, tmp_path)
    assert fingerprint(again) == fingerprint(source)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_batches_do_not_depend_on_processes_workers_and_start(tmp_path, kind):
    _, images = open_stream(make_shards(tmp_path / "shards", kind), tmp_path)
    options = {"seed": 1, "batch_size": 4, "total_batch_size": 16}

    def batches(updates, process=0, processes=1, workers=0):
        shares = {"process_index": process, "num_processes": processes, "num_workers": workers}
        return [batch["images"] for batch in images.training_loader(updates=updates, **shares, **options)]

    alone = batches(range(8))
    assert len(alone) == 32
    seen = {image.numpy().tobytes() for batch in alone[:16] for image in batch}
    assert seen == {picture(i)[0].tobytes() for i in range(64)}  # 64 images are four whole updates
    for processes, workers in ((1, 3), (2, 1), (4, 0)):
        shares = [batches(range(8), p, processes, workers) for p in range(processes)]
        dealt = [batch for turn in zip(*shares, strict=True) for batch in turn]
        assert all(torch.equal(one, other) for one, other in zip(dealt, alone, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(batches(range(3, 8)), alone[12:], strict=True))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("fault", ["500", "cut", "silent"])
def test_a_fault_that_passes_changes_nothing(tmp_path, kind, fault):
    folder, faults = make_shards(tmp_path / "shards", kind), {}
    with serve(folder, faults) as server:
        faults[f"part-002.{kind}"] = [fault]
        _, images = open_stream(address(server, kind), tmp_path)
        faults[f"part-004.{kind}"] = [fault, fault]
        shutil.rmtree(tmp_path / "cache" / "streams" / "units")
        images = pickle.loads(pickle.dumps(images))  # as in a loading worker, with nothing open
        for i in range(64):
            assert np.array_equal(images.read(i)[0].numpy(), picture(i)[0])
    assert not any(faults.values())  # each was met


def test_a_fault_that_stays_makes_bad_images(tmp_path):
    folder, faults = make_shards(tmp_path / "shards", "parquet"), {}
    with serve(folder, faults) as server:
        _, images = open_stream(address(server, "parquet"), tmp_path, on_bad_image="skip", white_value=255)
        faults["part-002.parquet"] = ["500"] * 100  # images 10 to 13 are its only row group not read when it opened
        assert np.array_equal(images.read(10)[0].numpy(), picture(14)[0])
        assert images.skipped.nonzero().flatten().tolist() == [10, 11, 12, 13]
        assert len(faults["part-002.parquet"]) == 100 - shard_cache.ATTEMPTS
        _, strict = open_stream(address(server, "tar").replace("tar", "parquet"), tmp_path, white_value=255)
        with pytest.raises(BadImage, match=r"part-002.parquet cannot be read .*on_bad_image skip"):
            strict.read(10)


def test_a_truncated_tar_and_a_corrupt_row_group(tmp_path):
    folder = make_shards(tmp_path / "tar", "tar", (3, 3))
    path = folder / "part-001.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-2]  # image 5
    path.write_bytes(path.read_bytes()[: last.offset_data + 100])
    _, images = open_stream(folder, tmp_path, on_bad_image="skip", white_value=255)
    assert np.array_equal(images.read(5)[0].numpy(), picture(0)[0])
    assert images.skipped.tolist() == [False] * 5 + [True]

    folder = make_shards(tmp_path / "parquet", "parquet", (8,))
    path = folder / "part-000.parquet"
    data = bytearray(path.read_bytes())
    data[4:1500] = bytes(1496)
    path.write_bytes(data)
    _, images = open_stream(folder, tmp_path, on_bad_image="skip", white_value=255)
    assert np.array_equal(images.read(0)[0].numpy(), picture(4)[0])
    assert images.skipped.tolist() == [True] * 4 + [False] * 4


def test_a_changed_shard_is_counted_anew(tmp_path):
    folder = make_shards(tmp_path / "shards", "tar", (3, 3))
    before = fingerprint(open_stream(folder, tmp_path)[0])
    make_shards(folder, "tar", (3, 5))
    after = fingerprint(open_stream(folder, tmp_path)[0])
    assert (before[:8], after[:8]) == ("6 images", "8 images")


def test_a_stream_without_labels_has_none(tmp_path):
    folder = make_shards(tmp_path / "shards", "parquet", (3,))
    path = folder / "part-000.parquet"
    datasets.load_dataset("parquet", data_files=str(path), split="train").select_columns("image").to_parquet(path)
    source, _ = open_stream(folder, tmp_path)
    for known_names in (None, ["shards", "cat"]):
        with pytest.raises(UserError, match="shards has no column of labels; its columns are image"):
            task_of_labels(source).read(source, known_names)


def test_members_are_what_was_put_in():
    members = [("a/\udcff.png", 512, 3, None), ("é.png", 2**40, 0, "\ud800"), ("", 0, 1, "7")]
    packed = pickle.loads(pickle.dumps(Members(members)))
    assert list(packed) == members and packed[1] == members[1] and len(packed) == 3


def test_the_cache_throws_away_what_was_not_used_for_longest(tmp_path):
    cache = shard_cache.ShardCache(tmp_path / "units", limit=250)
    make = lambda path: path.write_bytes(bytes(100))  # noqa: E731
    first = open(cache.get("a", make), "rb")
    cache.get("b", make)
    cache.get("c", make)
    assert sorted(path.name for path in cache.folder.iterdir()) == ["b", "c"]
    assert len(first.read()) == 100


def test_what_is_no_stream_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no shards"):
        open_stream(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match="neither a folder nor a pattern"):
        open_stream(tmp_path / "missing-{0..3}.tar", tmp_path)
    mixed = make_shards(make_shards(tmp_path / "mixed", "tar", (3,)), "parquet", (3,))
    with pytest.raises(UserError, match=".parquet and .tar files: give"):
        open_stream(mixed, tmp_path)
    with pytest.raises(NoSplit):
        load_source(train_dir=str(mixed), split="test", streaming=True, cache_dir=str(tmp_path))
    assert expand_braces("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]


def test_a_tar_header_that_leads_back_ends_the_file(tmp_path):
    """A member of a negative size would be followed by itself, for ever."""
    folder = make_shards(tmp_path / "shards", "tar", (3,))
    (path,) = folder.iterdir()
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-2]  # the third image
    header = data[last.offset : last.offset + 512]
    header[124:136] = (256**12 - 1024).to_bytes(12, "big")  # base 256: -1024
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data[last.offset : last.offset + 512] = header
    path.write_bytes(data)
    source, images = open_stream(folder, tmp_path)
    assert len(source) == 2 and np.array_equal(images.read(1)[0], picture(1)[0])
