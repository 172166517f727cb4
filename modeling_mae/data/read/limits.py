"""How large an image may be. Its header tells, before its pixels take memory."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from .faults import BadImage, name_of


if TYPE_CHECKING:
    from .header import Header
    from .stored import Stored

MOST_PIXELS = 180_000_000  # about what Pillow refuses of pictures: half a gigabyte of colours
BANDS_OF_A_PIXEL = 4  # an array with more of them counts as so many more pixels
DEFLATE = 1032  # bytes that one byte of zlib can become at most
PIXELS_OF_A_JPEG_BYTE = 512  # at most: each block of 64 has a bit or more of its own
PIXELS_OF_A_WEBP_BYTE = 1024  # at most: the two modes of each block of 256 take more than two bits (RFC 6386, 11.2)
PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by its type of colours


@dataclass(frozen=True)
class Limit:
    """The most pixels that an image may have; its name, and the bytes of its file."""

    most: int
    name: str
    size: int

    @classmethod
    def of(cls, data: bytes | None, path: str | None, most: int) -> "Limit":
        return cls(most, name_of(path), os.path.getsize(str(path)) if data is None else len(data))

    def check(self, pixels: int, least_bytes: int = 0) -> None:
        """Compare the size that a header promises with the limit, and with the file, which holds `least_bytes` for it.

        Raises:
            BadImage: the image is larger, or the file is too short for it.
        """
        if pixels > self.most:
            raise BadImage(
                f"{self.name} has {pixels:,} pixels, more than --max_image_pixels {self.most:,} (raise it if memory "
                "allows)"
            )
        if least_bytes > self.size:
            raise BadImage(
                f"{self.name} promises {pixels:,} pixels, which {self.size:,} bytes cannot hold: it is cut off"
            )

    def check_header(self, header: "Header") -> None:
        self.check(_counted(header.pixels, header.channels), header.least_bytes)

    def check_stored(self, stored: "Stored", least_bytes: int = 0) -> None:
        shape = stored.values.shape
        if 2 <= len(shape) <= 3 and all(shape):  # others are refused for their shape
            bands = 1 if len(shape) == 2 else min(shape) if stored.axis is None else shape[stored.axis]
            self.check(_counted(stored.values.size // bands, bands), least_bytes)

    def opened(self, file: Any, data: bytes) -> Image.Image:
        """The picture in `file`, whose bytes are `data`: its header is read and checked."""
        Image.MAX_IMAGE_PIXELS = None
        picture = Image.open(file)
        Image.MAX_IMAGE_PIXELS = self.most  # Pillow's own check sees pictures inside of files, as in icons
        self.check(picture.width * picture.height, least_bytes(picture, data))
        return picture


def _counted(pixels: int, bands: int) -> int:
    return pixels * max(BANDS_OF_A_PIXEL, bands) // BANDS_OF_A_PIXEL


def least_bytes(picture: Image.Image, data: bytes) -> int:
    """The bytes that the file of an opened picture must have for its pixels; 0 where the format does not tell. JPEG
    2000 and lossless WebP need no more for a large picture of one colour than for a small one."""
    pixels = picture.width * picture.height
    if picture.format == "PNG":
        row = 1 + picture.width * data[24] * PNG_CHANNELS.get(data[25], 1) // 8
        return picture.height * row // DEFLATE if data.startswith(PNG) and data[12:16] == b"IHDR" else 0
    if picture.format in ("JPEG", "MPO"):
        return pixels // PIXELS_OF_A_JPEG_BYTE
    return pixels // PIXELS_OF_A_WEBP_BYTE if picture.format == "WEBP" and _is_lossy(data) else 0


def _is_lossy(webp: bytes) -> bool:
    """Whether the first part of a WebP file with pixels is a single lossy picture."""
    place = 12
    while place + 8 <= len(webp) and webp[place : place + 4] not in (b"VP8L", b"ANMF"):
        if webp[place : place + 4] == b"VP8 ":
            return True
        length = int.from_bytes(webp[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    return False
