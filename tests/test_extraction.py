"""Features of any images: equal to what transformers gives on the processor's pixel values, whatever the source."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from applied import MEAN, STD, copy_images, save_checkpoint, save_classifier, write_features_file, write_script
from conftest import TWO_PROCESSES, copied, photograph
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from modeling_mae import EvalNet
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.data.find.places import open_place
from modeling_mae.errors import UserError
from modeling_mae.evaluation import extract_features, load_features, near_duplicates, nearest_neighbours
from modeling_mae.evaluation.inputs import open_inputs
from modeling_mae.evaluation.parts import Parts
from modeling_mae.training import run_folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images"))


@torch.no_grad()
def by_hand(checkpoint, paths, **options):
    """The model's outputs on the pixel values of the checkpoint's own processor."""
    model, processor = (auto.from_pretrained(checkpoint) for auto in (AutoModel, AutoImageProcessor))
    pixels = processor([Image.open(path) for path in paths], return_tensors="pt").pixel_values
    return model.eval(), model.eval()(pixels, **options)


def paths_of(images):
    return sorted(images.glob("*/*.png"))


def test_features_are_the_models_on_the_processors_pixels(checkpoint, images):
    found = extract_features(checkpoint, images, batch_size=7, num_workers=0)
    _, outputs = by_hand(checkpoint, paths_of(images))
    np.testing.assert_allclose(found.values, outputs.pooler_output, atol=1e-6)
    assert found.files == [str(path.relative_to(images)) for path in paths_of(images)]
    assert found.labels == [path.parent.name for path in paths_of(images)] and found.rows == list(range(20))
    assert found.values.std(0).mean() > 0.01  # the images are told apart


def test_larger_photographs(tmp_path):
    """Of square ones the processor is the truth; of others the central box, cut and resized by Pillow."""
    one_level = 1 / 255 / STD  # torchvision and Pillow round otherwise
    for fraction, photos in ((1.0, "square"), (0.8, "oblong")):
        checkpoint = save_checkpoint(tmp_path / f"model-{photos}", crop_fraction=fraction, num_channels=3)
        (tmp_path / photos).mkdir()
        for i in range(2):
            image = photograph(i=i)  # 300 x 200, then 200 x 300
            image = image.crop((0, 0, 200, 200)) if photos == "square" else image
            image.save(tmp_path / photos / f"{i}.png")
        paths = sorted((tmp_path / photos).iterdir())
        model, processor = (auto.from_pretrained(checkpoint) for auto in (AutoModel, AutoImageProcessor))
        opened = [Image.open(path) for path in paths]
        if photos == "oblong":  # 0.8 of 200 pixels are 160, from 70 and 20 on
            boxes = ((70, 20, 230, 180), (20, 70, 180, 230))
            cut = [image.crop(box).resize((28, 28), Image.BICUBIC) for image, box in zip(opened, boxes, strict=True)]
            levels = torch.from_numpy(np.stack([np.asarray(image) for image in cut])).permute(0, 3, 1, 2)
            pixels = (levels / 255 - MEAN) / STD
        else:
            pixels = processor(opened, return_tensors="pt").pixel_values
        inputs = open_inputs(open_checkpoint(checkpoint), open_place(tmp_path / photos))
        seen = inputs.transform(inputs.images.batch(0, [0, 1]))
        assert (seen - pixels).abs().max() < 1.01 * one_level
        found = extract_features(checkpoint, tmp_path / photos, num_workers=0).values
        np.testing.assert_allclose(found, model.eval()(pixels).pooler_output.detach(), atol=2 * one_level)


def test_blocks_and_poolings(checkpoint, images):
    encoder, outputs = by_hand(checkpoint, paths_of(images), output_hidden_states=True)
    first = encoder.layernorm(outputs.hidden_states[-2]).detach()  # of two blocks
    last = outputs.last_hidden_state
    options = {"num_workers": 0}
    found = extract_features(checkpoint, images, blocks=[1, 2], pooling="cls", **options).values
    np.testing.assert_allclose(found, torch.cat([first[:, 0], last[:, 0]], 1), atol=1e-5)
    found = extract_features(checkpoint, images, blocks=[1], pooling="mean_deviation", **options).values
    patches = first[:, 1:]
    deviation = (patches - patches.mean(1, keepdim=True)).square().mean(1).sqrt()
    np.testing.assert_allclose(found, torch.cat([patches.mean(1), deviation], 1), atol=1e-5)
    found = extract_features(checkpoint, images, blocks=[1], pooling="flatten", **options).values
    np.testing.assert_allclose(found, first[:, 1:].flatten(1), atol=1e-5)
    for wrong, message in (
        ({"blocks": [0]}, "block 0 does not work: give one of 1 ... 2"),
        ({"blocks": [3]}, "block 3"),
        ({"blocks": [1, 1]}, "block 1 does not work: .*, each once"),
        ({"pooling": "attention"}, "no trained one"),
        (
            {"pooling": "maximum"},
            "pooling 'maximum' does not work: give one of mean, cls, mean_deviation, attention, flatten, patches",
        ),
        ({"batch_size": 0}, "batch_size 0"),
        ({"split": "test"}, "no split 'test'"),
    ):
        with pytest.raises(UserError, match=message):
            extract_features(checkpoint, images, **wrong, **options)


def test_a_classifiers_features_are_what_its_head_reads(tmp_path, images):
    fields = {"head_norm": "layer", "pooling": "attention", "num_pooling_queries": 4}
    for pooling in ("mean", "attention"):
        folder = save_classifier(tmp_path / pooling, **{**fields, "pooling": pooling})
        model, processor = EvalNet.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
        pixels = processor([Image.open(path) for path in paths_of(images)], return_tensors="pt").pixel_values
        seen = []
        model.head_norm.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].detach()))
        model(pixels)
        found = extract_features(folder, images, num_workers=0).values
        np.testing.assert_allclose(found, seen[0], atol=1e-5)


def test_python_objects_and_streams_give_the_same(tmp_path, checkpoint, images):
    paths = paths_of(images)
    expected = extract_features(checkpoint, images, num_workers=0).values
    opened = [Image.open(path) for path in paths]
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    table = datasets.Dataset.from_dict({"picture": cells}, features=datasets.Features({"picture": datasets.Image()}))
    table.to_parquet(tmp_path / "shards" / "part-0.parquet")
    with tarfile.open(tmp_path / "part-0.tar", "w") as tar:
        for path in paths:
            for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.cls", path.parent.name.encode())):
                member = tarfile.TarInfo(f"a/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    numbers = [str(i) for i in range(20)]
    names = [path.name for path in paths]
    places = {
        "list of images": (opened, numbers, {}),
        "list of paths": (paths, list(map(str, paths)), {}),
        "data set": (table, names, {}),
        "parquet file": (tmp_path / "shards" / "part-0.parquet", names, {}),
        "parquet stream": (tmp_path / "shards", names, {"streaming": True}),
        "tar file": (tmp_path / "part-0.tar", [f"part-0.tar/a/{name}" for name in names], {}),
        "pattern": (str(tmp_path / "part-{0..0}.tar"), [f"part-0.tar/a/{name}" for name in names], {}),
        "one image": (paths[3], [paths[3].name], {}),
    }
    for kind, (place, files, options) in places.items():
        found = extract_features(checkpoint, place, num_workers=0, **options)
        of = [3] if kind == "one image" else slice(None)
        np.testing.assert_allclose(found.values, expected[of], atol=1e-6, err_msg=kind)
        assert found.files == files, kind
        assert (found.labels is not None) == (kind in ("tar file", "pattern")), kind


def test_deep_and_unusual_images_arrive_as_they_are():
    gray = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 80
    for image in (Image.fromarray(gray), Image.fromarray(gray.astype(np.int32)), Image.fromarray(gray / 7e4)):
        source = open_place([image])
        with Image.open(io.BytesIO(source.dataset[0]["image"]["bytes"])) as kept:
            np.testing.assert_array_equal(np.asarray(kept), np.asarray(image))
    for mode in ("RGBA", "P", "1", "LA", "CMYK", "HSV"):
        source = open_place([Image.new("RGB", (4, 4), "red").convert(mode)])
        with Image.open(io.BytesIO(source.dataset[0]["image"]["bytes"])) as kept:
            assert kept.mode == ("RGB" if mode == "HSV" else mode)
    with pytest.raises(UserError, match="ndarray is not an image"):
        open_place([gray])
    with pytest.raises(UserError, match="there are no images"):
        open_place([])


def test_unreadable_images(tmp_path, checkpoint, capsys):
    images = copy_images(tmp_path, 9)
    expected = extract_features(checkpoint, images, num_workers=0).values
    broken = paths_of(images)[3]
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UserError, match=f"{broken.name} is not a readable image.*--on_bad_image skip"):
        extract_features(checkpoint, images, num_workers=0)
    for workers in (0, 2):
        found = extract_features(checkpoint, images, on_bad_image="skip", num_workers=workers, batch_size=2)
        assert found.rows == [0, 1, 2, 4, 5, 6, 7, 8] and str(broken.relative_to(images)) not in found.files
        np.testing.assert_allclose(found.values, expected[found.rows], atol=1e-6)


# --- files ---


def test_a_file_holds_what_the_function_gives(tmp_path, checkpoint, images, capsys):
    expected = extract_features(checkpoint, images, num_workers=0, batch_size=3)
    options = {"num_workers": 0, "batch_size": 3}
    write_features_file(str(checkpoint), str(images), tmp_path / "a.parquet", **options)
    found = load_features(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found.values, expected.values)
    assert (found.files, found.rows, found.labels) == (expected.files, expected.rows, expected.labels)
    write_features_file(str(checkpoint), str(images), tmp_path / "a.npy", **options)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected.values)
    assert pandas.read_csv(tmp_path / "a.csv")["file"].tolist() == expected.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.npy", "a.parquet"]
    # again: nothing to do with the same settings, refused with others
    before = (tmp_path / "a.parquet").stat().st_mtime_ns
    capsys.readouterr()
    write_features_file(str(checkpoint), str(images), tmp_path / "a.parquet", **options)
    assert "was there already" in capsys.readouterr().out
    assert (tmp_path / "a.parquet").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"made with pooling 'mean' \(now 'cls'\): give another name, or --overwrite"):
        write_features_file(str(checkpoint), str(images), tmp_path / "a.parquet", pooling="cls", **options)
    write_features_file(str(checkpoint), str(images), tmp_path / "a.parquet", pooling="cls", overwrite=True, **options)
    assert load_features(tmp_path / "a.parquet").about["pooling"] == "cls"
    for name in ("a.csv", "a", "no/../folder.parquet/x.npz"):
        with pytest.raises(UserError, match="must end in .parquet or .npy"):
            write_features_file(str(checkpoint), str(images), tmp_path / name, **options)


def test_patches_as_a_map(tmp_path, checkpoint, images, monkeypatch):
    """Row r and column c of the map belong to patch 4r + c of the encoder, whose grid is 4 x 4."""
    encoder, outputs = by_hand(checkpoint, paths_of(images), output_hidden_states=True)
    tokens = [encoder.layernorm(outputs.hidden_states[-2]), outputs.last_hidden_state]
    expected = torch.cat(tokens, 2)[:, 1:].unflatten(1, (4, 4)).detach().numpy()
    options = {"blocks": [1, 2], "pooling": "patches", "num_workers": 0, "batch_size": 3}
    np.testing.assert_allclose(extract_features(checkpoint, images, **options).values, expected, atol=1e-5)
    write_features_file(checkpoint, images, tmp_path / "a.npy", **options)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, atol=1e-5)
    monkeypatch.setattr("modeling_mae.evaluation.parts.GROUP_BYTES", 5 * 4 * expected[0].size)
    write_features_file(checkpoint, images, tmp_path / "a.parquet", **options)
    column = pyarrow.parquet.read_table(tmp_path / "a.parquet").column("features")
    assert column.type.list_size == expected[0].size
    about = json.loads(pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata[b"modeling_mae"])
    assert about["map"] == list(expected.shape[1:])
    assert pyarrow.parquet.read_metadata(tmp_path / "a.parquet").num_row_groups == 4  # of 6, 6, 6 and 2 rows
    found = load_features(tmp_path / "a.parquet")
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    for compare in (lambda: nearest_neighbours(found, found), lambda: near_duplicates(found)):
        with pytest.raises(UserError, match="features of patches do not compare images: .* another --pooling"):
            compare()


@pytest.mark.parametrize("target", ["s3://bucket/a.parquet", Path("hf://me/a.parquet")])
def test_a_url_is_no_output(tmp_path, checkpoint, images, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a URL: give a path on this machine"):
        write_features_file(checkpoint, images, target)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_a_formula_is_text_in_a_csv(tmp_path, checkpoint):
    images = tmp_path / "images"
    for i, name in enumerate(("=1+2.png", "@a.png", "-b.png", "+c.png", "d=.png")):
        images.mkdir(exist_ok=True)
        Image.fromarray(np.full((28, 28), 40 * i, np.uint8)).save(images / name)
    write_features_file(checkpoint, images, tmp_path / "a.npy")
    names = pandas.read_csv(tmp_path / "a.csv")["file"].tolist()
    assert sorted(names) == ["'+c.png", "'-b.png", "'=1+2.png", "'@a.png", "d=.png"]
    # In parquet, which nobody opens in a spreadsheet, names stay as they are.
    write_features_file(checkpoint, images, tmp_path / "a.parquet")
    assert sorted(load_features(tmp_path / "a.parquet").files) == ["+c.png", "-b.png", "=1+2.png", "@a.png", "d=.png"]


def test_nothing_is_written_through_a_link(tmp_path, checkpoint, images):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    (tmp_path / ".partial-a.npy").symlink_to(theirs / "notes.txt")
    (tmp_path / "a.csv").symlink_to(theirs / "notes.txt")
    write_features_file(checkpoint, images, tmp_path / "a.npy")
    assert (theirs / "notes.txt").read_text() == "mine" and not (tmp_path / "a.csv").is_symlink()
    (tmp_path / "b.parquet.parts").symlink_to(theirs)
    with pytest.raises(UserError, match="is a link to another folder"):
        write_features_file(checkpoint, images, tmp_path / "b.parquet")
    assert [path.name for path in theirs.iterdir()] == ["notes.txt"]


def test_a_stopped_run_goes_on_to_the_identical_file(tmp_path, checkpoint, images, monkeypatch, capsys):
    options = {"num_workers": 0, "batch_size": 3}
    write_features_file(str(checkpoint), str(images), tmp_path / "straight.parquet", **options)
    target, write = tmp_path / "stopped.parquet", Parts.write

    def stop(parts, number, table):
        if number == 4:
            raise KeyboardInterrupt
        write(parts, number, table)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            write_features_file(str(checkpoint), str(images), target, **options)
    assert not target.exists() and len(list((tmp_path / "stopped.parquet.parts").glob("part-*"))) == 4
    with pytest.raises(UserError, match=r"parts of a run with batch_size 3 \(now 4\)"):
        write_features_file(str(checkpoint), str(images), target, num_workers=0, batch_size=4)
    computed = []
    monkeypatch.setattr(Parts, "write", lambda *call: computed.append(call[1]) or write(*call))
    capsys.readouterr()
    write_features_file(str(checkpoint), str(images), target, **options)
    assert computed == [4, 5, 6] and "4 of 7 parts" in capsys.readouterr().out
    assert target.read_bytes() == (tmp_path / "straight.parquet").read_bytes()
    assert not (tmp_path / "stopped.parquet.parts").exists()
    # stopped on its very last step, or after parts that were to replace the file
    for name in ("last.npy", "last.parquet"):
        with monkeypatch.context() as patched:
            patched.setattr(Parts, "remove", lambda parts: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                write_features_file(str(checkpoint), str(images), tmp_path / name, **options)
        computed.clear()
        write_features_file(str(checkpoint), str(images), tmp_path / name, **options)
        assert not computed and not (tmp_path / f"{name}.parts").exists()
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            write_features_file(str(checkpoint), str(images), target, overwrite=True, **options)
    computed.clear()
    write_features_file(str(checkpoint), str(images), target, overwrite=True, **options)
    assert computed == [4, 5, 6]
    assert target.read_bytes() == (tmp_path / "straight.parquet").read_bytes()


def test_parts_that_are_not_ours_stay(tmp_path, checkpoint, images):
    folder = tmp_path / "a.parquet.parts"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            write_features_file(
                str(checkpoint), str(images), tmp_path / "a.parquet", num_workers=0, overwrite=overwrite
            )
    assert (folder / "mine.txt").read_text() == "mine"


def test_two_runs_do_not_write_the_same_file(tmp_path, checkpoint, images, monkeypatch):
    target, options = tmp_path / "a.parquet", {"num_workers": 0, "batch_size": 3}
    monkeypatch.setattr(run_folder, "_locks", {})
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", lambda *call: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_features_file(str(checkpoint), str(images), target, **options)
    held = run_folder._locks.copy()  # as by another process
    run_folder._locks.clear()
    for changes in ({}, {"pooling": "cls", "overwrite": True}):
        with pytest.raises(UserError, match="in use by process"):
            write_features_file(str(checkpoint), str(images), target, **options, **changes)
    for lock in held.values():
        lock.release()
    write_features_file(str(checkpoint), str(images), target, **options)
    assert len(load_features(target)) == 20 and not (tmp_path / "a.parquet.parts").exists()


def test_labels_and_unreadable_images_in_parts(tmp_path, checkpoint):
    """A part may have no label, or no image at all."""
    images = [Image.fromarray(np.full((28, 28), 40 * i, np.uint8)) for i in range(6)]
    labels = [None, None, 3, 4, 5, 6]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    folder = tmp_path / "shards"
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(folder / "a.parquet")
    table = pyarrow.parquet.read_table(folder / "a.parquet").to_pylist()
    for row in table[2:4]:
        row["image"]["bytes"] = b"nothing"
    schema = pyarrow.parquet.read_schema(folder / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, schema), folder / "a.parquet")
    target = tmp_path / "a.parquet"
    options = {"num_workers": 0, "batch_size": 2, "on_bad_image": "skip", "cache_dir": str(tmp_path / "cache")}
    write_features_file(str(checkpoint), str(folder), target, **options)
    found = load_features(target)
    assert found.rows == [0, 1, 4, 5] and found.labels == [None, None, 5, 6] and found.files == ["0", "1", "4", "5"]


def test_what_is_wrong_with_a_checkpoint_is_one_line(tmp_path, checkpoint, images, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hi\n")
    save_checkpoint(tmp_path / "several" / "n_partial-4")
    save_checkpoint(tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    for name, message in (
        ("theirs", "theirs cannot be read: .*no file named model.safetensors"),
        ("empty", "has no config.json"),
        ("nowhere/at/all", "is neither a folder here nor a Hub id"),
        ("bare", "has no image processor"),
        ("notes.txt", "notes.txt is not a checkpoint: give a .safetensors"),
        ("several", "has no config.json of a model: give '.*several/n_partial-4'$"),
    ):
        with pytest.raises(UserError, match=message):
            extract_features(str(tmp_path / name), images)
    with pytest.raises(UserError, match="'me/nothing' is neither .* nor a Hub id that can be reached") as error:
        extract_features("me/nothing", images)
    assert "\n" not in str(error.value)
    for place in ("nowhere", tmp_path / "nowhere", tmp_path / "empty", tmp_path / "theirs" / "config.json"):
        with pytest.raises(UserError):
            extract_features(checkpoint, place)


# --- the command ---


def test_two_processes_and_a_kill_give_the_identical_file(tmp_path, checkpoint):
    images = copy_images(tmp_path / "images", 60)
    script = write_script(tmp_path)
    words = ("features", checkpoint, images)
    options = ("--batch_size", 3, "--dataloader_num_workers", 0)
    code, output = copied(script, (*words, tmp_path / "one.parquet", *options))
    assert code == 0 and "60 rows" in output, output
    # A process that is killed in the middle of its work leaves its parts.
    target = tmp_path / "two.parquet"
    killed = tmp_path / "killed"
    killed.write_text(
        "import os, signal\nfrom modeling_mae.evaluation.parts import Parts\nwrite = Parts.write\n"
        "def last(parts, number, table):\n    write(parts, number, table)\n"
        "    if number == 6:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Parts.write = last\nfrom modeling_mae.__main__ import main\nmain()\n"
    )
    code, output = copied(killed, (*words, target, *options))
    assert code == -9 and len(list((tmp_path / "two.parquet.parts").glob("part-*.parquet"))) == 7, output

    code, output = copied(script, (*words, target, *options), **TWO_PROCESSES)
    assert code == 0 and output.count("written ") == 1 and "7 of 20 parts" in output, output
    assert target.read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_errors_of_the_command_are_one_line(tmp_path, checkpoint, images):
    script = write_script(tmp_path)
    code, output = copied(script, ("features", checkpoint, tmp_path / "nowhere", tmp_path / "a.parquet"))
    assert code == 1 and output.count("\n") == 1 and output.startswith("mae features: error: folder"), output
