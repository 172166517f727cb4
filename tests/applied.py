"""What the tests of `mae features`, `predict` and `neighbours` share: a tiny checkpoint and a folder of images."""

import shutil
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, TINY_GRAY
from PIL import Image

from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.evaluation.extraction import write_features
from modeling_mae.evaluation.tables import ApplySettings, Output


EXAMPLES = ROOT / "data" / "examples"
MEAN, STD = 0.28, 0.35
# What pip writes for the entry point of setup.cfg.
SCRIPT = "import sys\nfrom modeling_mae.__main__ import main\n\nif __name__ == '__main__':\n    sys.exit(main())\n"


def save_checkpoint(folder: Path, kind=MAEForPreTraining, crop_fraction: float = 1.0, **fields) -> Path:
    """A model of `kind` from seed 0, with weights large enough to tell images apart, and its image processor."""
    torch.manual_seed(0)
    config = MAEConfig(**{**TINY_GRAY, "head_initializer_range": 0.5, **fields})
    kind(config).save_pretrained(folder)
    channels = config.num_channels
    size = config.image_height_width
    image_processor(size, [MEAN] * channels, [STD] * channels, channels, crop_fraction).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, **fields) -> Path:
    names = [f"class {i}" for i in range(fields.pop("classes", 7))]
    return save_checkpoint(folder, EvalNet, id2label=dict(enumerate(names)), **fields)


def copy_images(folder: Path, count: int = 20) -> Path:
    """`count` images of 28 x 28 in two folders of classes: the bundled examples, and then noise."""
    examples = sorted(EXAMPLES.iterdir())
    generator = np.random.default_rng(0)
    for i in range(count):
        target = folder / f"class {i % 2}" / f"{i:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        if i < len(examples):
            shutil.copy(examples[i], target)
        else:
            Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(target)
    return folder


def write_script(folder: Path) -> Path:
    """A file `mae` that starts the command."""
    path = folder / "mae"
    path.write_text(SCRIPT)
    return path


def output_and_settings(target: Path, to: str | None = None, overwrite: bool = False, **options):
    """What `write_features` and `write_predictions` take behind the images; no processes read these."""
    return Output(target, to, overwrite), ApplySettings(**{"num_workers": 0, **options})


def write_features_file(checkpoint, images, target, blocks=None, pooling=None, **options) -> None:
    """`write_features` with its settings as keywords."""
    write_features(str(checkpoint), str(images), *output_and_settings(target, **options), blocks, pooling)
