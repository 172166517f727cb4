"""Nearest neighbours and near-duplicates: of points whose cosines are known, and by the command."""

import argparse
import csv
import io
import shutil

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from applied import copy_images, save_checkpoint, write_features_file, write_script
from conftest import copied
from PIL import Image

from modeling_mae import readout
from modeling_mae.commands.neighbours import add_arguments
from modeling_mae.data.find.sources import BUNDLED
from modeling_mae.errors import UserError
from modeling_mae.evaluation import Features, extract_features, load_features, near_duplicates, nearest_neighbours
from modeling_mae.evaluation import neighbours as neighbours_module
from modeling_mae.evaluation.neighbours import query_features


def at_angles(*degrees):
    """Points in the plane, at different distances from the origin, which must not matter."""
    angles = np.radians(degrees)
    values = np.stack([np.cos(angles), np.sin(angles)], 1) * np.arange(1, len(degrees) + 1)[:, None]
    return Features(values.astype(np.float32), [f"{angle}" for angle in degrees], list(range(len(degrees))), None)


def test_neighbours_by_angle():
    positions, cosines = nearest_neighbours(at_angles(0, 10, 40, 90, 180), at_angles(12, 100), k=3)
    assert positions.tolist() == [[1, 0, 2], [3, 2, 4]]
    expected = np.cos(np.radians([[2, 12, 28], [10, 60, 80]]))
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    assert nearest_neighbours(at_angles(0, 10), at_angles(5), k=9)[0].shape == (1, 2)
    with pytest.raises(UserError, match="k 0"):
        nearest_neighbours(at_angles(0), at_angles(5), k=0)
    with pytest.raises(UserError, match="features of 2 and 3 values"):
        nearest_neighbours(at_angles(0), Features(np.ones((1, 3), np.float32), ["a"], [0], None))


def around(*degrees, centre=(0.0, 0.0), radius=1.0):
    """Points on a circle, and the same at each quarter turn, so that they have the same variance in all directions."""
    angles = np.radians([angle + turn for turn in (0, 90, 180, 270) for angle in degrees])
    values = np.stack([np.cos(angles), np.sin(angles)], 1) * radius + centre
    return Features(values.astype(np.float32), [""] * len(angles), list(range(len(angles))), None)


@pytest.mark.parametrize("chunk", [2, 1024])
@pytest.mark.parametrize("place", [{}, {"centre": (300.0, 500.0), "radius": 8.0}])  # there all cosines are above 0.999
def test_duplicates_by_angle(monkeypatch, chunk, place):
    monkeypatch.setattr(readout, "CHUNK", chunk)
    features = around(0, 1, 3, **place)
    positions, earlier, cosines = near_duplicates(features, np.cos(np.radians(2.5)))
    # 1 is like 0, and 3 is most like 1. Nothing is like itself, or like a later one.
    pairs = sorted(zip(positions.tolist(), earlier.tolist(), strict=True))
    assert pairs == sorted((i + 3 * turn, i - 1 + 3 * turn) for turn in range(4) for i in (1, 2))
    assert (np.diff(cosines) <= 0).all()
    np.testing.assert_allclose(cosines, np.cos(np.radians([1] * 4 + [2] * 4)), atol=2e-5)
    assert len(near_duplicates(features, np.cos(np.radians(0.5)))[0]) == 0
    with pytest.raises(UserError, match="threshold 2"):
        near_duplicates(features, 2)
    features.values[5], features.files[5] = np.nan, "dark.png"
    with pytest.raises(UserError, match="'dark.png' are not finite"):
        near_duplicates(features)


def test_the_help_names_the_threshold():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert f"(default {neighbours_module.ALIKE})" in " ".join(parser.format_help().split())


def test_duplicates_of_very_few_images():
    for count in (2, 3, 5):
        same = Features(np.full((count, 7), 0.3, np.float32), ["same"] * count, list(range(count)), None)
        assert sorted(near_duplicates(same)[0]) == list(range(1, count))
    assert len(near_duplicates(at_angles(0, 50))[0]) == len(near_duplicates(at_angles(0, 50, 100))[0]) == 0
    assert len(near_duplicates(at_angles(0))[0]) == 0


