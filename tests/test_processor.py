"""The image processor beside a model: it sees what the model was trained on, and run_eval.py reads it again."""

import json
import logging

import numpy as np
import pytest
import torch
from conftest import RECIPE, run
from flat import load_source, open_images
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from transformers import AutoImageProcessor, BitImageProcessor, ViTImageProcessor

from modeling_mae import EvalNet, MAEConfig, MAEImageProcessor
from modeling_mae.data.find.sources import SourceSettings
from modeling_mae.data.read.decode import decode
from modeling_mae.data.serve.decoded import Memory
from modeling_mae.data.serve.images import Opening
from modeling_mae.data.serve.processor import Processing, image_processor, processing_of
from modeling_mae.interop.read import read_processor
from modeling_mae.tasks.sets import load_labelled_sets


def checkpoint_processing(folder: str) -> Processing:
    processor = read_processor(folder)
    return Processing() if processor is None else processing_of(processor)


RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize("fraction", [1.0, 0.875, 0.9])  # 224 / 0.9 is no whole number of pixels
@pytest.mark.parametrize("white", [255, 4095, 1.0])
def test_what_is_saved_is_read_again(tmp_path, channels, size, fraction, white):
    mean, std = [0.25] * channels, [0.5] * channels
    processor = image_processor(size, mean, std, channels, fraction, white)
    processor.save_pretrained(tmp_path)
    assert checkpoint_processing(str(tmp_path)) == Processing(mean, std, fraction, white)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MAEImageProcessor


def test_processors_of_others(tmp_path):
    BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(tmp_path)
    assert checkpoint_processing(str(tmp_path)).crop_fraction == 224 / 256
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(tmp_path / "whole")
    assert checkpoint_processing(str(tmp_path / "whole")).crop_fraction is None
    (tmp_path / "none").mkdir()
    assert checkpoint_processing(str(tmp_path / "none")) == Processing()


def test_what_is_given_wins_and_is_told():
    told = []
    checkpoint = Processing([0.2], [0.3], 0.875, 255)
    assert checkpoint.replaced_by(Processing(), told.append) == checkpoint and not told
    assert checkpoint.replaced_by(Processing(crop_fraction=0.5), told.append) == Processing([0.2], [0.3], 0.5, 255)
    assert told == ["note       crop_fraction 0.5 as given, in place of the checkpoint's 0.875"]


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (RAMP * 65, 4095),
        (RAMP * 1040, 65535),
        ((RAMP / 63).astype(np.float32), 1),
        (RAMP.astype(np.int32) * 65 - 999, 1),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pipelines_see_what_the_training_saw(tmp_path, values, white, channels):
    """From the same file: our decoder and the normalisation by hand, against the saved processor."""
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images" / "0.tif")
    images = open_images(load_source(train_dir=str(tmp_path / "images")), (8, 8), channels, memory_budget=1 << 20)
    assert images.white == white
    image_processor((8, 8), [0.25] * channels, [0.5] * channels, channels, white=white).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    expected = (images.read(0)[None].float() / 255 - 0.25) / 0.5  # (1, channels, 8, 8)
    with Image.open(tmp_path / "images" / "0.tif") as image:
        torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values, expected, atol=1e-6, rtol=0)
    array = np.stack([values] * channels, -1)
    given = processor(array, return_tensors="pt", input_data_format="channels_last").pixel_values
    torch.testing.assert_close(given, expected, atol=1e-6, rtol=0)


