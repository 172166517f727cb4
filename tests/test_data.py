from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image

from modeling_mae.training.augment import CenterCrop, RandomResizedCrop
from modeling_mae.training.data import (
    EpochBatches,
    FileImages,
    MemoryImages,
    NoSplit,
    Part,
    load_eval_source,
    load_source,
    make_images,
    measure_mean_std,
    with_crop,
)
from modeling_mae.training.decode import BadImage, decode


COLOURS = np.zeros((8, 12, 3), np.uint8)
COLOURS[:, :6] = (200, 40, 10)
COLOURS[:, 6:] = (20, 90, 220)


def read(path, channels=3):
    return decode(path.read_bytes(), str(path), channels)


def test_decode_kinds_of_files(tmp_path):
    expected = torch.from_numpy(COLOURS).permute(2, 0, 1)
    image = Image.fromarray(COLOURS)
    for name, saved, tolerance in (
        ("rgb.png", image, 0),
        ("palette.gif", image.quantize(4), 3),
        ("rgb.jpg", image, 12),
        ("cmyk.jpg", image.convert("CMYK"), 12),
    ):
        saved.save(tmp_path / name, **({"quality": 98, "subsampling": 0} if name.endswith("jpg") else {}))
        result = read(tmp_path / name)
        assert result.dtype == torch.uint8 and result.shape == (3, 8, 12), name
        assert (result.int() - expected.int()).abs().max() <= tolerance, name
        assert read(tmp_path / name, 1).shape == (1, 8, 12), name


def test_decode_alpha_16_bit_and_orientation(tmp_path):
    alpha = np.dstack([COLOURS, np.full((8, 12), 255, np.uint8)])
    alpha[:, :6, 3] = 0
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    result = read(tmp_path / "alpha.png")
    assert (result[:, :, :6] == 255).all() and result[:, 0, 7].tolist() == [20, 90, 220]  # on white
    Image.fromarray((np.arange(96).reshape(8, 12) * 257 * 2).astype(np.uint16)).save(tmp_path / "deep.png")
    assert read(tmp_path / "deep.png", 1)[0].tolist() == (np.arange(96).reshape(8, 12) * 2).tolist()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(COLOURS).save(tmp_path / "turned.jpg", exif=exif, quality=98, subsampling=0)
    turned = read(tmp_path / "turned.jpg")
    assert turned.shape == (3, 12, 8)
    assert abs(int(turned[0, 1, 4]) - 200) < 12 and abs(int(turned[2, 10, 4]) - 220) < 12


