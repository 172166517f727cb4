"""Semantic segmentation as a user does it: from a folder of images and masks to masks of new images."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from argparse import ArgumentParser

import datasets
import numpy as np
import pytest
import tifffile
import torch
from conftest import (
    ROOT,
    TINY_GRAY,
    TWO_PROCESSES,
    Copies,
    assert_same_run,
    copied,
    wait_for_update,
    weights_and_history,
)
from documented import python_blocks
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.commands import predict as command
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.errors import UserError
from modeling_mae.segmentation_mae import MAEForSemanticSegmentation


SMALL = {**TINY_GRAY, "image_size": 16, "patch_size": 4, "num_hidden_layers": 2}


def scene(generator) -> tuple[np.ndarray, np.ndarray]:
    """A light and a dark square on gray ground. The rim of the image has no class."""
    image, mask = np.full((24, 20), 120, np.uint8), np.zeros((24, 20), np.uint8)
    for number, level in ((1, 230), (2, 20)):
        top, left = generator.integers(0, (14, 10))
        image[top : top + 10, left : left + 10], mask[top : top + 10, left : left + 10] = level, number
    mask[:1] = 255
    return image + generator.integers(0, 10, image.shape, dtype=np.uint8), mask


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same scenes as a folder, as parquet and as tar files, and a pre-trained checkpoint."""
    top, generator = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    kinds = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    for split, count in (("train", 40), ("test", 12)):
        files = [tuple(map(png, scene(generator))) for _ in range(count)]
        for number, pair in enumerate(files):
            for part, data in zip(("images", "masks"), pair, strict=True):
                path = top / "folder" / split / part / f"{number:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        cells = {name: [{"bytes": pair[i], "path": None} for pair in files] for i, name in enumerate(kinds)}
        (top / "table").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(cells, features=kinds).to_parquet(top / "table" / f"{split}.parquet")
        (top / "tars").mkdir(exist_ok=True)
        with tarfile.open(top / "tars" / f"{split}-0.tar", "w") as tar:
            for number, pair in enumerate(files):
                for name, data in zip((f"{number:03}.png", f"{number:03}.mask.png"), pair, strict=True):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (top / "folder" / "classes.txt").write_text("ground\nlight\ndark\n")
    torch.manual_seed(0)
    MAEForPreTraining(MAEConfig(**SMALL)).save_pretrained(top / "pretrained")
    image_processor((16, 16), [0.45], [0.25], 1).save_pretrained(top / "pretrained")
    return top


def run(*words, fails=False, **options):
    code, output = copied("run_eval.py", words, **options)
    assert bool(code) == fails and "Traceback" not in output, output
    return output


def predict(*words):
    parser = ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(list(map(str, words))))


def words_for(place, kind, folder, *more):
    return (
        *("--model_name_or_path", place / "pretrained", "--train_dir", place / kind, "--output_dir", folder),
        *("--problem_type", "semantic_segmentation", "--report_to", "none", "--total_batch_size", 8),
        *("--per_device_train_batch_size", 2, "--warmup_epochs", 1, "--dataloader_num_workers", 0, *more),
    )


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    words = ("--n_partial", 0, 2, "--knn", "true", "--num_train_epochs", 40, "--base_learning_rate", 0.1)
    words += ("--linear_overrides", "num_train_epochs=10", "--per_device_train_batch_size", 8)
    more = ("--segmentation_head", "multiscale", "--class_weights", "auto", "--dice_weight", 0.5)
    output = run(*words_for(place, "folder", folder, *words, *more, "--eval_epochs", 20, "--save_predictions", "true"))
    return folder, output


