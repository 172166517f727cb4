"""The rows of a stream by their number, read from a shard when they are asked for."""

import bisect
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import overload

import datasets
import numpy as np

from .formats import Shard, format_of
from .shard_cache import ShardCache, ShardError, attempt
from .shard_index import fingerprint_of


OPEN_UNITS = 128  # that a process keeps mapped; the pages belong to the system's file cache
SAMPLED_UNITS = 16  # that samples are taken from
REST = 60  # seconds that a unit which could not be read is left alone


class ShardedRows:
    """Stands where a `datasets.Dataset` stands in a `Source`: length, features, a row by number, a column by name."""

    left_out: str = ""  # what is not among the images, for people
    elsewhere: int = 0  # images in other splits of the same files

    def __init__(self, shards: list[Shard], features: datasets.Features, image_column: str, cache: ShardCache):
        self.shards, self.features, self.image_column, self.cache = shards, features, image_column, cache
        self.units = [(shard, number) for shard in shards for number in range(len(shard.counts))]
        self.counts = tuple(shard.counts[group] for shard, group in self.units)
        self.offsets = [0, *itertools.accumulate(self.counts)]
        self.fingerprint = fingerprint_of(shards)
        self._open: OrderedDict[int, Callable[[int], dict]] = OrderedDict()
        self._failed: dict[int, tuple[float, str]] = {}
        self._named: tuple[int, list] | None = None  # (unit, its names) that was asked for last

    def of_column(self, column: str) -> "ShardedRows":
        """The same rows with another column of images."""
        return ShardedRows(self.shards, self.features, column, self.cache)

    def __len__(self) -> int:
        return self.offsets[-1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict(), "_failed": {}}  # open files stay in their process

    @overload
    def __getitem__(self, key: int) -> dict: ...

    @overload
    def __getitem__(self, key: str) -> list: ...

    def __getitem__(self, key: int | str) -> dict | list:
        """Row `key` with its image column, or the whole column of labels.

        Raises:
            BadImage: the shard cannot be read after several attempts.
        """
        if isinstance(key, str):
            return [label for shard in self.shards for label in self._labels(shard, key)]
        unit = bisect.bisect_right(self.offsets, key) - 1
        return {self.image_column: self._reader(unit)(key - self.offsets[unit])}

    def spread(self, count: int) -> list[int]:
        """At most `count` rows, evenly spaced within evenly spaced units: few shards need to be read."""
        filled = [unit for unit, rows in enumerate(self.counts) if rows]
        units = [filled[i] for i in np.unique(np.linspace(0, len(filled) - 1, SAMPLED_UNITS).astype(int))]
        each = max(1, count // len(units))
        sizes = [(self.offsets[unit], self.counts[unit]) for unit in units[:count]]
        chosen = [start + np.unique(np.linspace(0, rows - 1, each).astype(int)) for start, rows in sizes]
        return np.concatenate(chosen).tolist()

    def names(self, start: int, end: int) -> list[str | None]:
        """File names of the rows `start` to `end` - 1, None if the shards do not say.

        Raises:
            ShardError: a shard cannot be read after several attempts.
        """
        names = []
        while start < end:
            unit = bisect.bisect_right(self.offsets, start) - 1
            first, stop = start - self.offsets[unit], min(end, self.offsets[unit + 1])
            names += self._unit_names(unit)[first : stop - self.offsets[unit]]
            start = stop
        return names

    def _unit_names(self, unit: int) -> list[str | None]:
        if self._named is None or self._named[0] != unit:
            shard, number = self.units[unit]
            self._named = unit, attempt(lambda: format_of(shard).names(shard, number, self.image_column), shard.url)
        return self._named[1]

    def _reader(self, unit: int) -> Callable[[int], dict]:
        if unit in self._open:
            self._open.move_to_end(unit)
            return self._open[unit]
        since, reason = self._failed.get(unit, (-np.inf, ""))
        if time.monotonic() - since < REST:
            raise ShardError(reason)
        shard, number = self.units[unit]
        column, cache = self.image_column, self.cache
        try:
            self._open[unit] = attempt(lambda: format_of(shard).open(shard, number, column, cache), shard.url)
        except ShardError as error:
            self._failed[unit] = (time.monotonic(), str(error))
            raise
        if len(self._open) > OPEN_UNITS:
            self._open.popitem(last=False)
        return self._open[unit]

    def _labels(self, shard: Shard, column: str) -> list:
        return attempt(lambda: format_of(shard).labels(shard, column, self.features), shard.url)


def read_features(shards: list[Shard]) -> datasets.Features:
    """The columns of the shards.

    Raises:
        ShardError: the first shard with rows cannot be read after several attempts.
    """
    filled = [shard for shard in shards if sum(shard.counts)] or shards
    return attempt(lambda: format_of(filled[0]).features(filled), filled[0].url)
