"""Images that are arrays of numbers: NumPy files, TIFF, DICOM, arrays in tables."""

import io
import zipfile
from typing import Any

import numpy as np

from .dicom import read_dicom
from .header import kind_of, numpy_header, only_array, opened
from .limits import DEFLATE, Limit
from .stored import Stored, promised
from .tiff import read_tiff


WORTH_MAPPING = 1 << 24  # bytes of a NumPy file


def cell_of(cell) -> dict:
    """The bytes and the path of a table's cell. An array in it becomes the bytes of an .npy file."""
    if isinstance(cell, dict):
        return cell
    file = io.BytesIO()
    np.save(file, np.asarray(cell), allow_pickle=False)
    return {"bytes": file.getvalue(), "path": None}


def read_array(data: bytes | None, path: str | None, limit: Limit) -> Stored | None:
    """What an array file or a TIFF holds, not yet checked; None of other files.

    Raises:
        BadImage: too large, several arrays or frames, Python objects, or a package that reads it is not installed.
        OSError and others: the file cannot be read.
    """
    kind = kind_of(data, path)
    if kind is None:
        return None
    with opened(data, path) as file:
        if kind == "npy":
            return Stored(_numpy(file, limit, 1, str(path) if data is None else None))
        if kind == "npz":
            with zipfile.ZipFile(file) as archive, archive.open(only_array(archive.namelist(), path)) as member:
                return Stored(_numpy(member, limit, DEFLATE))
        return read_tiff(file, path, limit) if kind == "tiff" else read_dicom(file, path, limit)


def _numpy(file: Any, limit: Limit, packed: int, path: str | None = None) -> np.ndarray:
    """The array of an .npy file, whose bytes may be packed to a `packed`-th of their number. A large file at `path` is
    mapped, so that only the bands and pixels that somebody uses are read."""
    shape, in_columns, kind = numpy_header(file)
    size = promised(shape, kind).size * kind.itemsize
    limit.check_stored(Stored(promised(shape, kind)), size // packed)
    if kind.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    if path is not None and size > WORTH_MAPPING:
        return np.load(path, "r", allow_pickle=False)
    return np.frombuffer(file.read(size), kind).reshape(shape, order="F" if in_columns else "C")


def describe_stacks(pages: list[int]) -> str:
    """What is ignored of the files that were looked at, whose numbers of `pages` are 0 for those that are no stack;
    empty where none is."""
    stacks = [count for count in pages if count]
    ignored = sum(stacks) - len(stacks)
    told = f"{len(stacks)} of {len(pages)} files looked at have several pages: {ignored:,} after the first are ignored"
    return f"{told} (--slices all sees each)" if stacks else ""
