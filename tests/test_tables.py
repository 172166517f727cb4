"""Tables of images that anybody wrote: parquet files without a schema of `datasets`, folders of `save_to_disk`."""

import io
import json
import zipfile

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest
from flat import load_eval_source, load_source, open_images
from PIL import Image
from test_listing import load, put

from modeling_mae.data.find.places import open_place
from modeling_mae.data.find.sources import NoSplit
from modeling_mae.data.read.faults import BadImage
from modeling_mae.errors import UserError
from modeling_mae.tasks import CLASSES


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def encoded(i):
    Image.fromarray(pixels(i)).save(file := io.BytesIO(), "png")
    return file.getvalue()


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
LABELS = [0, 1, 1]
CELLS = {
    "struct": [{"bytes": encoded(i), "path": None} for i in range(3)],
    "struct with paths": [{"path": f"/elsewhere/{i}.png", "bytes": encoded(i)} for i in range(3)],
    "struct of bytes": [{"bytes": encoded(i)} for i in range(3)],
    "bytes": [encoded(i) for i in range(3)],
    "large bytes": pa.array([encoded(i) for i in range(3)], pa.large_binary()),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_parquet_that_others_wrote(tmp_path, kind, streaming):
    (tmp_path / "set").mkdir()
    table = pa.table({"name": ["x", "y", "z"], "picture": CELLS[kind], "vector": [b"1", b"2", b"3"], "label": LABELS})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "part-0.parquet")
    source = load(tmp_path / "set", streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert (source.image_column, source.label_column, source.left_out) == ("picture", "label", "")
    assert source.dataset["label"][:] == LABELS
    images = open_images(source, (8, 8), 3, memory_budget=1 << 20)
    for i in range(3):
        assert np.array_equal(images.read(i).numpy(), pixels(i).transpose(2, 0, 1))


def write_parts(folder, *labels):
    """A parquet file of gray pictures for each list of labels."""
    for number, column in enumerate(labels):
        pictures = pa.array([encoded(0)] * len(column), pa.binary())
        pyarrow.parquet.write_table(pa.table({"image": pictures, "label": column}), folder / f"{number}.parquet")


def test_parquet_files_without_rows_among_others(tmp_path):
    write_parts(tmp_path, pa.array([], pa.int64()), [1, 0])
    for streaming in (False, True):
        source = load(tmp_path, streaming=streaming, cache_dir=str(tmp_path / "cache"))
        assert source.dataset["label"][:] == [1, 0]


@pytest.mark.parametrize("others", [[0.5, 1.5], ["a", "b"]])
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_whose_labels_have_several_types(tmp_path, others, streaming):
    """Decimals would be cut to whole numbers, which are classes."""
    write_parts(tmp_path, [0, 1], others)
    with pytest.raises(UserError, match=r"1.parquet has \w+ in the column label|cannot be read as parquet"):
        CLASSES.read(load(tmp_path, streaming=streaming, cache_dir=str(tmp_path / "cache")))


def test_columns_that_hold_no_images(tmp_path):
    file, cache = tmp_path / "a.parquet", {"cache_dir": str(tmp_path / "cache")}
    pandas.DataFrame({"caption": ["a dog.", "a.cat"], "vector": [b"1", b"2"]}).to_parquet(file)
    with pytest.raises(UserError, match="0 columns of images, in caption, vector"):
        load(file, **cache)
    pandas.DataFrame({"left": [encoded(0)], "right": [encoded(1)]}).to_parquet(file)
    with pytest.raises(UserError, match="2 columns of images, in left, right: name one with --image_column_name"):
        load(file, **cache)
    assert len(load(file, image_column_name="right", **cache)) == 1


def test_rows_without_an_image_are_counted(tmp_path):
    (tmp_path / "set").mkdir()
    rows = [
        None,
        {"bytes": encoded(1), "path": None},
        {"bytes": None, "path": None},
        {"bytes": encoded(3), "path": ""},
    ]
    pandas.DataFrame({"image": rows, "label": [0, 1, 2, 3]}).to_parquet(tmp_path / "set" / "a.parquet")
    source = load(tmp_path / "set", cache_dir=str(tmp_path / "cache"))
    assert source.dataset["label"][:] == [1, 3] and source.left_out == "2 rows left out: without an image"
    stream = load(tmp_path / "set", streaming=True, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(BadImage, match="image 0 of row group 0 of .*a.parquet has no bytes"):
        open_images(stream, (8, 8), 3)


def test_rows_may_name_files_of_the_folder_only(tmp_path):
    """A stranger's table must not read this machine's files."""
    folder, cache = (
        put(tmp_path / "set", "sub/0.png", "sub/1.png", "sub/2.png"),
        {"cache_dir": str(tmp_path / "cache")},
    )
    put(tmp_path, "secret.png")
    file = folder / "table.parquet"
    inside = ["sub/0.png", ".\\sub\\1.png", str(folder / "sub" / "2.png")]
    for cells in (inside, [{"bytes": None, "path": path} for path in inside]):
        pandas.DataFrame({"image": cells, "label": LABELS}).to_parquet(file)
        source = load(file, **cache)
        assert [cell["path"] for cell in source.dataset["image"]] == [str(folder / f"sub/{i}.png") for i in range(3)]
        assert source.dataset["label"][:] == LABELS
    for outside in ("../secret.png", str(tmp_path / "secret.png"), "sub/../../secret.png", f"{folder}/../secret.png"):
        for cell in (outside, {"bytes": None, "path": outside}):
            pandas.DataFrame({"image": [cell] * 2}).to_parquet(file)
            with pytest.raises(UserError, match=r"row 0 of 'table.parquet' names .*secret.png' outside this folder"):
                load(file, **cache)
            with pytest.raises(UserError, match="outside this folder"):
                open_place(file)
            with pytest.raises(BadImage, match="has no bytes: a stream holds the images themselves"):
                open_images(load(file, streaming=True, **cache), (8, 8), 3)
    typed = datasets.Dataset.from_dict({"image": [str(tmp_path / "secret.png")]}).cast_column(
        "image", datasets.Image()
    )
    (tmp_path / "typed").mkdir()
    table = pa.table({"image": [{"bytes": None, "path": "/etc/hostname"}]}, typed.features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "typed" / "a.parquet")
    with pytest.raises(UserError, match="row 0 of 'typed' names '/etc/hostname' outside this folder"):
        load(tmp_path / "typed", **cache)


def test_folders_of_save_to_disk(tmp_path):
    table = datasets.Dataset.from_dict({"image": CELLS["struct"], "label": LABELS}, features=FEATURES)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "Val": table.select([2])}).save_to_disk(tmp_path / "splits")
    for folder in ("one", "splits", "splits/train"):
        source = load(tmp_path / folder)
        assert len(source) == 3 and source.class_names == ["a", "b"] and source.dataset["label"][:] == LABELS
        assert np.array_equal(open_images(source, (8, 8), 3).read(1).numpy(), pixels(1).transpose(2, 0, 1))
    source, split = load_eval_source(train_dir=str(tmp_path / "splits"))
    assert split == "validation" and source.dataset["label"][:] == [1]
    assert len(open_place(tmp_path / "splits")) == 4
    with pytest.raises(NoSplit, match="no split 'test', only train, Val"):
        load(tmp_path / "splits", split="test")
    for content in ("[1", "[]", json.dumps({"_data_files": [{"filename": "gone.arrow"}]})):
        (tmp_path / "one" / "state.json").write_text(content)
        with pytest.raises(UserError, match="one' cannot be read as what save_to_disk wrote"):
            load(tmp_path / "one")


