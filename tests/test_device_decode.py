"""JPEG files that a device decodes. The CPU plays the device here: only the call of nvjpeg itself is another's."""

import io

import datasets
import numpy as np
import pytest
import torch
from conftest import dealt_batches
from PIL import Image
from test_reduced import jpeg, waves

from modeling_mae.data import device_decode
from modeling_mae.data.bit_depth import BadImage
from modeling_mae.data.crops import RandomResizedCrop
from modeling_mae.data.device_decode import leave_to_device
from modeling_mae.data.images import KEPT, MemoryImages, open_images
from modeling_mae.data.sources import Source
from modeling_mae.errors import UserError
from modeling_mae.training.launch import decoding


SIZE, CPU = (16, 20), torch.device("cpu")
CROP = RandomResizedCrop(0)


def png(image) -> bytes:
    image.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def unreadable() -> bytes:
    """A JPEG file whose header and end are as they should be."""
    data = jpeg(waves(40, 50))
    table = data.index(b"\xff\xc4")
    return data[: table + 5] + b"\xff" * 16 + data[table + 21 :]


WHOLE = [jpeg(waves(20 + 7 * i, 90 - 5 * i)) for i in range(8)]
LEFT = [*WHOLE, jpeg(waves(60, 40).convert("L")), jpeg(waves(70, 44), progressive=True), jpeg(waves(33, 45), 1)]
OWN = [  # to the workers
    png(waves(44, 31)),
    jpeg(waves(44, 31), 6),
    jpeg(waves(44, 31).convert("CMYK")),
    jpeg(waves(16 * 40, 31)),
    jpeg(waves(31, 44)) + b"more",
]
FILES = [data for pair in zip(LEFT, OWN * 3, strict=False) for data in pair]


def open_both(files, **options):
    """The set as loading workers decode it, and as the device does."""
    cells = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(files)]
    source = Source(datasets.Dataset.from_dict({"image": cells}), "image", None, "test")
    options = {
        "memory_budget": 0,
        "labels": np.arange(len(files)),
        "num_channels": 3,
        "scaled_decoding": False,
        **options,
    }
    return [open_images(source, SIZE, decode_device=device, **options).view(CROP) for device in (None, CPU)]


def same(one: dict, other: dict, levels: int = 1) -> bool:
    """Whether the batches are equal, their images up to these `levels` of 255: the device resizes in another way."""
    images, expected = one["images"], other["images"]
    if (images.shape, images.dtype) != (expected.shape, expected.dtype) or one.keys() != other.keys():
        return False
    near = bool(((images.int() - expected.int()).abs() <= levels).all())
    return near and all(torch.equal(one[key], other[key]) for key in one.keys() - {"images"})


@pytest.fixture
def decoded(monkeypatch):
    """How many files each call decodes; those that hold `refused` are refused, as nvjpeg does it: all of the call."""
    calls, decode = [], device_decode.decode_jpeg

    def refusing(files, *rest):
        if any(file.numpy().tobytes() in calls.refused for file in files):
            raise RuntimeError("nvjpegDecodeBatched failed: 2")
        calls.append(len(files))
        return decode(files, *rest)

    calls = type("Calls", (list,), {"refused": []})()
    monkeypatch.setattr(device_decode, "decode_jpeg", refusing)
    return calls


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_left_to_the_device(channels):
    for data in LEFT:
        left = leave_to_device(data, channels, SIZE)
        assert left.data == data and left.shape == (channels, *Image.open(io.BytesIO(data)).size[::-1])
    assert [leave_to_device(data, channels, SIZE) for data in OWN] == [None] * len(OWN)


@pytest.mark.parametrize("processes, workers", [(1, 0), (1, 3), (2, 1), (4, 0)])
def test_the_batches_are_those_of_loading_workers(decoded, processes, workers):
    """The device decodes whole. The CPU would decode some at half their size, which are other pixels."""
    usual, ours = open_both(FILES)
    ours.scaled_decoding = True
    options = {"seed": 1, "batch_size": 2, "total_batch_size": 8, "repeats": 2}
    alone = list(usual.training_loader(updates=range(8), **options))
    dealt = dealt_batches(ours, processes, updates=range(3, 8), num_workers=workers, **options)
    assert len(dealt) == 20 and all(same(*pair) for pair in zip(dealt, alone[12:], strict=True))
    assert 5 < sum(decoded) < 20  # once for both crops


