"""What we promise to those who stay behind: the oldest versions of setup.cfg, and checkpoints of version 0.1."""

import configparser
import re
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from modeling_mae import EvalNet, MAEBackbone, MAEForPreTraining, MAEModel


TESTS = Path(__file__).parent
# Written by commit 0d78a9c, with what its models gave for PIXELS and NOISE.
CHECKPOINTS = {
    "self": (AutoModelForPreTraining, MAEForPreTraining),
    "cross": (AutoModelForPreTraining, MAEForPreTraining),
    "classifier": (AutoModelForImageClassification, EvalNet),
    "encoder": (AutoModel, MAEModel),
}
PIXELS = torch.linspace(-2, 2, 2 * 256).sin().mul(3).view(2, 1, 16, 16)
NOISE = torch.tensor([[0.3, 0.1, 0.4, 0.2], [0.9, 0.2, 0.6, 0.5]])


def test_the_oldest_versions_are_those_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(TESTS.parent / "setup.cfg")
    groups = ("train", "app", "onnx", "dicom", "dev")
    needed = [setup["options"]["install_requires"], *(setup["options.extras_require"][group] for group in groups)]
    minima = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(needed), re.MULTILINE))
    for tool in ("ruff", "mypy", "build", "twine"):  # each runs on one version, and no test needs it
        del minima[tool]
    lines = [line for line in (TESTS / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    oldest = dict(line.split("==") for line in lines)
    assert oldest.keys() == minima.keys()
    for name, version in oldest.items():
        assert Version(version) == Version(minima[name]), name


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_checkpoints_of_version_0_1_give_what_they_gave(name):
    folder = TESTS / "data" / "checkpoints_0_1" / name
    auto, model_class = CHECKPOINTS[name]
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model) is model_class
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.eval()
    outputs = model(PIXELS, noise=NOISE) if model_class is MAEForPreTraining else model(PIXELS)
    expected = load_file(folder / "expected.safetensors")
    assert expected
    for key, value in expected.items():
        torch.testing.assert_close(outputs[key], value, atol=1e-6, rtol=1e-5)
    assert MAEBackbone.from_pretrained(folder)(PIXELS).feature_maps[0].shape == (2, 8, 2, 2)
    assert AutoImageProcessor.from_pretrained(folder).num_channels == 1
