"""The display, and `updates` with a linear model of so few numbers that torch alone can do the same by hand."""

import math
import os
import pickle
import re
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import without_waiting

from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.errors import TrainingStopped, UserError
from modeling_mae.training.checkpoints import choose_checkpoint
from modeling_mae.training.loop import Display, updates
from modeling_mae.training.manifest import checkpoints_in, read_manifest, write_manifest
from modeling_mae.training.optim import Schedule
from modeling_mae.training.resizing import Resizing
from modeling_mae.training.signals import STOP_SIGNALS
from modeling_mae.training.state import Place, RunSettings, open_run


ENTRY = {"step": 4, "epoch": 0.5, "loss": 0.25, "learning_rate": 1e-3, "waiting": 0.384}
NUM_IMAGES, BATCH = 26, 4
UPDATES_PER_EPOCH = 6  # two images are left out of each epoch
SCHEDULE = Schedule(updates=15, updates_per_epoch=UPDATES_PER_EPOCH, warmup=4, peak=0.2, floor=0.01)


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        display = Display(True, 0, 8, images_per_update=32)
        display.began = display.last_time = time.perf_counter() - 2  # so long for 4 updates
        for _ in range(4):
            display.advance()
        assert 62 < display.show(ENTRY) <= 64  # 4 x 32 images in 2 s
        display.close()
        captured = capsys.readouterr()
        if terminal:
            assert captured.out == ""
            words = ("4/8", "images/s=6", "loss=0.2500", "lr=1.00e-03", "waiting=38%")
            assert all(text in captured.err for text in words)
        else:
            assert captured.err == "" and captured.out.count("\n") == 1
            start = "update 4/8  epoch 0.50  loss 0.2500  lr 1.00e-03  6"
            assert captured.out.startswith(start) and captured.out.endswith("images/s  waiting 38%  00:02 left\n")
    Display(False, 0, 8, 32).show(ENTRY)  # not the main process
    assert capsys.readouterr() == ("", "")


def make_images() -> MemoryImages:
    """Image i has the one pixel 9 * i, and its label is i."""
    pixels = (9 * torch.arange(NUM_IMAGES)).to(torch.uint8).view(-1, 1, 1, 1)
    return MemoryImages(pixels, (1, 1), labels=torch.arange(NUM_IMAGES))


def make_model() -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.constant_(model.bias, -0.25)
    return model


def square_error(model, labels: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the model's answer to x from 2 x + 1, where x is the label between -1 and 1."""
    x = labels.float()[:, None] / 13 - 1
    return (model(x) - (2 * x + 1)).square().mean()


def start(folder, micro_batch=BATCH, resume=None, schedule=SCHEDULE, settings=(), after_checkpoint=None, **options):
    """A run of the linear model with SGD, and its `loss_of`, which notes each batch and the optimizer's rates."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    model = make_model()
    optimizer = torch.optim.SGD(
        [{"params": [model.weight]}, {"params": [model.bias], "lr_scale": 0.5}], lr=0.0, momentum=0.9
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    defaults = {"logging_steps": 2, "checkpointing_steps": "4", "checkpoints_kept": 100, "seed": 3}
    defaults |= {"allow_changes": False, "dataloader_num_workers": 0}
    run_settings = RunSettings(
        total_batch_size=BATCH, per_device_train_batch_size=micro_batch, **{**defaults, **options}
    )
    checkpoint = choose_checkpoint(accelerator, folder, resume)
    place = Place(folder, checkpoint, after_checkpoint or (lambda folder: None))
    run = open_run(accelerator, model, optimizer, make_images(), schedule, run_settings, place, dict(settings))
    notes = SimpleNamespace(labels=[], rates=[], places=[])

    def loss_of(batch, update, micro):
        notes.labels.append(batch["labels"].tolist())
        notes.rates.append([group["lr"] for group in optimizer.param_groups])
        notes.places.append((update, micro))
        return square_error(model, batch["labels"])

    return run, loss_of, notes


def train(run, loss_of, after_epoch=lambda epoch, update: None):
    """The updates of a script whose loss is ``loss_of(batch, update, micro)``."""
    for update in updates(run, Resizing((1, 1), (1, 1)), after_epoch):
        for micro, micro_batch in enumerate(update.micro_batches()):
            update.backward(loss_of(micro_batch.images, update.number, micro))
        update.step()


@pytest.mark.parametrize("micro_batch", [BATCH, BATCH // 2])
def test_the_trackers_get_the_norm_of_the_gradient(tmp_path, monkeypatch, micro_batch):
    run, loss_of, notes = start(tmp_path, micro_batch, logging_steps=1)
    logged = []
    monkeypatch.setattr(run.accelerator, "log", lambda values, step: logged.append(values))
    train(run, loss_of)
    labels = sum(notes.labels[: BATCH // micro_batch], [])
    x = np.array(labels) / 13 - 1
    error = (0.5 * x - 0.25) - (2 * x + 1)
    by_hand = np.hypot(2 * (error * x).mean(), 2 * error.mean())  # of weight and bias
    assert logged[0]["gradient_norm"] == pytest.approx(by_hand, rel=1e-5)


def closed_form(update: int) -> float:
    if update < 4:
        return 0.2 * update / 4
    return 0.01 + 0.19 * (1 + math.cos(math.pi * (update - 4) / 11)) / 2


def images_by_hand() -> list[list[int]]:
    """The images of the 15 updates: the first 24 of each epoch's permutation, 4 at a time."""
    orders = [np.random.default_rng([3, epoch]).permutation(NUM_IMAGES)[:24] for epoch in range(3)]
    return np.concatenate(orders).reshape(-1, BATCH)[:15].tolist()


def trained_by_hand() -> tuple[torch.nn.Linear, list[float]]:
    """(model, loss of each update) of plain torch."""
    model, losses, velocity = make_model(), [], {}
    for update, images in enumerate(images_by_hand()):
        loss = square_error(model, torch.tensor(images))
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, [model.weight, model.bias])
        for parameter, gradient, scale in zip([model.weight, model.bias], gradients, [1.0, 0.5], strict=True):
            velocity[parameter] = 0.9 * velocity.get(parameter, 0.0) + gradient
            parameter.data -= closed_form(update) * scale * velocity[parameter]
    return model, losses