def test_from_a_folder_to_the_report(trained, place):
    folder, output = trained
    assert "40 training images, 12 of folder (test) to evaluate on, 3 classes" in output
    assert (
        "pixels of 40 images: ground" in output
        and "pixels of 12 images: ground" in output
        and "masks beside images" not in output
    )
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())}
    for name in ("raw pixels", "untrained encoder", "pre-trained encoder"):
        assert 0.2 < rows[name]["knn"]["20"] <= 1
    best = rows["n_partial-2"]
    assert best["mean_iou"] > 0.6 and rows["n_partial-0"]["mean_iou"] > 0.2
    low, high = best["mean_iou_interval"]
    assert low <= best["mean_iou"] <= high
    # All pixels but those of the rim are counted.
    assert sum(map(sum, best["confusion_matrix"])) == 12 * 23 * 20
    card = (folder / "n_partial-2" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "| light |" in card and "worst.png" in card
    # The card's lines give the mask of an image, at its size.
    code = re.search("```python\n(.*?)```", card, re.S)[1].replace("PATH_OR_HUB_ID", str(folder / "n_partial-2"))
    names: dict = {}
    exec(code.replace("photograph.jpg", str(place / "folder" / "test" / "images" / "000.png")), names)
    assert names["mask"].shape == (24, 20) and names["mask"].max() <= 2
    page = (folder / "report.html").read_text()
    assert "Worst images" in page and "mean IoU" in page
    taken = r"Most often '\w+' is taken for '\w+' \([\d,]+ of its [\d,]+ pixels\)"
    assert re.search(taken, html.unescape(page))
    config = json.loads((folder / "n_partial-2" / "config.json").read_text())
    assert config["id2label"] == {"0": "ground", "1": "light", "2": "dark"}
    assert config["segmentation_head"] == "multiscale" and len(config["class_weights"]) == 3
    predictions = datasets.Dataset.from_parquet(str(folder / "n_partial-2" / "predictions.parquet"))
    assert np.array(predictions["iou"][:]).shape == (12, 3)


def test_masks_of_new_images(trained, place, tmp_path):
    folder, out = trained[0] / "n_partial-2", tmp_path / "out"
    new = tmp_path / "new" / "deep"
    new.mkdir(parents=True)
    for i in range(3):
        shutil.copy(place / "folder" / "test" / "images" / f"{i:03}.png", new)
    with Image.open(new / "000.png") as image:
        image.resize((90, 70)).save(new / "large.png")
    words = (folder, tmp_path / "new", out)
    predict(*words)
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert names == ["deep/000.png", "deep/001.png", "deep/002.png", "deep/large.png"]
    with Image.open(out / "deep" / "large.png") as mask:
        assert (mask.mode, mask.size) == ("P", (90, 70))
    right = 0
    for i in range(3):
        mask = np.asarray(Image.open(out / "deep" / f"{i:03}.png"))
        truth = np.asarray(Image.open(place / "folder" / "test" / "masks" / f"{i:03}.png"))
        right += (mask == truth)[truth != 255].mean() / 3
    assert right > 0.75
    assert json.loads((out / "classes.json").read_text()) == {"0": "ground", "1": "light", "2": "dark"}
    with (out / "masks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == names
    for row in rows:
        assert sum(float(row[name]) for name in ("ground", "light", "dark")) == pytest.approx(1, abs=1e-5)
    # What is there already is not made again.
    before = (out / "deep" / "001.png").stat().st_mtime_ns
    (out / "deep" / "002.png").unlink()
    predict(*words)
    assert (out / "deep" / "001.png").stat().st_mtime_ns == before and (out / "deep" / "002.png").exists()
    # Files that this command has not written are never replaced.
    images = place / "folder" / "test" / "images"
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(UserError, match="holds other files: give another"):
        predict(folder, images, images, "--overwrite")
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before
    (tmp_path / "theirs").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "theirs" / "000.png")
    for content in ("{}", "[1", "3"):
        (tmp_path / "theirs" / "settings.json").write_text(content)
        with pytest.raises(UserError, match="settings.json' (is not a file of a run|cannot be read)"):
            predict(folder, images, tmp_path / "theirs", "--overwrite")
        assert (tmp_path / "theirs" / "000.png").exists()
    with pytest.raises(UserError, match="masks are pictures: give a folder"):
        predict(folder, tmp_path / "new", tmp_path / "out.parquet")
    # A pipeline of transformers says the same.
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert model.config.num_labels == 3
    said = pipeline("image-segmentation", str(folder))(str(new / "001.png"))
    shares = {each["label"]: np.asarray(each["mask"]).astype(bool).mean() for each in said}
    row = next(row for row in rows if row["file"] == "deep/001.png")
    for name in ("ground", "light", "dark"):
        # The pipeline shows a model whole images, of any size; predict shows windows.
        assert shares.get(name, 0) == pytest.approx(float(row[name]), abs=0.2)


def test_unreadable_images_are_counted(trained, place, tmp_path, capsys):
    folder = trained[0] / "n_partial-2"
    (tmp_path / "new").mkdir()
    shutil.copy(place / "folder" / "test" / "images" / "000.png", tmp_path / "new")
    (tmp_path / "new" / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty.png is not a readable image .* --on_bad_image skip"):
        predict(folder, tmp_path / "new", tmp_path / "out")
    predict(folder, tmp_path / "new", tmp_path / "out", "--on_bad_image", "skip")
    assert f"{tmp_path / 'out'}: 1 mask, classes.json and masks.csv; 1 unreadable image left out" in (
        capsys.readouterr().out
    )
    with (tmp_path / "out" / "masks.csv").open() as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["000.png"]


@pytest.mark.slow
def test_a_real_brain(tmp_path, monkeypatch):
    """The documents' slices of MNI152: a short training beats the most frequent class, and finds both kinds."""
    pytest.importorskip("nilearn", reason="no nilearn: pip install nilearn")
    (code,) = (text for text in python_blocks() if "MNI152" in text)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    words = ("--train_dir", tmp_path / "brain", "--output_dir", tmp_path / "run", "--report_to", "none")
    words = (*words, "--config_name", tmp_path, "--problem_type", "semantic_segmentation", "--from_scratch", "true")
    MAEConfig(**SMALL | {"image_size": 64}).save_pretrained(tmp_path)
    words = (*words, "--total_batch_size", 12, "--num_train_epochs", 6, "--base_learning_rate", 0.1)
    output = run(*words, "--warmup_epochs", 1, "--eval_epochs", 6, "--dataloader_num_workers", 0)
    assert "brain: 120 training images, 120 of brain (test) to evaluate on, 3 classes" in output
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    confusion = np.array(row["confusion_matrix"])
    most_frequent = confusion.sum(1).max() / confusion.sum()
    assert 0.70 < most_frequent < 0.78 and row["pixel_accuracy"] > most_frequent + 0.1
    assert min(row["per_class_iou"]) > 0.4


PEAKS = """
import resource, sys
from modeling_mae.__main__ import main
model, *places = sys.argv[1:]
for source, output in zip(places[::2], places[1::2]):
    sys.argv[1:] = ["predict", model, source, output]
    main()
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_large_tiff_takes_little_memory(tmp_path):
    """Decoded whole, a pixel took 12 bytes."""
    side, window = 7000, 224
    changes = {"image_size": window, "patch_size": 32, "num_hidden_layers": 1, "id2label": {0: "a", 1: "b", 2: "c"}}
    MAEForSemanticSegmentation(MAEConfig(**TINY_GRAY | changes)).save_pretrained(tmp_path / "model")
    image_processor((window, window), [0.5], [0.25], 1).save_pretrained(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 255, (side, side), np.uint8)
    tifffile.imwrite(tmp_path / "small.tif", image[:window, :window])
    tifffile.imwrite(tmp_path / "large.tif", image, tile=(256, 256), compression="zlib")
    places = [tmp_path / name for name in ("model", "small.tif", "small", "large.tif", "large")]
    output = subprocess.run([sys.executable, "-c", PEAKS, *map(str, places)], capture_output=True, text=True, cwd=ROOT)
    before, after = (int(line.split()[1]) << 10 for line in output.stdout.splitlines() if line.startswith("peak"))
    assert after - before < 4 * side**2, output.stdout
    with Image.open(tmp_path / "large" / "large.png") as mask:
        assert mask.size == (side, side)


def killed(words, folder, update, **options) -> None:
    """Run until an update is logged, and kill it."""
    copies = Copies("run_eval.py", (*words, "--logging_steps", 1), **options)
    wait_for_update(copies, folder, update)
    copies.kill()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("kind", ["folder", "table", "tars"])
def test_several_processes_killed_and_gone_on_with_are_one(place, tmp_path, kind, processes):
    """Folder, parquet and tar files. Four processes have loading workers, and so has the one that goes on."""
    more = ("--streaming", "true") if kind == "tars" else ()
    more = (*more, "--n_partial", 1, "--max_train_steps", 12, "--checkpointing_steps", 2)
    run(*words_for(place, kind, tmp_path / "one", *more), "--logging_steps", 1)
    two = words_for(place, kind, tmp_path / "two", *more)
    workers = tuple(2 if two[i - 1] == "--dataloader_num_workers" else word for i, word in enumerate(two))
    launcher = [str(processes) if word == "2" else word for word in TWO_PROCESSES["launcher"]]
    killed(workers if processes == 4 else two, tmp_path / "two", 5, **TWO_PROCESSES | {"launcher": launcher})
    run(*workers, "--logging_steps", 1, "--resume_from_checkpoint", "auto")
    (one, _), (other, _) = (weights_and_history(tmp_path / name) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("tune", ["all", pytest.param("lora:4", marks=pytest.mark.slow)])
def test_killed_and_gone_on_with_to_the_bit(place, tmp_path, tune):
    more = ("--n_partial", 2, "--checkpointing_steps", 2, "--max_train_steps", 9, "--quarter_turns", "true")
    more = (*more, "--tune", tune)
    words = words_for(place, "folder", tmp_path / "two", *more)
    run(*words_for(place, "folder", tmp_path / "one", *more), "--logging_steps", 1)
    killed(words, tmp_path / "two", 5)
    run(*words, "--logging_steps", 1, "--resume_from_checkpoint", "auto")
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_frozen_features_give_what_the_encoder_gives(place, tmp_path):
    """Images that do not stay in memory go through the encoder in every epoch."""
    for path in (place / "folder").rglob("*.png"):
        target = tmp_path / "same" / path.relative_to(place / "folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.crop((0, 0, 16, 16)).save(target)
    more = ("--zoom", 1, 1, "--n_partial", 0, "--num_train_epochs", 4, "--segmentation_head", "multiscale")
    words = words_for(tmp_path, "same", tmp_path / "once", *more)
    words = tuple(place / "pretrained" if word == tmp_path / "pretrained" else word for word in words)
    once = run(*words)
    live = run(*(tmp_path / "live" if word == tmp_path / "once" else word for word in words), "--image_cache", "off")
    assert "computed once" in once and "computed once" not in live
    assert "multiscale head, frozen encoder" in once and "linear probing" not in once
    (one, history), (other, others) = (weights_and_history(tmp_path / name) for name in ("once", "live"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6, msg=name)
    key = "eval_mean_iou"
    assert [entry[key] for entry in history if key in entry] == pytest.approx([e[key] for e in others if key in e])


def pretraining_words(place, kind, folder, *more):
    return (
        *("--train_dir", place / kind, "--output_dir", folder, "--total_batch_size", 8, "--warmup_epochs", 0),
        *("--per_device_train_batch_size", 4, "--report_to", "none", "--max_train_steps", 10, "--logging_steps", 1),
        *("--config_overrides", *(f"{name}={value}" for name, value in SMALL.items()), *more),
    )


def pretrained(*words):
    code, output = copied("run_pretrain.py", pretraining_words(*words))
    assert code == 0 and "Traceback" not in output, output
    return output


WATCHED = ("--knn", "true", "--eval_every_epochs", 1)


@pytest.mark.slow
def test_patches_in_pretraining(place, tmp_path):
    """Pre-training looks at images alone. k-NN of patches changes no weights, and is that of run_eval.py."""
    shutil.copytree(place / "folder", tmp_path / "folder")
    for number in range(10):
        (tmp_path / "folder" / "train" / "masks" / f"{number:03}.png").unlink()
    output = pretrained(tmp_path, "folder", tmp_path / "watched", *WATCHED)
    assert (
        "k-NN of patches: 12 test images among 30 training images; 10 of 40 images have no mask; pixels of 30"
        in output
    )
    assert "folder: 40 images" in output and "52 masks beside images" not in output
    quiet = pretrained(tmp_path, "folder", tmp_path / "quiet")
    assert "masks  " not in quiet and "k-NN" not in quiet
    watched = (tmp_path / "watched" / "model.safetensors").read_bytes()
    assert watched == (tmp_path / "quiet" / "model.safetensors").read_bytes()
    log = [json.loads(line) for line in (tmp_path / "watched" / "history.jsonl").read_text().splitlines()]
    assert log[0].keys() >= {"knn_raw_pixels", "knn_untrained", "rank_untrained"}
    assert (log[0]["knn_images"], log[0]["knn_patches"]) == (12, 12 * 16)
    knn = json.loads((tmp_path / "watched" / "knn.json").read_text())
    assert [entry["knn"] for entry in log if "knn" in entry][-1] == pytest.approx(knn["trained encoder"], abs=1e-6)
    run(
        *("--model_name_or_path", tmp_path / "watched", "--train_dir", tmp_path / "folder", "--do_train", "false"),
        *("--problem_type", "semantic_segmentation", "--knn", "true", "--output_dir", tmp_path / "eval"),
        *("--report_to", "none"),
    )
    rows = {row["name"]: row["knn"]["20"] for row in json.loads((tmp_path / "eval" / "results.json").read_text())}
    assert [*rows.values()] == pytest.approx([*knn.values()], abs=1e-6)
    card = (tmp_path / "watched" / "README.md").read_text()
    assert "k-NN mean IoU (k = 20), trained encoder" in card and "type: mean_iou" in card and "accuracy" not in card
    assert (tmp_path / "watched" / "features.png").exists()
    assert "k-NN mean IoU, raw pixels" in output and "k-NN accuracy" not in output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "tars"])
def test_patches_of_tables_and_streams(place, tmp_path, kind):
    output = pretrained(place, kind, tmp_path / "run", "--knn", "true", *("--streaming", "true") * (kind == "tars"))
    assert "k-NN of patches: 12 test images among 40 training images; pixels of 40 images: 0 " in output
    knn = json.loads((tmp_path / "run" / "knn.json").read_text())
    assert knn["raw pixels"] > 0.2


@pytest.mark.slow
def test_pretraining_with_patches_goes_on_to_the_bit(place, tmp_path):
    more = (*WATCHED, "--checkpointing_steps", 2)
    pretrained(place, "folder", tmp_path / "one", *more)
    copies = Copies("run_pretrain.py", pretraining_words(place, "folder", tmp_path / "two", *more))
    wait_for_update(copies, tmp_path / "two", 5)
    copies.kill()
    pretrained(
        place, "folder", tmp_path / "two", *more, "--resume_from_checkpoint", "auto", "--mask_values", "classes"
    )
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_refused_in_one_line(place, tmp_path):
    words = words_for(place, "folder", tmp_path / "run")
    for more, said in (
        (("--mixup", 0.8), "mixup 0.8 does not change masks with their images: give 0"),
        (("--auto_augment", "rand-m9"), "does not change masks with their images: give none"),
        (("--readouts", "all"), "give --knn true alone"),
        (("--segmentation_head", "unet"), "segmentation_head 'unet' does not work: give linear, multiscale, upernet"),
        (("--zoom", 2, 1), "zoom 2.0 1.0 does not work: give smallest, largest"),
        (("--mask_dir", tmp_path / "no"), "does not exist"),
    ):
        output = run(*words, *more, fails=True)
        assert said in output, output
    output = run("--model_name_or_path", place / "pretrained", "--mask_values", "binary", "--output_dir",
                 tmp_path / "run", fails=True)  # fmt: skip
    assert "mask_values 'binary' is for masks: add --problem_type semantic_segmentation" in output
