"""What other tools get without anything of ours: transformers' folders, ONNX files that describe their images."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from transformers.utils import logging

from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining, MAEModel
from modeling_mae.commands.convert import convert
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.errors import UserError
from modeling_mae.interop import write as write_module


SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
NAMES = {0: "cat", 1: "dog", 2: "cow"}
# Loads folders with transformers alone, and keeps what their models make of the image.
ALONE = """
import sys
sys.modules["modeling_mae"] = None  # an import of it fails
import numpy as np, torch, transformers
from PIL import Image
for pair in sys.argv[1:]:
    folder, kind = pair.split("=")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    pixels = processor(Image.open(folder + "/../photograph.png"), return_tensors="pt").pixel_values
    arguments = {"noise": torch.arange(16.0)[None]} if "PreTraining" in kind else {}
    with torch.no_grad():
        outputs = model(pixels, **arguments)
    values = outputs.last_hidden_state if "logits" not in outputs else outputs.logits
    np.savez(folder + "/output.npz", pixels=pixels.numpy(), values=values.numpy())
    print(type(model).__module__, model.config.problem_type)
"""


def saved(folder, kind, channels, crop_fraction=1.0, **fields):
    torch.manual_seed(0)
    model = kind(MAEConfig(**SMALL, num_channels=channels, head_initializer_range=0.5, **fields)).eval()
    model.save_pretrained(folder)
    mean, std = [0.2, 0.4, 0.5][:channels], [0.3, 0.2, 0.25][:channels]
    processor = image_processor((16, 16), mean, std, channels, crop_fraction)
    processor.save_pretrained(folder)
    return model, processor


def photograph(path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    image.save(path)
    return image


def converted(folder, to, crop_fraction, channels):
    """For each kind of model what to load, and as which class; the model, its processor and the image."""
    folder.mkdir()
    image = photograph(folder / "photograph.png", channels)
    options = {"pooling": "cls", "id2label": NAMES, "problem_type": "multi_label_classification"}
    for kind, fields in ((EvalNet, options), (MAEForPreTraining, {}), (MAEModel, {})):
        source, target = folder / kind.__name__, folder / f"{kind.__name__}-{to}"
        model, processor = saved(source, kind, channels, crop_fraction, **fields)
        text = convert(str(source), target, to)
        assert ("Image.convert('L')" in text) == (channels == 1)
        content = json.loads((target / "config.json").read_text())
        assert "auto_map" not in content and not list(target.glob("*.py"))
        yield target, text.split(": ")[1].split(".")[0], model, processor, image


@pytest.mark.slow
@torch.no_grad()
def test_transformers_needs_nothing_of_ours(tmp_path):
    """One process loads everything, because its imports take most of the time."""
    cases = [
        case
        for to, crop_fraction in (("transformers", 1.0), ("vit", 0.8))
        for channels in (1, 3)
        for case in converted(tmp_path / f"{to}-{channels}", to, crop_fraction, channels)
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ENVIRONMENT
    command = [sys.executable, "-c", ALONE, *(f"{target}={kind}" for target, kind, *_ in cases)]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert all(line.startswith("transformers.models.vit") for line in lines)
    assert [line.split()[1] for line in lines] == ["multi_label_classification", "None", "None"] * 4
    for target, kind, model, processor, image in cases:
        arrays = np.load(target / "output.npz")
        # One of 256 levels: torchvision and Pillow round otherwise.
        pixels = processor(image, return_tensors="pt").pixel_values
        np.testing.assert_allclose(arrays["pixels"], pixels, atol=1.01 / 255 / 0.2, err_msg=str(target))
        pixels = torch.from_numpy(arrays["pixels"])
        if "PreTraining" in kind:
            values = model(pixels, noise=torch.arange(16.0)[None]).logits
        elif isinstance(model, EvalNet):
            values = model(pixels).logits
        else:
            values = getattr(model, "mae", model)(pixels).last_hidden_state
        np.testing.assert_allclose(arrays["values"], values, atol=1e-4, err_msg=str(target))


def test_no_processor_is_said(tmp_path):
    saved(tmp_path / "many", MAEModel, 3)
    torch.manual_seed(0)
    MAEModel(MAEConfig(**SMALL, num_channels=5)).save_pretrained(tmp_path / "many")
    image_processor((16, 16), [0.5] * 5, [0.5] * 5, 5).save_pretrained(tmp_path / "many")
    text = convert(str(tmp_path / "many"), tmp_path / "vit", "vit")
    assert "no image processor: transformers has none for images of 5 channels" in text
    assert not (tmp_path / "vit" / "preprocessor_config.json").exists()
    MAEModel(MAEConfig(**SMALL)).save_pretrained(tmp_path / "bare")
    assert "no image processor: the source has none" in convert(str(tmp_path / "bare"), tmp_path / "vit2", "vit")


# --- ONNX ---


@torch.no_grad()
def test_an_onnx_file_says_how_its_images_are_made(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, _ = saved(tmp_path / "source", EvalNet, 3, id2label=NAMES, problem_type="multi_label_classification")
    text = convert(str(tmp_path / "source"), tmp_path / "graph" / "model.onnx", "onnx")
    assert [path.name for path in (tmp_path / "graph").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert given.name == "pixel_values" and given.shape == ["batch", 3, 16, 16]
    assert found.name == "logits" and found.shape == ["batch", 3]
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata == {
        "image_size": [16, 16],
        "num_channels": 3,
        "image_mean": [0.2, 0.4, 0.5],
        "image_std": [0.3, 0.2, 0.25],
        "class_names": ["cat", "dog", "cow"],
        "problem_type": "multi_label_classification",
    }
    for words in ("image_mean   [0.2, 0.4, 0.5]", "image_size   [16, 16]", 'class_names  ["cat", "dog", "cow"]'):
        assert words in text
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 16)
        (logits,) = session.run(None, {"pixel_values": images.numpy()})
        np.testing.assert_allclose(logits, model(images).logits, atol=1e-4)


@pytest.mark.slow
def test_an_onnx_encoder_of_gray_images(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    saved(tmp_path / "source", MAEForPreTraining, 1)
    convert(str(tmp_path / "source"), tmp_path / "gray.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "gray.onnx", providers=["CPUExecutionProvider"])
    assert [output.shape for output in session.get_outputs()] == [["batch", 17, 32], ["batch", 32]]
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata == {"image_size": [16, 16], "num_channels": 1, "image_mean": [0.2], "image_std": [0.3]}
    # What does not fit into one file has its weights beside; and without a processor there is no normalisation.
    MAEModel(MAEConfig(**SMALL)).save_pretrained(tmp_path / "bare")
    monkeypatch.setattr(write_module, "ONNX_FILE_LIMIT", 1000)
    text = convert(str(tmp_path / "bare"), tmp_path / "large" / "model.onnx", "onnx")
    assert "not known: the source has no image processor" in text
    assert len(list((tmp_path / "large").iterdir())) == 2
    onnxruntime.InferenceSession(tmp_path / "large" / "model.onnx", providers=["CPUExecutionProvider"])


# --- heads, and fields that contradict the file ---


@pytest.fixture
def said(caplog):
    logger = logging.get_logger("modeling_mae.registration")
    logger.addHandler(caplog.handler)
    yield lambda: caplog.text
    logger.removeHandler(caplog.handler)


def theirs(folder, **fields):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 6, "mlp_ratio": 1}
    path = folder / "weights.pth"
    torch.save(VisionTransformer(**{**sizes, **fields}, num_classes=0, fc_norm=False).state_dict(), path)
    return path


def test_guessed_heads_name_the_remedy(tmp_path, said):
    """Also at a published width, where the depth is not the published one."""
    for width, assumed in ((192, 3), (128, 2)):
        path = theirs(tmp_path, embed_dim=width, num_heads=4)
        assert MAEModel.from_pretrained(path).config.num_attention_heads == assumed
        text = said()
        assert f"assuming num_attention_heads={assumed}, each 64 wide" in text
        assert "give num_attention_heads= to from_pretrained, `--config_overrides num_attention_heads=...` to" in text
    assert MAEModel.from_pretrained(path, num_attention_heads=4).config.num_attention_heads == 4
    assert said() == text


def test_published_heads_are_not_in_doubt(tmp_path, said):
    path = theirs(tmp_path, depth=12, num_heads=3)
    assert MAEModel.from_pretrained(path).config.num_attention_heads == 3
    assert "heads" not in said()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_size": 96}, "hidden_size=96 contradicts its tensors, which have hidden_size=192; leave hidden_size"),
        ({"patch_size": 4}, "patch_size=4 contradicts its tensors, which have patch_size=8"),
        ({"num_channels": 1}, "num_channels=1 contradicts"),
        ({"qkv_bias": False}, "qkv_bias=False contradicts"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3 contradicts"),
        ({"hidden_act": "foo"}, "hidden_act='foo' is not one of transformers' activations"),
        ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=192"),
    ],
)
@pytest.mark.parametrize("kind", ["pth", "vit", "mae"])
def test_fields_that_contradict_the_file(tmp_path, kind, fields, message):
    source = theirs(tmp_path)
    if kind != "pth":
        MAEModel.from_pretrained(source, num_attention_heads=6).save_pretrained(tmp_path / "mae")
        source = tmp_path / "mae"
    if kind == "vit":
        convert(str(source), tmp_path / "vit", "vit")
        source = tmp_path / "vit"
    with pytest.raises(UserError) as error:
        convert(str(source), tmp_path / "target", "mae", **{"num_attention_heads": 6, **fields})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "target").exists()


def test_fewer_layers_are_a_choice(tmp_path):
    path = theirs(tmp_path)
    assert MAEModel.from_pretrained(path, num_attention_heads=6, num_hidden_layers=1).config.num_hidden_layers == 1
    convert(str(path), tmp_path / "target", "mae", num_attention_heads=6, patch_size=[8, 8])
