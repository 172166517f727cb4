"""Smaller images first: which sizes when, and that a run keeps to them, whatever interrupts it."""

import dataclasses
import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import RECIPE, TINY_GRAY, TWO_PROCESSES, assert_same_run, run, weights_and_history

from configuration import PretrainArguments
from modeling_mae import MAEForPreTraining
from modeling_mae.data.serve.crops import finish_crop
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
        ((8, 8), (8, 8), (0.5,), [(1, (8, 8))]),  # never less than a patch
        ((24, 24), (8, 8), (0.5, 0.25), [(0.75, (16, 16)), (0.25, (24, 24))]),  # 1.5 and 2.25 patches are 2 both
        ((28, 28), (4, 4), (0.0, 0.25), [(0.25, (20, 20)), (0.75, (28, 28))]),
        ((28, 28), (4, 4), (0.0,), [(1, (28, 28))]),
        ((28, 28), (4, 4), (), [(1, (28, 28))]),
    ],
)
def test_sizes_are_whole_patches(size, patch, parts, stages):
    assert Resizing(size, patch, parts).stages == stages


def test_sizes_and_work_of_each_update():
    resizing = Resizing((28, 28), (4, 4), (0.5, 0.3))
    sizes = [resizing.size_at(update, 10)[0] for update in range(10)]
    assert sizes == [28, 28, 16, 16, 16, 20, 20, 20, 28, 28]  # the first two try the whole size
    assert [resizing.work(update, 10) for update in range(11)] == [sum(s * s for s in sizes[:n]) for n in range(11)]
    assert resizing.describe(10) == "16x16 pixels, 20x20 after 5 updates, 28x28 after 8 updates"
    assert resizing.describe(10, done=6).endswith("28x28 after 8 updates; 20x20 now")
    assert [resizing.size_at(update, 3)[0] for update in range(3)] == [28, 28, 28]
    almost = Resizing((28, 28), (4, 4), (0.99,))  # rounded, no update would be left for the whole size
    assert [almost.size_at(update, 4)[0] for update in range(4)] == [28, 28, 16, 28]
    later = Resizing((28, 28), (4, 4), (0.0, 0.5))
    assert [later.size_at(update, 8)[0] for update in range(8)] == [28, 28, 20, 20, 28, 28, 28, 28]
    whole = Resizing((28, 28), (4, 4), (0.0,))
    assert whole.work(7, 10) == 7 * 28 * 28 and whole.describe(10) == ""


