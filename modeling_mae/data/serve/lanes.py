"""Which image of a stream comes when: a pure function of (seed, position) and of the number of images in each unit.

A unit is what is read at once: a row group of a parquet file, or a tar file. The units of an epoch stand in an order
drawn from (seed, epoch). A few neighbours make a block, and the images of a block are mixed. This gives one long row
of images, which is cut into `LANES` lanes. Each update takes a piece of every lane, so that it mixes many units, while
few are open at a time.

A lane may end in the middle of a unit. So all lanes are equally long, however uneven the units are, and no process
waits for another.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .order import check_total_batch


LANES = 16  # whatever the number of processes: it decides the order
BLOCK_UNITS = 4  # whose images are mixed


@dataclass(frozen=True)
class LaneOrder:
    """The images of each update, with the interface of `Order`. `counts` are the images of each unit.

    Images that do not fill the last update of an epoch are left out of it. Each epoch leaves out other images.

    Raises:
        UserError: an epoch has no whole update.
    """

    counts: tuple[int, ...]
    total_batch_size: int
    seed: int
    _kept: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        check_total_batch(self.total_batch_size, self.num_images)

    @cached_property
    def num_images(self) -> int:
        return sum(self.counts)

    @property
    def updates_per_epoch(self) -> int:
        return self.num_images // self.total_batch_size

    def images_of(self, update: int) -> tuple[int, np.ndarray]:
        """(epoch, indices ``(total_batch_size,)``) of an update, counted from 0.

        An index is that of the image in the row of all units as they are given.
        """
        epoch, step = divmod(update, self.updates_per_epoch)
        edges = np.arange(LANES + 1) * self.total_batch_size // LANES  # of the lanes' places in the batch
        pieces = []
        for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            start = self.updates_per_epoch * first + step * (end - first)
            pieces += self.row(epoch, start, start + end - first)
        return epoch, np.concatenate(pieces)

    def row(self, epoch: int, start: int, end: int) -> list[np.ndarray]:
        """Images `start` to `end` - 1 of the epoch's row, in pieces."""
        ends = self._epoch(epoch)[1]
        pieces = []
        while start < end:
            block = int(np.searchsorted(ends, start, side="right"))
            block_start = int(ends[block - 1]) if block else 0
            stop = min(end, int(ends[block]))
            pieces.append(self._block(epoch, block)[start - block_start : stop - block_start])
            start = stop
        return pieces

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(units ``(units,)`` in the epoch's order, number of images up to the end of each block ``(blocks,)``)."""

        def make():
            units = np.random.default_rng([self.seed, epoch]).permutation(len(self.counts))
            starts = np.arange(0, len(units), BLOCK_UNITS)
            return units, np.cumsum(np.add.reduceat(np.array(self.counts)[units], starts))

        return self._keep("epoch", epoch, make, 2)

    def _block(self, epoch: int, block: int) -> np.ndarray:
        """The mixed images of a block."""

        def make():
            units = self._epoch(epoch)[0][block * BLOCK_UNITS : (block + 1) * BLOCK_UNITS]
            images = [np.arange(self._offsets[unit], self._offsets[unit + 1]) for unit in units]
            return np.random.default_rng([self.seed, epoch, block]).permutation(np.concatenate(images))

        return self._keep("block", (epoch, block), make, 2 * LANES)

    def _keep(self, kind: str, key, make, most: int):
        kept = self._kept.setdefault(kind, {})
        if key not in kept:
            if len(kept) >= most:
                del kept[next(iter(kept))]  # the oldest
            kept[key] = make()
        return kept[key]

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts)])
