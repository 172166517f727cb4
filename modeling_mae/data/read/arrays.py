"""Images that are arrays of numbers: NumPy files, TIFF of many bands, DICOM, arrays in tables.

They have any number of bands. Values that are missing are filled here, before a resize could spread them.
"""

import importlib.util
import io
import os
import zipfile

import numpy as np

from ...image_processing_mae import MOST_MISSING, band_axis
from .bit_depth import BadImage


NUMPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NODATA_TAG = 42113  # GDAL's: the value, as text, of pixels without one
EXACT = 1 << 24  # whole numbers up to this are exact in float32


def has_pydicom() -> bool:
    return importlib.util.find_spec("pydicom") is not None


def cell_of(cell) -> dict:
    """The bytes and the path of a table's cell. An array in it becomes the bytes of an .npy file."""
    if isinstance(cell, dict):
        return cell
    file = io.BytesIO()
    np.save(file, np.asarray(cell), allow_pickle=False)
    return {"bytes": file.getvalue(), "path": None}


def kind_of(data: bytes | None, path: str | None) -> str | None:
    """`npy`, `npz`, `tiff` or `dicom` by the first bytes; None of any other file.

    Raises:
        OSError: the file cannot be read.
    """
    start = data[:132] if data is not None else _first_bytes(path)
    if start.startswith(NUMPY):
        return "npy"
    if start.startswith(b"PK\x03\x04"):
        return "npz"
    if start.startswith(TIFF):
        return "tiff"
    return "dicom" if start[128:132] == b"DICM" else None


def _first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(132)


def read_array(data: bytes | None, path: str | None, name: str) -> tuple[np.ndarray, int | None, float | None] | None:
    """(values, axis of the bands, value that says missing) of an array file, not yet checked.

    The axis is None where the file does not say it. None for a file that Pillow reads as well, or that is no array.

    Raises:
        BadImage: several arrays or frames, Python objects, or a package that reads the file is not installed.
        OSError and others: the file cannot be read.
    """
    kind = kind_of(data, path)
    if kind in ("npy", "npz"):
        return _numpy(data, path, kind, name), None, None
    if kind == "tiff":
        return _tiff(data, path)
    return _dicom(data, path, name) if kind == "dicom" else None


def _numpy(data: bytes | None, path: str | None, kind: str, name: str) -> np.ndarray:
    # A mapped file is read only where bands or every n-th pixel are taken from it.
    mapped = kind == "npy" and data is None and os.path.getsize(path) > EXACT
    try:
        loaded = np.load(io.BytesIO(data) if data is not None else path, "r" if mapped else None, allow_pickle=False)
    except zipfile.BadZipFile as error:
        raise BadImage(f"{name} is not a readable image ({error})") from error
    if kind == "npy":
        return loaded
    with loaded:
        if len(loaded.files) != 1:
            names = ", ".join(loaded.files[:6]) or "none"
            raise BadImage(f"{name} has {len(loaded.files)} arrays ({names}): save one a file")
        return loaded[loaded.files[0]]


def _tiff(data: bytes | None, path: str | None) -> tuple[np.ndarray, int | None, float | None] | None:
    import tifffile  # late: it takes a moment, and few sets need it

    with tifffile.TiffFile(io.BytesIO(data) if data is not None else path) as file:
        page, series = file.pages[0], file.series[0]
        stack = series if series.axes == "CYX" else page
        tag = page.tags.get(NODATA_TAG)
        missing = float(str(tag.value).strip("\0 ")) if tag is not None else None
        if stack is page and missing is None and _pillow_reads(page):
            return None
        axes, values = stack.axes, stack.asarray()
    if axes not in ("YX", "YXS", "SYX", "CYX"):
        raise BadImage(f"{path or 'an image without a name'} has the axes {axes}: save one picture a file")
    return values, {"YX": None, "YXS": 2}.get(axes, 0), missing


def is_stack(data: bytes | None, path: str | None) -> bool:
    """Whether a TIFF has pages as large as the first, which is the one that is read. Smaller ones are previews."""
    if kind_of(data, path) != "tiff":
        return False
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data) if data is not None else path) as file:
            bands = file.series[0].axes == "CYX"
            return not bands and len(file.pages) > 1 and file.pages[1].shape == file.pages[0].shape
    except Exception:  # whatever a broken file raises: reading the image names it
        return False


def describe_stacks(stacks: list[bool]) -> str:
    """How many of the files that were looked at are stacks; empty where none is."""
    pages = f"{sum(stacks)} of {len(stacks)} files looked at have several pages: only the first is seen"
    return pages if any(stacks) else ""


def _pillow_reads(page) -> bool:
    """Whether Pillow reads all bits and bands of a TIFF page: one band, or colours of 8 bits with or without alpha."""
    if page.samplesperpixel == 1:
        return page.dtype is not None and page.dtype.kind != "c" and page.dtype.itemsize <= 4
    alpha = len(page.extrasamples or ()) == 1 and page.extrasamples[0] in (1, 2)
    return page.dtype == np.uint8 and page.samplesperpixel - alpha <= 4 and (alpha or not page.extrasamples)


def _dicom(data: bytes | None, path: str | None, name: str) -> tuple[np.ndarray, int | None, float | None]:
    if not has_pydicom():
        raise BadImage(f"{name} is DICOM: install pydicom to read it")
    import pydicom

    file = pydicom.dcmread(io.BytesIO(data) if data is not None else path)
    frames = int(file.get("NumberOfFrames") or 1)
    if frames > 1:
        raise BadImage(f"{name} has {frames} frames: save one a file")
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


def array_pixels(data: bytes | None, path: str | None) -> tuple[int, str] | None:
    """(pixels, format) from the header of an array file; None of any other file."""
    kind = kind_of(data, path)
    if kind == "tiff":
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data) if data is not None else path) as file:
            page = file.pages[0]
            return page.imagelength * page.imagewidth, "TIFF"
    if kind == "npy":
        with io.BytesIO(data) if data is not None else open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape = reader(file)[0]
        return _area(shape), "NPY"
    if kind is None:
        return None
    values = read_array(data, path, path or "")[0]
    return _area(values.shape), kind.upper()


def _area(shape: tuple[int, ...]) -> int:
    """Pixels of an array, whichever of its axes holds the bands: the product of the two longest."""
    return int(np.prod(sorted(shape)[-2:]))
