"""Probes on features that are computed once train as probes that run the encoder in every epoch."""

import shutil

import numpy as np
import pytest
import torch
from conftest import TINY_GRAY, TWO_PROCESSES, assert_same_run, run, weights_and_history
from safetensors.torch import load_file

from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining
from modeling_mae.data.serve.crops import OnlyCrop, RandomResizedCrop, training_crop
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.evaluation.frozen_images import FrozenImages, versions_of
from modeling_mae.evaluation.reader import FrozenSet


RECIPE = """
model_name_or_path: CHECKPOINT
n_partial: 0
eval_crop_fraction: 1.0
crop_scale: [1.0, 1.0]
max_train_samples: 160
max_eval_samples: 103
label_fraction: 0.8
total_batch_size: 32
per_device_train_batch_size: 16
per_device_eval_batch_size: 10
num_train_epochs: 5
warmup_epochs: 1
checkpointing_steps: 7
dataloader_num_workers: 0
report_to: none
"""
KINDS = {
    "linear": ("--base_learning_rate", 5, "--config_overrides", "pooling=mean"),
    "attentive": ("--optimizer", "adamw", "--base_learning_rate", 0.03, "--config_overrides", "pooling=attention",
                  "num_pooling_queries=4"),
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    MAEForPreTraining(MAEConfig(**TINY_GRAY)).save_pretrained(folder)
    image_processor((28, 28), [0.2], [0.3], 1).save_pretrained(folder)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("CHECKPOINT", str(folder)))
    return path


def assert_near_run(one, other):
    """Weights, log and the last epoch's weights of two folders are equal up to rounding."""
    histories = []
    for folder in (one, other):
        weights, history = weights_and_history(folder)
        histories.append((weights, load_file(folder / "last" / "model.safetensors"), history))
    (*weights, history), (*other_weights, other_history) = histories
    for mine, others in zip(weights, other_weights, strict=True):
        assert mine.keys() == others.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-5)
    for entry, other_entry in zip(history, other_history, strict=True):
        assert entry == pytest.approx(other_entry, rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_a_probe_on_features_is_the_probe_on_images(tmp_path, recipe, kind):
    words = (recipe, *KINDS[kind])
    output = run(*words, "--output_dir", tmp_path / "once", script="run_eval.py")
    assert "features   of 127 images and their mirror images: computed once" in output
    always = run("run_eval.py", *words, "--output_dir", tmp_path / "always", script="tests/encode_always.py")
    assert "computed once" not in always
    assert_near_run(tmp_path / "once", tmp_path / "always")
    start, end = (load_file(tmp_path / "once" / path / "model.safetensors") for path in ("checkpoint-14", "last"))
    assert not torch.equal(start["head.weight"], end["head.weight"])
    assert torch.equal(start["mae.layers.0.mlp.fc1.weight"], end["mae.layers.0.mlp.fc1.weight"])
    # It goes on exactly, in the middle of an epoch.
    shutil.copytree(tmp_path / "once", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-15")
    (tmp_path / "again" / "eval_results.json").unlink()
    go_on = ("--output_dir", tmp_path / "again", "--resume_from_checkpoint", "auto")
    assert "from update 14 of" in run(*words, *go_on, script="run_eval.py")
    assert_same_run(tmp_path / "once", tmp_path / "again")


@pytest.mark.slow
def test_two_processes_probe_features_as_images(tmp_path, recipe):
    words = (recipe, *KINDS["attentive"])
    output = run(*words, "--output_dir", tmp_path / "once", script="run_eval.py", **TWO_PROCESSES)
    assert output.count("computed once") == 1
    run("run_eval.py", *words, "--output_dir", tmp_path / "always", script="tests/encode_always.py", **TWO_PROCESSES)
    assert_near_run(tmp_path / "once", tmp_path / "always")


@pytest.mark.parametrize("pooling", ["mean", "cls", "flatten", "attention"])
def test_a_classifier_takes_features_in_place_of_images(pooling):
    torch.manual_seed(0)
    net = EvalNet(MAEConfig(**TINY_GRAY, pooling=pooling, num_pooling_queries=4, head_norm="batch")).freeze(0).train()
    images, labels = torch.randn(6, 1, 28, 28), torch.arange(6) % 2
    twin = EvalNet(net.config).freeze(0).train()
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        features = net.frozen_features(images)
    outputs, expected = net(features=features, labels=labels), twin(images, labels=labels)
    torch.testing.assert_close(outputs.logits, expected.logits)
    outputs.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(net.head.weight.grad, twin.head.weight.grad)
    for wrong in ({}, {"pixel_values": images, "features": features}):
        with pytest.raises(ValueError, match="give either pixel_values or features"):
            net(**wrong)


def test_which_crops_have_a_choice():
    crop = training_crop(0, [1.0, 1.0], True, (28, 28))
    heights, widths = np.array([28, 50, 50, 28, 29]), np.array([28, 50, 40, 90, 28])
    found = crop.has_choice(heights, widths)
    boxes = np.stack([crop(epoch, range(500), heights[0], widths[0])[0].numpy() for epoch in range(3)])
    assert (boxes == [0, 0, 28, 28]).all()
    for height, width, choice in zip(heights, widths, found, strict=True):
        boxes = crop(0, range(200), height, width)[0].numpy()
        assert (len(np.unique(boxes, axis=0)) > 1) == choice
    assert RandomResizedCrop(0, (0.2, 1.0)).has_choice(heights, widths).all()
    only = OnlyCrop(crop, mirrored=True)
    boxes, flips = only(0, range(3), 40, 40)
    assert (boxes.numpy() == [0, 0, 40, 40]).all() and flips.all() and not only.had_choice
    only(0, range(3), 28, 29)
    assert only.had_choice


def test_features_follow_the_flips_of_the_images():
    """A part of the set, so that an image's place in it is not its place in the whole set."""
    images = MemoryImages(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), (8, 8), labels=torch.arange(40))
    images = images.view(training_crop(3, [1.0, 1.0], True, (8, 8)), rows=np.arange(10, 40))
    assert len(versions_of(images)) == 2
    plain, labels = np.arange(30, dtype=np.float32)[:, None], images.labels.numpy()
    frozen = FrozenImages(images, [FrozenSet(plain, labels), FrozenSet(-plain, labels)])
    indices = [4, 9, 0, 22, 29, 1]
    for epoch in range(4):
        batch, expected = frozen.batch(epoch, indices), images.batch(epoch, indices)
        assert torch.equal(batch["labels"], expected["labels"])
        flipped = torch.where(expected["flips"], -1.0, 1.0)
        assert torch.equal(batch["features"][:, 0], flipped * torch.tensor(indices))
    order, others = (x.order(6, 1).images_of(7) for x in (frozen, images))
    assert order[0] == others[0] and (order[1] == others[1]).all()


def test_images_that_change_are_not_computed_once():
    images = MemoryImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), (8, 8), labels=torch.arange(4))
    assert len(versions_of(images.view(training_crop(0, [1.0, 1.0], False, (8, 8))))) == 1
    assert versions_of(images.view(training_crop(0, [0.5, 1.0], True, (8, 8)))) == []
    changed = images.view(training_crop(0, [1.0, 1.0], True, (8, 8)), augment=lambda batch, epoch, indices: batch)
    assert versions_of(changed) == []
