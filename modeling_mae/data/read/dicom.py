"""DICOM files: the picture that a viewer shows, as pydicom reads it."""

import importlib.util
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from .faults import BadImage, name_of, reading
from .limits import Limit
from .stored import Stored, promised


PALETTE = "PALETTE COLOR"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
FIRST_ELEMENTS = (b"\2\0\0\0", b"\x08\0\0\0", b"\x08\0\1\0", b"\x08\0\5\0", b"\x08\0\x08\0", b"\x08\0\x16\0")
FIRST_BYTES = {*FIRST_ELEMENTS, *(first[1::-1] + first[:1:-1] for first in FIRST_ELEMENTS)}  # of both byte orders
IN_SERIES = (
    "SeriesInstanceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "InstanceNumber",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PixelSpacing",
    "Rows",
    "Columns",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
)  # elements that say where a plane lies
LONGEST = 64  # bytes of the first element of a file without a preamble


def has_pydicom() -> bool:
    return importlib.util.find_spec("pydicom") is not None


def is_dicom(start: bytes) -> bool:
    """Whether a file that starts with these 132 bytes is DICOM. Old files lack the preamble of 128 bytes; that of
    others may look like TIFF."""
    if start[128:132] == b"DICM":
        return True
    if start[:4] not in FIRST_BYTES:
        return False
    length = int.from_bytes(start[4:8], "little")
    return start[4:6] in (b"UL", b"UI", b"CS", b"OB") or (0 < length <= LONGEST and length % 2 == 0)


def _opened(file: BinaryIO, path: str | None, header_only: bool) -> Any:
    if not has_pydicom():
        raise BadImage(f"{name_of(path)} is DICOM: install pydicom to read it")
    import pydicom

    about = pydicom.dcmread(file, stop_before_pixels=header_only, force=True)
    pixels = header_only or any(name in about for name in PIXELS)
    if "Rows" not in about or "Columns" not in about or not pixels:
        raise BadImage(f"{name_of(path)} is DICOM without a picture: remove it")
    frames = int(about.get("NumberOfFrames") or 1)
    if frames > 1:
        raise BadImage(f"{name_of(path)} has {frames} frames: --slices all takes each as an image")
    return about


def described_dicom(file: BinaryIO, path: str | None) -> Stored:
    """What a DICOM file holds, still unread.

    Raises:
        BadImage: it has several frames, or cannot be read here.
    """
    return _described(_opened(file, path, header_only=True))


def _described(about: Any) -> Stored:
    samples = 3 if about.get("PhotometricInterpretation") == PALETTE else int(about.get("SamplesPerPixel") or 1)
    shape = (int(about.Rows), int(about.Columns), *[samples] * (samples > 1))
    return Stored(promised(shape, np.dtype(np.uint16)), 2 if samples > 1 else None, "rgb" if samples > 1 else "gray")


def read_dicom(file: BinaryIO, path: str | None, limit: Limit) -> Stored:
    """The picture of a DICOM file: its colours, or its values rescaled and in its window, from 0 to all of its type.
    Values without a window are rescaled only.

    Raises:
        BadImage: it has several frames, is too large, or another package is needed.
        Exception: the file is damaged.
    """
    about, values = _read_pixels(file, path, limit)
    if values.ndim == 3 or about.get("PhotometricInterpretation") == PALETTE:
        return Stored(dicom_colours(values, about), 2, "rgb")
    missing = _padding(values, about)
    inverted = about.get("PhotometricInterpretation") == "MONOCHROME1"  # the lowest value is white
    shown = _windowed(_rescaled(values, about), about)
    if shown is not None:
        shown = 1 - shown if inverted else shown
        kind = np.uint8 if values.dtype.itemsize == 1 else np.uint16
        values = np.round(shown * np.iinfo(kind).max).astype(kind)
        return Stored(values, colour="gray", missing=missing)
    if inverted:
        highest = (1 << about.BitsStored) - 1
        values = (-1 - values) if about.PixelRepresentation else (highest - values).astype(values.dtype)
    few_bits = values.dtype == np.uint8 and about.BitsStored < 8  # which a viewer shows from black to white
    most = (1 << about.BitsStored) - 1 if few_bits else None
    rescaled = _rescaled(values, about)
    return Stored(rescaled, colour="gray", missing=missing, most=most if rescaled.dtype == np.uint8 else None)


def _read_pixels(file: BinaryIO, path: str | None, limit: Limit) -> tuple[Any, np.ndarray]:
    """The elements of a file, and its pixels as they are stored."""
    about = _opened(file, path, header_only=False)
    limit.check_stored(_described(about))
    return about, stored_pixels(about)


def stored_pixels(about: Any, frame: int | None = None) -> np.ndarray:
    """The pixels of a file as they are stored, or those of one frame."""
    from pydicom import pixels  # late: few sets need it

    about.file_meta.TransferSyntaxUID = syntax_of(about)
    below = bits_below(about)
    if below:
        about.BitsStored += below
    values = pixels.pixel_array(about, index=frame)
    if below:
        about.BitsStored -= below
        values = values >> below
    return values


def bits_below(about: Any) -> int:
    """The bits of a pixel below its value. Old files have it in the upper bits, where pydicom does not look."""
    if syntax_of(about).is_encapsulated or "HighBit" not in about or "BitsStored" not in about:
        return 0
    return max(0, int(about.HighBit) + 1 - int(about.BitsStored))


def dicom_colours(values: np.ndarray, about: Any) -> np.ndarray:
    """``(height, width, 3)`` of pixels as they are stored: their own colours, or those of the palette in 8 bits."""
    if about.get("PhotometricInterpretation") != PALETTE:
        return values
    from pydicom import pixels

    colours = pixels.apply_color_lut(values, about)
    return (colours >> 8 * (colours.itemsize - 1)).astype(np.uint8)