def test_a_batch_is_decoded_at_once_as_far_as_memory_goes(decoded, monkeypatch):
    usual, ours = open_both(WHOLE)
    (expected,), (batch,) = (list(images.loader([(0, list(range(8)))], 0)) for images in (usual, ours))
    assert same(batch, expected) and decoded == [8]
    monkeypatch.setattr(device_decode, "AT_ONCE", 30_000)
    (batch,) = ours.loader([(0, list(range(8)))], 0)
    # The first three fill 3 x 3 x 34 x 90 = 27,540 bytes, with the fourth it would be 4 x 3 x 41 x 90 = 44,280.
    assert same(batch, expected) and decoded == [8, 3, 2, 2, 1]
    # Two crops of each file take twice as much.
    twice = [i for i in range(8) for _ in range(2)]
    (expected,), (batch,) = (list(images.loader([(0, twice)], 0)) for images in (usual, ours))
    assert same(batch, expected) and decoded[5:] == [2, 1, 1, 1, 1, 1, 1]
    assert same(ours.batch(0, [3, 5]), usual.batch(0, [3, 5]), 0) and len(decoded) == 12  # a single batch: the CPU


def test_what_the_device_refuses_the_cpu_decodes(decoded):
    usual, ours = open_both(FILES)
    decoded.refused += [LEFT[2], LEFT[3]]
    for epoch in range(3):
        order = np.random.default_rng(epoch).permutation(len(FILES)).tolist()
        batches = [(epoch, order + order[:5]), ([*range(4)], [4, 4, 6, 0])]
        assert all(map(same, ours.loader(batches, epoch), usual.loader(batches, 0)))
    assert len(decoded) > 6


def test_the_device_decodes_whole(decoded):
    images, (usual, ours) = {}, open_both(WHOLE)
    for name, loader in {"usual": usual, "ours": ours}.items():
        for scaled in (False, True):
            loader.scaled_decoding = scaled
            (images[name, scaled],) = loader.loader([(5, list(range(8)))], 0)
    assert same(images["ours", True], images["ours", False], 0) and same(images["ours", True], images["usual", False])
    assert not same(images["usual", True], images["usual", False]) and decoded == [8, 8]


@pytest.mark.parametrize("bad", [unreadable(), b"nothing", WHOLE[4][:-2]])
def test_bad_files_meet_their_usual_rules(decoded, bad):
    decoded.refused.append(bad)
    files = [*WHOLE[:3], bad, bad, *WHOLE[4:6], png(waves(30, 30)), bad]
    usual, ours = open_both(files, on_bad_image="skip", white=255)
    batches = [(epoch, [8, 3, 5, 0, 3, 4]) for epoch in range(3)]
    for batch, expected in zip(ours.loader(batches, 1), usual.loader(batches, 0), strict=True):
        assert same(batch, expected) and batch["labels"].tolist() == [0, 5, 5, 0, 5, 5]
    assert ours.skipped.nonzero().flatten().tolist() == [3, 4, 8]
    usual, ours = open_both(WHOLE, white=255)
    ours.source.dataset = datasets.Dataset.from_dict({"image": [{"bytes": bad, "path": "bad.jpg"}] * 8})
    with pytest.raises(BadImage, match="bad.jpg is not a readable image.*--on_bad_image skip"):
        list(ours.loader([(0, [1, 2])], 0))


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_a_full_device_is_no_bad_file(monkeypatch, kind):
    def full(*_):
        raise kind("Error while decoding JPEG images: CUDA out of memory")

    monkeypatch.setattr(device_decode, "decode_jpeg", full)
    with pytest.raises(kind, match="out of memory"):
        list(open_both(WHOLE)[1].loader([(0, [0, 1])], 0))


def test_what_the_device_does_not_touch(decoded):
    plenty = 1 << 24
    usual, ours = open_both(WHOLE, memory_budget=plenty)
    assert usual.where == KEPT and ours.where == "from files, JPEG decoded on cpu" and ours.kept is None
    changed = ours.view(augment=lambda images, epoch, indices: 255 - images)
    (batch,) = changed.loader([(0, [0, 1])], 2)
    assert torch.equal(batch["images"], 255 - usual.batch(0, [0, 1])["images"]) and not decoded
    of_one_shape = open_both([WHOLE[0]] * 6, memory_budget=plenty)
    assert all(isinstance(images, MemoryImages) for images in of_one_shape) and not decoded


def test_what_no_gpu_decodes_is_refused():
    deep = png(Image.fromarray(np.full((9, 9), 40_000, np.uint16)))
    with pytest.raises(UserError, match="0.jpg has whole numbers: give --decode_device cpu"):
        open_both([deep], num_channels=1)
    with pytest.raises(UserError, match=r"bands \[3, 2\] are chosen"):
        open_both(WHOLE, num_channels=2, bands=[3, 2])


def test_without_a_gpu_it_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    process = type("Process", (), {"device": CPU})()
    assert decoding(process, "cpu", 3) == {"decode_device": None, "num_workers": 6}
    with pytest.raises(UserError, match="decode_device cuda needs a GPU, and this run is on cpu: give cpu"):
        decoding(process, "cuda", 3)
    process.device = torch.device("cuda", 1)
    assert decoding(process, "cuda", 0) == {"decode_device": process.device, "num_workers": 0}
