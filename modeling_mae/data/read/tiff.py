"""TIFF files: what their tags say of the numbers, and the numbers, as tifffile reads them."""

import io
import struct
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .deep import TURNS, plain_picture
from .faults import BadImage, name_of
from .limits import Limit
from .stored import Stored, promised


MOST_BANDS = 1000  # pages of a TIFF that can be bands; more are a stack
NODATA_TAG = 42113  # GDAL's: the value, as text, of pixels without one
ORIENTATION = 274
GRAY, RGB, PALETTE, CMYK, YCBCR = (0, 1, 4), (2, 6), 3, 5, 6  # values of the photometric tag
REFUSED = {8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32844: "LogL", 32845: "LogLuv", 32803: "a raw photograph"}
ALPHA = {1: "premultiplied", 2: "straight"}  # values of the tag of extra samples
JPEG = (6, 7, 34892, 33007)  # compressions whose tables stand beside the strips
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
    if page.planarconfig not in (1, 2):  # Pillow would read outside of its memory: other pixels each time
        raise BadImage(f"{name_of(path)} has a damaged tag (planar configuration): save it anew")
    if page.dtype is None or not isinstance(page.bitspersample, int):
        raise BadImage(
            f"{name_of(path)} has a kind of numbers that is not read here ({_bits(page)} bits): save 8 or 16"
        )
    axis = {"YX": None, "YXS": 2}.get(pages.axes, 0)
    count = 1 if axis is None else pages.shape[axis]
    colour, alpha = _colours(page, count)
    bits = int(page.bitspersample) if page.dtype.kind in "ub" else 8
    orientation, nodata = page.tags.get(ORIENTATION), page.tags.get(NODATA_TAG)
    text = str(nodata.value).strip("\0 ") if nodata is not None else ""
    return pages, Stored(
        promised(pages.shape, np.dtype(page.dtype)),
        axis,
        colour,
        palette=_palette(page) if colour == "palette" else None,
        alpha=alpha,
        inverted=int(page.photometric) == 0,
        most=(1 << bits) - 1 if bits % 8 else None,
        orientation=int(orientation.value) if orientation is not None and int(orientation.value) in TURNS else 1,
        missing=float(text) if text else None,
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
        page: Any = tiff.pages[number or 0]
        limit.check_stored(stored, _least_bytes(page, stored))
        _refuse_cut_off(tiff, page, limit.size)
        fault: Exception | None = None
        if int(page.photometric) != YCBCR or _has_colours_once_decoded(page):
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


def _refuse_cut_off(tiff: Any, page: Any, size: int) -> None:
    """Raises a ValueError if the file ends before the page after `page`, or within a part of `page` that is JPEG.
    Bands would be missing, and a JPEG decoder makes up what it does not have."""
    ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))
    is_jpeg = int(page.compression) in COLOURS_ONCE_DECODED
    if _next_page(tiff, page) >= size or (is_jpeg and max(ends, default=0) > size):
        raise ValueError("it is cut off")


def _next_page(tiff: Any, page: Any) -> int:
    """Where in the file the page after `page` begins, 0 after the last."""
    file, layout = tiff.filehandle, tiff.tiff
    file.seek(page.offset)
    tags = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))[0]
    file.seek(tags * layout.tagsize, 1)
    return struct.unpack(layout.offsetformat, file.read(layout.offsetsize))[0]


