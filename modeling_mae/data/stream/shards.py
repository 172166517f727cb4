"""The rows of a stream by their number, read from a shard when they are asked for."""

import bisect
import hashlib
import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ..read.faults import BadImage
from .shard_cache import ShardCache, ShardError, attempt, file_system
from .shard_index import Shard, fingerprint_of, local_file


OPEN_UNITS = 128  # that a process keeps mapped; the pages belong to the system's file cache
SAMPLED_UNITS = 16  # that samples are taken from
REST = 60  # seconds that a unit which could not be read is left alone
TAR_IMAGE, TAR_LABEL = "image", "label"


class ShardedRows:
    """Stands where a `datasets.Dataset` stands in a `Source`: length, features, a row by number, a column by name."""

    def __init__(self, shards: list[Shard], features: datasets.Features, image_column: str, cache: ShardCache):
        self.shards, self.features, self.image_column, self.cache = shards, features, image_column, cache
        self.units = [(shard, group) for shard in shards for group in range(len(shard.counts))]
        self.counts = tuple(shard.counts[group] for shard, group in self.units)
        self.offsets = [0, *itertools.accumulate(self.counts)]
        self.fingerprint = fingerprint_of(shards)
        self._open: OrderedDict[int, Callable[[int], dict]] = OrderedDict()
        self._failed: dict[int, tuple[float, str]] = {}
        self._named: tuple[int, list] | None = None  # (unit, its names) that was asked for last

    def __len__(self) -> int:
        return self.offsets[-1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict(), "_failed": {}}  # open files stay in their process

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
        """File names of the rows `start` to `end` - 1, None where the shards do not say. In a tar file they begin with
        the shard's own name.

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
            shard, group = self.units[unit]
            if shard.members:
                names = [f"{os.path.basename(shard.url)}/{name}" for name, _, _, _ in shard.members]
            else:
                names = attempt(lambda: _paths_of_row_group(shard, group, self.image_column), shard.url)
            self._named = unit, names
        return self._named[1]

    def _reader(self, unit: int) -> Callable[[int], dict]:
        if unit in self._open:
            self._open.move_to_end(unit)
            return self._open[unit]
        since, reason = self._failed.get(unit, (-np.inf, ""))
        if time.monotonic() - since < REST:
            raise ShardError(reason)
        shard, group = self.units[unit]
        try:
            read = _open_tar if shard.members else _open_row_group
            self._open[unit] = attempt(lambda: read(shard, group, self.image_column, self.cache), shard.url)
        except ShardError as error:
            self._failed[unit] = (time.monotonic(), str(error))
            raise
        if len(self._open) > OPEN_UNITS:
            self._open.popitem(last=False)
        return self._open[unit]

    def _labels(self, shard: Shard, column: str) -> list:
        if shard.members:
            values = [label for _, _, _, label in shard.members]
            feature = self.features[column]
            return values if feature.dtype == "string" else [None if v is None else int(v) for v in values]

        def read():
            system, path = file_system(shard.url)
            with system.open(path, "rb") as file:
                return pyarrow.parquet.read_table(file, columns=[column]).column(0).to_pylist()

        return attempt(read, shard.url)


def read_features(shards: list[Shard]) -> datasets.Features:
    """The columns of the first shard. A label of a tar file is a whole number, where all of them are, or a word."""
    first = shards[0]
    if first.url.endswith(".parquet"):

        def read():
            system, path = file_system(first.url)
            with system.open(path, "rb") as file:
                return datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))

        return attempt(read, first.url)
    features = datasets.Features({TAR_IMAGE: datasets.Image(decode=False)})
    labels = [label for shard in shards for _, _, _, label in shard.members]
    if any(label is not None for label in labels):
        numbers = all(label is None or label.isdecimal() for label in labels)
        features[TAR_LABEL] = datasets.Value("int64" if numbers else "string")
    return features


def _open_tar(shard: Shard, group: int, column: str, cache: ShardCache) -> Callable[[int], dict]:
    file = open(local_file(shard, cache), "rb")  # stays readable where the cache throws it away

    def read(row: int) -> dict:
        name, offset, size, _ = shard.members[row]
        try:
            data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise BadImage(f"{name} of {shard.url} cannot be read ({error})") from error
        if len(data) != size:
            raise BadImage(f"{name} of {shard.url} is cut off: {len(data)} of {size} bytes")
        return {"bytes": data, "path": f"{name} of {shard.url}"}

    return read


def _paths_of_row_group(shard: Shard, group: int, column: str) -> list[str | None]:
    system, place = file_system(shard.url)
    with system.open(place, "rb") as file:
        table = pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=[f"{column}.path"])
    if column not in table.column_names:
        return [None] * shard.counts[group]
    return [(cell or {}).get("path") for cell in table.column(column).to_pylist()]


def _open_row_group(shard: Shard, group: int, column: str, cache: ShardCache) -> Callable[[int], dict]:
    def make(path: Path) -> None:
        system, place = file_system(shard.url)
        with system.open(place, "rb") as file:
            table = pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=[column])
        if len(table) != shard.counts[group]:
            raise OSError(f"row group {group} has {len(table)} rows in place of {shard.counts[group]}")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    words = f"{shard.url} {shard.stamp} {shard.size} {group} {column}"
    path = cache.get(hashlib.sha256(words.encode()).hexdigest(), make)
    cells = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(column)

    def read(row: int) -> dict:
        cell = cells[row].as_py() or {}
        name = f"{cell.get('path') or f'image {row}'} of row group {group} of {shard.url}"
        if cell.get("bytes") is None:
            raise BadImage(f"{name} has no bytes: a stream holds the images themselves")
        return {"bytes": cell["bytes"], "path": name}

    return read
