"""The Python of the README and of docs/ runs as it stands, on a checkpoint as the demo leaves one."""

import pytest
import torch
from conftest import ROOT, TINY_GRAY, copied
from documented import python_blocks
from PIL import Image

from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining, MAEForSemanticSegmentation
from modeling_mae.data.serve.processor import image_processor


BLOCKS = python_blocks()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    config = MAEConfig(**{**TINY_GRAY, "patch_size": 4, "num_hidden_layers": 4})
    torch.manual_seed(0)
    MAEForPreTraining(config).save_pretrained(folder / "runs" / "demo")
    EvalNet(config).save_pretrained(folder / "runs" / "demo_eval" / "n_partial-4")
    for checkpoint in ("demo", "demo_eval/n_partial-4"):
        image_processor((28, 28), [0.29], [0.36], 1).save_pretrained(folder / "runs" / checkpoint)
    segmenter = folder / "runs" / "own_images_segment" / "n_partial-12"
    config.id2label = {0: "ground", 1: "thing"}
    MAEForSemanticSegmentation(config).save_pretrained(segmenter)
    image_processor((28, 28), [0.29], [0.36], 1, at_own_size=True).save_pretrained(segmenter)
    Image.new("RGB", (60, 40), "red").save(folder / "photograph.jpg")
    (folder / "data").symlink_to(ROOT / "data")
    return folder


# What is true after a block, run in the block's own names.
CHECKS = {
    "UperNet": """
import torch
found = segmenter.train()(torch.randn(2, 1, 64, 64), labels=torch.randint(0, 5, (2, 64, 64)))
assert found.logits.shape == (2, 5, 64, 64)
found.loss.backward()
weights = {name: tensor for name, tensor in MAEBackbone.from_pretrained("runs/demo").named_parameters()}
assert all(torch.equal(tensor, weights[name]) for name, tensor in segmenter.backbone.named_parameters())
assert all(tensor.grad is not None for name, tensor in segmenter.backbone.named_parameters() if "layers.3" in name)
""",
    "extract_features": """
assert features.values.shape == (10, 32) and positions.shape == (1, 3) and len(table) == 10
assert features.files[positions[0, 0]] == "bag-1.png" and len(copies) == len(originals) == len(cosines)
""",
    "notebook_launcher": """
import json
log = json.load(open("runs/notebook/trainer_state.json"))["log_history"]
assert log[-1]["step"] == 10 and 0 < log[-1]["loss"] < 100
assert MAEForPreTraining.from_pretrained("runs/notebook").config.hidden_size == 96
""",
    "Trainer": """
from transformers import AutoImageProcessor
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert len(losses) == 2 and losses[1] < losses[0]
saved = MAEForPreTraining.from_pretrained("runs/trainer").state_dict()
biases = {name for name in saved if name.endswith("bias")}  # they begin at 0
assert len(biases) > 20 and all(saved[name].any() for name in biases)
assert list(AutoImageProcessor.from_pretrained("runs/trainer").image_mean) == [0.29]
""",
    "get_peft_model": """
trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
assert trained and all("lora_" in name or "head.modules_to_save" in name for name in trained)
""",
    "BitsAndBytesConfig": """
import torch
assert encoder.layers[0].mlp.fc1.weight.dtype == torch.uint8  # test_ecosystem.py computes with wider ones
""",
    "image-segmentation": """
found = segment("photograph.jpg")
assert {each["label"] for each in found} <= {"ground", "thing"}
assert all(each["mask"].size == (60, 40) for each in found)
""",
    "classifier.freeze": """
assert features.shape == (8, 192) and logits.shape == (8, 10) and picture.shape == images.shape
""",
}


# The usual decoder, of 8 layers 512 wide, would take a minute.
SMALL_DECODER = {
    "notebook_launcher": (
        '"hidden_size=96"',
        '"hidden_size=96", "decoder_hidden_size=32", "decoder_num_hidden_layers=1"',
    ),
    "Trainer": ("hidden_size=96", "hidden_size=96, decoder_hidden_size=32, decoder_num_hidden_layers=1"),
}


OF_LIBRARIES = ("get_peft_model", "BitsAndBytesConfig")  # of the extra `ecosystem`


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.ecosystem) if part in OF_LIBRARIES else part for part in CHECKS]
)
def test_blocks_with_the_package(folder, tmp_path, part):
    (block,) = [block for block in BLOCKS if part in block]
    if part in SMALL_DECODER:
        assert block.count(SMALL_DECODER[part][0]) == 1
        block = block.replace(*SMALL_DECODER[part])
    script = tmp_path / "block.py"
    script.write_text("from modeling_mae import MAEForPreTraining\n" + block + CHECKS[part])
    code, output = copied(script, (), folder)
    assert code == 0, output


def test_every_block_is_run():
    # test_auto_classes.py runs the one that needs nothing of the package; test_many_bands.py and test_mask_runs.py
    # run the others.
    assert len(BLOCKS) == len(CHECKS) + 3
