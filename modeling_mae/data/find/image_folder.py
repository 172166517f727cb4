"""Images in folders, with labels from the folders' names or from a metadata file, as a `datasets.Dataset`.

The rules are those of `datasets`' `imagefolder`, the listing is ours (see `listing.py`).
"""

import hashlib
import os

import datasets
import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet
from datasets.table import InMemoryTable
from pandas.api.types import is_numeric_dtype

from ...errors import UserError
from .listing import Listing


CODE = r"[+-]?0\d.*|\d+[eE]\d+"  # words that look like numbers; programs write 1 and 1e+05
CHUNK = 1_000_000  # paths; Arrow's short strings end at 2 GiB


def image_folder(listing: Listing) -> datasets.Dataset:
    """The images of `listing`, still encoded, in the column `image`; other columns come from metadata files.

    Without metadata there is a column `label` where the folders are classes. Images that no metadata file names are
    counted in `listing.left_out`.

    Raises:
        UserError: a metadata file cannot be read, has no column of file names, or names files that do not exist.
    """
    if listing.metadata:
        return _from_metadata(listing)
    columns, kinds = {"image": image_column(listing.folder, listing.images)}, {"image": datasets.Image(decode=False)}
    classes = listing.classes()
    if classes is not None:
        columns["label"] = pa.array(classes[1], pa.int64())
        kinds["label"] = datasets.ClassLabel(names=classes[0])
    return dataset_of(columns, kinds)


def image_column(folder: str, paths: pa.LargeStringArray) -> pa.ChunkedArray:
    chunks = []
    for start in range(0, max(1, len(paths)), CHUNK):
        whole = _joined(folder, paths[start : start + CHUNK])
        encoded = pa.nulls(len(whole), pa.binary())
        chunks.append(pa.StructArray.from_arrays([encoded, whole.cast(pa.string())], ["bytes", "path"]))
    return pa.chunked_array(chunks)


def _joined(folder: str, paths: pa.LargeStringArray) -> pa.LargeStringArray:
    kind = pa.large_string()
    return pc.binary_join_element_wise(pa.scalar(folder, kind), paths, pa.scalar("/", kind))


def dataset_of(columns: dict, kinds: dict, image: str = "image") -> datasets.Dataset:
    # A fingerprint of our own: `datasets` would make a copy of millions of paths for it.
    checksum = hashlib.sha256()
    for chunk in columns[image].chunks:
        for buffer in chunk.field("path").buffers()[1:]:
            checksum.update(buffer)
    info = datasets.DatasetInfo(features=datasets.Features(kinds))
    return datasets.Dataset(InMemoryTable(pa.table(columns)), info=info, fingerprint=checksum.hexdigest()[:16])


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
    whole = pa.concat_tables(map(_with_paths, tables, folders, files, [listing] * len(files)))
    table = _each_row_once(whole)
    kinds = dict(datasets.Features.from_arrow_schema(table.schema))
    columns, named = {}, pa.array([], pa.large_string())
    for name in table.column_names:
        if name == "file_name" or name.endswith("_file_name"):
            relative = table[name].combine_chunks()
            named = pa.concat_arrays([named, relative])
            column = name.removesuffix("_file_name") if name != "file_name" else "image"
            columns[column] = image_column(listing.folder, relative)
            kinds = {column if key == name else key: kind for key, kind in kinds.items()}
            kinds[column] = datasets.Image(decode=False)
        else:
            columns[name] = table[name]
    kind = os.path.basename(listing.metadata[0])
    named_images = pc.sum(pc.is_in(listing.images, named)).as_py() or 0
    listing.leave_out(len(listing.images) - named_images, f"not named by {kind}")
    listing.leave_out(len(whole) - len(table), f"of the same row twice in {kind}")
    return dataset_of(columns, kinds)


def _each_row_once(table: pa.Table) -> pa.Table:
    """The table without rows that repeat another in every column: its images would count twice."""
    try:
        numbered = table.append_column("", pa.array(range(len(table))))
        firsts = numbered.group_by(table.column_names, use_threads=False).aggregate([("", "min")])["_min"]
    except pa.ArrowException:  # columns of lists, which cannot be compared here
        return table
    return table if len(firsts) == len(table) else table.take(firsts.sort())


def _read(file: str) -> pa.Table:
    try:
        if file.endswith(".csv"):
            table = pa.Table.from_pandas(_read_csv(file), preserve_index=False)
        elif file.endswith(".jsonl"):
            options = pyarrow.json.ReadOptions(block_size=max(1 << 20, os.path.getsize(file)))  # a line must fit in
            table = pyarrow.json.read_json(file, read_options=options)
        else:
            with open(file, "rb") as opened:
                table = pyarrow.parquet.read_table(opened)
        datasets.Features.from_arrow_schema(table.schema)  # fails for columns that are nested too deeply
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file!r} cannot be read ({' '.join(str(error).split())[:150]}): fix it") from error
    return table.replace_schema_metadata(None)


def _read_csv(file: str) -> pandas.DataFrame:
    """The file with columns of numbers where all that is in them is numbers.

    Words such as NA, None and null are missing numbers in such a column, and words in every other: sodium, no finding.
    Codes such as 001 and 1E5 are words.
    """
    table = pandas.read_csv(file)
    words = pandas.read_csv(file, dtype=str, keep_default_na=False, na_values=[""])
    for name in table:
        holds_numbers = is_numeric_dtype(table[name]) and table[name].notna().any()
        if not holds_numbers or words[name].str.fullmatch(CODE).any():
            table[name] = words[name]
    return table


def _with_paths(table: pa.Table, folder: str, file: str, listing: Listing) -> pa.Table:
    """`table` with the paths of its files relative to the listed folder, which are checked."""
    columns = [name for name in table.column_names if name == "file_name" or name.endswith("_file_name")]
    if not columns:
        raise UserError(
            f"{file!r} has no column file_name, only {', '.join(table.column_names)}: name one so; it holds the paths "
            "of the images, relative to this file"
        )
    for column in columns:
        try:
            names = pc.cast(table[column].combine_chunks(), pa.large_string())
        except pa.ArrowException as error:
            raise UserError(f"{file!r} has no words in the column {column} ({table[column].type}): fix it") from error
        paths = _normal(names, folder)
        absent = table[column].filter(pc.invert(pc.is_in(paths, listing.images)))
        if len(absent):
            raise UserError(
                f"{file!r} names {len(absent):,} of {len(table):,} images that are not there or not readable here, as "
                f"{str(absent[0].as_py())!r}: fix the column {column}"
            )
        table = table.set_column(table.column_names.index(column), column, paths)
    return table


def _normal(names: pa.LargeStringArray, folder: str) -> pa.LargeStringArray:
    """File names relative to `folder` as paths of a listing."""
    paths = _joined(folder, names) if folder else names
    odd = pc.fill_null(pc.match_substring_regex(names, r"(^|/)\.{0,2}(/|$)|\\"), True)
    if not pc.any(odd).as_py():
        return paths
    names = [normal_path(str(name), folder) for name in names.to_pylist()]
    return pa.array(names, pa.large_string())


def normal_path(name: str, folder: str) -> str:
    """A file's name in a table, which may be written as on Windows, below `folder`."""
    return os.path.normpath(os.path.join(folder, name.replace("\\", "/")))