def assert_same_weights(one, two):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_every_update_is_that_of_plain_torch(tmp_path):
    run, loss_of, notes = start(tmp_path)
    train(run, loss_of)
    assert notes.places == [(update, 0) for update in range(15)] and run.progress.update == 15
    assert notes.labels == images_by_hand()
    for update, (rate, scaled_rate) in enumerate(notes.rates):
        assert rate == pytest.approx(closed_form(update)) and scaled_rate == pytest.approx(closed_form(update) / 2)
    expected, losses = trained_by_hand()
    assert_same_weights(expected, run.model)
    assert losses[-1] < losses[0] / 2  # it learns


def test_the_log_holds_the_means_since_the_entry_before(tmp_path, capsys):
    run, loss_of, _ = start(tmp_path)
    train(run, loss_of)
    _, losses = trained_by_hand()
    entries = run.history.read()
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8, 10, 12, 14, 15]  # the last update too
    for entry in entries:
        since = losses[entry["step"] - (1 if entry["step"] == 15 else 2) : entry["step"]]
        assert entry["loss"] == pytest.approx(sum(since) / len(since), rel=1e-5)
        assert entry["epoch"] == pytest.approx(entry["step"] / 6)
        assert entry["learning_rate"] == pytest.approx(closed_form(entry["step"] - 1))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("update ")]
    assert [line.split()[1] for line in lines] == ["2/15", "15/15"]  # the run takes no ten seconds


