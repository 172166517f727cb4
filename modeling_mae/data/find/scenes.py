"""Scenes with masks: bundled garments of Fashion-MNIST on a flat ground.

The layout is made up, the textures are real. A scene has 64 x 64 gray pixels and one to four garments, which may
overlap. The class of a pixel is that of the garment whose lit pixel lies on top; 0 is the ground, which has one grey
per scene. Train and test scenes have other garments, those of the data set's own splits.
"""

import io

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable
from PIL import Image


NAME = "fashion_scenes"
SIDE = 64  # pixels
COUNTS = {"train": 6000, "test": 600}
WITH_MASKS = 400  # of the training scenes; the others are for pre-training alone
GARMENTS = (1, 4)  # in a scene, fewest and most
SIZES = (30, 50)  # pixels of a garment's side, whose file has 28
LIT = 40  # of 255: darker pixels of a garment are not part of it
GROUND = (20, 141)  # greys of the ground, the last excluded
GARMENT_NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CLASSES = dict(enumerate(("ground", *GARMENT_NAMES)))  # by the number in the masks


def scenes(garments: datasets.Dataset, split: str) -> datasets.Dataset:
    """The scenes of `split`, of the `garments` of this split with the columns `image` and `label`: always the same."""
    pictures = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in garments["image"][:]]
    labels, generator = garments["label"][:], np.random.default_rng(list(COUNTS).index(split))
    images, masks = [], []
    for number in range(COUNTS[split]):
        image, mask = _scene(pictures, labels, generator)
        images.append({"bytes": _png(image), "path": f"scene-{number:05d}.png"})
        is_masked = split != "train" or number < WITH_MASKS
        masks.append({"bytes": _png(mask) if is_masked else None, "path": None})
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, kind), "mask": pa.array(masks, kind)})
    features = datasets.Features(dict.fromkeys(table.column_names, datasets.Image(decode=False)))
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(InMemoryTable(table), info=info, fingerprint=f"{NAME}-2-{split}")


def _scene(pictures: list[np.ndarray], labels: list[int], generator) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.full((SIDE, SIDE), generator.integers(*GROUND), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    for index in generator.integers(0, len(pictures), generator.integers(GARMENTS[0], GARMENTS[1] + 1)):
        side = int(generator.integers(SIZES[0], SIZES[1] + 1))
        garment = np.asarray(Image.fromarray(pictures[index]).resize((side, side), Image.Resampling.BILINEAR))
        garment = garment[:, ::-1] if generator.random() < 0.5 else garment
        top, left = generator.integers(0, SIDE - side + 1, 2)
        place = np.s_[top : top + side, left : left + side]
        lit = garment > LIT
        image[place] = np.where(lit, garment, image[place])
        mask[place] = np.where(lit, labels[index] + 1, mask[place])
    return image, mask


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=1)
    return file.getvalue()
