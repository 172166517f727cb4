"""Images in folders, with labels from the folders' names or from a metadata file, as a `datasets.Dataset`.

The rules are those of `datasets`' `imagefolder`, the listing is ours (see `listing.py`).
"""

import hashlib
import os

import datasets
import pandas
import pyarrow
import pyarrow.json
import pyarrow.parquet
from datasets.table import InMemoryTable

from ..errors import UserError
from .listing import Listing


def image_folder(listing: Listing) -> datasets.Dataset:
    """The images of `listing`, still encoded, in the column `image`; other columns come from metadata files.

    Without metadata there is a column `label` where all images lie equally deep in folders of several names. Images
    that no metadata file names are added to `listing.left_out`.

    Raises:
        UserError: a metadata file cannot be read, has no column of file names, or names files that do not exist.
    """
    if listing.metadata:
        return _from_metadata(listing)
    paths = [f"{listing.folder}/{path}" for path in listing.images]
    columns, kinds = {"image": _image_column(paths)}, {"image": datasets.Image(decode=False)}
    parents = [os.path.basename(os.path.dirname(path)) for path in paths]
    names = sorted(set(parents))
    if len(names) > 1 and len({path.count("/") for path in listing.images}) == 1:
        number = {name: i for i, name in enumerate(names)}
        columns["label"] = pyarrow.array([number[name] for name in parents], pyarrow.int64())
        kinds["label"] = datasets.ClassLabel(names=names)
    return _dataset(columns, kinds, paths)


def _image_column(paths: list[str]) -> pyarrow.Array:
    encoded = pyarrow.nulls(len(paths), pyarrow.binary())
    return pyarrow.StructArray.from_arrays([encoded, pyarrow.array(paths, pyarrow.string())], ["bytes", "path"])


def _dataset(columns: dict, kinds: dict, paths: list[str]) -> datasets.Dataset:
    # A fingerprint of our own: `datasets` would make a copy of millions of paths for it.
    fingerprint = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:16]
    info = datasets.DatasetInfo(features=datasets.Features(kinds))
    return datasets.Dataset(InMemoryTable(pyarrow.table(columns)), info=info, fingerprint=fingerprint)


def _from_metadata(listing: Listing) -> datasets.Dataset:
    files = [f"{listing.folder}/{path}" for path in listing.metadata]
    tables = [_read(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table.schema != tables[0].schema:
            raise UserError(
                f"{files[0]!r} and {file!r} have different columns ({', '.join(tables[0].column_names)}; "
                f"{', '.join(table.column_names)}): give both the same, of the same kinds"
            )
    folders = [os.path.dirname(path) for path in listing.metadata]
    table = pyarrow.concat_tables(map(_with_paths, tables, folders, files, [listing] * len(files)))
    kinds = dict(datasets.Features.from_arrow_schema(table.schema))
    columns, named = {}, set()
    for name in table.column_names:
        if name == "file_name" or name.endswith("_file_name"):
            relative = table[name].to_pylist()
            named.update(relative)
            column = name.removesuffix("_file_name") if name != "file_name" else "image"
            columns[column] = _image_column([f"{listing.folder}/{path}" for path in relative])
            kinds = {column if key == name else key: kind for key, kind in kinds.items()}
            kinds[column] = datasets.Image(decode=False)
        else:
            columns[name] = table[name]
    kind = os.path.basename(listing.metadata[0])
    listing.left_out += [(path, f"not named by {kind}") for path in listing.images if path not in named]
    return _dataset(columns, kinds, sorted(named))


def _read(file: str) -> pyarrow.Table:
    try:
        if file.endswith(".csv"):
            table = pyarrow.Table.from_pandas(pandas.read_csv(file), preserve_index=False)
        elif file.endswith(".jsonl"):
            options = pyarrow.json.ReadOptions(block_size=max(1 << 20, os.path.getsize(file)))  # a line must fit in
            table = pyarrow.json.read_json(file, read_options=options)
        else:
            with open(file, "rb") as opened:
                table = pyarrow.parquet.read_table(opened)
    except (OSError, ValueError) as error:
        raise UserError(f"{file!r} cannot be read ({' '.join(str(error).split())[:150]}): mend it") from error
    return table.replace_schema_metadata(None)


def _with_paths(table: pyarrow.Table, folder: str, file: str, listing: Listing) -> pyarrow.Table:
    """`table` with the paths of its files relative to the listed folder, which are checked."""
    columns = [name for name in table.column_names if name == "file_name" or name.endswith("_file_name")]
    if not columns:
        raise UserError(
            f"{file!r} has no column file_name, only {', '.join(table.column_names)}: name one so; it holds the paths "
            "of the images, relative to this file"
        )
    present = set(listing.images)
    for column in columns:
        names = table[column].to_pylist()
        paths = [os.path.normpath(os.path.join(folder, str(name))).replace("\\", "/") for name in names]
        absent = [name for name, path in zip(names, paths, strict=True) if path not in present]
        if absent:
            raise UserError(
                f"{file!r} names {len(absent):,} of {len(names):,} images that are not there or not readable here, as "
                f"{str(absent[0])!r}: mend the column {column}"
            )
        table = table.set_column(table.column_names.index(column), column, pyarrow.array(paths, pyarrow.string()))
    return table
