"""Images that are arrays of numbers: NumPy files, TIFF, DICOM, arrays in tables."""

import io
import os

import numpy as np

from .dicom import read_dicom
from .header import kind_of, only_array, opened
from .stored import Stored
from .tiff import read_tiff


WORTH_MAPPING = 1 << 24  # bytes of a NumPy file


def cell_of(cell) -> dict:
    """The bytes and the path of a table's cell. An array in it becomes the bytes of an .npy file."""
    if isinstance(cell, dict):
        return cell
    file = io.BytesIO()
    np.save(file, np.asarray(cell), allow_pickle=False)
    return {"bytes": file.getvalue(), "path": None}


def read_array(data: bytes | None, path: str | None) -> Stored | None:
    """What an array file or a TIFF holds, not yet checked; None of other files.

    Raises:
        BadImage: several arrays or frames, Python objects, or a package that reads the file is not installed.
        OSError and others: the file cannot be read.
    """
    kind = kind_of(data, path)
    if kind in ("npy", "npz"):
        return Stored(_numpy(data, path, kind))
    if kind not in ("tiff", "dicom"):
        return None
    with opened(data, path) as file:
        return read_tiff(file, path) if kind == "tiff" else read_dicom(file, path)


def _numpy(data: bytes | None, path: str | None, kind: str) -> np.ndarray:
    # A mapped file is read only where bands or every n-th pixel are taken from it.
    mapped = kind == "npy" and path is not None and data is None and os.path.getsize(path) > WORTH_MAPPING
    loaded = np.load(io.BytesIO(data) if data is not None else str(path), "r" if mapped else None, allow_pickle=False)
    if kind == "npy":
        return loaded
    with loaded:
        return loaded[only_array(loaded.files, path)]


def describe_stacks(stacks: list[bool]) -> str:
    """How many of the files that were looked at are stacks; empty where none is."""
    pages = f"{sum(stacks)} of {len(stacks)} files looked at have several pages: only the first is seen"
    return pages if any(stacks) else ""
