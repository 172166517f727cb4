"""Loading workers: their start, how they hand batches over, and how long one is waited for."""

import errno
import mmap
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from ...errors import UserError


LOOK_SECONDS = 5  # between two looks at what is going on while a batch is awaited
NEWS_SECONDS = 120  # without a batch, after which a line says so
STOP_SECONDS = 20  # that a batch is still awaited when the run is asked to stop

stop_asked = threading.Event()  # set by a signal that asks the run to stop


def prepare_worker(worker: int) -> None:
    """End a worker that cannot hand over a batch, which would be awaited for ever.

    Say nothing when the training process has gone away: that one says in one line why it ended.
    """
    print_traceback = sys.excepthook

    def without_lost_connections(kind, error, trace) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            print_traceback(kind, error, trace)

    def end(error: BaseException, batch: Any) -> None:
        if not isinstance(error, (ConnectionError, EOFError)):
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"loading worker {worker} cannot hand over its batch ({reason})", file=sys.stderr, flush=True)
        os._exit(1)

    sys.excepthook = without_lost_connections  # of the thread that hands over memory
    # Python's own prints a traceback, and goes on without the batch.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


class _Copied:
    """A tensor that comes out of another process's queue as a copy. It needs no shared memory."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self):
        return torch.from_numpy, (self.tensor.numpy(),)


def handed_over(batch: Any) -> Any:
    """A batch as a worker hands it over: in shared memory, or as a copy where that is full. Docker gives 64 MB of it.

    torch would move it there as well, but only in the thread of the queue, which loses a batch that does not fit.
    """
    if get_worker_info() is None or not isinstance(batch, dict):
        return batch
    return {key: shared_or(_Copied, tensor) for key, tensor in batch.items()}


def shared_or(stand_in: Callable[[torch.Tensor], Any], tensor: torch.Tensor) -> Any:
    """The tensor in shared memory, or what `stand_in` makes of it if that is full."""
    try:
        return tensor.share_memory_()
    except RuntimeError:  # torch has no class of its own for it
        return stand_in(tensor)


def mapped(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros like `tensor`, in memory that forked workers share. It is not bounded as /dev/shm is."""
    memory = mmap.mmap(-1, max(1, tensor.nbytes))
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)


class _Watch(threading.Thread):
    """Names a worker that delivers nothing for minutes, and ends all of them when the run is to stop.

    A thread, because the process itself may wait inside of a call: for the rest of a batch, from a worker that is held
    up while it hands one over.
    """

    def __init__(self, workers: list):
        super().__init__(daemon=True)
        self.workers, self.count = workers, 0  # batches that were delivered
        self.since: float | None = None  # when the process began to wait for the next
        self.given_up: str | None = None  # why the workers were ended
        self.ended = threading.Event()

    def run(self) -> None:
        told = 0.0
        while not self.ended.wait(LOOK_SECONDS):
            since, now = self.since, time.monotonic()
            if since is None:
                continue
            number = self.count % len(self.workers)  # batches are dealt to the workers in turn
            who = f"loading worker {number} (process {self.workers[number].pid})"
            silent = f"{who} has delivered nothing for {now - since:.0f} s"
            if stop_asked.is_set() and now - since > STOP_SECONDS:
                self.given_up = f"{silent}, and the run is asked to stop"
                for worker in self.workers:
                    worker.kill()  # one that is held up would not end by itself
                return
            if now - max(since, told) >= NEWS_SECONDS:
                told = now
                print(f"waiting    {silent}: a slow or dead disk or network, or a very large file", flush=True)


class WatchedLoader(DataLoader):
    """A loader whose workers are watched while a batch is awaited."""

    def __init__(self, dataset, num_workers: int, **options):
        super().__init__(
            dataset,
            batch_size=None,  # the sampler, or the data set, makes the batches
            num_workers=num_workers,
            collate_fn=handed_over,
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),  # of its own: the global one must stand where a checkpoint left it
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's own class is private
        try:
            batches = super().__iter__()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                "/dev/shm is full, where loading workers need some room: give more (docker run --shm-size=1g), or "
                "--dataloader_num_workers 0"
            ) from error
        # A generator would start the workers only with the first batch.
        return self._watched(batches) if self.num_workers else batches

    def _watched(self, batches: Any) -> Iterator[Any]:
        watch = _Watch(batches._workers)
        watch.start()
        try:
            while True:
                watch.since = time.monotonic()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                watch.since, watch.count = None, watch.count + 1
                yield batch
        except Exception as error:
            if watch.given_up is None:
                raise
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the end of the others is not an error
            raise UserError(watch.given_up) from error
        finally:
            watch.ended.set()
