"""Both commands on images of five bands, from the file to the features.

There is no small set of real images with many bands and labels to bundle. So the bands are made of the bundled real
images: the image itself in 16 bits, its two gradients, the size of the gradient, and the image blurred.
"""

import json
import shutil

import datasets
import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY_GRAY, run
from documented import guide_commands, words_of
from flat import load_source, open_images
from PIL import Image, ImageFilter
from test_readme import BLOCKS as README_BLOCKS

from modeling_mae.data.find.sources import BUNDLED
from modeling_mae.training.augment import BatchTransform


CLOUD = 9  # pixels of a corner that are missing
OPTIONS = "--report_to none --dataloader_num_workers 0 --total_batch_size 20 --per_device_train_batch_size 20".split()
OPTIONS += ["--config_overrides", *(f"{name}={value}" for name, value in TINY_GRAY.items() if name != "num_channels")]


def five_bands(image: Image.Image) -> np.ndarray:
    """uint16 ``(5, 28, 28)``, from 1 to 65535: 0 is left for missing values."""
    gray = np.asarray(image).astype(np.float64)
    down, right = np.gradient(gray)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(2)))
    bands = np.stack([gray, 128 + down / 2, 128 + right / 2, np.hypot(down, right) / 2, blurred])
    return (1 + bands.clip(0, 255) * (65534 / 255)).round().astype(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 training and 20 test images in two class folders; two training images lack a corner in band 3."""
    folder = tmp_path_factory.mktemp("five")
    for split, count in (("train", 40), ("test", 20)):
        table = datasets.load_dataset("parquet", data_files=str(BUNDLED / f"{split}*"), split="train")
        labels = np.array(table["label"])
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[: count // 2] for label in (1, 8)]))
        for i, row in enumerate(table.select(chosen)):
            values = five_bands(row["image"])
            if split == "train" and i in (3, 11):
                values[2, :CLOUD, :CLOUD] = 0
            path = folder / split / {1: "trouser", 8: "bag"}[row["label"]] / f"{i:02}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tags = [(42113, "s", 0, "0", True)]  # GDAL's: 0 says that there is no value
            tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate", extratags=tags)
    return folder


def test_from_tiff_to_features(tmp_path, folder, monkeypatch):
    (command,) = [command for command in guide_commands() if "--train_dir fields" in command]
    places = {"fields": folder, "runs/fields": tmp_path / "runs" / "fields"}
    words = [places.get(word, word) for word in words_of(command)[3:]]
    output = run(*words, *OPTIONS, "--max_train_steps", 4, "--warmup_epochs", 0, "--knn", "false")
    assert "values 0..65535 are kept, 65535 is white" in output
    assert "filled     2 of 40 images: missing values became the mean of their band" in output
    card = (tmp_path / "runs" / "fields" / "README.md").read_text()
    assert "| images with missing values | 2, each filled" in card and "bands 1, 2 and 3 as red" in card

    # mean and deviation: of the values that are there
    paths = sorted((folder / "train").rglob("*.tif"))
    values = np.stack([tifffile.imread(path) for path in paths]).astype(np.float64)
    values[values == 0] = np.nan
    settings = json.loads((tmp_path / "runs" / "fields" / "preprocessor_config.json").read_text())
    np.testing.assert_allclose(settings["image_mean"], np.nanmean(values, (0, 2, 3)) / 65535, rtol=1e-4)
    np.testing.assert_allclose(settings["image_std"], np.nanstd(values, (0, 2, 3)) / 65535, rtol=1e-4)

    # the README's way to features, from an array, against the evaluation's own
    (code,) = [block for block in README_BLOCKS if "field.tif" in block]
    images = open_images(
        load_source(train_dir=str(folder), split="test"), (28, 28), 5, memory_budget=0, white_value=65535
    )
    shutil.copy(images.source.dataset[0]["image"]["path"], tmp_path / "field.tif")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    transform = BatchTransform(settings["image_mean"], settings["image_std"], (28, 28))
    expected = names["model"](transform(images.batch(0, [0]))).pooler_output
    torch.testing.assert_close(names["features"], expected, atol=1e-5, rtol=1e-4)

    output = run(
        *(
            "--model_name_or_path",
            tmp_path / "runs" / "fields",
            "--train_dir",
            folder,
            "--output_dir",
            tmp_path / "eval",
        ),
        *("--n_partial", 0, "--num_train_epochs", 2, "--warmup_epochs", 0, *OPTIONS[: -len(TINY_GRAY)]),
        script="run_eval.py",
    )
    assert "filled     2 images" in output and "linear probing" in output
