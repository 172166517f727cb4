"""Decoded images in one memory-mapped file that all training processes and loading workers of a machine share.

The file has no name as soon as all have opened it. So the system removes it with the last process that holds it,
however that one ends.
"""

import mmap
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ...errors import UserError
from ..read.arrays import cell_of
from .worker import WatchedLoader


ENTRY = 5  # int64 of each image: place, channels, height, width, whole
PLACE, SHAPE, WHOLE = 0, slice(1, 4), 4
WORD = 8  # bytes of an int64
PIECE = 500  # images that a process decodes at a time


@dataclass(frozen=True)
class Machine:
    """The training processes of this machine, and how they talk. All processes of the run must call these together."""

    rank: int = 0
    first_rank: int = 0  # of the processes of this machine
    count: int = 1  # of the processes of this machine
    gather: Callable[[Any], list] = lambda value: [value]  # the values of all processes of the run, by rank
    alone: bool = True  # a run of one process

    @property
    def first(self) -> bool:
        return self.rank == self.first_rank

    def from_first(self, value: Any) -> Any:
        """The value that the first process of this machine gives."""
        return self.gather(value if self.first else None)[self.first_rank]


@dataclass(frozen=True)
class Memory:
    """Where decoded images are kept: `budget` bytes for each machine. Its loading workers may fill them."""

    budget: int = 0
    machine: Machine = Machine()
    num_workers: int = 0


class SharedFile:
    """Bytes that the processes of a machine and their loading workers see."""

    def __init__(self, descriptor: int, size: int):
        self.descriptor, self.size = descriptor, size
        self.map = mmap.mmap(descriptor, size)
        weakref.finalize(self, os.close, descriptor)

    def __reduce__(self):  # to a loading worker that is started anew, not forked
        return _from_parent, (DupFd(self.descriptor), self.size)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, place: int = 0) -> torch.Tensor:
        """The bytes from `place` on as a tensor that shares them."""
        count = int(np.prod(shape))
        return torch.frombuffer(self.map, dtype=dtype, count=count, offset=place).view(*shape)


def _from_parent(duplicate: Any, size: int) -> SharedFile:
    return SharedFile(duplicate.detach(), size)


def share_file(size: int, machine: Machine) -> SharedFile | None:
    """`size` bytes, zeros, that all processes of this machine share; None if one process of the run cannot."""
    path = machine.from_first(_new_file(size) if machine.first else None)
    shared = None
    if path is not None:
        with suppress(OSError):  # the processes may see different folders
            shared = SharedFile(os.open(path, os.O_RDWR | getattr(os, "O_TEMPORARY", 0)), size)
    all_share = all(machine.gather(shared is not None))
    if path is not None and machine.first:
        with suppress(OSError):  # Windows removes it when the last process closes it
            os.unlink(path)
    return shared if all_share else None


