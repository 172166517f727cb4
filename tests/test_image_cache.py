"""Decoded images in memory that processes share."""

import io
import os
import shutil
import signal
import tempfile
import threading
import time
from multiprocessing import get_context
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from flat import load_source, open_images
from PIL import Image

from modeling_mae.data.find.sources import Source
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.serve.crops import RandomResizedCrop
from modeling_mae.data.serve.decoded import KeptImages, Machine, share_file
from modeling_mae.data.serve.images import FileImages, MemoryImages


PLENTY = 1 << 24  # bytes


def make_source(shapes, kind="PNG", broken=()) -> Source:
    """Image i is noise of its own."""
    cells = []
    for i, shape in enumerate(shapes):
        pixels = np.random.default_rng(i).integers(0, 255, (*shape, 3), np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), kind)
        cells.append({"bytes": b"broken" if i in broken else file.getvalue(), "path": f"{i}.{kind}"})
    return Source(datasets.Dataset.from_dict({"image": cells}), "image", None, "noise")


UNEQUAL = [(20 + i, 30) for i in range(12)]


def run_together(work) -> list:
    """What `work(machine)` gives or raises in each of two processes of a machine, played by threads."""
    barrier, values, results = threading.Barrier(2), [None, None], [None, None]

    def play(rank: int) -> None:
        def gather(value):
            values[rank] = value
            barrier.wait(10)
            both = list(values)
            barrier.wait(10)
            return both

        try:
            results[rank] = work(Machine(rank, 0, 2, gather, alone=False))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def file_of(size: int):
    return share_file(size, Machine())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_kept_until_the_memory_is_full(dtype):
    image = torch.arange(3 * 5 * 7).view(3, 5, 7).to(dtype)
    budget = 4 * (image.nbytes + 8)
    kept = KeptImages(file_of(KeptImages.bytes_for(100, budget, Machine())), 100, dtype, Machine())
    assert kept.get(3) is None
    for i in range(100):
        kept.put(i, image + i, whole=i == 2)
    found = [kept.get(i) for i in range(100)]
    assert all(pair is not None for pair in found[:4]) and found[5:] == [None] * 95
    for i in range(4):
        assert torch.equal(found[i][0], image + i) and found[i][1] == (i == 2) and found[i][0].dtype == dtype
    kept.put(1, image + 50, whole=True)  # it is there already: only what is known of it changes
    assert torch.equal(kept.get(1)[0], image + 1) and kept.get(1)[1]


def noise(i: int) -> torch.Tensor:
    shape = tuple(np.random.default_rng(i).integers(1, 40, 3))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(i))


def keep_all(kept, order):
    for i in order:
        kept.put(i, noise(i), whole=False)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_keep_images_at_the_same_time(method, monkeypatch):
    """Four processes decode the same 60 images in different orders. None overwrites another's."""
    # The lock is of the context that starts the processes, as it is of the system's own.
    monkeypatch.setattr("modeling_mae.data.serve.decoded.get_context", lambda: get_context(method))
    kept = KeptImages(file_of(KeptImages.bytes_for(60, 1 << 22, Machine())), 60, torch.uint8, Machine())
    context = get_context(method)
    orders = [np.random.default_rng(i).permutation(60).tolist() for i in range(4)]
    processes = [context.Process(target=keep_all, args=(kept, order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert all(torch.equal(kept.get(i)[0], noise(i)) for i in range(60))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_kept_images_give_the_same_batches(kind):
    source = make_source([*UNEQUAL, (200, 300), (150, 160)], kind)
    crop = RandomResizedCrop(0, (0.05, 1.0))
    plain = open_images(source, (16, 16), 3, memory_budget=0).view(crop)
    kept = open_images(source, (16, 16), 3, memory_budget=PLENTY).view(crop)
    assert plain.kept is None and kept.kept is not None and kept.where.startswith("from files, kept in memory")
    indices, decoded = list(range(14)), []
    for epoch in range(8):
        if epoch == 6:
            kept.decode = lambda data, path, **named: (
                decoded.append(path) or FileImages.decode(kept, data, path, **named)
            )
        assert torch.equal(kept.batch(epoch, indices)["images"], plain.batch(epoch, indices)["images"])
    assert all(torch.equal(kept.read(i), plain.read(i)) for i in indices)
    # Only a JPEG file whose crop lets it be decoded at reduced size is read again: these would be other pixels.
    assert not decoded if kind == "PNG" else {"12.JPEG"} <= set(decoded) <= {f"{i}.JPEG" for i in range(14)}


def test_what_one_loading_worker_decoded_all_have():
    images = open_images(make_source(UNEQUAL), (16, 16), 3, memory_budget=PLENTY)
    list(images.loader([(0, [i]) for i in range(12)], 2))
    images.decode = None  # none is decoded again
    assert len(list(images.loader([(1, [i]) for i in range(12)], 2))) == 12


def test_a_set_that_does_not_fit_is_not_kept():
    source = make_source(UNEQUAL)
    total = sum(height * width * 3 for height, width in UNEQUAL)
    assert open_images(source, (16, 16), 3, memory_budget=total).kept is not None
    assert open_images(source, (16, 16), 3, memory_budget=total - 1).kept is None


def test_one_process_decodes_for_its_machine(monkeypatch):
    source, decoded = make_source([(20, 30)] * 40), []
    original = FileImages.decode

    def decode(self, data, path, *rest, **named):
        decoded.append(path)
        return original(self, data, path, *rest, **named)

    monkeypatch.setattr(FileImages, "decode", decode)
    alone = open_images(source, (16, 16), 3, memory_budget=PLENTY)
    of_one = len(decoded)
    both = run_together(lambda machine: open_images(source, (16, 16), 3, memory_budget=PLENTY, machine=machine))
    assert all(isinstance(images, MemoryImages) for images in both), both
    assert len(decoded) == of_one + 40 + 2 * 16  # each looks at its sample
    assert all(torch.equal(images.pixels, alone.pixels) for images in both)
    both[0].pixels[7, 0, 0, 0] = 99 - alone.pixels[7, 0, 0, 0] // 2
    assert torch.equal(both[0].pixels, both[1].pixels)  # one memory


@pytest.mark.parametrize("workers", [0, 2])
def test_all_is_decoded_at_the_start(monkeypatch, workers):
    """By this process, or by others that write into shared memory."""
    monkeypatch.setattr("modeling_mae.data.serve.images.WORTH_PROCESSES", 0)
    monkeypatch.setattr("modeling_mae.data.serve.decoded.PIECE", 7)
    pixels = [np.random.default_rng(i).integers(0, 255, (20, 30, 3), np.uint8) for i in range(40)]
    options = {"memory_budget": PLENTY, "num_workers": workers, "labels": np.arange(40), "white_value": 255}
    state = torch.get_rng_state()
    images = open_images(make_source([(20, 30)] * 40), (16, 16), 3, **options)
    assert isinstance(images, MemoryImages) and torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), pixels) and not images.skipped.any()
    source = make_source([(20, 30)] * 40, broken=(3, 4, 39))
    images = open_images(source, (16, 16), 3, on_bad_image="skip", **options)
    expected = [*range(3), 5, 5, *range(5, 39), 0]
    assert images.labels.tolist() == expected and images.skipped.nonzero().flatten().tolist() == [3, 4, 39]
    assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), np.stack(pixels)[expected])
    with pytest.raises(BadImage, match="^3.PNG is not a readable image"):
        open_images(make_source([(20, 30)] * 40, broken=(3, 36)), (16, 16), 3, **options)
    other_shape = make_source([(20, 30)] * 22 + [(20, 31)] + [(20, 30)] * 17)
    assert isinstance(open_images(other_shape, (16, 16), 3, **options), FileImages)


