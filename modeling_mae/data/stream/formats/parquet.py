"""Parquet files. A unit is a row group."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet

from ...read.faults import BadImage
from ..shard_cache import ShardCache, file_system
from .format import Shard


class Parquet:
    def count(self, shard: Shard, cache: ShardCache) -> None:
        system, path = file_system(shard.url)
        with system.open(path, "rb") as file:
            metadata = pyarrow.parquet.ParquetFile(file).metadata
            shard.counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def features(self, shards: list[Shard]) -> datasets.Features:
        """Those of the first shard."""
        system, path = file_system(shards[0].url)
        with system.open(path, "rb") as file:
            return datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))

    def labels(self, shard: Shard, column: str, features: datasets.Features) -> list:
        system, path = file_system(shard.url)
        with system.open(path, "rb") as file:
            return pyarrow.parquet.read_table(file, columns=[column]).column(0).to_pylist()

    def names(self, shard: Shard, unit: int, column: str) -> list[str | None]:
        table = _row_group(shard, unit, f"{column}.path")
        if column not in table.column_names:
            return [None] * shard.counts[unit]
        return [(cell or {}).get("path") for cell in table.column(column).to_pylist()]

    def open(self, shard: Shard, unit: int, column: str, cache: ShardCache) -> Callable[[int], dict]:
        def make(path: Path) -> None:
            table = _row_group(shard, unit, column)
            if len(table) != shard.counts[unit]:
                raise OSError(f"row group {unit} has {len(table)} rows in place of {shard.counts[unit]}")
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        words = f"{shard.url} {shard.stamp} {shard.size} {unit} {column}"
        path = cache.get(hashlib.sha256(words.encode()).hexdigest(), make)
        cells = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(column)

        def read(row: int) -> dict:
            cell = cells[row].as_py() or {}
            name = f"{cell.get('path') or f'image {row}'} of row group {unit} of {shard.url}"
            if cell.get("bytes") is None:
                raise BadImage(f"{name} has no bytes: a stream holds the images themselves")
            return {"bytes": cell["bytes"], "path": name}

        return read


def _row_group(shard: Shard, unit: int, column: str) -> pa.Table:
    system, path = file_system(shard.url)
    with system.open(path, "rb") as file:
        return pyarrow.parquet.ParquetFile(file).read_row_group(unit, columns=[column])
