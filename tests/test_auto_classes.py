"""Checkpoints as downstream code meets them: Auto classes, pipelines and backbones, with our package and without."""

import json
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from applied import save_classifier
from conftest import ROOT, tiny_config
from documented import python_blocks
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from modeling_mae import EvalNet, MAEBackbone, MAEConfig, MAEForPreTraining, MAEImageProcessor, MAEModel
from modeling_mae.data.serve.processor import image_processor


THREE_CLASSES = {"num_hidden_layers": 3, "id2label": {0: "ant", 1: "bee", 2: "cow"}}
CLASSES = {"encoder": MAEModel, "pretraining": MAEForPreTraining, "classifier": EvalNet}
# (channels, class) of the folders that a process without our package loads.
FOREIGN = [(channels, name) for channels in (1, 3) for name in CLASSES]
MEAN_STD = {1: ([0.3], [0.4]), 3: ([0.3, 0.4, 0.5], [0.2, 0.3, 0.4])}


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    y, x = np.mgrid[:50, :70] / 70
    colors = np.stack([x, y, (x + y) / 2], -1) * 255
    path = tmp_path_factory.mktemp("images") / "photo.png"
    Image.fromarray(colors.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """folder/<channels>/<encoder|pretraining|classifier>, as the scripts leave them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    for channels in (1, 3):
        for name, model_class in CLASSES.items():
            changes = {"image_size": [32, 48], "num_channels": channels, "head_initializer_range": 0.5}
            config = tiny_config(**THREE_CLASSES, **changes)
            model_class(config).save_pretrained(folder / str(channels) / name)
            processor = image_processor((32, 48), *MEAN_STD[channels], channels)
            processor.save_pretrained(folder / str(channels) / name)
    return folder


def by_hand(photograph, channels: int) -> torch.Tensor:
    """What the saved processor should give, by PIL and numpy."""
    image = Image.open(photograph).convert("L" if channels == 1 else "RGB").resize((48, 32), Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.float64).reshape(32, 48, channels) / 255
    mean, std = MEAN_STD[channels]
    return torch.tensor((array - mean) / std).float().permute(2, 0, 1)[None]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CLASSES)
def test_auto_classes(checkpoints, photograph, channels, name):
    folder = str(checkpoints / str(channels) / name)
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(photograph), return_tensors="pt").pixel_values
    # torchvision's and PIL's bicubic differ by a grey level or two
    torch.testing.assert_close(pixels, by_hand(photograph, channels), atol=3 / 255 / 0.2, rtol=0)
    for auto, expected in (
        (AutoModel, MAEModel),
        (AutoModelForPreTraining, MAEForPreTraining),
        (AutoModelForImageClassification, EvalNet),
    ):
        model = auto.from_pretrained(folder)
        assert type(model) is expected
        encoder = getattr(model, "mae", model)
        torch.testing.assert_close(
            encoder(pixels).last_hidden_state, MAEModel.from_pretrained(folder)(pixels).last_hidden_state
        )


# Run where neither our package nor what it brings can be imported.
ELSEWHERE = """
import contextlib, io, json, sys
hidden = ("modeling_mae", "torchvision", "datasets", "timm", "accelerate", "matplotlib")
sys.modules.update(dict.fromkeys(hidden))  # None: an import fails
import torch
from transformers import (AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForPreTraining, pipeline)
from PIL import Image

root, photograph, *loaded_by_all = sys.argv[1:]
trust = {"trust_remote_code": True}
found = {}
for key in loaded_by_all:
    folder = f"{root}/{key}"
    processor = AutoImageProcessor.from_pretrained(folder, **trust)
    pixels = processor(Image.open(photograph), return_tensors="pt").pixel_values
    found[key + " pixels"] = pixels.tolist()
    with torch.no_grad():
        found[key + " AutoModel"] = AutoModel.from_pretrained(folder, **trust)(pixels).pooler_output.tolist()
        backbone = AutoBackbone.from_config(AutoConfig.from_pretrained(folder, **trust), **trust)
        loaded = [auto.from_pretrained(folder, **trust)
                  for auto in (AutoModelForPreTraining, AutoModelForImageClassification)]
        for model in (backbone, *loaded):
            assert type(model).__module__.startswith("transformers_modules"), type(model)
            model(pixels)
    features = pipeline("image-feature-extraction", model=folder, pool=True, **trust)
    found[key + " features"] = features(photograph)
for channels in "13":
    classes = pipeline("image-classification", model=f"{root}/{channels}/classifier", top_k=3, **trust)
    found[f"{channels} classes"] = classes(photograph)
    # Fine-tuned elsewhere and saved again, it still carries its code.
    model = AutoModelForImageClassification.from_pretrained(f"{root}/{channels}/classifier", **trust)
    model.save_pretrained(f"{root}/{channels}/again")
    AutoModel.from_pretrained(f"{root}/{channels}/again", **trust)
with contextlib.redirect_stdout(io.StringIO()) as said:
    exec(open("neighbours.py").read(), {})
json.dump({**found, "neighbours": said.getvalue()}, sys.stdout)
"""


@pytest.fixture(scope="module")
def elsewhere(checkpoints, photograph, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "data").symlink_to(ROOT / "data")
    (home / "runs").mkdir()
    (home / "runs" / "demo").symlink_to(checkpoints / "1" / "pretraining")
    (script,) = [block for block in python_blocks() if "is nearest to" in block]
    (home / "neighbours.py").write_text(script)
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(checkpoints), str(photograph), *(f"{n}/{name}" for n, name in FOREIGN)],
        cwd=home, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("channels", "name"), FOREIGN)
def test_without_our_package(elsewhere, checkpoints, photograph, channels, name):
    folder, key = checkpoints / str(channels) / name, f"{channels}/{name}"
    pixels = torch.tensor(elsewhere[f"{key} pixels"])
    torch.testing.assert_close(pixels, by_hand(photograph, channels), atol=3 / 255 / 0.2, rtol=0)
    with torch.no_grad():
        expected = MAEModel.from_pretrained(folder)(pixels).pooler_output
    torch.testing.assert_close(torch.tensor(elsewhere[f"{key} AutoModel"]), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(elsewhere[f"{key} features"]), expected, atol=1e-5, rtol=1e-5)


def test_the_readmes_neighbours_without_our_package(elsewhere):
    lines = elsewhere["neighbours"].splitlines()
    stems = [path.stem for path in sorted((ROOT / "data" / "examples").iterdir())]
    assert [line.split()[0] for line in lines] == stems and len(stems) == 10
    for line in lines:
        one, other = re.fullmatch(r"(\S+) +is nearest to (\S+)", line).groups()
        assert other in stems and other != one


@pytest.mark.parametrize("channels", [1, 3])
def test_pipelines(elsewhere, checkpoints, photograph, channels):
    folder = str(checkpoints / str(channels) / "classifier")
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(photograph), return_tensors="pt").pixel_values
    model = EvalNet.from_pretrained(folder)
    with torch.no_grad():
        tokens, logits = model.mae(pixels).last_hidden_state, model(pixels).logits
    features = pipeline("image-feature-extraction", model=folder)(str(photograph))
    torch.testing.assert_close(torch.tensor(features), tokens, atol=1e-4, rtol=1e-4)
    found = pipeline("image-classification", model=folder, top_k=3)(str(photograph))
    expected = dict(zip(("ant", "bee", "cow"), logits.softmax(-1)[0].tolist(), strict=True))
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(expected, abs=1e-4)
    without = {entry["label"]: entry["score"] for entry in elsewhere[f"{channels} classes"]}
    assert without == pytest.approx(expected, abs=0.02)  # its processor resizes with PIL


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pipelines_ask_and_warn_of_nothing(tmp_path, channels, monkeypatch, caplog):
    def asked(question):
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", asked)
    logging.getLogger("transformers").addHandler(caplog.handler)  # transformers passes nothing on
    folder = str(save_classifier(tmp_path, num_channels=channels))
    found = pipeline("image-classification", model=folder)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert isinstance(found.model, EvalNet) and found.image_processor is not None
    assert "torchvision" not in caplog.text


# --- the image processor of other than RGB images ---


def test_gray_processor_takes_what_people_have(tmp_path):
    processor = MAEImageProcessor(size={"height": 4, "width": 6}, image_mean=[0.0], image_std=[1.0], num_channels=1)
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    expected = torch.tensor(gray / 255)[None, None].float()
    wide = gray.astype(np.uint16) * 257
    for image in (
        gray[None],
        gray[..., None],
        torch.tensor(gray)[None],
        np.stack([gray] * 3),
        np.stack([gray] * 3, -1),
        Image.fromarray(gray),
        Image.fromarray(gray).convert("RGB"),
        Image.fromarray(wide),
    ):
        torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values, expected, atol=1e-6, rtol=0)
    processor.save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MAEImageProcessor
    with pytest.raises(ValueError, match=r"shape \(2, 4, 6\) does not have the model's 1 channels"):
        processor(np.zeros((2, 4, 6), dtype=np.uint8))


def test_processor_of_many_channels():
    processor = MAEImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.5] * 12, image_std=[0.25] * 12, num_channels=12
    )
    satellite = np.full((12, 16, 16), 0.75 * 255, dtype=np.float32)
    pixels = processor(satellite, return_tensors="pt", input_data_format="channels_first").pixel_values
    torch.testing.assert_close(pixels, torch.ones(1, 12, 8, 8), atol=1e-5, rtol=0)


# --- the backbone ---


def backbone_config(**more) -> MAEConfig:
    return tiny_config(**THREE_CLASSES, **more)


def test_backbone_maps_are_the_hidden_states():
    torch.manual_seed(0)
    backbone = MAEBackbone(backbone_config(out_features=["stem", "stage2", "stage3"])).eval()
    assert backbone.channels == [32, 32, 32]
    images = torch.randn(2, 3, 32, 32)
    states = backbone.mae(images, output_hidden_states=True).hidden_states
    maps = backbone(images).feature_maps
    for one, state in zip(maps, [states[0], states[2], states[3]], strict=True):
        assert one.shape == (2, 32, 4, 4)
        normed = backbone.mae.layernorm(state)
        torch.testing.assert_close(one[:, :, 1, 2], normed[:, 1 + 1 * 4 + 2])  # row 1, column 2
    odd = torch.randn(1, 3, 33, 50)
    padded = torch.zeros(1, 3, 40, 56)
    padded[:, :, :33, :50] = odd
    assert backbone(odd).feature_maps[0].shape == (1, 32, 5, 7)
    torch.testing.assert_close(backbone(odd).feature_maps, backbone(padded).feature_maps)
    with pytest.raises(ValueError, match="out_features"):
        backbone_config(out_features=["stage9"])


@pytest.mark.parametrize("kind", ["DPT", "DepthAnything"])
def test_depth_models_read_tokens_of_the_backbone(checkpoints, kind):
    config_class, model_class = {
        "DPT": (DPTConfig, DPTForDepthEstimation),
        "DepthAnything": (DepthAnythingConfig, DepthAnythingForDepthEstimation),
    }[kind]
    folder, options = checkpoints / "3" / "pretraining", {"image_size": 32, "out_indices": [0, 1, 2, 3]}
    encoder = MAEBackbone.from_pretrained(folder, reshape_hidden_states=False, **options)
    tokens, maps = (backbone(torch.ones(1, 3, 32, 32)).feature_maps
                    for backbone in (encoder, MAEBackbone.from_pretrained(folder, **options)))  # fmt: skip
    for one, other in zip(tokens, maps, strict=True):
        assert torch.equal(one[:, 1:].mT.unflatten(2, (4, 4)), other)
    more = {"reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
    config = config_class(backbone_config=encoder.config, patch_size=8, hidden_size=32, head_hidden_size=4, **more)
    depth = model_class(config)(torch.randn(2, 3, 32, 32)).predicted_depth
    assert depth.shape[0] == 2 and depth.isfinite().all()


def test_upernet_trains_on_the_backbone(checkpoints, tmp_path):
    """Segmentation of a bright square, from a pre-trained encoder."""
    torch.manual_seed(0)
    # AutoBackbone.from_pretrained takes Hub ids only; from a folder the class itself, or AutoBackbone.from_config.
    encoder = MAEBackbone.from_pretrained(checkpoints / "3" / "pretraining", out_indices=[0, 1, 2, 3])
    config = UperNetConfig(
        backbone_config=encoder.config, hidden_size=16, num_labels=2, auxiliary_in_channels=32,
        auxiliary_channels=16, pool_scales=[1, 2],
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config)
    model.backbone.load_state_dict(encoder.state_dict())
    labels = torch.zeros(4, 32, 48, dtype=torch.long)
    for i in range(4):
        labels[i, 8 * (i % 3) : 8 * (i % 3) + 16, 8 * i : 8 * i + 16] = 1
    images = (labels[:, None] * 2.0 - 1).repeat(1, 3, 1, 1) + 0.1 * torch.randn(4, 3, 32, 48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    before, losses = encoder.state_dict()["mae.layers.0.mlp.fc1.weight"].clone(), []
    for _ in range(40):
        loss = model(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(model.backbone.mae.layers[0].mlp.fc1.weight, before)
    model.eval().save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(again(images).logits, model(images).logits)
