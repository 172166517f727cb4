"""What the numbers of a file mean: the same picture, whatever tags and containers say it."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from conftest import copied
from flat import load_source, open_images
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

from modeling_mae.data.read.decode import decode, look_at
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.read.header import read_header
from modeling_mae.data.serve.images import ImageSettings
from modeling_mae.data.serve.processor import Processing, image_processor
from modeling_mae.data.serve.statistics import choose_mean_std
from modeling_mae.errors import UserError


RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 9, 3)).astype(np.uint8)
DEEP = RGB.astype(np.uint16) * 257
LEVELS = RGB[..., 0]
NODATA = [(42113, "s", 0, "-7", True)]  # a value that no pixel has


def tiff(values: np.ndarray, photometric: str = "minisblack", tags=(), **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, metadata=None, extratags=list(tags), **options)
    return file.getvalue()


def shown(data: bytes, channels: int, **rules) -> np.ndarray:
    """``(height, width, channels)``, or ``(height, width)`` of one."""
    image = decode(data, "x", channels, **rules)
    assert tuple(image.shape[1:]) == (read_header(data, "x").height, read_header(data, "x").width)
    return image.permute(1, 2, 0).squeeze(-1).numpy() if channels == 1 else image.permute(1, 2, 0).numpy()


def by_pillow(data: bytes, mode: str) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode))


@pytest.mark.parametrize("tags", [(), NODATA])
def test_tiff_means_the_same_with_and_without_nodata(tags):
    white = tiff(LEVELS, "miniswhite", tags)
    assert np.array_equal(shown(white, 1), 255 - LEVELS) and np.array_equal(shown(white, 1), by_pillow(white, "L"))
    np.testing.assert_allclose(shown(tiff(DEEP[..., 0], "miniswhite", tags), 1), 255.0 - LEVELS, atol=1e-4)
    part = (LEVELS / 255).astype(np.float32)
    np.testing.assert_allclose(shown(tiff(part, "miniswhite", tags), 1), 255.0 - LEVELS, atol=1e-4)

    palette = np.zeros((3, 256), np.uint16)
    palette[0], palette[1] = np.arange(256)[::-1] * 257, 7 * 257
    coloured = tiff(LEVELS, "palette", tags, colormap=palette)
    expected = np.stack([255 - LEVELS, np.full_like(LEVELS, 7), np.zeros_like(LEVELS)], -1)
    assert np.array_equal(shown(coloured, 3), expected) and np.array_equal(by_pillow(coloured, "RGB"), expected)
    assert np.array_equal(shown(coloured, 1), by_pillow(coloured, "L"))

    signed = LEVELS.astype(np.int16) - 128
    for kind in (np.int8, np.int16):
        np.testing.assert_allclose(shown(tiff(signed.astype(kind), tags=tags), 1, white=1) / 255, signed)
    assert np.array_equal(shown(tiff(RGB, "rgb", tags), 1), by_pillow(tiff(RGB, "rgb"), "L"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tags", [(), NODATA])
def test_every_tiff_is_turned_upright(orientation, tags):
    """As Pillow turns the same levels as PNG."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(file := io.BytesIO(), "PNG", exif=exif)
    expected = by_pillow(file.getvalue(), "RGB")
    tags = [(274, "H", 1, orientation, True), *tags]
    for values in (RGB, DEEP, (RGB / 255).astype(np.float32)):
        np.testing.assert_allclose(shown(tiff(values, "rgb", tags), 3), expected, atol=1e-4)
        np.testing.assert_allclose(shown(tiff(values[..., 0], tags=tags), 1), expected[..., 0], atol=1e-4)
    five = np.repeat(DEEP[None, ..., 1], 5, 0)
    turned = shown(tiff(five, tags=tags, planarconfig="separate"), 5)
    np.testing.assert_allclose(turned, np.repeat(expected[..., 1:2], 5, 2), atol=1e-4)