def test_images_that_a_worker_has_cropped_are_resized():
    images = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    small = finish_crop({"images": images, "flips": torch.tensor([False, True])}, (12, 16))
    expected = torch.nn.functional.interpolate(images.float(), (12, 16), mode="bicubic", antialias=True).clamp(0, 255)
    torch.testing.assert_close(small, torch.stack([expected[0], expected[1].flip(2)]), atol=0.01, rtol=0)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_time_left_counts_what_updates_cost(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    work = partial(Resizing((8, 8), (1, 1), (0.5,)).work, updates=12)
    display = Display(True, 2, 12, images_per_update=2, work=work)
    # From update 2 on, 4 updates of 16 pixels and 6 of 64: after the 4 in 16 s, 384 of 448 pixels are to come.
    display.began -= 16
    entry = {"step": 6, "epoch": 0.5, "loss": 0.25, "learning_rate": 1e-3, "waiting": 0.0}
    display.show(entry)
    display.close()
    assert ("left=01:36" if terminal else "01:36 left") in "".join(capsys.readouterr())


def test_a_length_in_time_counts_what_updates_cost():
    timed, seconds = [], {"small": 1.0, "whole": 3.0}

    class Timed:
        accelerator = SimpleNamespace(process_index=0, num_processes=1)

        def seconds_per_update(self, batches, transform, most):
            size = transform.keywords["size"]
            timed.append((size, batches, most))
            return seconds[size]

    class NoImages:
        def training_loader(self, updates, **options):
            return updates

        def __len__(self):
            return 8

    trial = trials.TrialSettings(0.1, 100, 0, 4, 4, 0, True)
    stages = [(0.75, "small"), (0.25, "whole")]
    epochs, _ = trials.fit_length(
        Timed(), NoImages(), lambda batch, size: batch, stages, trial, images_per_measurement=40
    )
    # 95% of 360 s. Two looks at 40 images take 2 x 10 updates of 3 s. An epoch has 2 updates of 0.75 x 1 + 0.25 x 3 s.
    assert epochs == (342 - 60) / 3
    # Looks at the start: at untrained weights, and at those that a training begins with. One more at the end.
    trial = dataclasses.replace(trial, eval_every_epochs=1000, model_name_or_path="owner/name")
    epochs, _ = trials.fit_length(
        Timed(), NoImages(), lambda batch, size: batch, stages, trial, images_per_measurement=40
    )
    assert epochs == (342 - 5 * 30) / 3
    del timed[2:]
    # 2% of the time that such updates may take in the run
    assert timed == [("small", range(100), pytest.approx(5.4)), ("whole", range(100, 200), pytest.approx(1.8))]


def test_the_loss_curve_shows_where_images_change_their_size():
    sizes = [16] * 5 + [20] * 2 + [28] * 3
    log = [
        {"step": n, "epoch": n / 2, "loss": 1 / n, "learning_rate": 1e-3, "image_size": [size, size]}
        for n, size in enumerate(sizes, 1)
    ]
    axes = loss_curve(log).axes[0]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [2.5, 3.5]
    assert [text.get_text() for text in axes.get_legend().texts] == ["images of another size"]


def settings(*parts):
    return PretrainArguments(progressive_resizing=list(parts)).deciding_weights()


def test_runs_of_before_there_were_sizes_go_on():
    assert "progressive_resizing" not in {**settings(), **settings(0.0), **settings(0.0, 0.0)}
    assert settings(0.5)["progressive_resizing"] == settings(0.5, 0.0)["progressive_resizing"] == [0.5]
    assert settings(0.0, 0.5)["progressive_resizing"] == [0.0, 0.5]


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
    arguments = {"max_train_samples": 24, "max_train_steps": 8, "total_batch_size": 8, "warmup_epochs": 0.0}
    arguments |= {
        "per_device_train_batch_size": 8,
        "dataloader_num_workers": 0,
        "report_to": ["none"],
        "logging_steps": 3,
    }
    arguments |= {"dataset_name": "fashion_mnist", "image_cache": image_cache, "output_dir": str(tmp_path / "run")}
    main(PretrainArguments(**arguments, config_overrides=model, progressive_resizing=[0.5, 0.25]))
    whole, small, larger = (8, 1, 28, 28, 49), (8, 1, 16, 16, 16), (8, 1, 20, 20, 25)
    assert seen == [whole, whole, small, small, larger, larger, whole, whole]
    log = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [entry["image_size"] for entry in log] == [[16, 16], [20, 20], [28, 28]]


@pytest.mark.slow
def test_a_run_goes_on_exactly_where_images_become_larger(tmp_path):
    recipe = tmp_path / "growing.yaml"
    recipe.write_text(RECIPE + "progressive_resizing: [0.5, 0.25]\n")
    output = run(recipe, "--output_dir", tmp_path / "one")
    assert "sizes      14x14 pixels, 21x21 after 10 updates, 28x28 after 15 updates\n" in output
    other = (recipe, "--output_dir", tmp_path / "other", "--checkpoints_kept", 9, "--checkpointing_steps", 5)
    run(*other)
    again = (*other, "--resume_from_checkpoint", tmp_path / "other" / "checkpoint-10")
    assert "after 15 updates; 21x21 now\n" in run(*again)
    assert_same_run(tmp_path / "one", tmp_path / "other")
    assert "progressive_resizing [0.5, 0.25] -> [0.5]" in run(*again, "--progressive_resizing", 0.5, code=1)
    run(recipe, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 8, **TWO_PROCESSES)
    (_, one), (_, two) = weights_and_history(tmp_path / "one"), weights_and_history(tmp_path / "two")
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], rel=1e-5)


def test_images_of_too_few_patches_are_refused(tmp_path):
    recipe = tmp_path / "growing.yaml"
    recipe.write_text(RECIPE + "progressive_resizing: [0.5]\n")
    words = (recipe, "--output_dir", tmp_path / "run", "--config_overrides")
    message = run(*words, "patch_size=14", code=1)
    assert "images of 14x14 pixels: mask_ratio=0.75 of 1 patches" in message and "--progressive_resizing 0" in message
    message = run(*words, "patch_size=28", "--progressive_resizing", 0, code=1)
    assert "images of 28x28 pixels: mask_ratio=0.75 of 1 patches" in message and "progressive" not in message
