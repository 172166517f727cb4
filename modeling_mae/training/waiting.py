"""Measures how long a training waits for images."""

import time

import torch


WORTH_ADVICE = 0.1  # share of the time


class Waiting:
    """A clock around each call that may wait for images: ``with waiting: ...``.

    On a GPU, only the time in which it is idle counts, from the end of its work until the process has the next batch:
    the GPU may still be busy while the process waits.
    """

    def __init__(self, device: torch.device):
        # torch.cuda, torch.xpu, torch.mps
        self.gpu = None if device.type == "cpu" else torch.get_device_module(device.type)
        self.seconds = 0.0  # since the last reading
        self.total = 0.0
        self.since = self.began = time.perf_counter()
        self.marks: list[tuple] = []  # the GPU's events before and after a call

    def __enter__(self) -> "Waiting":
        self.before = self._mark()
        return self

    def __exit__(self, *_) -> None:
        after = self._mark()
        if self.gpu is not None:
            self.marks.append((self.before, after))
        else:
            self.seconds += after - self.before

    def _mark(self):
        if self.gpu is None:
            return time.perf_counter()
        event = self.gpu.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> float:
        """The share of the time since the last reading, 0 to 1. This call waits for the GPU."""
        for before, after in self.marks:
            after.synchronize()
            self.seconds += before.elapsed_time(after) / 1000
        self.marks.clear()
        self.total += self.seconds
        now = time.perf_counter()
        share = min(1.0, self.seconds / max(now - self.since, 1e-9))
        self.seconds, self.since = 0.0, now
        return share

    def overall(self) -> float:
        """The share of the whole time up to the last reading."""
        return min(1.0, self.total / max(self.since - self.began, 1e-9))


def describe_waiting(share: float, workers: int, spare_cores: int, in_memory: bool) -> str:
    """A line for the end of a training that waited for `share` of its time, with advice."""
    line = f"waiting    {share:.0%} of the time waiting for images"
    if share < WORTH_ADVICE:
        return line
    if in_memory:
        return f"{line}, although they are in memory: the model is small compared to the work of gathering them"
    more = f"more --dataloader_num_workers than {workers}" if spare_cores > 0 else "more cores"
    return f"{line}: {more}, a larger --image_cache, --repeated_augmentation 2 in pre-training, or smaller files"