def test_pipelines_refuse_what_the_training_refuses():
    deep = image_processor((8, 8), [0.5], [0.5], 1, white=4095)
    for image, message in (
        (Image.fromarray(RAMP * 1000), "values from 0 to 63000, but 0 is black and 4095 is white"),
        (Image.fromarray(np.full((8, 8), np.nan, np.float32)), r"more than half of band 1 missing \(100%\)"),
        (Image.fromarray(RAMP.astype(np.uint8)), "8 bits per channel, but white is 4095"),
        (RAMP.astype(np.uint8)[None], "8 bits per channel, but white is 4095"),
    ):
        with pytest.raises(ValueError, match=message):
            deep(image, return_tensors="pt")
    for channels in (1, 3):
        plain = image_processor((8, 8), [0.0] * channels, [1.0] * channels, channels)
        picture = Image.fromarray(RAMP * 1000)
        with pytest.raises(ValueError, match="values from 0 to 63000, but 0 is black and 255 is white"):
            plain(picture, return_tensors="pt")
        given = plain(picture, white=65535, return_tensors="pt").pixel_values[0, -1]  # as the message says
        np.testing.assert_allclose(given, RAMP * 1000 / 65535, rtol=1e-5)


def test_an_orientation_in_a_png_text_turns_nothing(tmp_path):
    """ImageMagick writes it so. Pillow follows it, browsers and our training do not."""
    exif, text = Image.Exif(), PngInfo()
    exif[0x0112] = 6  # a quarter to the right
    text.add_text("Raw profile type exif", f"\nexif\n  {len(exif.tobytes())}\n{exif.tobytes().hex()}\n")
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "x.png", pnginfo=text)
    with Image.open(tmp_path / "x.png") as image:
        assert np.array_equal(ImageOps.exif_transpose(image), np.rot90(RAMP, -1))
        given = image_processor((8, 8), [0.0], [1.0], 1)(image, return_tensors="pt").pixel_values
    np.testing.assert_allclose(255 * given[0, 0], RAMP, atol=1e-4)
    assert np.array_equal(decode(None, str(tmp_path / "x.png"), 1)[0], RAMP)


