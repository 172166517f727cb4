"""Several crops of an image in a batch, from memory, files and streams."""

import io

import datasets
import numpy as np
import pytest
import torch
from flat import file_images, load_source, open_images
from PIL import Image

from modeling_mae.data.find.sources import Source
from modeling_mae.data.read.reduced import ReducedJpeg
from modeling_mae.data.serve.crops import RandomResizedCrop, repeats_of, uniforms
from modeling_mae.data.serve.images import FileImages


SIZE, COUNT = (16, 16), 24
KINDS = ["memory", "files", "stream"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Noise, image i with the label i, as one parquet file of row groups of 4."""
    folder = tmp_path_factory.mktemp("shards")
    cells = []
    for i in range(COUNT):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), "png")
        cells.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": cells, "label": list(range(COUNT))}, features=features)
    rows.to_parquet(folder / "part.parquet", batch_size=4)
    return folder


def open_kind(kind, folder, tmp_path):
    source = load_source(train_dir=str(folder), cache_dir=str(tmp_path / "cache"), streaming=kind == "stream")
    budget = 1 << 30 if kind == "memory" else 0
    images = open_images(source, SIZE, 3, memory_budget=budget, labels=np.arange(COUNT))
    assert images.where == {"memory": "in memory", "files": "from files", "stream": "streamed"}[kind]
    return images.view(crop=RandomResizedCrop(5))


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_draws_of_repeats_are_independent_and_the_first_is_that_of_one_crop():
    once = uniforms(3, 9, range(4000), 2)
    assert np.array_equal(uniforms(3, 9, range(4000), 2, repeats=0), once)
    draws = np.concatenate([once, *(uniforms(3, 9, range(4000), 2, repeats) for repeats in (1, 2))], 1)
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 0.07
    mixed = uniforms(3, 9, [7, 7, 8, 7], 2, [0, 1, 0, 2])
    assert np.array_equal(mixed, np.stack([draws[7, :2], draws[7, 2:4], draws[8, :2], draws[7, 4:]]))
    assert repeats_of(9, [7, 7, 8, 7]) == [0, 1, 0, 2]
    assert repeats_of([0, 0, 0, 1], [7, 7, 8, 7]) == [0, 1, 0, 0]  # in a mixture each image has its own epoch


@pytest.mark.parametrize("kind", KINDS)
def test_each_repeat_has_a_crop_of_its_own(kind, shards, tmp_path):
    images = open_kind(kind, shards, tmp_path)
    batch, single = images.batch(2, [4, 4, 4, 9]), images.batch(2, [4, 9])
    assert batch["labels"].tolist() == [4, 4, 4, 9]
    for key, values in batch.items():
        assert torch.equal(values[[0, 3]], single[key])
    crops = batch["boxes" if kind == "memory" else "images"]
    assert not any(torch.equal(crops[i], crops[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    # The box of a crop is drawn from (seed, epoch, image, repeat).
    boxes = RandomResizedCrop(5)(2, [4, 4, 4, 9], 40, 50, [0, 1, 2, 0])[0]
    if kind == "memory":
        assert torch.equal(crops, boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_depend_on_processes_workers_and_where_a_run_goes_on(kind, shards, tmp_path):
    images = open_kind(kind, shards, tmp_path)
    options = {"seed": 3, "batch_size": 4, "total_batch_size": 8, "repeats": 2}
    whole = list(images.training_loader(updates=range(9), **options))
    labels = [batch["labels"].tolist() for batch in whole]
    assert all(row[0] == row[1] != row[2] == row[3] for row in labels)
    # 4 of the images an update: after 6 updates each was seen twice.
    assert sorted(sum(labels[:12], [])) == sorted(2 * list(range(COUNT)))
    rest = list(images.training_loader(updates=range(4, 9), num_workers=2, **options))
    assert all(same(*pair) for pair in zip(whole[8:], rest, strict=True))
    for rank in range(2):
        share = images.training_loader(updates=range(9), process_index=rank, num_processes=2, **options)
        assert all(same(*pair) for pair in zip(whole[rank::2], share, strict=True))


def test_an_image_is_decoded_once(shards, tmp_path, monkeypatch):
    images = open_kind("files", shards, tmp_path)
    decoded = []
    monkeypatch.setattr(
        images, "decode", lambda *rest, **named: decoded.append(1) or FileImages.decode(images, *rest, **named)
    )
    images.batch(0, [3, 3, 3, 3, 5, 5, 5, 5])
    assert len(decoded) == 2


def test_the_crops_of_a_large_photograph_share_one_reduced_decoding():
    """The smallest of three crops says how far."""
    ramp = np.linspace(0, 255, 320).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp[:, None], (320, 320)).copy()).save(file := io.BytesIO(), "JPEG")
    cells = datasets.Dataset.from_dict({"image": [{"bytes": file.getvalue(), "path": None}]})
    images = file_images(Source(cells, "image", None, "ramp"), SIZE, 1).view(crop=RandomResizedCrop(0, (0.005, 1.0)))
    reductions = set()
    for epoch in range(40):
        heights, widths = images.crop(epoch, [0, 0, 0], 320, 320, [0, 1, 2])[0][:, 2:].T.tolist()
        expected = next((n for n in (8, 4, 2) if n * 16 <= min(heights + widths)), 1)
        image, _ = images.read_or_next(
            0, reduction_of=lambda i, epoch=epoch: images._reduction(np.full(3, epoch), np.arange(3), i)
        )
        reductions.add(expected)
        assert (image.reduction if isinstance(image, ReducedJpeg) else 1) == expected
        # Each crop shows its own part of the ramp.
        tops = images.crop(epoch, [0, 0, 0], 320, 320, [0, 1, 2])[0][:, 0].float()
        middles = (tops + torch.tensor(heights) / 2) * 255 / 320
        shown = images.batch(epoch, [0, 0, 0])["images"].float().mean((1, 2, 3))
        assert (shown - middles).abs().max() < 2
    assert {2, 4, 8} <= reductions
