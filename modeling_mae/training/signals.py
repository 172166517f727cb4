"""The signals that ask a training to stop."""

import ctypes
import signal
import sys
import time
from typing import Any

import torch
from accelerate import Accelerator

from .launch import started_by_launcher


PR_SET_PDEATHSIG = 1  # an option of Linux's prctl
# SIGHUP: the terminal is gone. SIGUSR1: SLURM's warning before the time limit (`--signal USR1@60`).
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """A signal to stop, kept until the end of the update and shared with all processes."""

    def __init__(self, accelerator: Accelerator):
        self.signal, self.noted_at = 0, 0.0
        # A separate CPU group, because a collective on the GPUs at every update would wait for their queues.
        self.group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        self.previous_handlers: dict[int, Any] = {}

    def __enter__(self):
        for signal_number in STOP_SIGNALS:
            if signal.getsignal(signal_number) != signal.SIG_IGN:  # keep nohup's choice to ignore SIGHUP
                self.previous_handlers[signal_number] = signal.signal(signal_number, self._note)
        self._end_with_the_launcher()
        return self

    def __exit__(self, *_):
        for signal_number, handler in self.previous_handlers.items():
            signal.signal(signal_number, handler)

    def _note(self, signal_number, frame):
        # A second Ctrl-C stops at once. But launchers repeat the first one to processes that already have it.
        if self.signal and signal_number == signal.SIGINT and time.monotonic() - self.noted_at > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.noted_at = signal_number, time.monotonic()

    @staticmethod
    def _end_with_the_launcher() -> None:
        # With one process, `accelerate launch` does not pass signals on. Linux can send one when the launcher ends.
        if sys.platform == "linux" and started_by_launcher():
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def agreed(self) -> int:
        """The number of a signal that any process got, or 0."""
        return self.largest(self.signal)

    def largest(self, number: int) -> int:
        """The largest `number` of all processes. All must call this at the same point of the training."""
        if self.group is None:
            return number
        flag = torch.tensor(number)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self.group)  # type: ignore[arg-type]  # of torch's own
        return int(flag)