def syntax_of(about: Any) -> Any:
    """The kind of encoding of a file. One that does not say it has one of the oldest."""
    from pydicom import uid

    if "TransferSyntaxUID" in about.file_meta:
        return about.file_meta.TransferSyntaxUID
    implicit, little = about.original_encoding
    return (
        uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    )


def _padding(values: np.ndarray, about: Any) -> np.ndarray | None:
    """Where the values only fill up the square."""
    first = about.get("PixelPaddingValue")
    if first is None:
        return None
    last = about.get("PixelPaddingRangeLimit")
    # Some files write a negative value as one without a sign: 63536 is -2000 of 16 bits.
    low, high = sorted(np.array([first, first if last is None else last], np.int64).astype(values.dtype))
    return (values >= low) & (values <= high)


def _rescaled(values: np.ndarray, about: Any) -> np.ndarray:
    if about.get("ModalityLUTSequence"):
        from pydicom import pixels

        return pixels.apply_modality_lut(values, about)
    slope, intercept = float(about.get("RescaleSlope") or 1), float(about.get("RescaleIntercept") or 0)
    return values if (slope, intercept) == (1, 0) else (values * slope + intercept).astype(np.float32)


def _windowed(values: np.ndarray, about: Any) -> np.ndarray | None:
    """From 0 to 1 as a viewer shows the values: by the first table or window of the file (DICOM PS3.3, C.11.2.1). None
    if the file has neither."""
    if about.get("VOILUTSequence"):
        from pydicom import pixels

        bits = int(about.VOILUTSequence[0].LUTDescriptor[2])
        return pixels.apply_voi(values, about) / ((1 << bits) - 1)
    window = _first_window(about)
    if window is None:
        return None
    center, width, function = window
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(-4 * (values.astype(np.float64) - center) / width))
    if width < 0 or (function != "LINEAR" and width == 0):
        return None
    if width == 0:
        return (values > center).astype(np.float64)
    return ((values.astype(np.float64) - center) / width + 0.5).clip(0, 1)


def _first_window(about: Any) -> tuple[float, float, str] | None:
    """(center, width, function) of the file's first window, or None. A LINEAR window is given in the numbers of
    LINEAR_EXACT: half a level lower, and one level narrower."""
    center, width = _first(about.get("WindowCenter")), _first(about.get("WindowWidth"))
    if center is None or width is None:
        return None
    function = str(about.get("VOILUTFunction") or "LINEAR").upper()
    return (center - 0.5, width - 1, function) if function == "LINEAR" else (center, width, function)


@dataclass(frozen=True)
class SeriesHeader:
    """What a file says of its place in a series. `position` is along the normal of its plane, and `key` is the same
    for the files of a series whose planes are parallel. `window` is (black, white), None unless it is linear."""

    key: tuple
    position: float
    number: int
    shape: tuple[int, int]
    spacing: tuple[float, float]  # height and width of a pixel
    window: tuple[float, float] | None
    inverted: bool


def series_header(path: str) -> SeriesHeader | None:
    """The header of a file, or None if the file is not a plane of a series: several frames, colours, or no position.

    Raises:
        BadImage: the file cannot be read.
    """
    with reading(path), open(path, "rb") as file:
        import pydicom

        about: Any = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(IN_SERIES))
        directions, corner = (about.get(f"Image{name}Patient") for name in ("Orientation", "Position"))
        gray = str(about.get("PhotometricInterpretation") or "").startswith("MONOCHROME")
        if not (directions and corner and about.get("SeriesInstanceUID") and gray and about.get("Rows")):
            return None
        if int(about.get("NumberOfFrames") or 1) > 1:
            return None
        row, column = np.array(directions, np.float64).reshape(2, 3)
        shape = int(about.Rows), int(about.Columns)
        spacing = [float(side) for side in about.get("PixelSpacing") or (1, 1)]
        return SeriesHeader(
            (str(about.SeriesInstanceUID), shape, tuple(np.round([*row, *column], 2).tolist())),
            float(np.dot(np.cross(row, column), np.array(corner, np.float64))),
            int(about.get("InstanceNumber") or 0),
            shape,
            (spacing[0], spacing[1]),
            linear_window(about),
            about.get("PhotometricInterpretation") == "MONOCHROME1",
        )


def linear_window(about: Any) -> tuple[float, float] | None:
    window = _first_window(about)
    if window is None or about.get("VOILUTSequence") or window[2] == "SIGMOID":
        return None
    center, width, _ = window
    return (center - width / 2, center + width / 2) if width > 0 else None


def dicom_slice(path: str, limit: Limit) -> np.ndarray:
    """``(height, width)`` of a gray file, rescaled. Padding is NaN.

    Raises:
        Exception: the file is damaged.
    """
    with open(path, "rb") as file:
        about, values = _read_pixels(file, path, limit)
    return dicom_numbers(values, about)


def dicom_numbers(values: np.ndarray, about: Any) -> np.ndarray:
    """Gray pixels, rescaled. Padding is NaN."""
    padding = _padding(values, about)
    values = _rescaled(values, about)
    return values if padding is None else np.where(padding, np.float32(np.nan), values.astype(np.float32))


def _first(numbers: Any) -> float | None:
    """The first of one or several numbers, or None."""
    if numbers is None or numbers == "":
        return None
    return (
        float(numbers[0]) if isinstance(numbers, (list, tuple)) or hasattr(numbers, "__getitem__") else float(numbers)
    )