def test_bad_files_are_named(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:1500])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.jpg", "text.jpg"):
        with pytest.raises(BadImage, match=name):
            read(tmp_path / name)
    source = load_source(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    images = FileImages(source, CenterCrop((16, 16)), (16, 16), 3)
    with pytest.raises(BadImage, match="on_bad_image skip"):
        images.__getitems__([(0, i) for i in range(3)])
    images = FileImages(source, CenterCrop((16, 16)), (16, 16), 3, "skip")
    capsys.readouterr()
    for _ in range(2):
        batch = images.__getitems__([(0, i) for i in range(3)])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "cut.jpg" in said[0] + said[1] and "text.jpg" in said[0] + said[1]
    assert images.bad.sum() == 2 and (batch["images"] == batch["images"][0]).all()
    # whatever stands in for a bad one brings its own label, from the files and from memory
    labels = torch.arange(3)
    good = [Path(name["path"]).name for name in source.dataset["image"]].index("good.jpg")
    files = FileImages(source, CenterCrop((16, 16)), (16, 16), 3, "skip", labels)
    memory = make_images(source, CenterCrop((16, 16)), (16, 16), 3, "skip", labels=labels)
    assert isinstance(memory, MemoryImages) and labels.tolist() == [0, 1, 2]
    for kept in (files, memory):
        assert kept.__getitems__([(0, i) for i in range(3)])["labels"].tolist() == [good] * 3
    (tmp_path / "good.jpg").write_text("neither")
    with pytest.raises(BadImage, match="none of the 3 images"):
        FileImages(source, CenterCrop((16, 16)), (16, 16), 3, "skip").decode(0)


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pictures' does not exist: .*exists"):
        load_source(data_dir=str(tmp_path / "pictures"))
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError, match="pictures' has no images .empty"):
        load_source(data_dir=str(tmp_path / "pictures"))
    with pytest.raises(FileNotFoundError, match="did you mean .*pictures"):
        load_source(data_dir=str(tmp_path / "picture"))
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        load_source("cifar1O")
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir()
        for i in range(3):
            Image.fromarray(COLOURS).save(tmp_path / "pictures" / name / f"{i}.png")
    source = load_source(data_dir=str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"))
    assert len(source) == 6 and source.class_names == ["cat", "dog"]
    with pytest.raises(ValueError, match="'picture' is not a column of images: those are image"):
        load_source(
            data_dir=str(tmp_path / "pictures"), image_column_name="picture", cache_dir=str(tmp_path / "cache")
        )
    files = make_images(source, CenterCrop((8, 8)), (8, 8), 3, memory_budget=0)
    memory = make_images(source, CenterCrop((8, 8)), (8, 8), 3)
    assert isinstance(files, FileImages) and isinstance(memory, MemoryImages)
    assert torch.equal(memory.images[0], torch.from_numpy(COLOURS).permute(2, 0, 1))
    assert memory.labels.tolist() == files.labels.tolist() == [0, 0, 0, 1, 1, 1]
    mean, std = measure_mean_std(memory)
    assert mean == pytest.approx([110 / 255, 65 / 255, 115 / 255], abs=1e-4)
    assert std == pytest.approx([90 / 255, 25 / 255, 105 / 255], abs=1e-4)
    assert measure_mean_std(files) == (mean, std)


def test_every_image_once_an_epoch():
    batches = list(EpochBatches(100, 10, 20, 0, 0, 10))
    assert [len(batch) for batch in batches] == [10] * 20
    for epoch in (0, 1):
        pairs = sum(batches[10 * epoch : 10 * epoch + 10], [])
        assert {e for e, _ in pairs} == {epoch} and sorted(i for _, i in pairs) == list(range(100))
    assert batches[0] != [(0, i) for _, i in batches[10]]
    assert list(EpochBatches(100, 10, 20, 0, 7, 10)) == batches[14:]
    assert list(EpochBatches(100, 10, 20, 1, 0, 1)) != batches[:2]


def test_processes_share_out_every_update():
    whole = list(EpochBatches(96, 16, 32, 0, 0, 6))
    shards = [list(BatchSamplerShard(EpochBatches(96, 8, 32, 0, 0, 6), 2, rank)) for rank in range(2)]
    for update in range(6):
        together = [pair for shard in shards for batch in shard[2 * update : 2 * update + 2] for pair in batch]
        assert sorted(together) == sorted(sum(whole[2 * update : 2 * update + 2], []))


def test_batches_that_cannot_be():
    with pytest.raises(ValueError, match="total_batch_size 200 is more than the 100 images"):
        EpochBatches(100, 10, 200, 0, 0, 1)
    with pytest.raises(ValueError, match="batches of 7 do not divide total_batch_size 20"):
        EpochBatches(100, 7, 20, 0, 0, 1)


def test_splits_to_evaluate_on(tmp_path):
    table = datasets.Dataset.from_dict({"image": [Image.fromarray(COLOURS)] * 3, "label": [0, 1, 1]})
    table.to_parquet(tmp_path / "train-0.parquet")
    options = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(NoSplit, match="no split validation, val, test .*--validation_dir"):
        load_eval_source(None, None, str(tmp_path), None, **options)
    table.select([0, 1]).to_parquet(tmp_path / "test-0.parquet")
    source, split = load_eval_source(None, None, str(tmp_path), None, **options)
    assert split == "test" and len(source) == 2 and len(load_source(data_dir=str(tmp_path), **options)) == 3
    with pytest.raises(NoSplit, match="'validation'.*train-0.parquet"):
        load_eval_source(None, None, str(tmp_path), "validation", **options)
    assert load_eval_source(None, None, None, None)[1] == "test"  # the bundled images
    # as the Hub converts data sets: a folder a split, with names that say nothing; `constrained` is not `train`
    for name, rows in (("train/0000.parquet", [0, 1, 2]), ("test/0000.parquet", [0]), ("constrained.parquet", [1])):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        table.select(rows).to_parquet(tmp_path / "hub" / name)
    assert len(load_source(data_dir=str(tmp_path / "hub"), **options)) == 3
    assert len(load_source(data_dir=str(tmp_path / "hub"), split="test", **options)) == 1


def test_labels_that_not_every_image_has(tmp_path):
    """Pre-training needs none."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for labels in ([0, None, 1], [-1, -1, -1]):
        folder = tmp_path / str(labels[0])
        folder.mkdir()
        table = {"image": [Image.fromarray(COLOURS)] * 3, "label": labels}
        datasets.Dataset.from_dict(table, features).to_parquet(folder / "train.parquet")
        source = load_source(data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
        assert make_images(source, CenterCrop((8, 8)), (8, 8), 3).labels is None


def test_parts_and_other_crops_share_the_images():
    images = make_images(load_source(max_samples=10), CenterCrop((28, 28)), (28, 28), 1)
    part = Part(images, np.array([7, 2]))
    batch = part.__getitems__([(3, 1), (3, 0)])
    assert torch.equal(batch["images"], images.images[[2, 7]]) and torch.equal(batch["labels"], images.labels[[2, 7]])
    assert part.labels.tolist() == images.labels[[7, 2]].tolist() and len(part) == 2
    crop = RandomResizedCrop(0)
    other = with_crop(images, crop)
    assert other.images is images.images and images.crop is not crop
    # the crop of an image is that of its place in the whole
    boxes, _ = crop(3, [2], 28, 28)
    assert torch.equal(Part(other, np.array([7, 2])).__getitems__([(3, 1)])["boxes"], boxes)


def test_samples_are_spread_over_the_set():
    labels = load_source().dataset["label"]
    assert load_source(max_samples=3).dataset["label"][:] == [labels[0], labels[6000], labels[11999]]