def test_lines_come_by_time_and_the_time_of_all_trainings_is_told(monkeypatch, capsys):
    """Entries each 4 s of a clock of ours: the first, one each ten seconds or a little more, and the last."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    display = Display(True, 0, 40, images_per_update=2, later=1.5)
    for step in range(4, 41, 4):
        now[0] += 4
        speed = display.show({**ENTRY, "step": step})
        assert speed == pytest.approx(2)  # also of an entry without a line
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["4/40", "16/40", "28/40", "40/40"]
    # A second an update: 36 are to come, and 1.5 x 40 of the other trainings.
    assert lines[0].endswith("00:36 left, 01:36 for all trainings")
    assert lines[-1].endswith("00:00 left, 01:00 for all trainings")


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_accumulated_gradients_equal_the_big_batch(tmp_path, micro_batch):
    run, loss_of, notes = start(tmp_path, micro_batch)
    train(run, loss_of)
    steps = BATCH // micro_batch
    assert notes.places == [(update, micro) for update in range(15) for micro in range(steps)]
    assert [label for labels in notes.labels for label in labels] == sum(images_by_hand(), [])
    expected, losses = trained_by_hand()
    assert_same_weights(expected, run.model)
    assert run.history.read()[0]["loss"] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-5)


def test_checkpoints_and_ends_of_epochs_come_in_order(tmp_path):
    events = []
    run, loss_of, _ = start(tmp_path, after_checkpoint=lambda folder: events.append(folder.name))

    def after_epoch(epoch, update):
        events.append((epoch, update))
        run.model.eval()

    def training_loss(batch, update, micro):
        assert run.model.training
        return loss_of(batch, update, micro)

    train(run, training_loss, after_epoch)
    # Every 4 updates and after the last. An epoch has 6 updates; the third one is cut short.
    assert events == ["checkpoint-4", (1, 6), "checkpoint-8", (2, 12), "checkpoint-12", (3, 15), "checkpoint-15"]
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-{n}" for n in (4, 8, 12, 15)]


def test_a_loss_that_is_not_finite_stops_without_a_checkpoint(tmp_path):
    run, loss_of, _ = start(tmp_path)

    def loss_that_breaks(batch, update, micro):
        return loss_of(batch, update, micro) * (math.nan if update == 6 else 1)

    with pytest.raises(TrainingStopped, match="the loss of update 7 is nan .*learning rate") as stop:
        train(run, loss_that_breaks)
    assert stop.value.code == 1 and f"--resume_from_checkpoint {tmp_path / 'checkpoint-4'}" in str(stop.value)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-4"]
    assert [entry["step"] for entry in run.history.read()] == [2, 4, 6]  # no entry with a mean that is not a number


@pytest.mark.parametrize("update, epochs", [(3, []), (5, []), (14, [1, 2])])
def test_weights_that_are_not_finite_stop_without_a_checkpoint(tmp_path, update, epochs):
    """The loss before the last step is still finite."""
    run, loss_of, _ = start(tmp_path)
    ended = []

    def loss_with_a_gradient_that_breaks(batch, number, micro):
        loss = loss_of(batch, number, micro)
        if number == update:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    with pytest.raises(TrainingStopped, match=f"the weights after update {update + 1} are not finite") as stop:
        train(run, loss_with_a_gradient_that_breaks, lambda epoch, update: ended.append(epoch))
    assert stop.value.code == 1 and ended == epochs
    assert not (tmp_path / f"checkpoint-{update + 1}").exists()
    assert ("start again" in str(stop.value)) == (update == 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_stops_with_a_checkpoint(tmp_path, number, heeded_signals):
    handlers = [signal.getsignal(each) for each in STOP_SIGNALS]
    run, loss_of, notes = start(tmp_path)

    def interrupted(batch, update, micro):
        if update == 8:
            signal.raise_signal(number)
        return loss_of(batch, update, micro)

    message = f"stopped by {number.name} after update 9 of 15.*--resume_from_checkpoint auto .*checkpoint-9"
    with pytest.raises(TrainingStopped, match=message) as stop:
        train(run, interrupted)
    assert stop.value.code == 128 + number
    assert len(notes.places) == 9  # the update is done to its end, and no other begins
    assert checkpoints_in(tmp_path)[-1].name == "checkpoint-9"
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == handlers


def test_a_signal_that_nohup_ignores_stops_nothing(tmp_path):
    run, loss_of, notes = start(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def hung_up(batch, update, micro):
            signal.raise_signal(signal.SIGHUP)
            return loss_of(batch, update, micro)

        train(run, hung_up)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(notes.places) == 15


@pytest.mark.parametrize("last", [2, 5, 8, 11, 12, 14])
def test_going_on_is_exact(tmp_path, last):
    """Updates 5 and 11 end an epoch, 12 comes before an entry of the log that spans the stop, and 14 is the last: the
    run that goes on has only the end of an epoch left to do."""
    whole, loss_of, _ = start(tmp_path / "whole", logging_steps=3)
    epochs_of_whole, epochs_of_parts = [], []
    train(whole, loss_of, lambda *epoch: epochs_of_whole.append(epoch))

    first, loss_of, notes = start(tmp_path / "parts", logging_steps=3)

    def interrupted(batch, update, micro):
        if update == last:
            signal.raise_signal(signal.SIGTERM)
        return loss_of(batch, update, micro)

    with pytest.raises(TrainingStopped):
        train(first, interrupted, lambda *epoch: epochs_of_parts.append(epoch))
    # The end of an epoch that the signal came in is left for later: the checkpoint comes first.
    assert epochs_of_parts == [(epoch, update) for epoch, update in [(1, 6), (2, 12)] if update <= last]
    labels = notes.labels
    second, loss_of, notes = start(tmp_path / "parts", resume="auto", logging_steps=3)
    assert second.place.checkpoint.name == f"checkpoint-{last + 1}" and f"from update {last + 1} of" in str(second)
    train(second, loss_of, lambda *epoch: epochs_of_parts.append(epoch))
    assert labels + notes.labels == images_by_hand()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
    assert without_waiting(second.history.read()) == without_waiting(whole.history.read())
    assert epochs_of_parts == epochs_of_whole == [(1, 6), (2, 12), (3, 15)]


def test_the_part_of_the_time_that_went_by_waiting_for_images(tmp_path, monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr("modeling_mae.training.waiting.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    run, loss_of, _ = start(tmp_path)
    run.accelerator.trackers = []
    logged = []
    monkeypatch.setattr(run.accelerator, "log", lambda values, step: logged.append((step, values["waiting"])))

    class Slow:
        num_workers = 0

        def __iter__(self):
            for number, batch in enumerate(loader):
                clock[0] += 3 if number < 2 else 1  # of the first two updates: 6 s of 8 s
                yield batch

    def slow_loss(batch, update, micro):
        clock[0] += 1
        return loss_of(batch, update, micro)

    loader, run.batches = run.batches, Slow()
    run.batches_can_fail = True
    train(run, slow_loss)
    expected = [(2, 0.75), *((step, 0.5) for step in (4, 6, 8, 10, 12, 14, 15))]
    assert [(entry["step"], entry["waiting"]) for entry in run.history.read()] == expected == logged
    output = capsys.readouterr().out
    assert "images/s  waiting 75%" in output
    # 6 + 13 of 8 + 26 s
    assert "waiting    56% of the time waiting for images: " in output and "--image_cache" in output


def test_going_on_from_an_older_checkpoint_gives_up_what_came_after_it(tmp_path, capsys):
    run, loss_of, _ = start(tmp_path)
    train(run, loss_of)
    entries = run.history.read()
    run, loss_of, notes = start(tmp_path, resume=str(tmp_path / "checkpoint-8"))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-4", "checkpoint-8"]
    assert "removed    checkpoint-12, checkpoint-15" in capsys.readouterr().out
    assert run.history.read() == entries[:4]
    train(run, loss_of)
    assert notes.labels == images_by_hand()[8:]
    assert without_waiting(run.history.read()) == without_waiting(entries)


def stopped_at_8(folder, **options) -> None:
    run, loss_of, _ = start(folder, **options)

    def interrupted(batch, update, micro):
        if update == 7:
            signal.raise_signal(signal.SIGTERM)
        return loss_of(batch, update, micro)

    with pytest.raises(TrainingStopped):
        train(run, interrupted)


def test_other_settings_are_refused_by_name_or_told(tmp_path, capsys):
    stopped_at_8(tmp_path, settings={"mask_ratio": 0.75, "seed": 3, "crop": (0.2, 1.0)})
    same = {"mask_ratio": 0.75, "seed": 3, "crop": [0.2, 1.0]}
    assert start(tmp_path, resume="auto", settings=same)[0].progress.update == 8
    changed = {**same, "mask_ratio": 0.5, "mean": [0.1]}
    with pytest.raises(
        UserError, match=r"other settings \(mask_ratio 0.75 -> 0.5; mean None -> \[0.1\]\).*--allow_changes"
    ):
        start(tmp_path, resume="auto", settings=changed)
    capsys.readouterr()
    run, _, _ = start(tmp_path, resume="auto", settings=changed, allow_changes=True)
    assert run.progress.update == 8
    assert capsys.readouterr().out == "changed    mask_ratio 0.75 -> 0.5\nchanged    mean None -> [0.1]\n"


def test_a_longer_run_goes_on_and_says_what_happens_to_the_rate(tmp_path, capsys):
    stopped_at_8(tmp_path)
    capsys.readouterr()
    longer = Schedule(updates=26, updates_per_epoch=UPDATES_PER_EPOCH, warmup=4, peak=0.2, floor=0.01)
    run, loss_of, notes = start(tmp_path, resume="auto", schedule=longer)
    new_rate = 0.01 + 0.19 * (1 + math.cos(math.pi * 4 / 22)) / 2
    expected = f"changed    length 15 -> 26 updates: .* {closed_form(8):.3e} -> {new_rate:.3e} at update 8\n"
    assert re.fullmatch(expected, capsys.readouterr().out)
    train(run, loss_of)
    assert len(notes.places) == 18 and notes.rates[0][0] == pytest.approx(new_rate)
    shorter = Schedule(updates=20, updates_per_epoch=UPDATES_PER_EPOCH, warmup=4, peak=0.2, floor=0.01)
    with pytest.raises(UserError, match="is at update 26, but the run has only 20: give more --num_train_epochs"):
        start(tmp_path, resume="auto", schedule=shorter)


def test_another_architecture_is_refused_by_the_first_tensor_that_differs(tmp_path, monkeypatch):
    stopped_at_8(tmp_path)
    monkeypatch.setitem(globals(), "make_model", lambda: torch.nn.Linear(2, 1))
    with pytest.raises(UserError, match=r"another architecture \(weight is \(1, 1\) there, \(1, 2\) here\)"):
        start(tmp_path, resume="auto")


class Bomb:
    """Unpickled, it makes a file: proof that a stranger's code has run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("module", [torch, pickle])
