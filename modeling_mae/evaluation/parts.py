"""Computes long tables part by part: a killed run goes on, and any number of processes gives the same file.

The parts of `OUT` are numbered parquet files in the folder `OUT.parts`. At the end they are merged and removed.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from accelerate import Accelerator

from .. import files
from ..checked import anything, check, mapped, parse, read_json
from ..data.read.volumes import volume_and_slice
from ..errors import UserError
from ..files import replacing, write_json
from ..training.run_folder import LOCK, MARK, lock_folder


MOST_PARTS = 1000  # a kill loses at most one part per process
ROW_GROUP = 8192  # rows that a reader of the merged file loads at once
GROUP_BYTES = 1 << 28  # of fewer, larger rows
KEY = b"modeling_mae"  # metadata key of a parquet file: as JSON, how it was made
FEATURES = "features"  # the column that becomes the array of a .npy file


def batches_of_parts(total: int, batch_size: int) -> list[list[range]]:
    """The rows of each batch of each part. They only depend on these two numbers, because a row's last bits may depend
    on its batch."""
    batches = [range(first, min(first + batch_size, total)) for first in range(0, total, batch_size)]
    each = -(-len(batches) // MOST_PARTS)
    return [batches[first : first + each] for first in range(0, len(batches), each)]


class Parts:
    """The parts of the file `target`. `settings` decide the rows, so parts with other settings are refused. Parts have
    a row for each image; with `per_volume` the merged file has one for each volume."""

    def __init__(
        self,
        accelerator: Accelerator,
        target: Path,
        settings: dict,
        parts: list[list[range]],
        per_volume: bool = False,
    ):
        self.accelerator, self.target, self.settings, self.parts = accelerator, target, settings, parts
        self.per_volume = per_volume
        self.folder = target.with_name(f"{target.name}.parts")
        self.settings_file = self.folder / "settings.json"

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    @property
    def begun(self) -> bool:
        """Whether there are parts with the same settings."""
        return self.settings_file.exists() and not self._changes()

    def _changes(self) -> str:
        return differences(check(self.settings_file, read_json(self.settings_file), {}), self.settings)

    def open(self, overwrite: bool) -> list[int]:
        """Numbers of the parts that this process must compute, dealt out in turn. With `overwrite`, parts with other
        settings are removed first.

        Raises:
            UserError: the parts have other settings, another run is writing them, or the folder cannot be written.
        """
        if self.accelerator.is_main_process:
            try:
                if overwrite and self.settings_file.exists() and not self.begun:
                    lock_folder(self.folder)
                    self.remove()
                if self.folder.is_symlink():
                    raise UserError(f"{str(self.folder)!r} is a link to another folder: remove it")
                self.folder.mkdir(parents=True, exist_ok=True)
                self._check_settings()
                lock_folder(self.folder)
            except OSError as error:
                raise UserError(f"{str(self.folder)!r} cannot be written ({error.strerror}): give another") from error
        self.accelerator.wait_for_everyone()
        missing = sorted({*range(len(self.parts))} - {*self.done()})
        self.accelerator.wait_for_everyone()  # no process writes before all have read the settings
        return missing[self.accelerator.process_index :: self.accelerator.num_processes]

    def _check_settings(self) -> None:
        if not self.settings_file.exists():
            if any(not path.name.startswith(".partial-") for path in self.folder.iterdir()):
                raise UserError(f"folder {str(self.folder)!r} holds other files: move it, or give another output")
            write_json(self.settings_file, self.settings)
        if changes := self._changes():
            raise UserError(
                f"{str(self.folder)!r} holds parts of a run with {changes}: give the same settings, or start over "
                "with --overwrite"
            )

    def done(self) -> list[int]:
        return [number for number in range(len(self.parts)) if self.path(number).exists()]

    def write(self, number: int, table: pyarrow.Table) -> None:
        with replacing(self.path(number)) as partial:
            pyarrow.parquet.write_table(table, partial)

    def tables(self) -> Iterator[pyarrow.Table]:
        """The rows of the merged file."""
        tables = (pyarrow.parquet.read_table(self.path(number)) for number in range(len(self.parts)))
        return tables_of_volumes(tables) if self.per_volume else tables

    def num_rows(self) -> int:
        """Number of rows in the merged file."""
        if self.per_volume:
            return sum(map(len, self.tables()))
        return sum(pyarrow.parquet.read_metadata(self.path(i)).num_rows for i in range(len(self.parts)))

    def remove(self) -> None:
        """Removes only what `Parts` has written."""
        if self.settings_file.exists():
            for pattern in ("part-*.parquet", ".partial-*", MARK, LOCK, "settings.json"):
                for path in self.folder.glob(pattern):
                    path.unlink()
            self.folder.rmdir()


def differences(old: dict, new: dict) -> str:
    """`pooling 'mean' (now 'cls')` for each setting that differs, or an empty text."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)!r} (now {new.get(key)!r})" for key in keys)


def finished_settings(target: Path) -> dict | None:
    """The settings that a finished parquet file was made with, or None for other files."""
    try:
        metadata = pyarrow.parquet.read_schema(target).metadata or {}
        about = check(str(target), parse(metadata[KEY]), {"settings": mapped(anything)}, needed=("settings",))
        return about["settings"]
    except (OSError, ValueError, KeyError):
        return None


