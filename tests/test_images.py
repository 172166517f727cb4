import multiprocessing.queues
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import dealt_batches
from flat import file_images, load_source, open_images
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from modeling_mae.data.find.sources import Source
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.serve import images as images_module
from modeling_mae.data.serve.crops import CenterCrop, RandomResizedCrop
from modeling_mae.data.serve.images import FileImages, MemoryImages
from modeling_mae.data.serve.statistics import measure_mean_std
from modeling_mae.data.serve.worker import prepare_worker


COLOURS = np.zeros((8, 12, 3), np.uint8)
COLOURS[:, :6] = (200, 40, 10)
COLOURS[:, 6:] = (20, 90, 220)
PLENTY = 1 << 30  # bytes


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def numbered():
    """40 images in memory: image i is noise of its own, and its label is i."""
    pixels = torch.randint(0, 256, (40, 1, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return MemoryImages(pixels, (8, 8), labels=torch.arange(40))


@pytest.fixture
def photographs(tmp_path):
    """12 images of different shapes as files, with their positions as labels."""
    generator = np.random.default_rng(0)
    cells = []
    for i in range(12):
        Image.fromarray(generator.integers(0, 255, (20 + i, 30, 3), np.uint8)).save(tmp_path / f"{i:02}.png")
        cells.append(str(tmp_path / f"{i:02}.png"))
    rows = datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image(decode=False))
    return open_images(Source(rows, "image", None, "noise"), (16, 16), 3, memory_budget=PLENTY, labels=np.arange(12))


def test_very_many_images_are_not_read_before_the_training(monkeypatch):
    source = load_source(max_samples=30)
    assert open_images(source, (28, 28), 1, memory_budget=PLENTY).where == "in memory"
    monkeypatch.setattr(images_module, "READ_AT_START", 29)
    assert open_images(source, (28, 28), 1, memory_budget=PLENTY).where == images_module.KEPT


def test_in_memory_where_they_fit_and_from_files_elsewhere(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(COLOURS).save(tmp_path / "pictures" / name / f"{i}.png")
    source = load_source(train_dir=str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"))
    labels = np.array([0, 0, 0, 1, 1, 1])
    bytes_of_all = 6 * COLOURS.size
    files = open_images(source, (8, 8), 3, memory_budget=bytes_of_all - 1, labels=labels)
    memory = open_images(source, (8, 8), 3, memory_budget=bytes_of_all, labels=labels)
    assert isinstance(files, FileImages) and isinstance(memory, MemoryImages)
    expected = torch.from_numpy(COLOURS).permute(2, 0, 1)
    for images in (files, memory):
        assert torch.equal(images.read(0), expected) and len(images) == 6
        assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
        mean, std = measure_mean_std(images)
        assert mean == pytest.approx([110 / 255, 65 / 255, 115 / 255], abs=1e-4)
        assert std == pytest.approx([90 / 255, 25 / 255, 105 / 255], abs=1e-4)
    plain = MemoryImages(torch.full((3, 1, 4, 4), 51, dtype=torch.uint8), (4, 4))
    assert measure_mean_std(plain) == ([0.2], [1.0])  # a single value has no deviation to divide by


def test_one_image_of_another_shape_keeps_all_in_their_files(tmp_path):
    for i in range(40):  # more than the sample that is looked at first
        Image.fromarray(COLOURS[: 7 if i == 1 else 8]).save(tmp_path / f"{i:02}.png")
    source = load_source(train_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    images = open_images(source, (8, 8), 3, memory_budget=PLENTY)
    assert 1 not in images.spread(16) and isinstance(images, FileImages)


def test_bad_files_are_skipped_or_refused(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:1500])
    (tmp_path / "text.jpg").write_text("no image")
    source = load_source(train_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(BadImage, match=r"(cut|text).jpg.*--on_bad_image skip"):
        file_images(source, (16, 16), 3).batch(0, [0, 1, 2])
    with pytest.raises(BadImage, match="on_bad_image skip"):
        open_images(source, (16, 16), 3, memory_budget=PLENTY)
    labels = torch.arange(3)
    files = file_images(source, (16, 16), 3, labels=labels, on_bad_image="skip")
    capsys.readouterr()
    for _ in range(2):
        batch = files.batch(0, [0, 1, 2])
    lines = capsys.readouterr().err.splitlines()  # each is said once
    assert len(lines) == 2 and "cut.jpg" in lines[0] + lines[1] and "text.jpg" in lines[0] + lines[1]
    assert files.skipped.sum() == 2 and (batch["images"] == batch["images"][0]).all()
    # Whatever stands in for a bad one brings its own label, from the files and from memory.
    good = [Path(cell["path"]).name for cell in source.dataset["image"]].index("good.jpg")
    memory = open_images(source, (16, 16), 3, memory_budget=PLENTY, on_bad_image="skip", labels=labels.numpy())
    assert isinstance(memory, MemoryImages) and labels.tolist() == [0, 1, 2]
    for images in (files, memory):
        assert images.batch(0, [0, 1, 2])["labels"].tolist() == [good] * 3
        assert images.skipped.tolist() == [i != good for i in range(3)]
    (tmp_path / "good.jpg").write_text("neither")
    with pytest.raises(BadImage, match="none of the 3 images"):
        file_images(source, (16, 16), 3, on_bad_image="skip").read(0)


def test_stacks_are_counted(tmp_path):
    """A stack shows its first page. Pages of other sizes are previews, and frames are animations: no word of them."""
    pages = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1] // 2)]
    for i in range(3):
        pages[0].save(tmp_path / f"stack-{i}.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    pages[0].save(tmp_path / "preview.tif", save_all=True, append_images=[pages[1].resize((4, 4))])
    pages[0].save(tmp_path / "moving.gif", save_all=True, append_images=pages[1:])
    for white in (None, 255):
        images = open_images(load_source(train_dir=str(tmp_path)), (8, 8), 3, memory_budget=PLENTY, white_value=white)
        assert (
            images.remarks
            == "; 3 of 6 files looked at have several pages: 3 after the first are ignored (--slices all sees each)"
        )
        assert all(np.array_equal(images.read(i).permute(1, 2, 0), COLOURS) for i in range(1, 6))  # 0 has a palette
    whole = (tmp_path / "stack-0.tif").read_bytes()
    for path in tmp_path.glob("stack-*"):
        path.unlink()
    (tmp_path / "broken.tif").write_bytes(whole[:40])
    source = load_source(train_dir=str(tmp_path))
    skipping = open_images(source, (8, 8), 3, memory_budget=PLENTY, on_bad_image="skip")
    assert skipping.remarks == "" and skipping.skipped.tolist() == [True, False, False, False]
    (tmp_path / "broken.tif").unlink()
    assert open_images(load_source(train_dir=str(tmp_path)), (8, 8), 3, memory_budget=PLENTY).remarks == ""


def test_labels_are_not_needed(tmp_path):
    """Pre-training takes images whose labels cannot be read."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for labels in ([0, None, 1], [-1, -1, -1]):
        folder = tmp_path / str(labels[0])
        folder.mkdir()
        table = {"image": [Image.fromarray(COLOURS)] * 3, "label": labels}
        datasets.Dataset.from_dict(table, features).to_parquet(folder / "train.parquet")
        source = load_source(train_dir=str(folder), cache_dir=str(tmp_path / "cache"))
        images = open_images(source, (8, 8), 3, memory_budget=PLENTY)
        assert images.labels is None and "labels" not in images.batch(0, [0, 1])


def test_a_batch_in_memory(numbered):
    batch = numbered.batch(0, [7, 2])
    assert torch.equal(batch["images"], numbered.pixels[[7, 2]]) and batch["labels"].tolist() == [7, 2]
    assert batch["boxes"].tolist() == [[0, 1, 10, 10]] * 2  # the largest square of 10 x 12, in the middle
    assert not batch["flips"].any()


def test_a_view_under_another_crop_shares_the_images(numbered):
    crop = RandomResizedCrop(0)
    view = numbered.view(crop=crop)
    boxes, flips = crop(3, [7, 2], 10, 12)
    batch = view.batch(3, [7, 2])
    assert torch.equal(batch["boxes"], boxes) and torch.equal(batch["flips"], flips)
    assert view.pixels is numbered.pixels and view.skipped is numbered.skipped
    assert isinstance(numbered.crop, CenterCrop)  # the first one stays as it was
    assert not torch.equal(numbered.batch(3, [7, 2])["boxes"], boxes)


def test_a_view_of_some_rows_keeps_each_images_crop(numbered):
    crop = RandomResizedCrop(0)
    view = numbered.view(crop=crop, rows=np.array([7, 2, 30]))
    assert len(view) == 3 and view.labels.tolist() == [7, 2, 30] and len(numbered) == 40
    assert same(view.batch(3, [2, 0]), numbered.view(crop=crop).batch(3, [30, 7]))
    assert view.batch(3, [2, 0])["labels"].tolist() == [30, 7]
    assert numbered.labels.tolist() == list(range(40))


def test_views_of_views(numbered):
    crop = RandomResizedCrop(5)
    rows = numbered.view(rows=np.array([9, 4, 30, 1]))
    view = rows.view(rows=np.array([3, 0])).view(crop=crop)  # images 1 and 9 of the whole
    assert len(view) == 2 and view.labels.tolist() == [1, 9] and len(rows) == 4
    assert same(view.batch(2, [0, 1]), numbered.view(crop=crop).batch(2, [1, 9]))
    assert rows.batch(2, [1])["boxes"].tolist() == numbered.batch(2, [4])["boxes"].tolist()


def test_augment_gets_cropped_images_and_the_views_own_indices(numbered):
    calls = []

    def invert(images, epoch, indices):
        calls.append((images.shape, images.dtype, epoch, indices))
        return 255 - images

    view = numbered.view(rows=np.array([7, 2, 30])).view(augment=invert)
    batch = view.batch(4, [1, 0])
    assert calls == [((2, 1, 8, 8), torch.uint8, 4, [1, 0])]
    assert set(batch) == {"images", "labels"} and batch["labels"].tolist() == [2, 7]
    # The crop of 10 x 12 is its central 10 x 10, resized to 8 x 8.
    central = numbered.pixels[[2, 7], :, :, 1:11].float()
    expected = torch.nn.functional.interpolate(central, (8, 8), mode="bicubic", antialias=True).clamp(0, 255)
    assert (batch["images"].int() - (255 - expected)).abs().max() <= 1
    under_a_crop = view.view(crop=RandomResizedCrop(0))
    assert len(calls) == 1 and under_a_crop.batch(0, [0])["images"].shape == (1, 1, 8, 8) and len(calls) == 2


def test_files_are_cropped_to_the_size_of_the_model(photographs):
    assert isinstance(photographs, FileImages)
    view = photographs.view(crop=RandomResizedCrop(0), rows=np.array([11, 3]))
    batch = view.batch(1, [0, 1])
    assert batch["images"].shape == (2, 3, 16, 16) and batch["images"].dtype == torch.uint8
    assert batch["labels"].tolist() == [11, 3] and set(batch) == {"images", "labels"}
    boxes, flips = RandomResizedCrop(0)(1, [11, 3], [31, 23], 30)
    for i, row in enumerate((11, 3)):
        bicubic = InterpolationMode.BICUBIC
        expected = F.resized_crop(photographs.read(row), *boxes[i].tolist(), [16, 16], bicubic, antialias=True)
        assert torch.equal(batch["images"][i], expected.flip(2) if flips[i] else expected)


def test_loading_workers_change_nothing(photographs):
    images = photographs.view(crop=RandomResizedCrop(0))
    options = {"seed": 3, "batch_size": 2, "total_batch_size": 4, "updates": range(2, 5)}
    global_state = torch.get_rng_state()
    alone, with_workers = (list(images.training_loader(**options, num_workers=n)) for n in (0, 2))
    assert len(alone) == len(with_workers) == 6
    assert all(same(one, two) for one, two in zip(alone, with_workers, strict=True))
    # Updates 2, 3 and 4 of 3 an epoch: the end of epoch 0 and the beginning of epoch 1.
    orders = [np.random.default_rng([3, epoch]).permutation(12).tolist() for epoch in (0, 1)]
    assert [label for batch in alone for label in batch["labels"].tolist()] == orders[0][8:] + orders[1][:8]
    assert same(alone[2], images.batch(1, orders[1][:2]))
    assert torch.equal(torch.get_rng_state(), global_state)  # the global generator stands where it stood


@pytest.mark.parametrize("processes, workers", [(1, 1), (2, 0), (2, 3), (4, 0), (4, 1)])
@pytest.mark.parametrize("kind", ["numbered", "photographs"])
def test_batches_do_not_depend_on_processes_workers_and_start(kind, processes, workers, request):
    images = request.getfixturevalue(kind).view(crop=RandomResizedCrop(0))
    options = {"seed": 1, "batch_size": 1, "total_batch_size": 4}
    alone = list(images.training_loader(updates=range(7), **options))
    dealt = dealt_batches(images, processes, updates=range(2, 7), num_workers=workers, **options)
    assert len(dealt) == 20 and all(map(same, dealt, alone[8:]))


def test_memory_is_pinned_for_intels_gpus_too(photographs, monkeypatch):
    assert not photographs.loader([], 0).pin_memory
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert photographs.loader([], 0).pin_memory


def test_workers_load_what_is_work(numbered, photographs):
    """What lies in memory is cropped on the device: a worker would only copy it."""
    batches = [(0, [1, 2])]
    assert photographs.loader(batches, 2).num_workers == 2
    assert numbered.loader(batches, 2).num_workers == 0
    assert numbered.view(augment=lambda images, epoch, indices: images).loader(batches, 2).num_workers == 2


def test_a_late_file_of_decimals_among_8_bits_is_bad(tmp_path, monkeypatch):
    """The sample sees files of 8 bits alone. 0.5 cut off to 0, or -1 wrapped to 255, would be wrong in silence."""
    for name in ("FILE_SAMPLE", "SHAPE_SAMPLE"):
        monkeypatch.setattr(images_module, name, 2)
    for i in range(5):
        Image.fromarray(COLOURS[..., 0] + np.uint8(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").unlink()
    Image.fromarray(np.linspace(-1, 0.5, 96, dtype=np.float32).reshape(8, 12)).save(tmp_path / "2.tif")
    options = {"size": (8, 8), "num_channels": 1, "memory_budget": PLENTY}
    source = load_source(train_dir=str(tmp_path))
    with pytest.raises(BadImage, match="2.tif has values that 8 bits do not hold"):
        open_images(source, **options)
    images = open_images(source, on_bad_image="skip", **options)
    assert images.dtype == torch.uint8 and images.skipped.tolist() == [False, False, True, False, False]
    assert torch.equal(images.read(2), images.read(3))


def test_a_loading_worker_prints_no_lost_connections(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: printed.append(kind))
    monkeypatch.setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", None)  # so that it is put back
    prepare_worker(0)
    for kind in (ConnectionResetError, EOFError, KeyError):
        sys.excepthook(kind, kind(), None)
    assert printed == [KeyError]
