"""Decoded images in memory that all training processes and loading workers of a machine share: one copy for all.

The memory has no name in the file system. The system takes it back with the last process that holds it, however that
one ends, and the size of /dev/shm does not matter.
"""

import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch


with suppress(ImportError):  # of Windows, where no memory is shared
    import fcntl

ENTRY = 5  # int64 of each image: place, channels, height, width, whole
PLACE, SHAPE, WHOLE = 0, slice(1, 4), 4
WORD = 8  # bytes of an int64


@dataclass(frozen=True)
class Machine:
    """The training processes of this machine, and how they talk. All processes of the run must call these together."""

    alone: bool = True  # a run of one process
    rank: int = 0
    first_rank: int = 0  # of the processes of this machine
    gather: Callable[[Any], list] = lambda value: [value]  # the values of all processes of the run, by rank

    @property
    def first(self) -> bool:
        return self.rank == self.first_rank

    def from_first(self, value: Any) -> Any:
        """The value that the first process of this machine gives."""
        return self.gather(value if self.first else None)[self.first_rank]


class SharedMemory:
    """Bytes that the processes of a machine and their loading workers see. Only what is written takes memory."""

    def __init__(self, descriptor: int, size: int):
        self.descriptor, self.size = descriptor, size
        self.map = mmap.mmap(descriptor, size)
        weakref.finalize(self, os.close, descriptor)

    def __reduce__(self):  # to a loading worker that is started anew, not forked
        return _from_parent, (DupFd(self.descriptor), self.size)

    @property
    def path(self) -> str:
        """Where another process of the machine opens it."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, place: int = 0) -> torch.Tensor:
        """The bytes from `place` on as a tensor that shares them."""
        count = int(np.prod(shape))
        return torch.frombuffer(self.map, dtype=dtype, count=count, offset=place).view(*shape)


def _from_parent(duplicate, size: int) -> SharedMemory:
    return SharedMemory(duplicate.detach(), size)


def share_memory(size: int, machine: Machine) -> SharedMemory | None:
    """`size` bytes, zeros, that all processes of this machine share; None where any of the run cannot."""
    memory = _new_memory(size) if machine.first else None
    path = machine.from_first(memory.path if memory is not None else None)
    if memory is None and path is not None:
        try:
            memory = SharedMemory(os.open(path, os.O_RDWR), size)
        except OSError:  # the processes are kept apart
            memory = None
    return memory if all(machine.gather(memory is not None)) else None


def _new_memory(size: int) -> SharedMemory | None:
    try:
        descriptor = os.memfd_create("images")
        os.ftruncate(descriptor, size)
        return SharedMemory(descriptor, size)
    except (AttributeError, OSError):  # not Linux; no room for the addresses
        return None


class KeptImages:
    """Decoded images by their number, as many as fit, each kept by the process that first decoded it."""

    def __init__(self, memory: SharedMemory, count: int, dtype: torch.dtype):
        self.memory, self.dtype, self.count = memory, dtype, count
        self.start = self.bytes_for(count, 0)  # where the images begin; the first word says where they end

    @staticmethod
    def bytes_for(count: int, budget: int) -> int:
        """What `count` images of `budget` bytes in all take, with the list of them."""
        return WORD * (1 + ENTRY * count) + budget

    @property
    def _entries(self) -> np.ndarray:  # (count, ENTRY)
        return np.frombuffer(self.memory.map, np.int64, ENTRY * self.count, WORD).reshape(self.count, ENTRY)

    def get(self, index: int) -> tuple[torch.Tensor, bool] | None:
        """(image ``(channels, height, width)``, whether it is whole under every crop), or None."""
        entry = self._entries[index]
        if not entry[PLACE]:
            return None
        return self.memory.tensor(tuple(entry[SHAPE].tolist()), self.dtype, int(entry[PLACE])), bool(entry[WHOLE])

    def put(self, index: int, image: torch.Tensor, whole: bool) -> None:
        """Keep a decoded image, where there is room. `whole`: no crop would have it decoded at reduced size."""
        entry = self._entries[index]
        entry[WHOLE] |= whole
        place = None if entry[PLACE] else self._reserve(image.nbytes)
        if place is not None:
            self.memory.tensor(image.shape, self.dtype, place).copy_(image)
            with self._lock():  # and not before all of it is written
                entry[SHAPE] = image.shape
                entry[PLACE] = place

    def _reserve(self, size: int) -> int | None:
        size = -(-size // WORD) * WORD  # each image begins where any type may
        end = np.frombuffer(self.memory.map, np.int64, 1)
        with self._lock():
            place = int(end[0]) or self.start
            if place + size > self.memory.size:
                return None
            end[0] = place + size
            return place

    @contextmanager
    def _lock(self) -> Iterator[None]:
        fcntl.lockf(self.memory.descriptor, fcntl.LOCK_EX)  # workers and processes exclude each other
        try:
            yield
        finally:
            fcntl.lockf(self.memory.descriptor, fcntl.LOCK_UN)