# --- the merged file ---


def write_parquet(target: Path, parts: Parts, about: dict) -> None:
    """Writes parquet, with `about` in the file's metadata."""

    def write(table: pyarrow.Table, kept: list) -> None:
        if not kept:
            schema = table.schema.with_metadata({KEY: json.dumps(about).encode()})
            kept.append(pyarrow.parquet.ParquetWriter(partial, schema))
        kept[0].write_table(table.cast(kept[0].schema), row_group_size=ROW_GROUP)

    with replacing(target) as partial:
        writers: list[pyarrow.parquet.ParquetWriter] = []
        waiting: list[pyarrow.Table] = []
        try:
            for table in parts.tables():
                waiting.append(table)
                if sum(map(len, waiting)) >= ROW_GROUP or sum(each.nbytes for each in waiting) >= GROUP_BYTES:
                    write(pyarrow.concat_tables(waiting), writers)
                    waiting = []
            if waiting:
                write(pyarrow.concat_tables(waiting), writers)
        finally:
            for writer in writers:
                writer.close()


def write_csv(target: Path, parts: Parts, about: dict) -> None:
    """Writes CSV. Lists become texts, joined by semicolons."""

    def text(value):
        return "; ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value

    def rows() -> Iterator[list]:
        for table in parts.tables():
            columns = [table.column(name).to_pylist() for name in names]
            yield from ([text(value) for value in row] for row in zip(*columns, strict=True))

    names = [name for name in pyarrow.parquet.read_schema(parts.path(0)).names if name != FEATURES]
    files.write_csv(target, names, rows())


def write_npy(target: Path, parts: Parts, about: dict) -> None:
    """Writes the features as an array ``(images, width)`` or ``(images, rows, columns, width)`` float32, and the other
    columns to a CSV file of the same name."""
    length = pyarrow.parquet.read_schema(parts.path(0)).field(FEATURES).type.list_size
    shape = (parts.num_rows(), *about.get("map", [length]))
    with replacing(target) as partial:
        with partial.open("wb") as file:  # table by table, because the whole array may not fit into memory
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            for table in parts.tables():
                file.write(features_array(table).tobytes())
        write_csv(target.with_suffix(".csv"), parts, about)


WRITERS: dict[str, Callable[[Path, Parts, dict], None]] = {  # by the file's ending
    "parquet": write_parquet,
    "npy": write_npy,
    "csv": write_csv,
}


def features_column(features: np.ndarray) -> pyarrow.Array:
    """``(images, ...)`` as a column of equally long lists."""
    flat = pyarrow.array(np.ascontiguousarray(features, np.float32).reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(flat, math.prod(features.shape[1:]))


def features_array(table: pyarrow.Table) -> np.ndarray:
    """The column `features` of a table as ``(images, width)`` float32."""
    column = table.column(FEATURES).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float32)


def volumes_among(files: list[str]) -> tuple[list[str], list[int]]:
    """The name of each volume, and its first slice, of the names of slices in a row; other images stand for
    themselves."""
    names = [volume_and_slice(file)[0] for file in files]
    first = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    return [names[i] for i in first], first


def means_of(values: np.ndarray, first: list[int]) -> np.ndarray:
    """``(volumes, ...)`` float32: the mean of the slices of each volume, of ``(slices, ...)``."""
    counts = np.diff([*first, len(values)]).reshape(-1, *[1] * (values.ndim - 1))
    return (np.add.reduceat(values, first, dtype=np.float64) / counts).astype(np.float32)


def tables_of_volumes(tables: Iterator[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """The rows of slices as rows of volumes: the mean of their features, and row and label of the middle slice."""
    waiting: pyarrow.Table | None = None
    for table in tables:
        whole = table if waiting is None else pyarrow.concat_tables([waiting, table])
        last = volumes_among(whole.column("file").to_pylist())[1][-1:] or [0]
        if last[0]:
            yield _table_of_volumes(whole[: last[0]])
        waiting = whole[last[0] :]  # the volume may go on in the next part
    if waiting is not None and len(waiting):
        yield _table_of_volumes(waiting)


def _table_of_volumes(table: pyarrow.Table) -> pyarrow.Table:
    names, first = volumes_among(table.column("file").to_pylist())
    rows = table.take(pyarrow.array(middles(first, len(table))))
    columns = {"file": pyarrow.array(names), FEATURES: features_column(means_of(features_array(table), first))}
    return pyarrow.table({name: columns.get(name, rows.column(name)) for name in table.column_names})


def middles(first: list[int], total: int) -> list[int]:
    """The middle slice of each volume."""
    return [(start + end) // 2 for start, end in zip(first, [*first[1:], total], strict=True)]


def table_of(columns: dict, types: dict[str, pyarrow.DataType]) -> pyarrow.Table:
    """The columns as a table. Arrays ``(images, n, ...)`` become equally long lists. Other columns have the type that
    `types` names, else their array's."""
    arrays = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            arrays[name] = features_column(column) if column.ndim > 1 else pyarrow.array(column)
        else:
            arrays[name] = pyarrow.array(column, types[name])
    return pyarrow.table(arrays)
