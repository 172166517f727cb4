"""How large an image may be. Its header tells, before its pixels take memory."""

import os
from math import prod

from PIL import Image

from .faults import BadImage, name_of
from .header import DEFLATE, Header, kind_of, opened, plain_jpeg_size, read_header


MOST_PIXELS = 180_000_000  # about what Pillow refuses of pictures: half a gigabyte of colours
BANDS_OF_A_PIXEL = 4  # an array with more of them counts as so many more pixels
PIXELS_OF_A_JPEG_BYTE = 512  # at most: each block of 64 has a bit or more of its own
PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by its type of colours


def check_size(data: bytes | None, path: str | None, most: int) -> None:
    """Compare the size that a file's header promises with the limit of `most` pixels, and with the file.

    Raises:
        BadImage: the image is larger, the file is too short for it, or the header cannot be read.
    """
    pixels, least_bytes = _promised(data, path)
    Image.MAX_IMAGE_PIXELS = most  # Pillow's own check sees pictures inside of files, as in icons
    if pixels > most:
        raise BadImage(
            f"{name_of(path)} has {pixels:,} pixels, more than --max_image_pixels {most:,} (raise it if memory allows)"
        )
    size = os.path.getsize(str(path)) if data is None else len(data)
    if least_bytes > size:
        raise BadImage(f"{name_of(path)} promises {pixels:,} pixels, which {size:,} bytes cannot hold: it is cut off")


def _promised(data: bytes | None, path: str | None) -> tuple[int, int]:
    """(pixels, bytes that the file must have for them; 0 where nobody knows). The header of a usual kind of file is
    read here, in a small part of the time that decoding takes."""
    if data is not None and data.startswith(PNG) and data[12:16] == b"IHDR":
        width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
        row = 1 + width * data[24] * PNG_CHANNELS.get(data[25], 1) // 8
        return height * width, height * row // DEFLATE
    if data is not None and data[:2] == b"\xff\xd8" and (size := plain_jpeg_size(data)) is not None:
        return prod(size), prod(size) // PIXELS_OF_A_JPEG_BYTE
    header = (_single_page(data, path) if kind_of(data, path) == "tiff" else None) or read_header(data, path)
    pixels = header.pixels * max(BANDS_OF_A_PIXEL, header.channels) // BANDS_OF_A_PIXEL
    return pixels, header.pixels // PIXELS_OF_A_JPEG_BYTE if header.format == "JPEG" else header.least_bytes


def _single_page(data: bytes | None, path: str | None) -> Header | None:
    """The header of a TIFF with one page, in less time than `read_header` takes; None of all others."""
    import tifffile  # late: it takes a moment, and few sets need it

    with opened(data, path) as file, tifffile.TiffFile(file) as tiff:
        page, is_single = tiff.pages[0], tiff.pages.is_multipage is False
        if not is_single or not isinstance(page, tifffile.TiffPage):
            return None
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        bits = height * width * channels * page.bitspersample if page.compression == 1 else 0
        return Header("TIFF", height, width, channels, False, least_bytes=bits // 8)
