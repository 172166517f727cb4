"""Smaller images first: which sizes when, and that a run keeps to them, whatever interrupts it."""

from functools import partial

import pytest
import torch
from conftest import RECIPE, TINY_GRAY, TWO_PROCESSES, assert_same_run, run, weights_and_history

from configuration import PretrainArguments
from modeling_mae import MAEForPreTraining
from modeling_mae.data.crops import finish_crop
from modeling_mae.report.charts import loss_curve
from modeling_mae.training import trials
from modeling_mae.training.loop import Display
from modeling_mae.training.resizing import Resizing


@pytest.mark.parametrize(
    "size, patch, parts, stages",
    [
        ((28, 28), (4, 4), (0.5, 0.25), [(0.5, (16, 16)), (0.25, (20, 20)), (0.25, (28, 28))]),  # 3.5 and 5.25 patches
        ((224, 224), (16, 16), (0.75,), [(0.75, (112, 112)), (0.25, (224, 224))]),
        ((24, 64), (8, 16), (0.5, 0.25), [(0.5, (16, 32)), (0.25, (16, 48)), (0.25, (24, 64))]),
        ((8, 8), (8, 8), (0.5,), [(0.5, (8, 8)), (0.5, (8, 8))]),  # less than a patch there is not
        ((28, 28), (4, 4), (), [(1, (28, 28))]),
    ],
)
def test_sizes_are_whole_patches(size, patch, parts, stages):
    assert Resizing(size, patch, parts).stages == stages


def test_sizes_and_work_of_each_update():
    resizing = Resizing((28, 28), (4, 4), (0.5, 0.3))
    sizes = [resizing.size_at(update, 10)[0] for update in range(10)]
    assert sizes == [16, 16, 16, 16, 16, 20, 20, 20, 28, 28]
    assert [resizing.work(update, 10) for update in range(11)] == [sum(s * s for s in sizes[:n]) for n in range(11)]
    assert resizing.describe(10) == "16x16 pixels, then 20x20 from update 5, then 28x28 from update 8"
    assert Resizing((28, 28), (4, 4)).work(7, 10) == 7 * 28 * 28


def test_images_that_a_worker_has_cropped_are_resized():
    images = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    small = finish_crop({"images": images, "flips": torch.tensor([False, True])}, (12, 16))
    expected = torch.nn.functional.interpolate(images.float(), (12, 16), mode="bicubic", antialias=True).clamp(0, 255)
    torch.testing.assert_close(small, torch.stack([expected[0], expected[1].flip(2)]), atol=0.01, rtol=0)


def test_the_time_left_counts_what_updates_cost():
    work = partial(Resizing((8, 8), (1, 1), (0.5,)).work, updates=10)
    display = Display(True, 0, 10, images_per_update=2, work=work)
    # 5 updates of 16 pixels and 5 of 64: after 5 of them 80 of 400 pixels are done
    assert display.seconds_left(5, display.began + 20) == ("01:20", "01:20")


def test_a_length_in_time_counts_what_updates_cost(monkeypatch):
    # A trial of the first kind of updates takes 1 s an update, of the second 3 s.
    hours, seconds = [], iter([1.0, 3.0])
    monkeypatch.setattr(trials, "time_updates", lambda *args: hours.append(args[-1]) or next(seconds))
    images = type("Images", (), {"training_loader": lambda self, **options: [], "__len__": lambda self: 8})()
    accelerator = type("Accelerator", (), {"process_index": 0, "num_processes": 1, "print": lambda *a, **k: None})()
    looks = {"images_a_look": 0, "epochs_between_looks": 0, "knn": False}
    losses = [(0.5, None), (0.5, None)]
    epochs = trials.fit_length(
        accelerator, None, None, images, losses, hours=0.1, wanted=100, total_batch_size=4, **looks
    )
    # 95% of 360 s, for epochs of 2 updates of 2 s in the mean
    assert epochs == 85.5 and hours == [0.05, 0.05]


def test_the_loss_curve_shows_where_images_become_larger():
    log = [{"step": n, "epoch": n / 2, "loss": 1 / n, "learning_rate": 1e-3} for n in range(1, 11)]
    axes = loss_curve(log, small_parts=(0.5, 0.25)).axes[0]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [2.5, 3.75]
    assert [text.get_text() for text in axes.get_legend().texts] == ["images become larger"]


@pytest.mark.parametrize("image_cache", ["auto", "off"])  # the device crops, or the loading workers do
def test_a_run_sees_small_images_first(tmp_path, monkeypatch, image_cache):
    from run_pretrain import main

    seen, forward = [], MAEForPreTraining.forward

    def recording(self, pixel_values, noise=None, **kwargs):
        if self.training:
            seen.append((*pixel_values.shape, noise.shape[1]))
        return forward(self, pixel_values, noise=noise, **kwargs)

    monkeypatch.setattr(MAEForPreTraining, "forward", recording)
    model = [f"{name}={value}" for name, value in {**TINY_GRAY, "patch_size": 4}.items()]
    arguments = {"max_train_samples": 24, "max_train_steps": 4, "total_batch_size": 8, "warmup_epochs": 0.0}
    arguments |= {"per_device_train_batch_size": 8, "dataloader_num_workers": 0, "report_to": ["none"]}
    arguments |= {"dataset_name": "fashion_mnist", "image_cache": image_cache, "output_dir": str(tmp_path / "run")}
    main(PretrainArguments(**arguments, config_overrides=model, progressive_resizing=[0.5, 0.25]))
    assert seen == [(8, 1, 16, 16, 16), (8, 1, 16, 16, 16), (8, 1, 20, 20, 25), (8, 1, 28, 28, 49)]


def test_a_run_goes_on_exactly_where_images_become_larger(tmp_path):
    recipe = tmp_path / "growing.yaml"
    recipe.write_text(RECIPE + "progressive_resizing: [0.5, 0.25]\n")
    output = run(recipe, "--output_dir", tmp_path / "one")
    assert "sizes      14x14 pixels, then 21x21 from update 10, then 28x28 from update 15\n" in output
    other = (recipe, "--output_dir", tmp_path / "other", "--checkpoints_kept", 9)
    run(*other)
    again = (*other, "--resume_from_checkpoint", tmp_path / "other" / "checkpoint-7")
    run(*again)
    assert_same_run(tmp_path / "one", tmp_path / "other")
    assert "progressive_resizing [0.5, 0.25] -> [0.5]" in run(*again, "--progressive_resizing", 0.5, code=1)
    run(recipe, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 8, **TWO_PROCESSES)
    (_, one), (_, two) = weights_and_history(tmp_path / "one"), weights_and_history(tmp_path / "two")
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], rel=1e-5)
