"""Which image comes when, where several sources are mixed in given shares: a pure function of (seed, position).

Each source is an endless row of its images, in a new order each time it begins anew. So every image comes once before
any comes again. Of the first n images of a training, a source gives its share of n, rounded. So the place in each
source follows from n alone. An epoch has as many images as all sources together.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from ...errors import UserError
from ..find.sources import Source
from ..stream.shards import ShardedRows
from .lanes import LANES, LaneOrder
from .order import check_total_batch


PLACES = 1  # sets the numbers drawn for the places in a batch apart from those drawn for a source


@dataclass(frozen=True)
class Mixture:
    """The sources that were joined into one row of images: how many images each has, and its share of the training.
    `units` are the images of each unit of a source that is a stream; None of a source of files."""

    sizes: tuple[int, ...]
    shares: tuple[Fraction, ...]
    units: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def of(cls, source: Source) -> "Mixture | None":
        """That of a source that was joined with shares; None of any other."""
        if source.shares is None:
            return None
        rows = [part.dataset for part in source.parts]
        units = tuple(part.counts if isinstance(part, ShardedRows) else None for part in rows)
        return cls(tuple(map(len, rows)), source.shares, units)

    def order(self, rows: np.ndarray | None, total_batch_size: int, seed: int) -> "MixedOrder":
        """The order of all images, or of the part at `rows` of them.

        Raises:
            UserError: the part has no image of a source.
        """
        ends = np.cumsum(self.sizes)
        every = np.arange(ends[-1]) if rows is None else rows
        source_of = np.searchsorted(ends, every, side="right")
        sources = []
        for i in range(len(self.sizes)):
            # Of a part of the images a unit has few: there it does not matter which lie in the same.
            units = self.units[i] if rows is None else None
            own_seed = int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
            places = np.flatnonzero(source_of == i)
            if not len(places):
                raise UserError(
                    f"the {len(every)} images of this training are none of folder {i + 1} in train_dir: give a larger "
                    "--label_fraction, or train without this folder"
                )
            sources.append(EndlessRow(places, own_seed, units))
        return MixedOrder(tuple(sources), self.shares, total_batch_size, seed)


@dataclass(frozen=True)
class EndlessRow:
    """The images of one source, epoch after epoch. `places` are their indices in the row of all images. The images of
    a stream are mixed within blocks of its `units`, and taken from lanes, as `LaneOrder` does."""

    places: np.ndarray
    seed: int
    units: tuple[int, ...] | None

    def take(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(how often the source had begun anew before, indices) of its images number `start` to `end` - 1."""
        epochs, images = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while start < end:
            epoch, first = divmod(start, len(self.places))
            stop = min(len(self.places), first + end - start)
            images.append(self._of_epoch(epoch, first, stop))
            epochs.append(np.full(stop - first, epoch))
            start += stop - first
        return np.concatenate(epochs), self.places[np.concatenate(images)]

    def _of_epoch(self, epoch: int, first: int, stop: int) -> np.ndarray:
        if self.units is None:
            if epoch not in self._permutations:
                self._permutations.clear()
                self._permutations[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.places))
            return self._permutations[epoch][first:stop]
        images = np.empty(stop - first, np.int64)
        length, longer = divmod(len(self.places), LANES)  # so many lanes have one image more
        for lane in range(LANES):
            steps = range(-(-(first - lane) // LANES), -(-(stop - lane) // LANES))  # of this lane
            if len(steps):
                start = lane * length + min(lane, longer)
                pieces = self._lanes.row(epoch, start + steps[0], start + steps[-1] + 1)
                images[steps[0] * LANES + lane - first :: LANES][: len(steps)] = np.concatenate(pieces)
        return images

    @cached_property
    def _permutations(self) -> dict[int, np.ndarray]:
        return {}

    @cached_property
    def _lanes(self) -> LaneOrder:
        assert self.units is not None
        return LaneOrder(self.units, 1, self.seed)


@dataclass(frozen=True)
class MixedOrder:
    """The images of each update, with the interface of `Order`. Each image has an epoch of its own, its source's.

    Raises:
        UserError: an epoch has no whole update.
    """

    sources: tuple[EndlessRow, ...]
    shares: tuple[Fraction, ...]
    total_batch_size: int
    seed: int

    def __post_init__(self):
        check_total_batch(self.total_batch_size, self.num_images)

    @property
    def num_images(self) -> int:
        return sum(len(source.places) for source in self.sources)

    @property
    def updates_per_epoch(self) -> int:
        return self.num_images // self.total_batch_size

    def given(self, position: int) -> list[int]:
        """How many of the first `position` images of the training come from each source.

        The first source's share is rounded, the next one's of what is left, and so on. So none ever goes back. With
        two or three sources, none is more than one image away from its share.
        """
        counts, left, share_left = [], position, Fraction(1)
        for share in self.shares[:-1]:
            counts.append(int(left * share / share_left + Fraction(1, 2)))
            left, share_left = left - counts[-1], share_left - share
        return [*counts, left]

    def images_of(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, index) of each image of an update, counted from 0: ``(total_batch_size,)`` each."""
        starts = self.given(update * self.total_batch_size)
        ends = self.given((update + 1) * self.total_batch_size)
        taken = [source.take(*ends_of) for source, *ends_of in zip(self.sources, starts, ends, strict=True)]
        epochs, images = (np.concatenate(pieces) for pieces in zip(*taken, strict=True))
        places = np.random.default_rng([self.seed, PLACES, update]).permutation(self.total_batch_size)
        return epochs[places], images[places]