def test_files_in_place_of_folders(tmp_path):
    folder, cache = put(tmp_path / "set", "0.png", "1.png"), {"cache_dir": str(tmp_path / "cache")}
    pandas.DataFrame({"image": CELLS["bytes"]}).to_parquet(tmp_path / "a.parquet")
    for file, count in ((folder / "0.png", 1), (tmp_path / "a.parquet", 3)):
        source = load(file, **cache)
        assert (len(source), source.name) == (count, file.name)
        with pytest.raises(NoSplit):
            load(file, split="test", **cache)
        assert len(load_eval_source(validation_dir=str(file), **cache)[0]) == count
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(folder / "0.png", "0.png")
    (tmp_path / "set.tar.gz").write_bytes(b"?")
    (tmp_path / "list.txt").write_text("set/0.png\n")
    for name in ("set.zip", "set.tar.gz"):
        with pytest.raises(UserError, match=f"{name}' is packed: unpack it and give the folder"):
            load(tmp_path / name)
    with pytest.raises(UserError, match="list.txt' is neither an image nor a .parquet or .tar file"):
        load(tmp_path / "list.txt")
    with pytest.raises(UserError, match="a stream or tar file"):
        load_source(train_dir=str(tmp_path / "a.parquet"), streaming=True, max_samples=2, **cache)