def test_other_processes_note_missing_values(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_mae.data.serve.images.WORTH_PROCESSES", 0)
    values = [np.full((8, 8), i, np.float32) for i in range(30)]
    values[11][2, 3] = np.nan
    for i, value in enumerate(values):
        np.save(tmp_path / f"{i:02}.npy", value)
    options = {"memory_budget": PLENTY, "num_workers": 2}
    images = open_images(load_source(train_dir=str(tmp_path)), (8, 8), 1, **options)
    assert images.incomplete.nonzero().tolist() == [[11]] and images.pixels[11].unique().tolist() == [11 * 255]


def test_processes_agree_where_an_image_is_bad_or_of_another_shape():
    labels = np.arange(40)
    options = {"memory_budget": PLENTY, "labels": labels, "on_bad_image": "skip"}
    source = make_source([(20, 30)] * 40, broken=[7])
    for images in run_together(lambda machine: open_images(source, (16, 16), 3, machine=machine, **options)):
        assert images.labels.tolist() == [*range(7), 8, *range(8, 40)]
        assert images.skipped.nonzero().tolist() == [[7]]
    options["on_bad_image"] = "error"
    for error in run_together(lambda machine: open_images(source, (16, 16), 3, machine=machine, **options)):
        assert isinstance(error, BadImage) and "7.PNG" in str(error)
    source = make_source([(20, 30)] * 7 + [(21, 30)] + [(20, 30)] * 32)
    one, two = run_together(lambda machine: open_images(source, (16, 16), 3, machine=machine, **options))
    one.batch(0, list(range(40)))
    two.decode = None  # it has what the other one decoded
    assert torch.equal(two.batch(1, [7, 8])["images"], one.batch(1, [7, 8])["images"])


def test_without_room_on_the_disk_each_reads_the_files(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    images = open_images(make_source(UNEQUAL), (16, 16), 3, memory_budget=PLENTY)
    assert images.kept is None and images.where == "from files" and len(images.batch(0, [0])["images"]) == 1


def test_each_process_keeps_images_in_a_part_of_its_own():
    """Three processes with room for two images each. All see what each has kept, and what two decoded at once."""
    machines = [Machine(rank, 0, 3) for rank in range(3)]
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    shared = file_of(KeptImages.bytes_for(9, 3 * 2 * 64, machines[0]))
    kept = [KeptImages(shared, 9, torch.uint8, machine) for machine in machines]
    for i in range(9):
        kept[i // 3].put(i, image + i, whole=False)
    found = [kept[0].get(i) for i in range(9)]
    assert [i for i, pair in enumerate(found) if pair is None] == [2, 5, 8]
    assert all(torch.equal(pair[0], image + i) for i, pair in enumerate(found) if pair is not None)


def hold(pipe):
    shared = file_of(1 << 20)
    shared.map[:] = bytes(1 << 20)
    pipe.send(os.fstat(shared.descriptor).st_nlink)
    time.sleep(60)


def test_a_killed_process_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=hold, args=(theirs,))
    process.start()
    assert ours.poll(30)
    assert ours.recv() == 0 and not list(tmp_path.iterdir())  # the file has no name while it is in use
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(tmp_path.iterdir())
