"""Tables with a column of images: parquet files, and folders that `save_to_disk` of `datasets` wrote."""

import glob
import os
from dataclasses import replace

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import UserError
from ..stream.formats.parquet import ARRAYS, columns_of
from .image_folder import dataset_of, normal_path
from .layout import split_of
from .listing import Listing
from .splits import NoSplit, choose_shards, refuse_undivided


SAVED = (
    {"state.json", "dataset_info.json"},
    {"dataset_dict.json"},
)  # by `save_to_disk`: of one set, of several splits


def is_image(kind: object) -> bool:
    return isinstance(kind, (datasets.Image, *ARRAYS))


def holds_images(listing: Listing) -> bool:
    """Whether a parquet file, which lies beside images, holds images itself. Paths of images are not enough.

    Raises:
        UserError: a file cannot be read.
    """
    files = (f"{listing.folder}/{path}" for path in listing.parquet)
    return any(any(map(is_image, _columns(file, paths=False).values())) for file in files)


def _columns(file: str, paths: bool = True) -> datasets.Features:
    try:
        with open(file, "rb") as opened:
            return columns_of(opened, paths)
    except (OSError, ValueError) as error:
        raise UserError(f"{file!r} cannot be read ({' '.join(str(error).split())[:150]}): fix it") from error


def _has_rows(file: str) -> bool:
    try:
        return pq.read_metadata(file).num_rows > 0
    except (OSError, ValueError):
        return True  # reading it says what is wrong


def load_parquet(listing: Listing, split: str | None, cache_dir: str | None) -> datasets.Dataset:
    """The rows of the parquet files of `split`; for None of all. Columns that hold images are `Image`.

    Raises:
        NoSplit: no file is of this split.
        UserError: the files cannot be read.
    """
    listing = replace(listing, streamed=[])
    chosen = choose_shards(listing, split) if split else None
    if split and chosen is None:
        refuse_undivided(listing, split)
    files = [f"{listing.folder}/{path}" for path in chosen or listing.parquet]
    files = [file for file in files if _has_rows(file)] or files[:1]  # `datasets` fails at one without rows
    chained = [file for file in files if "::" in file]
    if chained:
        raise UserError(f"{chained[0]!r} cannot be read: `datasets` takes :: for a chain of archives; rename it")
    columns = _columns(files[0])
    patterns = [glob.escape(file) for file in files]  # `datasets` takes the paths for patterns
    try:
        table = datasets.load_dataset("parquet", data_files={"images": patterns}, split="images", cache_dir=cache_dir)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"folder {listing.folder!r} cannot be read as parquet: {reason[:200]}") from error
    for name, kind in columns.items():
        if is_image(kind) and not is_image(table.features[name]):
            stored = table.features[name]
            if isinstance(stored, datasets.Value) and stored.dtype.startswith("large_"):
                # Older versions of `datasets` make no images of large bytes.
                table = table.cast_column(name, datasets.Value(stored.dtype.removeprefix("large_")))
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def is_saved(listing: Listing) -> bool:
    """Whether `save_to_disk` wrote the folder, and there is nothing else in it."""
    others = listing.file or len(listing.images) or listing.shards
    return not others and any(files <= {*os.listdir(listing.folder)} for files in SAVED)


def load_saved(folder: str, split: str | None) -> datasets.Dataset:
    """What `save_to_disk` wrote into the folder: its `split`; for None all. A set without splits is for training.

    Raises:
        NoSplit: there is no such split.
        UserError: the folder cannot be read.
    """
    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:  # files that strangers wrote: whatever is wrong with them
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(f"{folder!r} cannot be read as what save_to_disk wrote ({reason}): write it anew") from error
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if split is None:
        return datasets.concatenate_datasets(list(splits.values())).with_format(None)
    known = split_of(split) or split
    found = [name for name in splits if name == split] or [name for name in splits if split_of(name) == known]
    if not found:
        raise NoSplit(f"{folder!r} has no split {split!r}, only {', '.join(splits)}: give another split")
    return splits[found[0]].with_format(None)


def caches(cache_dir: str | None) -> list[str]:
    """The folders that files of a data set on the Hub may lie in."""
    config = datasets.config
    places = [cache_dir, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH]
    return [os.path.abspath(place) for place in [*places, huggingface_hub.constants.HF_HUB_CACHE] if place]


def checked_rows(dataset: datasets.Dataset, column: str, folders: list[str], name: str) -> datasets.Dataset:
    """The rows that have an image. A row may name a file, but only in `folders`. A relative path begins in the first.

    Raises:
        UserError: a row names a file elsewhere.
    """
    if isinstance(dataset.features[column], ARRAYS):
        return dataset
    cells = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    named = pc.is_null(pc.struct_field(cells, "bytes")).to_numpy()
    if not named.any():
        return dataset
    written = pc.struct_field(cells, "path").to_pylist()
    paths = [normal_path(path, folders[0]) if path and named[row] else path for row, path in enumerate(written)]
    for row in np.flatnonzero(named).tolist():
        if paths[row] and not any(paths[row].startswith(f"{folder.rstrip('/')}/") for folder in folders):
            raise UserError(
                f"row {row} of {name!r} names {written[row]!r} outside this folder, {folders[0]!r}: put the images "
                "there, or the table into a folder above them, and give the file of the table"
            )
    if paths != written:
        dataset = _with_paths(dataset, column, cells, paths)
    return dataset.select([row for row, path in enumerate(paths) if path or not named[row]])


def _with_paths(dataset: datasets.Dataset, column: str, cells: pa.ChunkedArray, paths: list) -> datasets.Dataset:
    chunks, start = [], 0
    for chunk in cells.chunks:
        here = pa.array(paths[start : start + len(chunk)], pa.string())
        chunks.append(pa.StructArray.from_arrays([pc.struct_field(chunk, "bytes"), here], ["bytes", "path"]))
        start += len(chunk)
    table = dataset.with_format("arrow")[:]
    columns = {key: table.column(key) for key in table.column_names} | {column: pa.chunked_array(chunks)}
    return dataset_of(columns, {**dataset.features, column: datasets.Image(decode=False)}, column)
