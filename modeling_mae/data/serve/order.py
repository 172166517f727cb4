"""Which image comes when: a pure function of (seed, position), where the position is the number of images consumed.

Resuming needs only the number of updates done. The number of processes and loading workers changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from ...errors import UserError


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The permutation of the images ``(num_images,)`` that epoch `epoch` goes through."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


class UpdateOrder(Protocol):
    """Which images each update takes."""

    @property
    def total_batch_size(self) -> int: ...

    @property
    def updates_per_epoch(self) -> int: ...

    def images_of(self, update: int) -> tuple[int | np.ndarray, np.ndarray]:
        """(epoch, indices ``(total_batch_size,)``) of an update, counted from 0. The epoch is one for all, or one for
        each image."""
        ...


@dataclass(frozen=True)
class Order:
    """The images of each update. What does not fill the last update of an epoch is left out of that epoch; every
    epoch leaves out others.

    Raises:
        UserError: an epoch has no whole update.
    """

    num_images: int
    total_batch_size: int
    seed: int

    def __post_init__(self):
        check_total_batch(self.total_batch_size, self.num_images)

    @property
    def updates_per_epoch(self) -> int:
        return self.num_images // self.total_batch_size

    def images_of(self, update: int) -> tuple[int, np.ndarray]:
        """(epoch, indices ``(total_batch_size,)``) of an update, counted from 0."""
        epoch, place = divmod(update, self.updates_per_epoch)
        order = epoch_order(self.seed, epoch, self.num_images)
        return epoch, order[place * self.total_batch_size : (place + 1) * self.total_batch_size]


class MicroBatches(Sampler[tuple[int | list[int], list[int]]]):
    """(epoch, indices) of each micro-batch of one process, over the `updates`. In a mixture each image has an epoch of
    its own.

    Micro-batch m of process p is number m * processes + p of its update: as many as `total_batch_size` holds are dealt
    to the processes in turn. Each image of the order stands in its micro-batch `repeats` times, side by side.

    Raises:
        UserError: the numbers do not fit each other.
    """

    def __init__(
        self,
        order: UpdateOrder,
        batch_size: int,
        updates: range,
        process_index: int = 0,
        num_processes: int = 1,
        repeats: int = 1,
    ):
        split_batch(order.total_batch_size * repeats, batch_size, num_processes)
        self.order, self.batch_size, self.updates = order, distinct_images(batch_size, repeats), updates
        self.process_index, self.num_processes, self.repeats = process_index, num_processes, repeats

    def __len__(self) -> int:
        return len(self.updates) * (self.order.total_batch_size // (self.batch_size * self.num_processes))

    def __iter__(self) -> Iterator[tuple[int | list[int], list[int]]]:
        for update in self.updates:
            epoch, indices = self.order.images_of(update)
            for first in range(
                self.process_index * self.batch_size, len(indices), self.num_processes * self.batch_size
            ):
                piece = slice(first, first + self.batch_size)
                in_piece = np.repeat(epoch[piece], self.repeats).tolist() if isinstance(epoch, np.ndarray) else epoch
                yield in_piece, np.repeat(indices[piece], self.repeats).tolist()


def distinct_images(batch_size: int, repeats: int) -> int:
    """The number of different images in a batch that has each of them `repeats` times.

    Raises:
        UserError: the batch is not a multiple of `repeats`.
    """
    if batch_size % repeats:
        raise UserError(f"a batch of {batch_size} images is not a multiple of repeated_augmentation {repeats}")
    return batch_size // repeats


def check_total_batch(total: int, num_images: int) -> None:
    """Raises a UserError if `num_images` are too few for one update."""
    if total > num_images:
        raise UserError(f"total_batch_size {total} is more than the {num_images} images there are: give a smaller one")


def split_batch(total: int, per_device: int, processes: int) -> int:
    """Accumulation steps, so that `total` images an update are `per_device` at a time on each of `processes`.

    Raises:
        UserError: `total` is not a multiple of `per_device * processes`; names the nearest numbers that work.
    """
    at_once = per_device * processes
    if total % at_once == 0:
        return total // at_once
    totals = [n for n in (total // at_once * at_once, (total // at_once + 1) * at_once) if n > 0]
    remedy = f"--total_batch_size {' or '.join(map(str, totals))}"
    if total % processes == 0:
        fitting = [n for n in range(1, total // processes + 1) if total // processes % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - per_device))
        remedy += f", or --per_device_train_batch_size {nearest}"
    raise UserError(
        f"total_batch_size {total} is not a multiple of {processes} processes x per_device_train_batch_size "
        f"{per_device} = {at_once}; the nearest that work: {remedy}"
    )