def test_a_band_marked_as_alpha_is_transparency_or_a_band():
    """Programs mark the infrared band of aerial pictures as alpha."""
    four = RANDOM.integers(0, 256, (6, 9, 4)).astype(np.uint8)
    Image.fromarray(four).save(png := io.BytesIO(), "PNG")
    white = Image.alpha_composite(Image.new("RGBA", (9, 6), "white"), Image.fromarray(four)).convert("RGB")
    planar = tiff(np.moveaxis(four, -1, 0), "rgb", extrasamples=["unassalpha"], planarconfig="separate")
    for data in (tiff(four, "rgb", extrasamples=["unassalpha"]), planar, png.getvalue()):
        assert np.array_equal(shown(data, 3), np.asarray(white))
        assert np.array_equal(shown(data, 4), four)
        assert np.array_equal(shown(data, 4, bands=[1, 2, 3, 4]), four)
        assert np.array_equal(shown(data, 3, bands=[4, 1, 2]), four[..., [3, 0, 1]])
        assert np.array_equal(shown(data, 1, bands=[4]), four[..., 3])
        with pytest.raises(BadImage, match="4 bands, no band 5"):
            shown(data, 3, bands=[5, 1, 2])
    deep = tiff(four.astype(np.uint16) * 257, "rgb", extrasamples=["unassalpha"])
    opaque = four[..., 3:] / 255
    np.testing.assert_allclose(shown(deep, 3), four[..., :3] * opaque + 255 * (1 - opaque), atol=1e-3)
    np.testing.assert_allclose(shown(deep, 4), four, atol=1e-4)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_gray_with_alpha(kind, planar):
    values = RANDOM.integers(0, 256, (6, 9, 2))
    stored = (values * (np.iinfo(kind).max // 255)).astype(kind)
    stored = np.moveaxis(stored, -1, 0) if planar == "separate" else stored
    data = tiff(stored, planarconfig=planar, extrasamples=["unassalpha"])
    opaque = values[..., 1] / 255
    expected = values[..., 0] * opaque + 255 * (1 - opaque)
    np.testing.assert_allclose(shown(data, 1), expected, atol=1 if kind == np.uint8 else 1e-3)
    np.testing.assert_allclose(shown(data, 3)[..., 2], expected, atol=1 if kind == np.uint8 else 1e-3)
    np.testing.assert_allclose(shown(data, 2), values, atol=1e-4)


def test_other_colours_of_tiff():
    premultiplied = np.dstack([DEEP // 2, np.full_like(DEEP[..., 0], 40000)])
    data = tiff(premultiplied, "rgb", extrasamples=["assocalpha"])
    expected = (premultiplied[..., :3] + 65535.0 - 40000) / 257
    np.testing.assert_allclose(shown(data, 3), expected, atol=1e-3)

    inks = np.dstack([255 - RGB, np.full_like(RGB[..., 0], 51)])
    expected = RGB * 0.8  # a fifth is black
    np.testing.assert_allclose(shown(tiff(inks, "separated", planarconfig="contig"), 3), expected, atol=1)
    data = tiff(inks.astype(np.uint16) * 257, "separated", planarconfig="contig")
    np.testing.assert_allclose(shown(data, 3), expected, atol=2e-3)

    Image.fromarray(RGB).convert("YCbCr").save(file := io.BytesIO(), "TIFF", compression="tiff_lzw")
    assert np.array_equal(shown(file.getvalue(), 3), by_pillow(file.getvalue(), "RGB"))
    for values in (RGB, DEEP):
        with pytest.raises(BadImage, match="x has the colours of CIELAB: save it as RGB"):
            decode(tiff(values, "cielab", planarconfig="contig"), "x", 3)


def test_a_damaged_tag_of_the_planes():
    """Pillow reads such a file, and gives other pixels each time."""
    good = tiff(np.tile(RGB, (8, 8, 1))[:32, :32], "ycbcr", compression="jpeg", subsampling=(2, 2), tile=(32, 32))
    damaged = good.replace(struct.pack("<HHI", 284, 3, 1), struct.pack("<HHI", 284, 1, 1))  # bytes, not short numbers
    assert shown(good, 3).shape == (32, 32, 3) and damaged != good
    with pytest.raises(BadImage, match=r"x has a damaged tag \(planar configuration\): save it anew"):
        decode(damaged, "x", 3)


def test_few_and_odd_numbers_of_bits():
    """imagecodecs packs the bits; 15 of 4 bits and 4095 of 12 are white."""
    try:
        imagecodecs.packints_encode(np.zeros((1, 8), np.uint8), 4)
    except NotImplementedError:
        pytest.skip("this imagecodecs reads such files, and writes none")
    values = RANDOM.integers(0, 16, (6, 8)).astype(np.uint8)
    data = tiff(values, bitspersample=4)
    assert np.array_equal(shown(data, 1), values * 17) and np.array_equal(by_pillow(data, "L"), values * 17)
    deep = RANDOM.integers(0, 900, (6, 8)).astype(np.uint16)
    data = tiff(deep, bitspersample=12)
    np.testing.assert_allclose(shown(data, 1), deep * (255 / 4095), rtol=1e-5)
    assert look_at(data, "x", 1)[0][1:] == ("whole numbers", 4095)  # though none is brighter than 900
    bits = values > 7
    assert np.array_equal(shown(tiff(bits, "miniswhite"), 1), np.where(bits, 0, 255))


@pytest.mark.parametrize("compression", ["lerc", "zstd", "lzw", "lzma"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_compressions_of_tiff(compression, kind):
    values = LEVELS.astype(kind)
    white = 255 if kind == "u1" else 1
    image = shown(tiff(values, compression=compression), 1, white=white)
    np.testing.assert_allclose(image, LEVELS * (255.0 / white), rtol=1e-5)
    half = tiff((LEVELS / 255).astype(np.float16))
    np.testing.assert_allclose(shown(half, 1), LEVELS, atol=0.1)


def sgi(values: np.ndarray, packed: bool) -> bytes:
    """A SGI file of ``values (height, width, channels)`` uint16, uncompressed or in runs."""
    height, width, channels = values.shape
    header = struct.pack(">hbbHHHHll", 474, packed, 2, 3, width, height, channels, 0, 65535).ljust(512, b"\0")
    rows = [row.astype(">u2") for plane in np.moveaxis(values, -1, 0) for row in plane[::-1]]
    if not packed:
        return header + b"".join(row.tobytes() for row in rows)
    start = 512 + 8 * len(rows)
    runs = []
    for row in rows:  # the first four words as they are, then a run for each
        words = [0x80 | 4, *row[:4].tolist()]
        for word in row[4:].tolist():
            words += [1, word]
        runs.append(struct.pack(f">{len(words) + 1}H", *words, 0))
    starts = np.cumsum([start, *(len(run) for run in runs[:-1])])
    table = struct.pack(f">{len(rows)}I", *starts) + struct.pack(f">{len(rows)}I", *(len(run) for run in runs))
    return header + table + b"".join(runs)


def deep_files():
    twelve = RANDOM.integers(0, 4096, (16, 12, 3)).astype(np.uint16)
    gray = twelve[..., 0].copy()
    numbers = " ".join(map(str, twelve.ravel()))
    return {
        "rgb.jp2": (imagecodecs.jpeg2k_encode(twelve, level=0, bitspersample=12, codecformat="jp2"), twelve, 4095),
        "gray.jp2": (imagecodecs.jpeg2k_encode(gray, level=0, bitspersample=12, codecformat="jp2"), gray, 4095),
        "deep.ppm": (b"P6\n# a scan\n12 16\n65535\n" + (twelve * 16).astype(">u2").tobytes(), twelve * 16, 65535),
        "deep.pgm": (b"P5 12 16 4095\n" + gray.astype(">u2").tobytes(), gray, 4095),
        "text.ppm": (f"P3\n12 16\n4095\n{numbers}\n".encode(), twelve, 4095),
        "a.sgi": (sgi(twelve * 16, packed=False), twelve * 16, 65535),
        "b.sgi": (sgi(twelve * 16, packed=True), twelve * 16, 65535),
    }


@pytest.mark.parametrize("name", deep_files())
def test_deep_colours_are_not_rounded(name):
    data, values, white = deep_files()[name]
    channels = 3 if values.ndim == 3 else 1
    np.testing.assert_allclose(shown(data, channels), values * (255 / white), rtol=1e-5)
    assert look_at(data, name, channels)[0][1] == "whole numbers"
    if not name.endswith("jp2"):  # of which Pillow rounds white to black
        expected = by_pillow(data, "RGB") if channels == 3 else by_pillow(data, "I") / 257
        assert np.abs(shown(data, channels) - expected).max() < 1.01
    with pytest.raises(BadImage):
        decode(data[: len(data) // 2], name, channels)


def test_jpeg_of_12_bits():
    smooth = np.add.outer(np.arange(32) * 60, np.arange(40) * 50).astype(np.uint16)  # up to 3810
    data = imagecodecs.jpeg8_encode(smooth, level=100, bitspersample=12)
    assert np.abs(shown(data, 1) - smooth * (255 / 4095)).max() < 0.5
    assert look_at(data, "x.jpg", 1)[0][1] == "whole numbers"


def test_bmp_of_5_6_and_5_bits():
    height, width = RGB.shape[:2]
    words = (RGB[..., 0].astype(np.uint16) >> 3 << 11) | (RGB[..., 1].astype(np.uint16) >> 2 << 5) | (RGB[..., 2] >> 3)
    rows = b"".join(row.astype("<u2").tobytes() + b"\0" * (-2 * width % 4) for row in words[::-1])
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3, len(rows), 0, 0, 0, 0)
    header += struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    data = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows
    assert (
        np.array_equal(shown(data, 3), by_pillow(data, "RGB")) and np.abs(shown(data, 3) - RGB.astype(int)).max() < 8
    )


def dicom(values: np.ndarray, photometric: str = "MONOCHROME2", **elements):
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = elements.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, photometric
    bits = 8 * values.dtype.itemsize
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit, file.PixelRepresentation, file.PixelData = bits - 1, int(values.dtype.kind == "i"), values.tobytes()
    for name, element in elements.items():
        setattr(file, name, element)
    return file


def dicom_bytes(file) -> bytes:
    file.save_as(data := io.BytesIO(), enforce_file_format=True)
    return data.getvalue()


def test_dicom_palette():
    index = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tables = {"Red": 255 - np.arange(256), "Green": np.arange(256), "Blue": np.full(256, 7)}
    elements = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in tables}
    elements |= {
        f"{name}PaletteColorLookupTableData": (table.astype("<u2") * 257).tobytes() for name, table in tables.items()
    }
    data = dicom_bytes(dicom(index, "PALETTE COLOR", **elements))
    assert read_header(data, "x").channels == 3
    assert np.array_equal(shown(data, 3), np.stack([255 - index, index, np.full_like(index, 7)], -1))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_dicom_window_as_a_viewer_shows_it(photometric, function):
    """pydicom's apply_windowing, brought from its range to 0..255."""
    pixels = pytest.importorskip("pydicom.pixels")
    values = RANDOM.integers(0, 4096, (8, 8)).astype(np.uint16)
    elements = {"WindowCenter": [300, 40], "WindowWidth": [900, 80], "VOILUTFunction": function}
    elements |= {"RescaleSlope": 1, "RescaleIntercept": -1024}
    file = dicom(values, photometric, **elements, BitsStored=12, HighBit=11)
    units = pixels.apply_rescale(values, file)
    expected = (pixels.apply_windowing(units, file) + 1024) / 4095 * 255
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_allclose(shown(dicom_bytes(file), 1), expected, atol=0.01)
    file.PixelPaddingValue = int(values[0, 0])
    gone = values == values[0, 0]
    filled = shown(dicom_bytes(file), 1)
    np.testing.assert_allclose(filled[~gone], expected[~gone], atol=0.01)
    assert filled[gone] == pytest.approx(expected[~gone].mean(), abs=0.01)


@pytest.mark.parametrize("kind", ["u2", "i2"])
def test_dicom_keeps_values_in_the_upper_bits(kind):
    """DICOM of before 2000 allows it; DCMTK and GDCM read it so."""
    values = (RANDOM.integers(0, 4096, (8, 8)) - 2048 * (kind == "i2")).astype(kind)
    data = dicom_bytes(dicom(values << 4, BitsStored=12, HighBit=15))
    expected = values.astype(float) * (255 / 65535 if kind == "u2" else 255)
    np.testing.assert_allclose(shown(data, 1, white=65535 if kind == "u2" else 1), expected, rtol=1e-6)


def test_dicom_padding_that_is_written_without_its_sign():
    values = RANDOM.integers(-900, 900, (8, 8)).astype(np.int16)
    values[0, :3] = -2000
    file = dicom(values)
    file.add_new(0x00280120, "US", 63536)  # -2000 in 16 bits
    expected = np.where(values == -2000, values[values != -2000].mean(), values)
    np.testing.assert_allclose(shown(dicom_bytes(file), 1, white=1) / 255, expected, rtol=1e-5)


def test_dicom_of_every_beginning():
    """pydicom's own files; their preamble is that of a TIFF. Without a preamble the same pixels are read."""
    data_of = pytest.importorskip("pydicom.data")
    pydicom = pytest.importorskip("pydicom")
    for name in ("CT_small.dcm", "MR_small.dcm"):
        path = data_of.get_testdata_file(name)
        with open(path, "rb") as file:
            data = file.read()
        assert data[:4] == b"II*\0" and read_header(data, name).format == "DICOM"
        about = pydicom.dcmread(path)
        units = pydicom.pixels.apply_modality_lut(about.pixel_array, about).astype(float)
        if "WindowWidth" not in about:
            np.testing.assert_allclose(shown(data, 1, white=1) / 255, units)
        else:
            center, width = float(about.WindowCenter) - 0.5, float(about.WindowWidth) - 1
            np.testing.assert_allclose(shown(data, 1), np.clip((units - center) / width + 0.5, 0, 1) * 255, atol=0.01)
        assert np.array_equal(shown(data[132:], 1), shown(data, 1))
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for implicit, little in ((True, True), (False, True), (False, False)):
        file = dicom(values if little else values.byteswap())
        del file.file_meta
        file.save_as(bare := io.BytesIO(), implicit_vr=implicit, little_endian=little)
        assert bare.getvalue()[128:132] != b"DICM"
        assert np.array_equal(shown(bare.getvalue(), 1, white=255), values)


def test_the_missing_decoder_is_named_whole():
    pydicom = pytest.importorskip("pydicom")
    data_of = pytest.importorskip("pydicom.data")
    if any(map(pydicom.config.have_package if hasattr(pydicom.config, "have_package") else lambda _: False, ["gdcm"])):
        pytest.skip("the decoder is installed")
    with pytest.raises(BadImage) as error:
        decode(None, data_of.get_testdata_file("MR_small_jpeg_ls_lossless.dcm"), 1)
    assert "pyjpegls>=" in str(error.value) and str(error.value).endswith(")")


def folder(tmp_path, **arrays):
    (tmp_path / "images").mkdir()
    for name, values in arrays.items():
        path = tmp_path / "images" / name.replace("_", ".")
        if path.suffix == ".npy":
            np.save(path, values)
        elif path.suffix == ".tif":
            tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate")
        else:
            Image.fromarray(values).save(path)
    return load_source(train_dir=str(tmp_path / "images"))


def test_bright_values_beyond_the_sample_are_kept(tmp_path):
    """Reflectance: clouds are twice as bright as the white that the sample suggests."""
    tiles = {f"{i:03}_tif": RANDOM.integers(200, 4000, (4, 8, 8)).astype(np.uint16) for i in range(130)}
    tiles["001_tif"][:, 3:5, 3:5] = 20000
    source = folder(tmp_path, **tiles)
    images = open_images(source, (8, 8), 4, memory_budget=0)
    assert images.white == 4095
    np.testing.assert_allclose(images.read(1), tiles["001_tif"] * (255 / 4095), rtol=1e-6)
    given = open_images(source, (8, 8), 4, memory_budget=0, white_value=10000)
    np.testing.assert_allclose(given.read(1), tiles["001_tif"] * (255 / 10000), rtol=1e-6)

    # the same units under another white
    before = {"mean": [0.4] * 4, "std": [0.2] * 4, "white": 4095}
    mean, std = choose_mean_std(given, ImageSettings(), before, print)
    first, second = (
        (image / 255 - m[0]) / s[0]
        for image, m, s in ((images.read(1), before["mean"], before["std"]), (given.read(1), mean, std))
    )
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-5)
    kept = Processing([0.4], [0.2], None, 4095.0).replaced_by(Processing(white=10000.0), lambda text: None)
    assert kept.mean == pytest.approx([0.4 * 0.4095]) and kept.std == pytest.approx([0.2 * 0.4095])


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_the_lowest_number_of_a_type_is_no_measurement(tmp_path, kind):
    values = RANDOM.random((2, 8, 8)).astype(kind)
    values[0, 2, 3] = np.finfo(kind).min
    for data in (tiff(values, planarconfig="separate"), None):
        if data is None:
            np.save(tmp_path / "a.npy", values)
        image = decode(data, str(tmp_path / "a.npy"), 2) / 255
        others = np.delete(values[0].ravel(), 2 * 8 + 3)
        assert image[0, 2, 3].item() == pytest.approx(others.mean(), rel=1e-5)
    processor = image_processor((8, 8), [0.0] * 2, [1.0] * 2, 2, white=1)
    given = processor(values, return_tensors="pt", input_data_format="channels_first").pixel_values[0]
    torch.testing.assert_close(given, image, atol=1e-5, rtol=1e-5)


def test_heights_below_zero_are_the_same_in_every_kind_of_file(tmp_path):
    heights = RANDOM.integers(-7, 300, (8, 8)).astype(np.int16)
    np.save(tmp_path / "a.npy", heights)
    kinds = {"npy": None, "tif": tiff(heights), "float": tiff(heights.astype(np.float32))}
    kinds["nodata"] = tiff(heights, tags=[(42113, "s", 0, "-32768", True)])
    for name, data in kinds.items():
        path = str(tmp_path / "a.npy")
        np.testing.assert_allclose(decode(data, path, 1, 1)[0] / 255, heights, rtol=1e-6, err_msg=name)
        assert look_at(data, path, 1)[0][1:] == ("decimals", heights.max())
        both = np.stack([heights, heights])
    np.testing.assert_allclose(decode(tiff(both, planarconfig="separate"), "x", 2, 1)[1] / 255, heights, rtol=1e-6)


@pytest.mark.parametrize("place", [0, 1, 129])  # the first and the last are in the sample
def test_a_stray_deep_file_ends_alike_wherever_it_stands(tmp_path, place):
    pictures = {f"{i:03}_png": LEVELS for i in range(130)}
    pictures[f"{place:03}_png"] = DEEP[..., 0] // 16
    source = folder(tmp_path, **pictures)
    message = rf"{place:03}.png has values up to \d+, above white, which is 255"
    with pytest.raises(BadImage, match=message):
        open_images(source, (6, 9), 1, memory_budget=0).batch(0, list(range(130)))
    images = open_images(source, (6, 9), 1, memory_budget=0, on_bad_image="skip")
    assert images.dtype == torch.uint8 and images.white == 255
    assert images.read_or_next(place)[1] == (place + 1) % 130 and images.skipped.sum() == 1


def test_many_deep_files_among_others_have_no_common_scale(tmp_path):
    pictures = {f"{i}_png": DEEP[..., 0] // 16 if i % 2 else LEVELS for i in range(10)}
    with pytest.raises(UserError, match="no common scale"):
        open_images(folder(tmp_path, **pictures), (6, 9), 1, memory_budget=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_processor_sees_what_training_sees(tmp_path, channels):
    """Pictures as Pillow opens them, against our decoder of the same files."""
    image_processor((8, 8), [0.5] * channels, [0.25] * channels, channels).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    four = Image.fromarray(RANDOM.integers(0, 256, (8, 8, 4)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing = Image.fromarray(np.dstack([np.full((8, 8, 3), 30), np.eye(8) * 255]).astype(np.uint8))
    pictures = {
        "rgba.png": (four, {}),
        "gray with alpha.png": (four.convert("LA"), {}),
        "palette.png": (four.convert("RGB").quantize(8), {}),
        "palette with alpha.png": (drawing.quantize(4), {}),
        "two.png": (four.convert("1"), {}),
        "cmyk.tif": (four.convert("RGB").convert("CMYK"), {}),
        "turned.png": (four.convert("RGB"), {"exif": exif}),
        "turned.jpg": (four.convert("L"), {"exif": exif}),
        "deep and dark.png": (Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), {}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(tmp_path / name, **options)
        expected = (decode(None, str(tmp_path / name), channels, white=255) / 255 - 0.5) / 0.25
        with Image.open(tmp_path / name) as opened:
            given = processor(opened, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_processor_takes_bands_of_pictures(tmp_path, channels):
    picture = Image.fromarray(RANDOM.integers(0, 256, (8, 8, 4)).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    bands = [4, 1][:channels]
    processor = image_processor((8, 8), [0.0] * channels, [1.0] * channels, channels, bands=bands)
    given = processor(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(given, decode(None, str(tmp_path / "a.png"), channels, bands=bands) / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_processor_takes_plain_arrays(channels):
    processor = image_processor((8, 8), [0.5] * channels, [0.25] * channels, channels)
    plain = RANDOM.integers(0, 256, (8, 8)).astype(np.uint8)
    expected = torch.from_numpy((plain / 255 - 0.5) / 0.25).float().expand(1, channels, 8, 8)
    for given in (plain, [plain], torch.from_numpy(plain), plain[None], [torch.from_numpy(plain)]):
        torch.testing.assert_close(processor(given, return_tensors="pt").pixel_values, expected, atol=1e-5, rtol=0)
    assert processor([plain, plain], return_tensors="pt").pixel_values.shape == (2, channels, 8, 8)
    given = processor(plain, return_tensors="pt", input_data_format="channels_last").pixel_values
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


def test_nothing_is_said_of_good_files(tmp_path):
    """tifffile, Pillow and pydicom have much to say of what is odd about a file."""
    odd = tiff(RGB, "rgb", [(305, "s", 0, "x", True)], description="ImageJ=1.0\nimages=9\n")
    (tmp_path / "a.tif").write_bytes(odd)
    names = [str(tmp_path / "a.tif")]
    pydicom = pytest.importorskip("pydicom")
    (tmp_path / "b.dcm").write_bytes(dicom_bytes(dicom(LEVELS)) + b"\0" * 4)
    names.append(str(tmp_path / "b.dcm"))
    assert pydicom
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from modeling_mae.data.read.decode import decode; [decode(None, n, 3) for n in sys.argv[1:]]"
    )
    assert copied(script, names) == (0, "")
