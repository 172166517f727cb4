"""The bundled data are what their README says, and load without network."""

from collections import Counter
from pathlib import Path

import datasets
import pytest


FOLDER = Path(__file__).parents[1] / "data" / "fashion_mnist"


@pytest.mark.parametrize("split, each", [("train", 1200), ("test", 200)])
def test_bundled_part_is_balanced_and_decodes(split, each, tmp_path):
    data = datasets.load_dataset(str(FOLDER), split=split, cache_dir=str(tmp_path))
    assert Counter(data["label"]) == dict.fromkeys(range(10), each)
    assert data.features["label"].names[0] == "T-shirt/top" and len(set(data.features["label"].names)) == 10
    assert {(image.size, image.mode) for image in data[:50]["image"]} == {((28, 28), "L")}
