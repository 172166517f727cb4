"""What differs on a GPU: `pytest -m gpu -n 0`, on a machine that has one. All other tests see none."""

import copy
import json
import time

import pytest
import torch
from conftest import assert_same_run, run, tiny_config, weights_and_history

from modeling_mae import EvalNet, MAEForPreTraining, mask_noise
from modeling_mae.data.serve.crops import RandomResizedCrop
from modeling_mae.training.augment import BatchTransform
from modeling_mae.training.transfer import Transfer
from modeling_mae.training.waiting import Waiting


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

GPU = torch.device("cuda", 0)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
CROSS = {"decoder_type": "cross", "prediction_ratio": 0.25}
SHORT = ("--max_train_samples", 160, "--total_batch_size", 32, "--per_device_train_batch_size", 32)


@pytest.mark.parametrize("fields", [{}, CROSS, {"uniformity_weight": 0.1}])
def test_losses_and_gradients_are_those_of_the_cpu(fields):
    torch.manual_seed(0)
    model = MAEForPreTraining(tiny_config(**fields))
    twin = copy.deepcopy(model).to(GPU)
    loss, loss_on_gpu = model(IMAGES, noise=NOISE).loss, twin(IMAGES.to(GPU), noise=NOISE.to(GPU)).loss
    assert loss_on_gpu.item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    loss_on_gpu.backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-3, atol=1e-6)
    with torch.autocast("cuda", torch.bfloat16):
        assert twin(IMAGES.to(GPU), noise=NOISE.to(GPU)).loss.item() == pytest.approx(loss.item(), rel=0.02)


@pytest.mark.parametrize("pooling", ["cls", "mean", "flatten", "attention"])
def test_logits_are_those_of_the_cpu(pooling):
    torch.manual_seed(0)
    net = EvalNet(tiny_config(pooling=pooling, num_labels=5)).eval()
    with torch.no_grad():
        logits = net(IMAGES).logits
        torch.testing.assert_close(net.to(GPU)(IMAGES.to(GPU)).logits.cpu(), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_type", ["random", "block", "grid"])
def test_masks_hide_what_is_asked_for(mask_type):
    noise = mask_noise(mask_type, 6, (4, 4), torch.Generator(GPU).manual_seed(0), GPU)
    again = mask_noise(mask_type, 6, (4, 4), torch.Generator(GPU).manual_seed(0), GPU)
    assert noise.device == GPU and torch.equal(noise, again)
    model = MAEForPreTraining(tiny_config(mask_type=mask_type)).to(GPU)
    mask = model(torch.zeros(6, 3, 32, 32, device=GPU), noise=noise).mask
    assert mask.sum(1).tolist() == [12] * 6


def test_batches_are_cropped_and_normalised_as_on_the_cpu():
    images = torch.randint(256, (5, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes, flips = RandomResizedCrop(0)(0, range(5), 40, 50)
    transform = BatchTransform([0.4, 0.5, 0.6], [0.2, 0.3, 0.4], (16, 20))
    expected = transform({"images": images, "boxes": boxes, "flips": flips})
    batch = {"images": images.to(GPU), "boxes": boxes.to(GPU), "flips": flips.to(GPU)}
    torch.testing.assert_close(transform.to(GPU)(batch).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_only_a_gpu_without_work_waits():
    one = torch.randn(8192, 8192, device=GPU)
    torch.cuda.synchronize()
    waiting = Waiting(GPU)
    with waiting:
        time.sleep(0.3)  # nothing to do
    assert waiting.read() > 0.8
    for _ in range(60):
        one @ one  # half a second or more
    with waiting:
        time.sleep(0.1)
    assert waiting.read() < 0.1


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_learns_and_goes_on_exactly(tmp_path, recipe, precision):
    options = {"ACCELERATE_MIXED_PRECISION": precision}
    output = run(recipe, "--output_dir", tmp_path / "one", **options)
    assert f"precision  {precision}, on cuda" in output
    losses = [entry["loss"] for entry in weights_and_history(tmp_path / "one")[1] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.05
    other = ("--output_dir", tmp_path / "other", "--checkpoints_kept", 9)
    run(recipe, *other, **options)
    run(recipe, *other, "--resume_from_checkpoint", tmp_path / "other" / "checkpoint-7", **options)
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_a_compiled_run_learns_the_same(tmp_path, recipe):
    run(recipe, "--output_dir", tmp_path / "usual")
    output = run(recipe, "--output_dir", tmp_path / "compiled", ACCELERATE_DYNAMO_BACKEND="inductor")
    assert "compiled by inductor" in output
    usual, compiled = (weights_and_history(tmp_path / name) for name in ("usual", "compiled"))
    losses = [[entry["loss"] for entry in history if "loss" in entry] for _, history in (usual, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and usual[0].keys() == compiled[0].keys()


def test_every_kind_of_evaluation_runs(tmp_path, recipe):
    run(recipe, "--output_dir", tmp_path / "encoder")
    words = ("--model_name_or_path", tmp_path / "encoder", "--output_dir", tmp_path / "eval", *SHORT)
    words += ("--max_eval_samples", 200, "--num_train_epochs", 2, "--warmup_epochs", 0, "--report_to", "none")
    words += ("--n_partial", 0, 0.5, 1, 2, "--knn", "true", "--from_scratch", "true")
    output = run(*words, script="run_eval.py", ACCELERATE_MIXED_PRECISION="bf16")
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())
    trained = [row["accuracy"] for row in rows if row.get("accuracy") is not None]
    assert "on cuda" in output and len(trained) == 5  # four strategies, and from scratch
    assert all(0.05 < accuracy < 1 for accuracy in trained)


def test_batches_copied_beside_the_updates_arrive_whole():
    """The device is kept busy, so that a copy that nobody awaits, or memory given away too early, would show."""
    transfer, work = Transfer(GPU), torch.randn(4096, 4096, device=GPU)
    batches = [torch.full((64, 3, 224, 224), value, dtype=torch.uint8).pin_memory() for value in range(20)]
    sums = []
    for images in batches:
        on_gpu = transfer({"images": images})["images"]
        work = (work @ work).clamp(-1, 1)
        sums.append(on_gpu.sum(dtype=torch.int64))
    assert [total.item() for total in sums] == [value * batches[0].numel() for value in range(20)]
