"""Parquet files. A unit is a row group."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet

from ....errors import UserError
from ...read.endings import ending_of, image_endings
from ...read.faults import BadImage
from ...read.header import read_header
from ..shard_cache import ShardCache, file_system
from .format import Shard


ARRAYS = (datasets.Array2D, datasets.Array3D)  # columns of images that are not encoded
SAMPLE = 64  # rows that are looked at for images


def columns_of(file: BinaryIO, paths: bool = True) -> datasets.Features:
    """The columns of a parquet file. If none is known as images, those that hold encoded images, as pandas, polars and
    Spark write them, are. So are those of `paths` of images."""
    parquet = pyarrow.parquet.ParquetFile(file)
    try:
        features = datasets.Features.from_arrow_schema(parquet.schema_arrow)
    except Exception as error:  # what strangers wrote into the file: whatever is wrong with it
        raise ValueError(f"its features: {error}") from error
    if any(isinstance(kind, (datasets.Image, *ARRAYS)) for kind in features.values()):
        return features
    candidates = [name for name, kind in features.items() if _may_hold_images(kind)]
    batch = next(parquet.iter_batches(SAMPLE, columns=candidates), None) if candidates else None
    for name in candidates:
        says_so = isinstance(features[name], dict) and {"bytes", "path"} <= features[name].keys()
        if says_so or (batch is not None and any(_is_image(cell, paths) for cell in batch.column(name).to_pylist())):
            features[name] = datasets.Image(decode=False)
    return features


def _may_hold_images(kind: Any) -> bool:
    if isinstance(kind, dict):
        return "bytes" in kind or "path" in kind
    return isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary", "string", "large_string")


def _is_image(cell: Any, paths: bool) -> bool:
    if isinstance(cell, dict):
        return _is_image(cell.get("bytes") or cell.get("path"), paths)
    if isinstance(cell, str):
        return paths and ending_of(cell.replace("\\", "/")) in image_endings()
    try:
        return cell is not None and bool(read_header(cell, None))
    except BadImage:
        return False


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
            return columns_of(file)

    def labels(self, shard: Shard, column: str, features: datasets.Features) -> list:
        system, path = file_system(shard.url)
        with system.open(path, "rb") as file:
            labels = pyarrow.parquet.read_table(file, columns=[column]).column(0)
        wanted = features.arrow_schema.field(column).type
        try:
            return labels.cast(wanted).to_pylist()
        except pa.ArrowException as error:
            reason = f"{labels.type} in the column {column}, which holds {wanted} in the first: give all the same type"
            raise UserError(f"shard {shard.url} has {reason}") from error

    def names(self, shard: Shard, unit: int, column: str) -> list[str | None]:
        table = _row_group(shard, unit, f"{column}.path")
        if column not in table.column_names:
            return [None] * shard.counts[unit]
        return [cell.get("path") if isinstance(cell, dict) else None for cell in table.column(column).to_pylist()]

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
            cell = {"bytes": cell} if isinstance(cell, bytes) else {} if isinstance(cell, str) else cell
            name = f"{cell.get('path') or f'image {row}'} of row group {unit} of {shard.url}"
            if cell.get("bytes") is None:
                raise BadImage(f"{name} has no bytes: a stream holds the images themselves")
            return {"bytes": cell["bytes"], "path": name}

        return read


def _row_group(shard: Shard, unit: int, column: str) -> pa.Table:
    system, path = file_system(shard.url)
    with system.open(path, "rb") as file:
        return pyarrow.parquet.ParquetFile(file).read_row_group(unit, columns=[column])