def test_decimals_up_to_one_are_spoken_of(caplog, monkeypatch):
    """As transformers' own processors speak of them."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_mae"), "propagate", True)
    plain, shares = image_processor((8, 8), [0.0], [1.0], 1), RAMP.astype(np.float32)[None] / RAMP.max()
    plain(RAMP.astype(np.float32)[None], return_tensors="pt")
    given = plain(shares, do_rescale=False, return_tensors="pt").pixel_values
    np.testing.assert_allclose(given[0], shares, atol=1e-6)
    assert "between 0 and 1" not in caplog.text
    plain(shares, return_tensors="pt")
    assert "do_rescale=False" in caplog.text


def put(folder, names, values):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name)


def test_both_sets_have_one_white(tmp_path):
    """The evaluation images are darker. By themselves they would have 1023 for white."""
    put(tmp_path, ("train/a/0.png", "train/b/1.png"), RAMP * 65)
    put(tmp_path, ("test/a/0.png", "test/b/1.png"), RAMP * 10)
    sets = load_labelled_sets(
        SourceSettings(train_dir=str(tmp_path)),
        Opening((8, 8), 1, memory=Memory(1 << 20)),
        None,
        class_names=None,
        main_process_first=torch.no_grad,  # any context
        say=print,
    )
    assert sets.train.white == sets.evaluation.white == 4095
    np.testing.assert_allclose(sets.evaluation.read(0)[0], RAMP * 10 * (255 / 4095), rtol=1e-6)


def test_both_sets_of_a_pre_training_have_one_white(tmp_path):
    """All evaluation images are dark, in one folder. With 1023 for white they would look like the light ones."""
    generator = np.random.default_rng(0)
    for folder, top in (("train/dark", 1000), ("train/light", 4000), ("test/dark", 1000)):
        for i in range(20):
            put(tmp_path / folder, [f"{i}.png"], generator.integers(top - 50, top, (12, 12), dtype=np.uint16))
    model = ("image_size=8", "patch_size=4", "num_channels=1", "hidden_size=16", "num_hidden_layers=1")
    model += ("num_attention_heads=2", "decoder_hidden_size=16", "decoder_num_attention_heads=2")
    command = ("--train_dir", tmp_path, "--max_train_steps", 1, "--total_batch_size", 4, "--knn", "true")
    command += ("--per_device_train_batch_size", 4, "--report_to", "none", "--dataloader_num_workers", 0)
    run(*command, "--output_dir", tmp_path / "run", "--config_overrides", *model)
    assert json.loads((tmp_path / "run" / "knn.json").read_text())["raw pixels"] == 1


@pytest.mark.slow
def test_features_keep_the_crop_of_their_pre_training(tmp_path):
    """The k-NN accuracy that run_pretrain.py prints, measured again by run_eval.py; and under another crop."""
    small = tmp_path / "small.yaml"
    small.write_text(RECIPE)
    run(small, "--knn", "true", "--output_dir", tmp_path / "run")
    command = ("--model_name_or_path", tmp_path / "run", "--do_train", "false", "--knn", "true", "--report_to", "none")
    command += ("--max_train_samples", 160)
    accuracies = []
    for name, words in (("own", ()), ("paper", ("--eval_crop_fraction", 0.875))):
        run(*command, *words, "--output_dir", tmp_path / name, script="run_eval.py")
        rows = {row["name"]: row["knn"]["20"] for row in json.loads((tmp_path / name / "results.json").read_text())}
        accuracies.append(rows["pre-trained encoder"])
    assert accuracies[0] == json.loads((tmp_path / "run" / "knn.json").read_text())["trained encoder"] != accuracies[1]


@pytest.fixture
def classifier(tmp_path):
    """A saved classifier of gray images of 28 pixels, tested under a crop of 0.5."""
    torch.manual_seed(0)
    config = MAEConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=10,
    )
    config.id2label = dict(enumerate(load_source().class_names))
    EvalNet(config).save_pretrained(tmp_path / "net")
    image_processor((28, 28), [0.2], [0.3], 1, 0.5).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def test_testing_sees_what_the_checkpoint_saw(tmp_path, classifier):
    command = ("--model_name_or_path", classifier, "--do_train", "false", "--report_to", "none")
    command += ("--max_eval_samples", 50, "--dataloader_num_workers", 0)
    output = run(*command, "--output_dir", tmp_path / "own", script="run_eval.py")
    assert "mean [0.2], std [0.3]" in output and "as given" not in output
    assert checkpoint_processing(str(tmp_path / "own")) == Processing([0.2], [0.3], 0.5, 255)
    output = run(*command, "--output_dir", tmp_path / "other", "--eval_crop_fraction", 1, script="run_eval.py")
    assert "note       crop_fraction 1.0 as given, in place of the checkpoint's 0.5" in output
    assert checkpoint_processing(str(tmp_path / "other")).crop_fraction == 1


def test_a_run_tells_its_scale_and_what_it_leaves_out(tmp_path):
    put(tmp_path / "images", (f"{name}/{i}.png" for name in "ab" for i in range(4)), RAMP * 65)
    for name in ("a/x.heic", "a/y.heic", "b/z.txt", "b/.hidden.png"):
        (tmp_path / "images" / name).write_bytes(b"?")
    model = ("image_size=8", "patch_size=4", "num_channels=1", "hidden_size=16", "num_hidden_layers=1")
    model += ("num_attention_heads=2", "decoder_hidden_size=16", "decoder_num_attention_heads=2")
    command = ("--train_dir", tmp_path / "images", "--max_train_steps", 1, "--total_batch_size", 4)
    command += ("--per_device_train_batch_size", 4, "--report_to", "none", "--dataloader_num_workers", 0)
    output = run(*command, "--output_dir", tmp_path / "run", "--config_overrides", *model)
    line = next(line for line in output.splitlines() if line.startswith("data "))
    assert "8 images" in line and "values 0..4095 are kept, 4095 is white" in line
    assert "; 4 files left out: 2 .heic (not readable here), " in line
    assert "1 .txt (not an image)" in line and "1 hidden" in line
    assert checkpoint_processing(str(tmp_path / "run")).white == 4095