def test_copies_are_told_from_images_of_one_kind(tmp_path):
    """Of an encoder that nothing has trained, which makes all images of clothes look alike."""
    files = datasets.load_dataset("parquet", data_files=str(BUNDLED / "test*"), split="train")
    images = list(files.select(range(240))["image"])
    for i in range(0, 240, 12):
        buffer = io.BytesIO()
        images[i].save(buffer, "JPEG", quality=80)
        images.append(Image.open(buffer))
    checkpoint = save_checkpoint(tmp_path / "model", hidden_size=64, patch_size=4)
    features = extract_features(checkpoint, images, num_workers=0)
    cosines = F.normalize(torch.from_numpy(features.values)) @ F.normalize(torch.from_numpy(features.values)).T
    assert (cosines.fill_diagonal_(-1).amax(1) > 0.995).float().mean() > 0.6
    positions, earlier, _ = near_duplicates(features)
    right = (positions >= 240) & (earlier == (positions - 240) * 12)
    assert right.sum() >= 18 and (~right).sum() <= 2  # of 20 copies and 240 others


def test_a_features_file_finds_its_own_images_and_copies(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "model")
    images = copy_images(tmp_path / "images")
    copy = images / "class 1" / "copy.jpg"
    Image.open(images / "class 0" / "002.png").save(copy, quality=95)
    write_features_file(str(checkpoint), str(images), tmp_path / "features.parquet", num_workers=0, blocks=[1, 2])
    features = load_features(tmp_path / "features.parquet")
    assert features.values.shape == (21, 32)
    queries = query_features(features, sorted(images.glob("*/*.*")))
    positions, cosines = nearest_neighbours(features, queries, k=2)
    assert positions[:, 0].tolist() == list(range(21)) and cosines[:, 0].min() > 0.9999
    one, other = features.files.index("class 0/002.png"), features.files.index("class 1/copy.jpg")
    assert positions[one, 1] == other and positions[other, 1] == one
    first = near_duplicates(features, 0.9)
    assert (first[0][0], first[1][0]) == (other, one)
    # other weights under the same name, or a checkpoint elsewhere
    shutil.move(checkpoint, tmp_path / "moved")
    np.testing.assert_array_equal(
        query_features(features, [copy], checkpoint=str(tmp_path / "moved")).values, queries.values[[other]]
    )
    with pytest.raises(UserError, match="is neither a folder here nor a Hub id"):
        query_features(features, [copy])
    save_checkpoint(checkpoint, initializer_range=0.03)
    with pytest.raises(UserError, match="has other weights"):
        query_features(features, [copy])
    with pytest.raises(UserError, match="is not a features file"):
        load_features(copy)
    with pytest.raises(UserError, match="does not exist"):
        load_features(tmp_path / "nothing.parquet")


def test_the_command(tmp_path):
    checkpoint, script = save_checkpoint(tmp_path / "model"), write_script(tmp_path)
    images = copy_images(tmp_path / "images", 12)
    shutil.copy(images / "class 0" / "000.png", images / "class 1" / "again.png")
    target, picture = tmp_path / "features.parquet", tmp_path / "picture.png"
    write_features_file(str(checkpoint), str(images), target, num_workers=0)
    query = images / "class 1" / "003.png"
    words = ("neighbours", target, query, "--k", 2, "--output", tmp_path / "a.csv", "--picture", picture)
    code, output = copied(script, words)
    assert code == 0 and "1.0000  class 1/003.png" in output, output
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["rank"] for row in rows] == ["1", "2"] and rows[0]["neighbour"] == "class 1/003.png"
    assert Image.open(picture).size[0] > 300
    # of a folder, without a file of features
    words = ("neighbours", images, "--checkpoint", checkpoint, "--duplicates", "--threshold", 0.99999)
    code, output = copied(script, (*words, "--picture", tmp_path / "alike.png"))
    assert code == 0 and "class 1/again.png  is like  class 0/000.png" in output, output
    assert "1 of 13 images are like an earlier one" in output and (tmp_path / "alike.png").exists()
    for words, message in (
        ((target,), "give either images, to find their neighbours, or --duplicates"),
        ((target, query, "--duplicates"), "give either images"),
        ((images, query), "is not a features file"),
        ((target, tmp_path / "nothing.png"), "nothing.png"),
        ((target, query, "--k", 0), "k 0 is not at least 1"),
        ((target, query, "--max_image_pixels", 100), "784 pixels, more than --max_image_pixels 100"),
        ((target, query, "--output", "s3://bucket/a.csv"), "is a URL"),
        ((target, query, "--picture", "s3://bucket/a.png"), "is a URL"),
    ):
        code, output = copied(script, ("neighbours", *words))
        assert code == 1 and output.count("\n") == 1 and message in output, output


def test_features_of_python_objects_have_no_picture(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "model")
    features = extract_features(checkpoint, [Image.new("L", (28, 28), i * 40) for i in range(3)], num_workers=0)
    with pytest.raises(UserError, match="they cannot be shown"):
        neighbours_module.images_of(features)
