"""TIFF files: what their tags say of the numbers, and the numbers, as tifffile reads them."""

import io
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .deep import plain_picture
from .faults import BadImage, name_of
from .limits import Limit
from .stored import Stored, promised


MOST_BANDS = 1000  # pages of a TIFF that can be bands; more are a stack
NODATA_TAG = 42113  # GDAL's: the value, as text, of pixels without one
ORIENTATION = 274
GRAY, RGB, PALETTE, CMYK, YCBCR = (0, 1, 4), (2, 6), 3, 5, 6  # values of the photometric tag
REFUSED = {8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32844: "LogL", 32845: "LogLuv", 32803: "a raw photograph"}
ALPHA = {1: "premultiplied", 2: "straight"}  # values of the tag of extra samples
COLOURS_ONCE_DECODED = (7, 34892, 33007)  # kinds of JPEG; other compressions leave YCbCr to the reader


def described_tiff(tiff: Any, path: str | None, number: int | None = None) -> tuple[Any, Stored]:
    """The page of a `tifffile.TiffFile`, or the series of pages that are bands, and what it holds, still unread. With
    `number` that page alone.

    Raises:
        BadImage: it holds no single picture or array, or its colours have no meaning here.
    """
    page, series = tiff.pages[number or 0], _series(tiff) if number is None else None
    pages = series if series is not None and series.axes == "CYX" else page
    if pages.axes not in ("YX", "YXS", "SYX", "CYX"):
        raise BadImage(f"{name_of(path)} has the axes {pages.axes}: save one picture a file")
    if (refused := REFUSED.get(int(page.photometric))) is not None:
        raise BadImage(f"{name_of(path)} has the colours of {refused}: save it as RGB")
    axis = {"YX": None, "YXS": 2}.get(pages.axes, 0)
    count = 1 if axis is None else pages.shape[axis]
    colour, alpha = _colours(page, count)
    bits = int(page.bitspersample) if page.dtype is not None and page.dtype.kind in "ub" else 8
    orientation, nodata = page.tags.get(ORIENTATION), page.tags.get(NODATA_TAG)
    return pages, Stored(
        promised(pages.shape, np.dtype(page.dtype or np.uint8)),
        axis,
        colour,
        palette=_palette(page) if colour == "palette" else None,
        alpha=alpha,
        inverted=int(page.photometric) == 0,
        most=(1 << bits) - 1 if bits % 8 else None,
        orientation=int(orientation.value) if orientation is not None else 1,
        missing=float(str(nodata.value).strip("\0 ")) if nodata is not None else None,
    )


def read_tiff(file: BinaryIO, path: str | None, limit: Limit, number: int | None = None) -> Stored:
    """The picture or array of a TIFF file, or of one page.

    Raises:
        BadImage: as `described_tiff`, or it is too large.
        Exception: the file is damaged, or its compression is not known here.
    """
    import tifffile  # late: it takes a moment, and few sets need it

    with tifffile.TiffFile(file) as tiff:
        pages, stored = described_tiff(tiff, path, number)
        page = tiff.pages[number or 0]
        limit.check_stored(stored, _least_bytes(page, stored))
        fault: Exception | None = None
        decoded = int(page.compression) in COLOURS_ONCE_DECODED and page.planarconfig == 1
        if int(page.photometric) != YCBCR or decoded:
            try:
                return replace(stored, values=pages.asarray(maxworkers=1))
            except Exception as error:  # Pillow knows some compressions that tifffile does not
                fault = error
        if stored.colour == "bands" or stored.values.dtype.itemsize > 1:
            raise fault or ValueError("YCbCr of these values")
        try:
            file.seek(0)
            with Image.open(io.BytesIO(file.read())) as picture:
                picture.seek(number or 0)
                return replace(plain_picture(picture), missing=stored.missing)
        except Exception as error:
            raise (fault or error) from None


def _least_bytes(page: Any, stored: Stored) -> int:
    """The bytes that the file must have for the values; 0 where they are packed, or parts of them are left out."""
    if int(page.compression) != 1 or int(page.photometric) == YCBCR or 0 in page.databytecounts:
        return 0
    return stored.values.size * int(page.bitspersample) // 8


def pages_of_stack(tiff: Any) -> int:
    """The number of pages of a file whose second page is as large as the first, and is not its bands; else 0."""
    try:
        series = _series(tiff)
        bands = series is not None and series.axes == "CYX"
        return len(tiff.pages) if not bands and tiff.pages[1].shape == tiff.pages[0].shape else 0
    except Exception:  # whatever a broken second page raises: the first may be good
        return 0


def full_pages(path: str) -> tuple[list[int], np.dtype]:
    """The numbers of the pages as large as the first, and the type of their values. None are those of one picture."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0]
        count = pages_of_stack(tiff)
        alike = [i for i in range(count) if (tiff.pages[i].shape, tiff.pages[i].dtype) == (first.shape, first.dtype)]
        return alike, np.dtype(first.dtype or np.uint8)


def _series(tiff: Any) -> Any:
    """The pages that belong together; None of very many pages, which would all have to be read for it."""
    try:
        tiff.pages[MOST_BANDS]
    except IndexError:
        return tiff.series[0]
    return None


def _colours(page: Any, count: int) -> tuple[str, str | None]:
    """(colour, alpha) of `count` bands, as `Stored` names them."""
    extras, photometric = tuple(map(int, page.extrasamples or ())), int(page.photometric)
    alpha = ALPHA.get(extras[0]) if len(extras) == 1 else None
    if photometric in RGB and count == 4 and not extras:
        alpha = "straight"
    colours = count - (alpha is not None)
    if photometric in GRAY and colours == 1:
        return "gray", alpha
    if photometric in RGB and colours == 3:
        return "rgb", alpha
    if (photometric, colours) in ((CMYK, 4), (PALETTE, 1)):
        return "cmyk" if photometric == CMYK else "palette", alpha
    return "bands", None


def _palette(page: Any) -> np.ndarray:
    colours = np.asarray(page.colormap).T  # (colours, 3) of 16 bits; some writers leave the upper 8 empty
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