class TiffRows:
    """The rows of a TIFF file, which are decoded when they are asked for. The file is open until `close`.

    Raises:
        BadImage: as `described_tiff`, or it is too large.
        Exception: the file is damaged.
    """

    def __init__(self, file: BinaryIO, path: str | None, limit: Limit):
        import tifffile

        self.file, tiff = file, tifffile.TiffFile(file)
        self.page: Any = tiff.pages[0]
        pages, self.stored = described_tiff(tiff, path)
        limit.check_stored(self.stored, _least_bytes(self.page, self.stored))
        _refuse_cut_off(tiff, self.page, limit.size)
        self.is_page = pages is self.page
        self.strips: dict[tuple[int, int], np.ndarray] = {}  # of the rows that were read last

    @property
    def are_independent(self) -> bool:
        """Whether each row can be read without the others: whole numbers that are all there, in an upright page."""
        page, stored = self.page, self.stored
        numbers = stored.values.dtype.kind == "b" or (stored.values.dtype.kind == "u" and page.dtype.itemsize <= 2)
        readable = int(page.photometric) != YCBCR or _has_colours_once_decoded(page)
        return self.is_page and numbers and readable and stored.missing is None and stored.orientation == 1

    def read(self, top: int, end: int) -> Stored:
        """The picture of the rows `top` to `end` - 1."""
        page = self.page
        planes, _, _, width, samples = page.shaped
        if page.is_final and planes == 1:
            size = width * samples * page.dtype.itemsize  # bytes of a row
            self.file.seek(page.dataoffsets[0] + top * size)
            kind = page.dtype.newbyteorder(page.parent.byteorder)
            data = self.file.read((end - top) * size)
            values = np.frombuffer(data, kind).astype(page.dtype, copy=False).reshape(1, end - top, width, samples)
        else:
            values = self._of_strips(top, end)
        shape = (end - top, width)
        shaped = {"YX": shape, "YXS": (*shape, samples), "SYX": (planes, *shape)}[page.axes]
        return replace(self.stored, values=values.reshape(shaped))

    @property
    def segment(self) -> tuple[int, int]:
        """(height, width) in pixels of a strip or a tile."""
        page = self.page
        if page.is_tiled:
            return page.tilelength, page.tilewidth
        return min(page.rowsperstrip, page.imagelength), page.imagewidth

    def _of_strips(self, top: int, end: int) -> np.ndarray:
        """``(planes, end - top, width, samples)`` of the strips, or rows of tiles, that reach into these rows."""
        page = self.page
        planes, _, _, width, samples = page.shaped
        high, _ = self.segment
        values = np.empty((planes, end - top, width, samples), page.dtype)
        wanted = [(plane, strip) for plane in range(planes) for strip in range(top // high, -(-end // high))]
        self.strips = {key: self.strips[key] if key in self.strips else self._strip(*key) for key in wanted}
        for plane, strip in wanted:
            first, last = max(top, strip * high), min(end, (strip + 1) * high)
            values[plane, first - top : last - top] = self.strips[plane, strip][
                first - strip * high : last - strip * high
            ]
        return values

    def _strip(self, plane: int, strip: int) -> np.ndarray:
        """``(rows, width, samples)`` of a strip or of a row of tiles."""
        page = self.page
        _, _, height, width, samples = page.shaped
        high, wide = self.segment
        down, across = -(-height // high), -(-width // wide)  # numbers of segments
        rows = np.full((min(high, height - strip * high), width, samples), page.nodata, page.dtype)
        options = {}
        if int(page.compression) in JPEG:
            options = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        start = (plane * down + strip) * across
        for index in range(start, start + across):
            self.file.seek(page.dataoffsets[index])
            data = self.file.read(page.databytecounts[index])
            segment, (*_, left, _), _ = page.decode(data or None, index, **options)
            if segment is not None:
                part = segment[0, : len(rows), : width - left]  # (rows, columns, samples)
                rows[: len(part), left : left + part.shape[1]] = part
        return rows

    def close(self) -> None:
        self.file.close()


def _has_colours_once_decoded(page: Any) -> bool:
    return int(page.compression) in COLOURS_ONCE_DECODED and page.planarconfig == 1


def _least_bytes(page: Any, stored: Stored) -> int:
    """The bytes that the file must have for the values; 0 where they are packed, or parts of them are left out."""
    if int(page.compression) != 1 or int(page.photometric) == YCBCR or 0 in page.databytecounts:
        return 0
    return stored.values.size * int(page.bitspersample) // 8


def pages_of_stack(tiff: Any) -> int:
    """The number of pages, if the second is as large as the first and does not hold bands of it. Else 0."""
    try:
        series = _series(tiff)
        bands = series is not None and series.axes == "CYX"
        return len(tiff.pages) if not bands and tiff.pages[1].shape == tiff.pages[0].shape else 0
    except Exception:  # whatever a broken second page raises: the first may be good
        return 0


def full_pages(path: str) -> tuple[list[int], np.dtype]:
    """The numbers of the pages as large as the first, and the type of their values. None are those of one picture.

    Raises:
        ValueError: pages at the end are missing.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0]
        if _next_page(tiff, tiff.pages[-1]):
            raise ValueError("it is cut off")
        count = pages_of_stack(tiff)
        alike = [i for i in range(count) if (tiff.pages[i].shape, tiff.pages[i].dtype) == (first.shape, first.dtype)]
        return alike, np.dtype(first.dtype or np.uint8)


def _series(tiff: Any) -> Any:
    """The pages that belong together. None if there are very many, because all would have to be read."""
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


def _bits(page: Any) -> str:
    bits = page.bitspersample
    return str(bits) if isinstance(bits, int) else ", ".join(map(str, bits))


def _palette(page: Any) -> np.ndarray:
    colours = np.asarray(page.colormap).T  # (colours, 3) of 16 bits; some writers leave the upper 8 empty
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
