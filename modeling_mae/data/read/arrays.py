"""Images that are arrays of numbers: NumPy files, TIFF of many bands, DICOM, arrays in tables.

They have any number of bands. Values that are missing are filled here, before a resize could spread them.
"""

import io
import os
from typing import Any

import numpy as np

from ...image_processing_mae import MOST_MISSING, band_axis
from .faults import BadImage
from .header import array_pages, axis_of_bands, kind_of, missing_value, only_array, opened, read_dicom


EXACT = 1 << 24  # whole numbers up to this are exact in float32


def cell_of(cell) -> dict:
    """The bytes and the path of a table's cell. An array in it becomes the bytes of an .npy file."""
    if isinstance(cell, dict):
        return cell
    file = io.BytesIO()
    np.save(file, np.asarray(cell), allow_pickle=False)
    return {"bytes": file.getvalue(), "path": None}


def read_array(data: bytes | None, path: str | None) -> tuple[np.ndarray, int | None, float | None] | None:
    """(values, axis of the bands, value that says missing) of an array file, not yet checked.

    The axis is None where the file does not say it. None for a file that Pillow reads as well, or that is no array.

    Raises:
        BadImage: several arrays or frames, Python objects, or a package that reads the file is not installed.
        OSError and others: the file cannot be read.
    """
    kind = kind_of(data, path)
    if kind in ("npy", "npz"):
        return _numpy(data, path, kind), None, None
    if kind == "tiff":
        import tifffile  # late: it takes a moment, and few sets need it

        with opened(data, path) as file, tifffile.TiffFile(file) as tiff:
            pages = array_pages(tiff)
            return None if pages is None else (pages.asarray(), axis_of_bands(pages, path), missing_value(tiff))
    if kind == "dicom":
        with opened(data, path) as file:
            return _dicom(read_dicom(file, path))
    return None


def _numpy(data: bytes | None, path: str | None, kind: str) -> np.ndarray:
    # A mapped file is read only where bands or every n-th pixel are taken from it.
    mapped = kind == "npy" and path is not None and data is None and os.path.getsize(path) > EXACT
    loaded = np.load(io.BytesIO(data) if data is not None else str(path), "r" if mapped else None, allow_pickle=False)
    if kind == "npy":
        return loaded
    with loaded:
        return loaded[only_array(loaded.files, path)]


def describe_stacks(stacks: list[bool]) -> str:
    """How many of the files that were looked at are stacks; empty where none is."""
    pages = f"{sum(stacks)} of {len(stacks)} files looked at have several pages: only the first is seen"
    return pages if any(stacks) else ""


def _dicom(file: Any) -> tuple[np.ndarray, int | None, float | None]:
    values = file.pixel_array
    gone = file.get("PixelPaddingValue")
    missing = None if gone is None else values == gone
    if file.get("PhotometricInterpretation") == "MONOCHROME1":  # where the lowest value is white
        highest = (1 << file.BitsStored) - 1
        values = (-1 - values) if file.PixelRepresentation else (highest - values).astype(values.dtype)
    slope, intercept = float(file.get("RescaleSlope") or 1), float(file.get("RescaleIntercept") or 0)
    if (slope, intercept) != (1, 0):
        values = (values * slope + intercept).astype(np.float32)
    if missing is not None and missing.any():
        values = np.where(missing, np.nan, values).astype(np.float32)
    return values, 2 if values.ndim == 3 else None, None


def bands_first(values: np.ndarray, axis: int | None, num_channels: int, bands: list[int] | None, name: str):
    """``(num_channels, height, width)`` of an array, whose bands are in `axis` or in the axis that `band_axis` finds.

    Two axes are height and width; a model of three channels gets the one band three times. `bands` count from 1.

    Raises:
        BadImage: the axes or the number of bands do not fit; the message says what to do.
    """
    shape = "x".join(map(str, values.shape))
    if values.ndim == 2:
        values, axis = values[None], 0
    if values.ndim != 3:
        raise BadImage(f"{name} has the shape {shape}: save height x width, with bands first or last")
    if not values.size:
        raise BadImage(f"{name} has the shape {shape}, no pixels: remove it")
    if axis is None:
        axis = band_axis(values.shape, num_channels, bands)
        if axis is None:
            raise BadImage(f"{name} has the shape {shape}, whose bands may be first or last: save it in another shape")
    values = np.moveaxis(values, axis, 0)  # (bands, height, width)
    if bands:
        lacking = [band for band in bands if band > len(values)]
        if lacking:
            raise BadImage(f"{name} has {len(values)} bands, no band {lacking[0]}: give others with --bands")
        return values[[band - 1 for band in bands]]
    if len(values) == 1 and num_channels == 3:
        return values.repeat(3, 0)
    if len(values) != num_channels:
        raise BadImage(
            f"{name} has the shape {shape}, {len(values)} bands, and the model takes {num_channels} channels: choose "
            "with --bands, or set num_channels"
        )
    return values


def plain_numbers(
    values: np.ndarray,
    name: str,
    missing: float | None = None,
    most_missing: float = MOST_MISSING,
    bands: list[int] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """``(bands, height, width)`` as uint8, as an unsigned type (scaled by its range), or as float32 (taken as it is);
    and bool of the same shape where values were missing, None where none were.

    Yes and no become 255 and 0. Values with a sign are float32. What is NaN or equal to `missing` gets the mean of its
    band in this image. `bands` are the bands' numbers in the file, for messages.

    Raises:
        BadImage: other kinds of values, infinite ones, or a band with more than `most_missing` of it missing, or all.
    """
    if values.dtype.kind not in "buif":
        raise BadImage(f"{name} has values of the type {values.dtype}: save whole numbers or decimals")
    gone = None
    if values.dtype.kind == "f":
        gone = np.isnan(values) if missing is None else np.isnan(values) | (values == values.dtype.type(missing))
    elif missing is not None:
        gone = values == missing
    if values.dtype.kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype.kind in "ui" and values.dtype.itemsize > 2 and np.abs(_present(values, gone)).max() > EXACT:
        raise BadImage(f"{name} has whole numbers above {EXACT:,}, which float32 does not keep: scale them")
    kept = values.dtype.newbyteorder("=") if values.dtype.kind == "u" else np.float32
    with np.errstate(over="ignore"):
        numbers = values.astype(kept)
    if gone is not None:
        gone = gone if gone.any() else None
    if gone is not None:
        _fill(numbers, gone, name, most_missing, bands or range(1, len(numbers) + 1))
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise BadImage(f"{name} has values that are infinite")
    return numbers, gone


def _present(values: np.ndarray, gone: np.ndarray | None) -> np.ndarray:
    present = values if gone is None else values[~gone]
    return present.astype(np.float64) if present.size else np.zeros(1)


def _fill(numbers: np.ndarray, gone: np.ndarray, name: str, most_missing: float, bands) -> None:
    """Put each band's mean in place of its missing values."""
    for number, band, absent in zip(bands, numbers, gone, strict=True):
        share = absent.mean()
        if share > most_missing or share == 1:
            raise BadImage(f"{name} has more than half of band {number} missing ({share:.0%})")
        if share:
            mean = band[~absent].mean(dtype=np.float64)
            band[absent] = mean if band.dtype.kind == "f" else round(mean)
