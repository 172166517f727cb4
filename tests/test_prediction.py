"""What `mae predict` says: the softmax, sigmoid or values of the classifier, worked out by hand, in words."""

import numpy as np
import pandas
import pytest
import torch
from applied import copy_images, output_and_settings, save_checkpoint, save_classifier, write_script
from conftest import copied
from PIL import Image
from transformers import AutoImageProcessor

from modeling_mae import EvalNet
from modeling_mae.errors import UserError
from modeling_mae.evaluation import predict
from modeling_mae.evaluation.prediction import write_predictions
from modeling_mae.evaluation.tables import ApplySettings, Output


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images"))


@torch.no_grad()
def logits_by_hand(checkpoint, images):
    model, processor = EvalNet.from_pretrained(checkpoint).eval(), AutoImageProcessor.from_pretrained(checkpoint)
    opened = [Image.open(path) for path in sorted(images.glob("*/*.png"))]
    return model(processor(opened, return_tensors="pt").pixel_values).logits.double().numpy()


def test_one_class_an_image(tmp_path, images):
    checkpoint = save_classifier(tmp_path / "model")
    logits = logits_by_hand(checkpoint, images)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = np.argsort(-shares, 1)
    assert len(set(order[:, 0])) > 1
    target = tmp_path / "said.csv"
    write_predictions(str(checkpoint), str(images), *output_and_settings(target, batch_size=7))
    for said in (predict(checkpoint, images, num_workers=0), pandas.read_csv(target)):
        for place, end in enumerate(("", "_2", "_3", "_4", "_5")):
            assert said[f"prediction{end}"].tolist() == [f"class {i}" for i in order[:, place]]
            expected = np.take_along_axis(shares, order, 1)[:, place]
            np.testing.assert_allclose(said[f"confidence{end}"], expected, atol=1e-5)
        assert "prediction_6" not in said and said["label"].tolist() == [name.split("/")[0] for name in said["file"]]
        assert list(said)[:5] == ["row", "file", "label", "prediction", "confidence"]


def test_fewer_classes_than_five_and_no_labels(tmp_path, images):
    checkpoint = save_classifier(tmp_path / "model", classes=2)
    said = predict(checkpoint, images / "class 0", num_workers=0)
    assert list(said) == ["row", "file", "prediction", "confidence", "prediction_2", "confidence_2"]
    np.testing.assert_allclose(said["confidence"] + said["confidence_2"], 1, atol=1e-6)


def test_several_classes_an_image_and_regression(tmp_path, images):
    names = {"classes": 3, "problem_type": "multi_label_classification"}
    checkpoint = save_classifier(tmp_path / "several", **names)
    scores = 1 / (1 + np.exp(-logits_by_hand(checkpoint, images)))
    write_predictions(str(checkpoint), str(images), *output_and_settings(tmp_path / "several.parquet"))
    write_predictions(str(checkpoint), str(images), *output_and_settings(tmp_path / "several.csv"))
    said = pandas.read_parquet(tmp_path / "several.parquet")
    np.testing.assert_allclose(said[[f"score_class {i}" for i in range(3)]], scores, atol=1e-5)
    lists = [[f"class {i}" for i in range(3) if row[i] > 0.5] for row in scores]
    assert [list(row) for row in said["prediction"]] == lists and len(set(map(len, lists))) > 1
    texts = pandas.read_csv(tmp_path / "several.csv", keep_default_na=False)["prediction"].tolist()
    assert texts == ["; ".join(row) for row in lists]
    for count in (1, 2):
        checkpoint = save_classifier(tmp_path / f"numbers-{count}", classes=count, problem_type="regression")
        said = predict(checkpoint, images, num_workers=0)
        columns = ["prediction"] if count == 1 else ["prediction_class 0", "prediction_class 1"]
        np.testing.assert_allclose(said[columns], logits_by_hand(checkpoint, images), atol=1e-5)


def test_an_encoder_is_refused_by_the_command(tmp_path, images):
    checkpoint = save_checkpoint(tmp_path / "model")
    with pytest.raises(UserError, match="has no head, only an encoder: train one"):
        predict(checkpoint, images)
    with pytest.raises(UserError, match="has no head, only an encoder: train one .* semantic_segmentation"):
        write_predictions(str(checkpoint), images, Output(tmp_path / "folder"), ApplySettings())
    code, output = copied(write_script(tmp_path), ("predict", checkpoint, images, tmp_path / "a.csv"))
    assert code == 1 and output.count("\n") == 1 and output.startswith("mae predict: error: checkpoint"), output
