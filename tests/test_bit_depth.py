"""Images of more than 8 bits: which value is white, and what is a bad image."""

import io
import struct
import zlib

import datasets
import numpy as np
import pytest
from flat import load_source, open_images
from PIL import Image, ImageOps

from modeling_mae.data.read.bit_depth import common_white, white_above
from modeling_mae.data.read.decode import decode, look_at
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.serve.images import FileImages, MemoryImages
from modeling_mae.data.serve.statistics import measure_mean_std
from modeling_mae.errors import UserError


RAMP = np.arange(64).reshape(8, 8)


def png16(values: np.ndarray, rows: bytes | None = None, packed: bytes | None = None, interlaced: int = 0):
    """A PNG file of ``values (height, width, channels)`` uint16, which Pillow does not write in colour. `rows` or what
    is `packed` of them may be others; then all checksums are right all the same."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values) if rows is None else rows
    packed = zlib.compress(rows) if packed is None else packed

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, extra: list[int]) -> bytes:
    """A plain TIFF file of ``values (height, width, bands)``; `extra` says what the bands beyond three are."""
    height, width, bands = values.shape
    tags = [(256, [width]), (257, [height]), (258, [8 * values.itemsize] * bands), (259, [1]), (262, [2])]
    tags += [(273, None), (277, [bands]), (278, [height]), (279, [values.nbytes])]
    tags += [(338, extra)] * bool(extra)
    start = 8 + 2 + 12 * len(tags) + 4
    entries, beyond = b"", b""
    beyond_size = sum(2 * len(v) for _, v in tags if v and len(v) > 2)
    for tag, items in tags:
        if items is None:
            entries += struct.pack("<HHII", tag, 4, 1, start + beyond_size)
        elif len(items) <= 2:
            entries += struct.pack("<HHI", tag, 3, len(items)) + struct.pack(f"<{len(items)}H", *items).ljust(4, b"\0")
        else:
            entries += struct.pack("<HHII", tag, 3, len(items), start + len(beyond))
            beyond += struct.pack(f"<{len(items)}H", *items)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + beyond + values.tobytes()


def folder_of(tmp_path, **images):
    """A folder of the images, each under its name with `_` for the dot."""
    for name, values in images.items():
        path = tmp_path / "images" / name.replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        if isinstance(values, bytes):
            path.write_bytes(values)
        else:
            Image.fromarray(values).save(path)
    return load_source(train_dir=str(tmp_path / "images"))


def open_set(source, channels=1, budget=1 << 30, **options):
    return open_images(source, (8, 8), channels, memory_budget=budget, **options)


@pytest.mark.parametrize(
    ("highest", "white"),
    [
        (200, 255),
        (256, 1023),
        (1023, 1023),
        (3000, 4095),
        (4096, 16383),
        (65535, 65535),
        (10**6, 2**20 - 1),
    ],
)
def test_white_above(highest, white):
    assert white_above(highest) == white


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_one_scale_for_all_files(tmp_path, budget):
    bright, dark = (RAMP * 65).astype(np.uint16), (RAMP * 2).astype(np.uint16)  # up to 4095 and up to 126
    images = open_set(folder_of(tmp_path, a_png=bright, b_png=dark, c_tif=bright), budget=budget)
    assert isinstance(images, FileImages if budget == 0 else MemoryImages)
    assert images.white == 4095 and images.remarks == "; values 0..4095 are kept, 4095 is white"
    for i, values in enumerate((bright, dark, bright)):
        np.testing.assert_allclose(images.read(i)[0], values * (255 / 4095), rtol=1e-6)
    pixels = np.concatenate([values.ravel() for values in (bright, dark, bright)]) / 4095
    assert [v[0] for v in measure_mean_std(images)] == pytest.approx([pixels.mean(), pixels.std()], rel=1e-5)


@pytest.mark.parametrize(
    ("values", "white"),
    [
        ((RAMP * 50).astype(np.int32), 1),  # with a sign: as it is
        ((RAMP / 63).astype(np.float32), 1),
        ((RAMP * 4.0).astype(np.float32), 1),
        ((RAMP * 1000).astype(np.float32), 1),
    ],
)
def test_kinds_of_values(tmp_path, values, white):
    images = open_set(folder_of(tmp_path, a_tif=values), channels=3)
    assert images.white == white and (f"0..{white}" if white > 1 else "as they are") in images.remarks
    np.testing.assert_allclose(images.read(0), [values.astype(np.float64) * (255 / white)] * 3, rtol=1e-6)


def test_ordinary_files_are_as_ever(tmp_path):
    values = np.random.default_rng(0).integers(0, 40, (8, 8, 3)).astype(np.uint8)  # dark, and that it stays
    images = open_set(folder_of(tmp_path, a_png=values, b_bmp=values), channels=3)
    assert images.white == 255 and images.remarks == ""
    assert np.array_equal(images.read(0).permute(1, 2, 0), values)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours(tmp_path, channels):
    values = np.random.default_rng(0).integers(0, 4096, (8, 8, channels)).astype(np.uint16)
    values[0, 0, 0] = 4095
    if channels in (2, 4):
        values[..., -1] = 65535  # opaque, which is no brightness
        values[1, 1, -1] = 0
    images = open_set(folder_of(tmp_path, a_png=png16(values)), channels=3)
    assert images.white == 4095
    expected = (values * (255 / 4095))[..., :3]
    if channels == 2:
        expected = expected[..., :1].repeat(3, 2)
    if channels != 3:
        expected[1, 1] = 255  # on white
    np.testing.assert_allclose(images.read(0).permute(1, 2, 0), expected, rtol=1e-6)


def test_16_bit_colours_in_seven_passes():
    values = np.random.default_rng(0).integers(0, 65536, (5, 9, 3)).astype(np.uint16)
    starts = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    passes = [values[row::down, column::right] for row, column, down, right in starts]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes if part.size for row in part)
    image = decode(png16(values, rows, interlaced=True), "x.png", 3, white=65535)
    np.testing.assert_allclose(image.permute(1, 2, 0), values * (255 / 65535), rtol=1e-6)


def with_header(file: bytes, place: int, replaced: bytes) -> bytes:
    """The PNG file with other bytes at `place` of its header, and the checksum of that."""
    header = file[16:29]
    header = header[:place] + replaced + header[place + len(replaced) :]
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return file[:8] + chunk + file[33:]


def damaged_files():
    values = np.random.default_rng(0).integers(0, 65536, (6, 7, 3)).astype(np.uint16)
    whole, row = png16(values), 1 + 7 * 3 * 2  # bytes
    rows = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    packed = zlib.compress(rows)
    middle = len(whole) // 2
    return {
        "cut off": whole[:middle],
        "a byte flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "a row is missing": png16(values, rows[:-row]),
        "no such filter": png16(values, b"\x09" + rows[1:]),
        "nothing packed": png16(values, packed=b""),
        "an unknown order of rows": png16(values, interlaced=2),
        "an unknown way of packing": with_header(whole, 10, b"\1"),
        "an unknown way of filtering": with_header(whole, 11, b"\1"),
        "a header too long": with_header(whole, 13, b"\0"),
        "packed wrongly": png16(values, packed=packed[:20] + b"\xff\xff" + packed[22:]),
        "a wrong checksum of the rows": png16(values, packed=packed[:-1] + bytes([packed[-1] ^ 1])),
    }


@pytest.mark.parametrize("damage", damaged_files())
def test_damaged_16_bit_colours_are_bad_images(damage):
    with pytest.raises(BadImage, match="x.png is not a readable image"):  # libpng would end the process
        decode(damaged_files()[damage], "x.png", 3)


def test_16_bit_colours_with_all_their_rows_are_read(capfd):
    """Pillow and libvips read both kinds as well: no pixel is missing."""
    values = np.random.default_rng(0).integers(0, 65536, (6, 7, 3)).astype(np.uint16)
    whole, rows = png16(values), b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    for file in (whole[:-12], png16(values, rows + rows[: 1 + 7 * 3 * 2])):
        image = decode(file, "x.png", 3, white=65535)
        np.testing.assert_allclose(image.permute(1, 2, 0), values * (255 / 65535), rtol=1e-6)
    assert capfd.readouterr().err == ""


def test_gray_of_16_bits_may_be_transparent():
    """Pixels of the value that the file calls transparent are shown on white."""
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    picture = io.BytesIO()
    Image.fromarray(values).save(picture, "PNG", transparency=10000)
    image = decode(picture.getvalue(), "x.png", 1, white=65535)[0]
    expected = np.where(values == 10000, 255, values * (255 / 65535))
    np.testing.assert_allclose(image, expected, rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_colours_are_turned_upright(orientation):
    """As Pillow turns the same picture with 8 bits."""
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = io.BytesIO()
    Image.fromarray(levels).save(picture, "PNG", exif=exif)
    tag = picture.getvalue().partition(b"eXIf")[2]
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    assert tag.startswith(body)
    deep = png16(levels.astype(np.uint16) * 257)
    image = decode(deep[:33] + chunk + deep[33:], "x.png", 3, white=65535)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(picture)))
    np.testing.assert_allclose(image.permute(1, 2, 0), upright, rtol=1e-5)


def test_16_bit_colours_in_tiff(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    values[0, 0] = 65535
    images = open_set(folder_of(tmp_path, a_tif=tiff(values, [])), channels=3)
    assert images.white == 65535
    np.testing.assert_allclose(images.read(0).permute(1, 2, 0) * 257, values, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((8, 8), np.nan, np.float32), r"a.tif has more than half of band 1 missing \(100%\)"),
        (np.array([[0.5, np.inf]], np.float32), "a.tif has values that are infinite"),
    ],
)
def test_values_that_are_none(tmp_path, values, message, capsys):
    source = folder_of(tmp_path, a_tif=values, b_tif=(RAMP * 60).astype(np.uint16))
    with pytest.raises(BadImage, match=f"{message}: fix or remove it, or go on without it by --on_bad_image skip"):
        open_set(source)
    images = open_set(source, on_bad_image="skip")
    assert images.white == 4095 and images.skipped.tolist() == [True, False]
    assert capsys.readouterr().err.count("skipped") == 1


def test_values_above_white(tmp_path):
    dim, bright = (RAMP * 60).astype(np.uint16), (RAMP * 1000).astype(np.uint16)
    names = {f"{i:03}_png": dim for i in range(130)} | {"001_png": bright}  # beyond the sample of 64
    source = folder_of(tmp_path, **names)
    images = open_set(source, budget=0)
    assert images.white == 4095
    with pytest.raises(
        BadImage, match=r"001.png has values up to 63000, above white, which is 4095 \(see --white_value"
    ):
        images.batch(0, [1])
    assert open_set(source, budget=0, white_value=65535).batch(0, [1])["images"].max() == pytest.approx(
        63000 * 255 / 65535
    )
    assert open_set(source, budget=0, on_bad_image="skip").read_or_next(1)[1] == 2


def test_files_without_a_common_scale(tmp_path):
    deep, plain = (RAMP * 60).astype(np.uint16), RAMP.astype(np.uint8)
    source = folder_of(tmp_path, a_png=plain, b_png=deep)
    with pytest.raises(
        UserError, match=r"no common scale, but 8 bits up to 255 \(.*a.png\) and whole .* 3780 \(.*b.png"
    ):
        open_set(source)
    with pytest.raises(BadImage, match="a.png has 8 bits a channel, while white is 4095"):
        open_set(source, white_value=4095)
    with pytest.raises(BadImage, match="b.png has values up to 3780, above white, which is 255"):
        open_set(source, white_value=255)
    # whole numbers up to 255 are on the scale of 8 bits, in whatever type
    assert common_white([("a.png", "8 bits", 255), ("b.tif", "whole numbers", 200)]) == 255


def test_bands_that_would_be_lost(tmp_path):
    values = np.arange(8 * 8 * 5, dtype=np.uint8).reshape(8, 8, 5)
    for bands, extra in ((5, [0, 0]), (4, [0])):
        with pytest.raises(BadImage, match=f"{bands} bands, and the model takes 3 channels"):
            open_set(folder_of(tmp_path, a_tif=tiff(values[..., :bands].copy(), extra)), channels=3)
    opaque = values[..., :4].copy()
    opaque[..., 3] = 255
    for kept, extra in ((values[..., :3].copy(), []), (opaque, [2])):  # colours, and colours with alpha
        images = open_set(folder_of(tmp_path, a_tif=tiff(kept, extra)), channels=3)
        assert np.array_equal(images.read(0).permute(1, 2, 0), values[..., :3])


def test_bytes_of_a_table():
    """As in a parquet file or on the Hub, where images are bytes and need no name."""
    data = png16((RAMP * 60)[..., None].astype(np.uint16))
    assert look_at(data, None, 1)[0][1:] == ("whole numbers", 3780)
    np.testing.assert_allclose(decode(data, None, 1, 4095)[0], RAMP * 60 * 255 / 4095, rtol=1e-6)
    with pytest.raises(BadImage, match="an image without a name is not a readable image"):
        look_at(data[:60], None, 1)
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None}]}, features)
    assert table[0]["image"]["bytes"] == data
