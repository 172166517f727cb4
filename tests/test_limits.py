"""How large an image may be: its header is compared with --max_image_pixels, and with its file."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import tifffile
from conftest import run
from PIL import Image

from modeling_mae.data.read.decode import decode, look_at
from modeling_mae.data.read.faults import BadImage


COLOURS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)  # 1,200 pixels
BANDS = np.zeros((8, 30, 40), np.float32)  # eight bands count twice: 2,400


def picture(format: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, format, **options)
    return file.getvalue()


def written(write, *values, **options) -> bytes:
    file = io.BytesIO()
    write(file, *values, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def dicom() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    uid = pydicom.uid
    about = pydicom.dataset.FileDataset(None, {}, preamble=b"\0" * 128)
    about.file_meta = pydicom.dataset.FileMetaDataset()
    about.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    about.file_meta.MediaStorageSOPClassUID, about.SOPClassUID = uid.CTImageStorage, uid.CTImageStorage
    about.file_meta.MediaStorageSOPInstanceUID = about.SOPInstanceUID = "1.2.3"
    about.Rows, about.Columns, about.SamplesPerPixel = 30, 40, 1
    about.PhotometricInterpretation, about.PixelRepresentation = "MONOCHROME2", 0
    about.BitsAllocated, about.BitsStored, about.HighBit = 16, 12, 11
    about.PixelData = np.arange(1200, dtype=np.uint16).tobytes()
    return written(lambda file: pydicom.dcmwrite(file, about, enforce_file_format=True))


FILES = {
    **{format: lambda format=format: picture(format) for format in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")},
    "JPEG 2000": lambda: picture("JPEG2000"),
    "JPEG, turned": lambda: picture("JPEG", exif=turned()),
    "TIFF, two pages": lambda: picture("TIFF", save_all=True, append_images=[Image.fromarray(COLOURS)]),
    "npy": lambda: written(np.save, COLOURS),
    "npz": lambda: written(np.savez_compressed, COLOURS),
    "npy, bands": lambda: written(np.save, BANDS),
    "TIFF, bands": lambda: written(tifffile.imwrite, BANDS, photometric="minisblack", planarconfig="separate"),
    "TIFF, bands as pages": lambda: written(
        tifffile.imwrite, BANDS, photometric="minisblack", metadata={"axes": "CYX"}
    ),
    "DICOM": dicom,
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_is_read_up_to_the_limit(kind):
    data, channels = FILES[kind](), 8 if "bands" in kind else 1 if kind == "DICOM" else 3
    pixels = 2400 if "bands" in kind else 1200
    image = decode(data, "x", channels, max_image_pixels=pixels)
    assert sorted(image.shape[1:]) == [30, 40]
    with pytest.raises(BadImage, match=rf"^x has {pixels:,} pixels, more than --max_image_pixels {pixels - 1:,} \("):
        decode(data, "x", channels, max_image_pixels=pixels - 1)
    with pytest.raises(BadImage, match="max_image_pixels"):
        look_at(data, "x", channels, max_image_pixels=pixels - 1)


def test_a_file_that_is_only_mapped_is_checked_as_well(tmp_path):
    np.save(tmp_path / "a.npy", BANDS)
    with pytest.raises(BadImage, match=r"2,400 pixels"):
        decode(None, str(tmp_path / "a.npy"), 8, max_image_pixels=2399)


SIDE = 12_000


def png() -> bytes:
    data = bytearray(picture("PNG"))
    data[16:24] = struct.pack(">II", SIDE, SIDE)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def jpeg(marker: bytes, **options) -> bytes:
    data = bytearray(picture("JPEG", **options))
    frame = data.index(marker)
    data[frame + 5 : frame + 9] = struct.pack(">HH", SIDE, SIDE)
    return bytes(data)


def tiff() -> bytes:
    data = bytearray(picture("TIFF"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        places = [file.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for place in places:
        data[place : place + 2] = struct.pack("<H", SIDE)
    return bytes(data)


def webp(**options) -> bytes:
    """A lossy picture, whose frame says its size after its start code (RFC 6386, 9.1)."""
    data = bytearray(picture("WEBP", **options))
    frame = data.index(b"\x9d\x01\x2a")
    data[frame + 3 : frame + 7] = struct.pack("<HH", SIDE, SIDE)
    if options:
        canvas = data.index(b"VP8X") + 12
        data[canvas : canvas + 6] = 2 * (SIDE - 1).to_bytes(3, "little")
    return bytes(data)


LIES = {
    "png": png,
    "lossy WebP": webp,
    "lossy WebP with EXIF": lambda: webp(exif=turned()),
    "jpeg": lambda: jpeg(b"\xff\xc0"),
    "progressive jpeg": lambda: jpeg(b"\xff\xc2", progressive=True),
    "turned jpeg": lambda: jpeg(b"\xff\xc0", exif=turned()),
    "tiff": tiff,
    "npy": lambda: FILES["npy"]().replace(b"(30, 40, 3)", b"(3000,4000)"),
    "ppm": lambda: b"P6 12000 12000 255\n" + bytes(300),
    "bmp": lambda: picture("BMP")[:18] + struct.pack("<ii", SIDE, SIDE) + picture("BMP")[26:],
}


@pytest.mark.parametrize("kind", LIES)
def test_a_header_that_promises_more_than_the_file_holds_is_a_bad_image(kind):
    with pytest.raises(BadImage, match=r"cannot hold|truncated"):
        decode(LIES[kind](), "x", 3)


def test_a_flat_picture_may_be_as_small_as_its_format_allows():
    file = io.BytesIO()
    Image.new("L", (4000, 3000), 90).save(file, "PNG")
    assert decode(file.getvalue(), "x", 1).shape == (1, 3000, 4000)
    for options in ({}, {"progressive": True}):
        file = io.BytesIO()
        Image.new("RGB", (4000, 3000), 90).save(file, "JPEG", quality=1, **options)
        assert decode(file.getvalue(), "x", 3).shape == (3, 3000, 4000)


def test_a_tiff_of_very_many_pages_is_read_as_fast_as_one():
    """Each page has a header of its own that leads to the next: to follow them all took a minute an image."""
    entries = ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64))
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    pages, size = 300_000, len(body) + 4
    starts = [72 + i * size for i in range(1, pages)] + [0]
    data = (
        b"II*\0" + struct.pack("<I", 72) + bytes(range(64)) + b"".join(body + struct.pack("<I", at) for at in starts)
    )
    began = time.monotonic()
    assert decode(data, "x", 1).flatten().tolist() == list(range(64))
    assert look_at(data, "x", 1)[1]  # a stack
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_both_scripts_take_the_option(tmp_path):
    for i in range(9):
        Image.fromarray(COLOURS[:20]).save(tmp_path / f"{i}.png")
    Image.fromarray(COLOURS).save(tmp_path / "large.png")
    options = ["own_images", "--train_dir", tmp_path, "--max_image_pixels", "1000", "--output_dir", tmp_path / "run"]
    output = run(*options, code=1)
    line = output.strip().splitlines()[-1]
    assert "large.png has 1,200 pixels, more than --max_image_pixels 1,000" in line and "--on_bad_image skip" in line
    new = ("--from_scratch", "true", "--config_name", "vit_tiny", "--train_dir", tmp_path)
    output = run(*new, "--max_image_pixels", "0", code=2, script="run_eval.py")
    assert "max_image_pixels 0" in output


@pytest.mark.parametrize("quality", [1, 80])
def test_the_smallest_webp_files_are_no_lies(quality):
    """Of one colour: nothing needs fewer bytes."""
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000), "red").save(file, "WEBP", quality=quality, method=6)
    assert decode(file.getvalue(), "x", 3).shape == (3, 4000, 4000)
