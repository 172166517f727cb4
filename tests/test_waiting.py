from types import SimpleNamespace

import pytest
import torch

from modeling_mae.training.waiting import Waiting, describe_waiting


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_gpu_waits_only_while_it_has_nothing_to_do(monkeypatch, kind):
    """A made-up GPU: each call finds it idle for the seconds given here, whatever the process's own clock says."""
    clock, idle = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.time = None

        def record(self):
            self.time = clock[0]

        def synchronize(self):
            idle.append(self)

        def elapsed_time(self, after):
            return 1000 * gaps[len(idle) - 1]  # milliseconds

    monkeypatch.setattr("modeling_mae.training.waiting.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(getattr(torch, kind), "Event", Event)
    waiting, gaps = Waiting(torch.device(kind)), [0.0, 0.5, 1.5]
    for _ in gaps:
        with waiting:
            clock[0] += 2  # the process waits longer than the GPU does
    clock[0] += 2
    assert waiting.read() == pytest.approx(2 / 8) and len(idle) == 3
    clock[0] += 2
    assert waiting.read() == 0 and waiting.overall() == pytest.approx(2 / 10)


def test_advice_is_given_where_waiting_matters():
    assert describe_waiting(0.02, 2, 8, False) == "waiting    2% of the time waiting for images"
    with_cores = describe_waiting(0.38, 2, 8, False)
    assert with_cores.startswith("waiting    38% of the time waiting for images: more --dataloader_num_workers than 2")
    without = describe_waiting(0.38, 2, 0, False)
    assert "--dataloader_num_workers" not in without and "--image_cache" in without
    assert "--" not in describe_waiting(0.38, 0, 8, True)  # nothing is decoded
