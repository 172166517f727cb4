"""PNG files of 16 bits a channel, checked before torchvision decodes them: its decoder ends the whole process where
libpng finds an error (torchvision 0.29). Pillow is safe, but reads only 8 of the 16 bits and accepts missing rows.
"""

import struct
import zlib
from collections.abc import Iterator


SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type
KEPT = (b"IHDR", b"tRNS", b"eXIf")  # transparency and orientation change what is decoded; the rest is not needed
LAST_FILTER = 4
# (first row, first column, rows between, columns between) of the seven passes of an interlaced file
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def clean_png(data: bytes) -> bytes:
    """The same image in a file without anything that libpng could refuse.

    Raises:
        ValueError: the file is damaged: cut off, a wrong checksum, missing or surplus rows.
    """
    kept, packed = {}, b""
    for kind, body in _chunks(data):
        packed += body if kind == b"IDAT" else b""
        if kind in KEPT:
            kept.setdefault(kind, body)
    try:
        width, height, bits, colour, *methods, interlaced = struct.unpack(">IIBBBBB", kept[b"IHDR"])
    except (KeyError, struct.error):
        raise ValueError("it has no header") from None
    if bits != 16 or colour not in CHANNELS or not width or not height or methods != [0, 0] or interlaced > 1:
        raise ValueError("its header is wrong")
    if len(kept.get(b"tRNS", b"")) not in (0, 2 * CHANNELS[colour]) or colour > 2:
        kept.pop(b"tRNS", None)
    unpacker = zlib.decompressobj()
    expected = list(_rows(width, height, 2 * CHANNELS[colour], bool(interlaced)))
    try:
        rows = unpacker.decompress(packed, sum(expected) + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(rows) != sum(expected) or not unpacker.eof:
        raise ValueError("it has missing or surplus rows")
    place = 0
    for length in expected:
        if rows[place] > LAST_FILTER:
            raise ValueError(f"its row at byte {place} is wrong")
        place += length
    chunks = [*kept.items(), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        try:
            length, kind = struct.unpack_from(">I4s", data, place)
            body = data[place + 8 : place + 8 + length]
            (checksum,) = struct.unpack_from(">I", data, place + 8 + length)
        except struct.error:
            raise ValueError("it is cut off") from None
        if zlib.crc32(kind + body) != checksum:
            raise ValueError(f"its part {kind!r} has a wrong checksum")
        place += 12 + length
        yield kind, body


def _rows(width: int, height: int, bytes_a_pixel: int, interlaced: bool) -> Iterator[int]:
    """The bytes of each row, with that of its filter."""
    for first_row, first_column, row_step, column_step in PASSES if interlaced else ((0, 0, 1, 1),):
        columns = len(range(first_column, width, column_step))
        for _ in range(first_row, height, row_step) if columns else ():
            yield 1 + columns * bytes_a_pixel


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
