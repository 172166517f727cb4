"""What trial updates tell, and that they leave no trace in a run."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from modeling_mae.errors import UserError
from modeling_mae.training import trials
from modeling_mae.training.optim import OptimizerSettings
from modeling_mae.training.trials import Trial, batch_sizes, find_batch_size, fit_epochs
from modeling_mae.training.tuning import TuningSettings


# 96 images an update, on 2 processes 48 each
@pytest.mark.parametrize(
    "total, start, processes, sizes",
    [
        (96, 24, 2, [24, 16, 8, 4, 2, 1]),
        (48, 48, 1, [48, 16, 8, 4, 2, 1]),  # 32 does not divide 48
        (100, 50, 1, [50, 4, 2, 1]),
        (64, 64, 4, [16, 8, 4, 2, 1]),
        (64, 8, 3, [8]),  # nothing comes out even: the error of split_batch names what would
    ],
)
def test_sizes_that_keep_the_total_batch(total, start, processes, sizes):
    assert batch_sizes(total, start, processes) == sizes


@pytest.fixture(autouse=True)
def mps(monkeypatch):
    """A stand-in for the random state of Apple's GPU."""
    state = SimpleNamespace(drawn=0)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state.drawn)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda drawn: setattr(state, "drawn", drawn))
    return state


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Device(str):
    """A device's name that torch takes for the CPU, of a kind that can run out of memory."""

    type, index = "mps", None


def find(fits, others=(), error=FULL):
    """`find_batch_size` where `fits` images at a time fit here, and `others` in the other processes."""
    tried = []

    class Model(torch.nn.Linear):
        config = SimpleNamespace(num_channels=2, image_height_width=(3, 4))

        def forward(self, pixel_values):
            tried.append(len(pixel_values))
            assert pixel_values.shape[1:] == (2, 3, 4)
            torch.rand(1)  # a mask
            torch.mps.set_rng_state(torch.mps.get_rng_state() + 1)
            if len(pixel_values) > fits:
                raise error
            return SimpleNamespace(loss=super().forward(pixel_values).sum())

    accelerator = SimpleNamespace(
        device=Device("cpu"),
        distributed_type="NO",
        num_processes=1,
        gather=lambda value: torch.cat([value, torch.tensor(others, dtype=value.dtype)]),
        print=print,
    )
    model = Model(4, 1)
    state = torch.get_rng_state()
    found = find_batch_size(accelerator, model, total=96, start=48)
    assert torch.equal(torch.get_rng_state(), state) and torch.mps.get_rng_state() == 0 and model.weight.grad is None
    return found, tried


def test_the_batch_size_is_the_largest_that_fits_in_every_process():
    assert find(fits=100) == (48, [48])
    assert find(fits=20) == (16, [48, 32, 16])
    assert find(fits=20, others=[8, 32]) == (8, [48, 32, 16])
    with pytest.raises(UserError, match="not even one image"):
        find(fits=0)
    with pytest.raises(UserError, match="not even one image"):
        find(fits=20, others=[-1])  # nothing fits in another process


def test_another_error_is_not_taken_for_full_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        find(fits=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_on_a_cpu_nothing_is_tried(capsys):
    accelerator = SimpleNamespace(device=torch.device("cpu"), print=print)
    assert find_batch_size(accelerator, torch.nn.Linear(3, 2), 96, 48) == 48
    assert "only works on a GPU: 48 images at a time stay" in capsys.readouterr().out


class TimedModel(torch.nn.Module):
    """Stands in for a masked autoencoder. `each` is called in every forward pass."""

    def __init__(self, each=lambda: None):
        super().__init__()
        self.layer, self.dropout, self.each = torch.nn.Linear(2, 1), torch.nn.Dropout(0.5), each
        self.config = SimpleNamespace(num_hidden_layers=1)

    def forward(self, pixel_values):
        self.each()
        return SimpleNamespace(loss=self.dropout(self.layer(pixel_values)).square().mean())


def trial_of(monkeypatch, accelerator, each):
    monkeypatch.setattr(trials, "MAEForPreTraining", lambda config: TimedModel(each))
    return Trial(accelerator, None, OptimizerSettings(weight_decay=0.1), TuningSettings())


def test_a_trial_leaves_no_trace(monkeypatch):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(3)
    images = torch.randn(3, 2)
    random, calls = torch.get_rng_state(), []
    trial = trial_of(monkeypatch, accelerator, lambda: calls.append(len(calls)))
    # A clock of the test: the first updates take 5 s, the others 1 s. It is read before the first and after each.
    moments = itertools.accumulate(itertools.chain([0, 5, 5], itertools.repeat(1)))
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    seconds = trial.seconds_per_update(itertools.repeat({"images": images}), lambda b: b["images"], 72)
    # A trial takes at most 60 s: 5 + 5 + 51 x 1 is the first beyond
    assert seconds == 1 and len(calls) == 53 * 2
    trial.close()
    assert torch.equal(torch.get_rng_state(), random) and accelerator.step == 0
    assert accelerator._models == accelerator._optimizers == []


@pytest.mark.parametrize("each, updates", [(100, 3), (0.001, 100)])
def test_a_trial_has_at_least_three_updates_and_at_most_a_hundred(monkeypatch, each, updates):
    done = []
    trial = trial_of(monkeypatch, Accelerator(cpu=True), lambda: done.append(None))
    moments = itertools.count(0, each)
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    seconds = trial.seconds_per_update([torch.ones(1, 2)] * updates, lambda batch: batch, 72)
    assert seconds == pytest.approx(each) and len(done) == updates


def test_epochs_that_fit_into_the_hours():
    # 57 of 60 minutes are there for epochs and looks
    assert fit_epochs(1, 800, 60) == 57
    assert fit_epochs(1, 57, 60) == 57 and fit_epochs(1, 10.5, 60) == 10.5  # all that are wanted
    # An epoch that takes long is not left out: 57 minutes are 1.425 epochs of 40, and 0.35 of 160.
    assert fit_epochs(1, 800, 40 * 60) == 1.42 and fit_epochs(1, 800, 160 * 60) == 0.35
    assert fit_epochs(0.001, 800, 60) == 0.05  # 3.42 of 60 seconds
    assert fit_epochs(0.0001, 800, 60) == 0.01 and fit_epochs(1e-6, 800, 60) == 0.01
    assert fit_epochs(0.001, 0.03, 60) == 0.03 and fit_epochs(0.001, 0.005, 3600) == 0.005
    # A look takes a minute: one before, and one every ten epochs and at the end. 50 + 1 + 5 = 56; 51 + 1 + 6 = 58.
    assert fit_epochs(1, 800, 60, seconds_per_measurement=60, epochs_between_measurements=10) == 50
    assert fit_epochs(1, 800, 60, other_seconds=60 * 27) == 30


def test_the_clock_is_a_real_one(monkeypatch):
    trial = trial_of(monkeypatch, Accelerator(cpu=True), lambda: time.sleep(0.05))
    seconds = trial.seconds_per_update([torch.ones(1, 2)] * 100, lambda batch: batch, 0.07)
    assert 0.05 <= seconds < 1
