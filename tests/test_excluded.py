"""Images that a list of near-duplicates leaves out of a pre-training."""

import csv
import io

import datasets
import numpy as np
import pytest
from PIL import Image

from configuration import PretrainArguments
from modeling_mae.data.find.excluded import names_in, without_excluded
from modeling_mae.data.find.fingerprint import fingerprint
from modeling_mae.data.find.joined import load_training_source
from modeling_mae.data.find.row_names import RowNames
from modeling_mae.data.find.sources import SourceSettings
from modeling_mae.errors import UserError
from modeling_mae.files import write_csv


@pytest.fixture
def folder(tmp_path):
    for i in range(8):
        place = tmp_path / "photos" / ("one" if i < 4 else "two") / f"{'=' if i == 5 else ''}{i}, x.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 20 * i, np.uint8)).save(place)
    return tmp_path / "photos"


def load(folder, path=None, **options):
    cache = str(folder.parent / "cache")
    place = {"train_dir": str(folder)} | options
    return load_training_source(SourceSettings(cache_dir=cache, exclude=path and str(path), **place))


def names(source):
    return RowNames(source).files(0, len(source))


def test_listed_images_are_left_out_counted_and_part_of_the_fingerprint(folder, tmp_path):
    everything = names(load(folder))
    path, text = tmp_path / "twins.csv", tmp_path / "twins.txt"
    gone = ["one/2, x.png", "two/=5, x.png", "somewhere else.png"]
    write_csv(path, ("file", "like", "cosine"), [(name, "one/0, x.png", "0.99") for name in gone])
    text.write_text("\n".join(gone))
    source = load(folder, path)
    assert names(source) == [name for name in everything if name not in gone] and len(source) == 6
    assert source.left_out == "2 of 8 images left out by twins.csv"
    assert names(load(folder, text)) == names(source) and fingerprint(load(folder, text)) == fingerprint(source)
    other = tmp_path / "other.csv"  # as many others
    write_csv(other, ("file",), [("one/1, x.png",), ("two/=5, x.png",)])
    assert len({fingerprint(each) for each in (source, load(folder), load(folder, other))}) == 3
    # fewer images are chosen among those that are left
    assert names(load(folder, path, max_train_samples=3)) == [names(source)[row] for row in (0, 2, 5)]
    # of several folders each has names of its own
    write_csv(other, ("file",), [("1, x.png",)])
    both = load(folder, other, train_dir=[str(folder / "one"), str(folder / "two")])
    assert len(both) == 7 and both.left_out == "one: 1 of 4 images left out by other.csv" and both.excluded
    assert fingerprint(both).endswith(", with exclude")


def test_a_name_that_a_spreadsheet_would_run_comes_back(tmp_path):
    path = tmp_path / "names.csv"
    write_csv(path, ("file",), [("=a",), ("'b",), ("c",)])
    assert next(csv.reader(path.read_text().splitlines()[1:])) == ["'=a"]
    assert names_in(str(path)) == {"=a", "'b", "c"}


def test_lists_that_cannot_work_are_refused(folder, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("nowhere.png\n")
    with pytest.raises(
        UserError, match="names none of the images of photos: it has 'nowhere.png', and they are named"
    ):
        load(folder, path)
    path.write_text("\n".join(names(load(folder))))
    with pytest.raises(UserError, match="names all 8 images of photos"):
        load(folder, path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        without_excluded([load(folder)], str(path))


def test_k_nn_of_patches_may_have_none_of_the_listed_images(folder, tmp_path):
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(folder / "two" / "6, x_mask.png")
    path = tmp_path / "list.txt"
    path.write_text("0, x.png\n")  # without a mask
    both = [str(folder / "one"), str(folder / "two")]
    assert len(load(folder, path, train_dir=both)) == 7
    masked = load(folder, path, train_dir=both[1], problem_type="semantic_segmentation")
    assert names(masked) == ["6, x.png"]
    path.write_text("6, x.png\n")
    with pytest.raises(UserError, match="names all 1 images of two"):
        load(folder, path, train_dir=both[1], problem_type="semantic_segmentation")


def test_rows_named_by_number_are_those_of_the_whole_set(tmp_path):
    """Rows without a mask shift the numbers of the others. Each image has its own brightness."""
    cells = [io.BytesIO() for _ in range(6)]
    for brightness, file in enumerate(cells):
        Image.fromarray(np.full((4, 4), brightness, np.uint8)).save(file, "PNG")
    data = [{"bytes": file.getvalue(), "path": None} for file in cells]
    table = {"image": data, "mask": [None, data[1], None, data[3], data[4], data[5]]}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(table, features).to_parquet(tmp_path / "set" / "train.parquet")
    path = tmp_path / "list.txt"
    path.write_text("0\n3\n")

    def seen(**options):
        source = load(tmp_path / "set", path, **options)
        return [int(np.array(Image.open(io.BytesIO(source.cell(row)["bytes"])))[0, 0]) for row in range(len(source))]

    assert seen(mask_column_name="mask", image_column_name="image") == [1, 2, 4, 5]
    assert seen(problem_type="semantic_segmentation") == [1, 4, 5]
    path.write_text("0\n2\n")  # without a mask
    assert seen(problem_type="semantic_segmentation") == [1, 3, 4, 5]


def test_the_option_is_recorded_by_the_images(tmp_path):
    assert "exclude" in PretrainArguments().deciding("result") and PretrainArguments.added()["exclude"] is None