def _new_file(size: int) -> str | None:
    """A temporary file of `size` bytes; None if there is no room for it."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="mae-images-")
    except OSError:
        return None
    try:
        if shutil.disk_usage(path).free < size:
            raise OSError("no room")
        if hasattr(os, "posix_fallocate"):  # without it, a disk that gets full would kill the process
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.truncate(descriptor, size)
        return path
    except OSError:
        os.unlink(path)
        return None
    finally:
        os.close(descriptor)


class KeptImages:
    """Decoded images by their number, as many as fit, each kept by a process that decoded it.

    Each process of the `machine` writes into a part of its own, and all read all parts. Two processes that decode the
    same image at the same time both write it. That is harmless: the entry of an image says the same, whoever wrote it.
    """

    def __init__(self, file: SharedFile, count: int, dtype: torch.dtype, machine: Machine):
        self.file, self.dtype, self.count, self.processes = file, dtype, count, machine.count
        self.process = machine.rank - machine.first_rank
        start = self.bytes_for(count, 0, machine)
        part = (file.size - start) // machine.count // WORD * WORD
        self.start, self.end = start + self.process * part, start + (self.process + 1) * part
        self.lock = get_context().Lock()  # of the loading workers of this process

    @staticmethod
    def bytes_for(count: int, budget: int, machine: Machine) -> int:
        """The bytes for `count` images of `budget` bytes together, their entries, and the end of each part."""
        return WORD * (machine.count + ENTRY * count) + budget

    @property
    def _filled(self) -> np.ndarray:  # (processes,)
        return np.frombuffer(self.file.map, np.int64, self.processes)

    @property
    def _entries(self) -> np.ndarray:  # (count, ENTRY)
        entries = np.frombuffer(self.file.map, np.int64, ENTRY * self.count, WORD * self.processes)
        return entries.reshape(self.count, ENTRY)

    def get(self, index: int) -> tuple[torch.Tensor, bool] | None:
        """(image ``(channels, height, width)``, whether it is whole under every crop), or None."""
        entry = self._entries[index]
        if not entry[PLACE]:
            return None
        return self.file.tensor(tuple(entry[SHAPE].tolist()), self.dtype, int(entry[PLACE])), bool(entry[WHOLE])

    def put(self, index: int, image: torch.Tensor, whole: bool) -> None:
        """Keep a decoded image if there is room. `whole`: no crop would have it decoded at reduced size."""
        entry = self._entries[index]
        entry[WHOLE] |= whole
        place = None if entry[PLACE] else self._reserve(image.nbytes)
        if place is not None:
            self.file.tensor(tuple(image.shape), self.dtype, place).copy_(image)
            entry[SHAPE] = image.shape
            with self.lock:  # orders the writes: the place comes after all else
                entry[PLACE] = place

    def _reserve(self, size: int) -> int | None:
        size = -(-size // WORD) * WORD  # each image begins where any type may
        filled = self._filled
        with self.lock:
            place = int(filled[self.process]) or self.start
            if place + size > self.end:
                return None
            filled[self.process] = place + size
            return place


class Pieces(Dataset):
    """The files in pieces of `PIECE`. Reading a piece writes its images into ``pixels (images, channels, height,
    width)`` and gives the images that cannot be read; None if one has another shape."""

    def __init__(self, pixels: torch.Tensor, files):
        self.pixels, self.files = pixels, files
        self.column = files.source.image_column
        self.rows = files.source.dataset.select_columns([self.column])

    def __len__(self) -> int:
        return -(-len(self.files) // PIECE)

    def __getitem__(self, piece: int) -> list[int] | None:
        unread, start = [], piece * PIECE
        for i, cell in enumerate(map(cell_of, self.rows[start : start + PIECE][self.column]), start):
            try:
                image, gone = self.files.decode(cell["bytes"], cell["path"])
            except UserError:
                unread.append(i)
                continue
            if image.shape != self.pixels.shape[1:]:
                return None
            self.pixels[i] = image
            if gone is not None:
                self.files.incomplete[i] = True
        return unread


def fill(pixels: torch.Tensor, files, num_workers: int) -> torch.Tensor | None:
    """Decode all `files` into ``pixels (images, channels, height, width)``. Gives which image stands where
    ``(images,)``; None if one has another shape. `num_workers` processes need pixels in a shared file; 0 takes this
    process.

    Raises:
        UserError: a file is bad, and bad images are errors.
    """
    num_workers = num_workers if sys.platform == "linux" else 0  # elsewhere, workers would get copies of the pixels
    forked = "fork" if num_workers else None
    loader = WatchedLoader(Pieces(pixels, files), num_workers, multiprocessing_context=forked)
    stand_ins = torch.arange(len(files))
    for unread in loader:
        if unread is None:
            return None
        for i in unread:  # here, so that messages come in order and once
            image, stand_ins[i] = files.read_whole(i)
            if image.shape != pixels.shape[1:]:
                return None
            pixels[i] = image
    return stand_ins
