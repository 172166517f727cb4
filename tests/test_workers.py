"""Loading workers that cannot hand over their batches, or that deliver nothing."""

import os
import time

import psutil
import pytest
import torch
from torch.utils.data import Dataset

from modeling_mae.data.serve import worker as worker_module
from modeling_mae.data.serve.worker import WatchedLoader, mapped, shared_or, stop_asked
from modeling_mae.errors import UserError
from modeling_mae.training.endings import dead_worker


class Batches(Dataset):
    """Batch i holds i, three times. `act(i)` runs before it."""

    def __init__(self, act=lambda i: None, count=6):
        self.act, self.count = act, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.act(i)
        return {"images": torch.full((2, 3), i, dtype=torch.uint8), "labels": torch.tensor([i])}


def full(self):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_copied_where_shared_memory_is_full(monkeypatch, workers):
    expected = [batch["images"][0, 0].item() for batch in WatchedLoader(Batches(), workers)]
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # the workers are forked, and have it too
    batches = list(WatchedLoader(Batches(), workers))
    assert [batch["images"][0, 0].item() for batch in batches] == expected == list(range(6))
    for i, batch in enumerate(batches):
        assert batch["images"].tolist() == [[i] * 3] * 2 and batch["labels"].tolist() == [i]
        batch["images"] += 1  # a tensor like any other


def test_flags_of_workers_need_no_shared_memory(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    flags = shared_or(mapped, torch.zeros(5, dtype=torch.bool))
    assert flags.tolist() == [False] * 5

    def mark(i):
        flags[i] = True

    list(WatchedLoader(Batches(mark, 3), 1))
    assert flags.tolist() == [True, True, True, False, False]


def test_a_worker_whose_batch_cannot_be_sent_ends(capfd):
    class Unsendable(Batches):
        def __getitem__(self, i):
            return lambda: i  # nobody can pickle it

    with pytest.raises(RuntimeError) as died:
        list(WatchedLoader(Unsendable(), 1))
    assert dead_worker(died.value)
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("loading worker 0 cannot hand over its batch (")


def test_a_silent_worker_is_named_and_a_signal_ends_the_waiting(monkeypatch, capfd):
    for name, seconds in (("LOOK_SECONDS", 0.2), ("NEWS_SECONDS", 0.5), ("STOP_SECONDS", 1)):
        monkeypatch.setattr(worker_module, name, seconds)
    loader = iter(WatchedLoader(Batches(lambda i: time.sleep(1.2 if i == 1 else 0)), 2))
    assert next(loader)["labels"].item() == 0
    assert next(loader)["labels"].item() == 1  # slow, and it came
    line = capfd.readouterr().out.splitlines()[0]
    assert line.startswith("waiting    loading worker 1 (process ") and " has delivered nothing for " in line
    assert [batch["labels"].item() for batch in loader] == [2, 3, 4, 5]

    def stop_for_ever(i):
        if i == 2:
            time.sleep(0.5)  # the batch before is on its way
            os.kill(os.getpid(), 19)  # SIGSTOP: it lives, and does nothing

    others = psutil.Process().children()  # such as the fork server
    loader = iter(WatchedLoader(Batches(stop_for_ever), 2))
    assert [next(loader)["labels"].item() for _ in range(2)] == [0, 1]
    workers = [child for child in psutil.Process().children() if child not in others]
    assert len(workers) == 2
    stop_asked.set()
    try:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"^loading worker 0 \(process \d+\) has delivered nothing .* to stop$"):
            next(loader)
        assert time.monotonic() - began < 10
    finally:
        stop_asked.clear()
    psutil.wait_procs(workers, timeout=10)
    assert not [child for child in workers if child.is_running() and child.status() == psutil.STATUS_STOPPED]


def test_another_error_that_speaks_of_time_is_raised(monkeypatch):
    def late(i):
        raise RuntimeError("Read timed out")

    with pytest.raises(RuntimeError, match="Read timed out"):
        list(WatchedLoader(Batches(late), 1))