def test_a_crafted_optimizer_runs_nothing(tmp_path, module):
    stopped_at_8(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-8"
    with (checkpoint / "optimizer.bin").open("wb") as file:
        (module.save if module is torch else module.dump)(Bomb(tmp_path / "exploded"), file)
    write_manifest(checkpoint, read_manifest(checkpoint)["made_with"])  # the stranger's too, so that it fits
    with pytest.raises(UserError, match="checkpoint-8' cannot be loaded"):
        start(tmp_path / "run", resume="auto")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("micro_batch", [4, 2])
@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("DataLoader worker (pid(s) 77) exited unexpectedly"), "a loading worker died, mostly because"),
        (BadImage("a.png cannot be read: fix it"), "a.png cannot be read: fix it"),
        # as a loading worker's error arrives
        (
            BadImage("Caught BadImage in 0.\n  File x\nBadImage: a.png is cut off: fix it"),
            "a.png is cut off: fix it",
        ),
    ],
)
def test_a_run_without_images_stops_with_a_checkpoint_and_goes_on_exactly(tmp_path, micro_batch, error, words):
    whole, loss_of, _ = start(tmp_path / "whole", micro_batch)
    train(whole, loss_of)
    run, loss_of, _ = start(tmp_path / "parts", micro_batch)

    def fail_after(batches):
        yield from batches
        raise error

    # With two micro-batches an update, the first one of update 6 is there.
    run.batches, run.batches_can_fail = fail_after(list(run.batches)[: 5 if micro_batch == 4 else 11]), True
    run.model.register_buffer("seen", torch.zeros(1), persistent=False)

    def counted(batch, update, micro):
        run.model.seen += 1
        return loss_of(batch, update, micro)

    message = f"stopped after update 5 of 15: {words}.*Then --resume_from_checkpoint auto goes on from .*checkpoint-5"
    with pytest.raises(TrainingStopped, match=message) as stop:
        train(run, counted)
    assert stop.value.code == 1 and "\n" not in str(stop.value)
    assert run.model.seen == 5 * BATCH // micro_batch  # the micro-batches of whole updates
    run, loss_of, notes = start(tmp_path / "parts", micro_batch, resume="auto")
    train(run, loss_of)
    assert sum(notes.labels, []) == sum(images_by_hand()[5:], [])
    assert all(torch.equal(run.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())
    assert without_waiting(run.history.read()) == without_waiting(whole.history.read())


def test_a_run_without_its_first_images_starts_again(tmp_path):
    run, loss_of, _ = start(tmp_path)

    def fail():
        raise BadImage("a.png cannot be read: fix it")
        yield

    run.batches = fail()
    with pytest.raises(TrainingStopped, match="after update 0 of 15: a.png cannot be read: fix it. Then start again"):
        train(run, loss_of)
    assert checkpoints_in(tmp_path) == []


def test_going_on_with_another_accumulation_is_the_same_training(tmp_path):
    run, loss_of, _ = start(tmp_path, micro_batch=4)

    def interrupted(batch, update, micro):
        if update == 6:
            signal.raise_signal(signal.SIGTERM)
        return loss_of(batch, update, micro)

    with pytest.raises(TrainingStopped):  # after update 7: an odd number of micro-batches
        train(run, interrupted)
    run, loss_of, _ = start(tmp_path, micro_batch=2, resume="auto")
    train(run, loss_of)
    assert_same_weights(trained_by_hand()[0], run.model)


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    run, loss_of, _ = start(tmp_path)
    train(run, loss_of)
    run, loss_of, notes = start(tmp_path, resume="auto")
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    train(run, loss_of, lambda epoch, update: pytest.fail("an epoch ended again"))
    assert notes.places == [] and all(torch.equal(run.model.state_dict()[name], weights[name]) for name in weights)


def test_a_total_batch_that_the_images_do_not_fill(tmp_path):
    with pytest.raises(ValueError, match="total_batch_size 4 is more than the 3 images"):
        MemoryImages(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), (1, 1)).training_loader(
            seed=0, batch_size=4, total_batch_size=4, updates=range(1)
        )
