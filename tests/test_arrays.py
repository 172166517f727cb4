"""Images that are arrays: NumPy files, TIFF of many bands, DICOM and tables, any number of channels."""

import io
import struct
import zlib

import datasets
import numpy as np
import pytest
import tifffile
import torch
from flat import load_source, open_images
from transformers import AutoImageProcessor

from modeling_mae.data.read import decode as reading
from modeling_mae.data.read.decode import decode, look_at, rows_of
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.read.header import read_header
from modeling_mae.data.read.meaning import Rules
from modeling_mae.data.serve.images import FileImages, MemoryImages
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.data.serve.statistics import check_mean_std, measure_mean_std
from modeling_mae.errors import UserError
from modeling_mae.training.augment import BatchTransform


RANDOM = np.random.default_rng(0)
FIVE = RANDOM.integers(0, 65536, (5, 8, 12)).astype(np.uint16)
FIVE[0, 0, 0] = 65535


def saved(tmp_path, values, name="a.npy"):
    path = tmp_path / "images" / name
    path.parent.mkdir(exist_ok=True)
    np.save(path, values)
    return str(path)


def size_and_format(path) -> tuple[int, str]:
    header = read_header(None, path)
    return header.pixels, header.format


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">f4", "f8", "f2", "i1", "i2"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_are_kept(tmp_path, dtype, last, order):
    values = RANDOM.integers(-100, 100, (5, 6, 7)) if dtype[0] == "i" else RANDOM.integers(0, 999, (5, 6, 7))
    values = values.astype(dtype)
    path = saved(tmp_path, np.asarray(np.moveaxis(values, 0, -1) if last else values, order=order))
    white = 65535 if "u" in dtype else 1
    image = decode(None, path, 5, white)
    assert image.dtype == torch.float32 and size_and_format(path) == (42, "NPY")
    np.testing.assert_allclose(image.numpy() * (white / 255), values.astype(np.float64), rtol=1e-6, atol=1e-6)


def test_bytes_and_yes_or_no(tmp_path):
    values = RANDOM.integers(0, 256, (4, 6, 2)).astype(np.uint8)
    image = decode(None, saved(tmp_path, values), 2)
    assert image.dtype == torch.uint8 and np.array_equal(image.permute(1, 2, 0), values)
    assert decode(None, saved(tmp_path, values[..., 0] > 99), 1)[0].tolist() == ((values[..., 0] > 99) * 255).tolist()
    assert decode(None, saved(tmp_path, values[:1, :1]), 2).shape == (2, 1, 1)


@pytest.mark.parametrize(
    ("values", "channels", "bands", "message"),
    [
        (np.zeros((3, 4, 3)), 3, None, "3x4x3, whose bands may be first or last"),
        (np.zeros((5, 4, 5)), 2, [1, 2], "5x4x5, whose bands may be first or last"),
        (np.zeros((5, 9, 9)), 2, [1, 6], "5 bands, no band 6: give others with --bands"),
        (np.zeros((2, 9, 9)), 3, None, "2 bands, and the model takes 3 channels: choose with --bands"),
        (np.zeros((2, 2, 9, 9)), 3, None, "the shape 2x2x9x9: save height x width"),
        (np.zeros((0, 4)), 1, None, "no pixels"),
        (np.zeros((4, 4), complex), 1, None, "complex128: save whole numbers"),
        (np.full((4, 4), None), 1, None, "Object arrays cannot be loaded when allow_pickle=False"),
        (np.full((4, 4), 2**25), 1, None, "whole numbers above 16,777,216"),
        (np.array([[1.0, np.inf]]), 1, None, "infinite"),
        (np.array([[1.0, np.nan, np.nan]]), 1, None, r"more than half of band 1 missing \(67%\)"),
    ],
)
def test_what_is_refused(tmp_path, values, channels, bands, message):
    with pytest.raises(BadImage, match=message):
        decode(None, saved(tmp_path, values), channels, bands=bands)


def test_archives_of_arrays(tmp_path):
    np.savez(tmp_path / "one.npz", FIVE)
    assert np.allclose(decode(None, str(tmp_path / "one.npz"), 5, 65535) * 257, FIVE)
    np.savez(tmp_path / "two.npz", red=FIVE, nir=FIVE)
    with pytest.raises(BadImage, match=r"two.npz has 2 arrays \(red, nir\): save one a file"):
        decode(None, str(tmp_path / "two.npz"), 5)


def test_missing_values_become_the_mean(tmp_path):
    path = saved(tmp_path, np.array([[1.0, np.nan], [2.0, 6.0]], np.float32))
    assert (decode(None, path, 1, 1)[0] / 255).flatten().tolist() == pytest.approx([1, 3, 2, 6])
    path = str(tmp_path / "a.tif")
    tags = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(path, np.array([[1, -9999], [2, 6]], np.int16), extratags=tags)
    assert (decode(None, path, 1, 1)[0] / 255).flatten().tolist() == pytest.approx([1, 3, 2, 6])


@pytest.mark.parametrize("budget", [0, 1 << 20])
@pytest.mark.parametrize("dtype", ["f4", "u2", "u1"])
def test_missing_values_are_counted_and_left_out_of_the_statistics(tmp_path, budget, dtype):
    """Mean and deviation over the values that are there, by NumPy."""
    values = RANDOM.integers(1, 256, (3, 2, 4, 6)).astype(dtype)  # three images
    values[0, 0, 0, 0] = 255
    gone = np.zeros(values.shape, bool)
    gone[1, 0, :2] = gone[1, 1, 3, 5] = True
    (tmp_path / "images").mkdir()
    for i, (image, absent) in enumerate(zip(values, gone, strict=True)):
        image = np.where(absent, 0 if dtype[0] == "u" else np.nan, image).astype(dtype)
        path, tags = tmp_path / "images" / f"{i}.tif", [(42113, "s", 0, "0", True)]
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="separate", extratags=tags)
    images = open_images(load_source(train_dir=str(tmp_path / "images")), (4, 6), 2, memory_budget=budget)
    white = 1 if dtype == "f4" else 255
    assert images.white == white and images.dtype == (torch.uint8 if dtype == "u1" else torch.float32)
    present = [values[:, band][~gone[:, band]].astype(np.float64) / white for band in (0, 1)]
    mean, std = measure_mean_std(images)
    np.testing.assert_allclose(mean, [band.mean() for band in present], rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(std, [band.std() for band in present], rtol=1e-5, atol=5e-5)
    images.batch(0, [0, 1, 2, 1])
    assert images.incomplete.tolist() == [False, True, False] and not images.skipped.any()
    filled = images.read(1)[0, :2].unique()
    assert len(filled) == 1 and filled.item() * white / 255 == pytest.approx(values[1, 0, 2:].mean(), abs=0.5)


def test_bands_that_were_not_chosen_decide_nothing(tmp_path):
    """Neither their missing values nor their brightness."""
    values = np.stack([np.full((4, 6), np.nan), np.ones((4, 6)), np.full((4, 6), np.inf)]).astype(np.float32)
    path = saved(tmp_path, values)
    images = open_images(load_source(train_dir=str(tmp_path / "images")), (4, 6), 1, memory_budget=0, bands=[2])
    assert images.read(0).unique().tolist() == [255] and not images.incomplete.any()
    with pytest.raises(BadImage, match=r"more than half of band 1 missing \(100%\)"):
        look_at(None, path, 2, [2, 1])
    np.save(path, np.stack([np.full((4, 6), 60000), np.full((4, 6), 900)]).astype(np.uint16))
    source = load_source(train_dir=str(tmp_path / "images"))
    assert open_images(source, (4, 6), 1, memory_budget=0, bands=[2]).white == 1023


def test_the_processor_asks_where_the_bands_are():
    """As the training does, where both the first and the last axis may hold them."""
    for shape, bands in (((2, 4, 2), None), ((5, 4, 5), [1, 2])):
        values = RANDOM.random(shape, np.float32)
        processor = image_processor((4, 4), [0.0] * 2, [1.0] * 2, 2, white=1, bands=bands)
        with pytest.raises(ValueError, match="may be first or last: give input_data_format"):
            processor(values, return_tensors="np")
        for layout, first in (("channels_first", values), ("channels_last", np.moveaxis(values, -1, 0))):
            as_they_are = {"do_resize": False, "do_center_crop": False, "return_tensors": "np"}
            given = processor(values, input_data_format=layout, **as_they_are).pixel_values[0]
            np.testing.assert_allclose(given, first[:2], rtol=1e-6)


def test_mean_and_deviation_of_decimals_may_be_any(tmp_path):
    source = {}
    for name, dtype in (("whole", np.uint8), ("decimals", np.float32)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.ones((2, 4, 6), dtype))
        source[name] = open_images(load_source(train_dir=str(tmp_path / name)), (4, 6), 2, memory_budget=0)
    check_mean_std(source["decimals"], [-500.0, 2000.0], [300.0, 1e-3])
    check_mean_std(source["whole"], [0.0, 1.0], [1.0, 0.5])
    with pytest.raises(UserError, match="image_mean 120 does not work: these images have 8 bits, whose white is 1"):
        check_mean_std(source["whole"], [0.5, 120.0], [0.5, 0.5])
    with pytest.raises(UserError, match="image_std 60 does not work.*divide by 255"):
        check_mean_std(source["whole"], [0.5, 0.5], [0.5, 60.0])


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_five_bands(tmp_path, planar):
    path = str(tmp_path / "a.tif")
    values = FIVE if planar == "separate" else np.moveaxis(FIVE, 0, -1)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig=planar)
    assert np.allclose(decode(None, path, 5, 65535) * 257, FIVE)
    assert np.allclose(decode(None, path, 2, 65535, bands=[4, 1]) * 257, FIVE[[3, 0]])
    assert size_and_format(path) == (96, "TIFF")


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("white", [65535, 1])
def test_from_file_to_model(tmp_path, budget, white):
    """Mean, deviation and normalised pixels against NumPy; then the saved processor against the evaluation."""
    values = [FIVE, FIVE[:, ::-1].copy()] if white != 1 else [FIVE / 9.0 - 500, FIVE * 3.0]
    for i, array in enumerate(values):
        saved(tmp_path, array, f"{i}.npy")
    source = load_source(train_dir=str(tmp_path / "images"))
    images = open_images(source, (8, 12), 5, memory_budget=budget)
    assert isinstance(images, MemoryImages if budget else FileImages) and images.white == white
    mean, std = measure_mean_std(images)
    stack = np.stack(values).astype(np.float64) / white
    np.testing.assert_allclose(mean, stack.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, stack.std((0, 2, 3)), rtol=1e-5)
    pixel_values = BatchTransform(mean, std, (8, 12))(images.batch(0, [0, 1]))
    expected = (stack - np.reshape(mean, (5, 1, 1))) / np.reshape(std, (5, 1, 1))
    np.testing.assert_allclose(pixel_values, expected, atol=1e-4)

    small = open_images(source, (4, 6), 5, memory_budget=budget, white_value=white)
    image_processor((4, 6), mean, std, 5, white=white).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    given = processor(list(values), return_tensors="pt", input_data_format="channels_first").pixel_values
    torch.testing.assert_close(given, BatchTransform(mean, std, (4, 6))(small.batch(0, [0, 1])), atol=1e-3, rtol=0)


def test_chosen_bands_reach_the_processor(tmp_path):
    saved(tmp_path, np.moveaxis(FIVE, 0, -1))
    source = load_source(train_dir=str(tmp_path / "images"))
    images = open_images(source, (8, 12), 3, memory_budget=0, bands=[4, 3, 1])
    pixel_values = BatchTransform([0.5] * 3, [0.25] * 3, (8, 12))(images.batch(0, [0]))
    np.testing.assert_allclose(pixel_values[0], (FIVE[[3, 2, 0]] / 65535 - 0.5) / 0.25, atol=1e-5)
    image_processor((8, 12), [0.5] * 3, [0.25] * 3, 3, white=65535, bands=[4, 3, 1]).save_pretrained(tmp_path)
    given = AutoImageProcessor.from_pretrained(tmp_path)(FIVE, return_tensors="pt", input_data_format="channels_first")
    torch.testing.assert_close(given.pixel_values, pixel_values, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"bands \[1, 2\] are 2, the model takes 3 channels"):
        open_images(source, (8, 12), 3, memory_budget=0, bands=[1, 2])
    with pytest.raises(UserError, match="needs images of 8 bits"):
        images.view(augment=lambda pixels, epoch, indices: pixels)


def test_arrays_in_tables(tmp_path):
    kinds = datasets.Features({"image": datasets.Array3D((5, 8, 12), "uint16"), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": [FIVE, FIVE // 2], "label": [0, 1]}, kinds)
    table.to_parquet(tmp_path / "train.parquet")
    source = load_source(train_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    images = open_images(source, (8, 12), 5, memory_budget=1 << 20)
    assert images.white == 65535 and np.allclose(images.read(1) * 257, FIVE // 2)


@pytest.mark.parametrize(("meaning", "expected"), [("MONOCHROME2", [1, 2, 3]), ("MONOCHROME1", [4094, 4093, 4092])])
def test_dicom(tmp_path, meaning, expected):
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 1, 3, 1, meaning
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = np.array([1, 2, 3], np.uint16).tobytes() + b""
    path = str(tmp_path / "a.dcm")
    file.save_as(path, enforce_file_format=True)
    assert (decode(None, path, 1, 4095)[0, 0] * (4095 / 255)).tolist() == pytest.approx(expected)
    file.RescaleSlope, file.RescaleIntercept = 2, -1000
    file.save_as(path, enforce_file_format=True)
    assert (decode(None, path, 1, 1)[0, 0] / 255).tolist() == pytest.approx([2 * v - 1000 for v in expected])
    file.NumberOfFrames = 2
    file.save_as(path, enforce_file_format=True)
    with pytest.raises(BadImage, match="2 frames: --slices all takes each as an image"):
        decode(None, path, 1)


def test_a_tiff_of_very_many_pages_is_read_by_its_first(monkeypatch):
    """Each page takes 200 us to parse: 300,000 would take a minute, for every image. So they are not grouped."""
    monkeypatch.setattr(tifffile.TiffFile, "series", None)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tifffile.imwrite(file := io.BytesIO(), pixels)
    data = bytearray(file.getvalue())
    start = int.from_bytes(data[4:8], "little")
    directory = bytes(data[start : start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")])
    data += b"\0" * (len(data) % 2)
    first, length, count = len(data), len(directory) + 4, 5000
    data[start + len(directory) : start + length] = first.to_bytes(4, "little")
    nexts = [first + (i + 1) * length for i in range(count - 1)] + [0]
    data += b"".join(directory + place.to_bytes(4, "little") for place in nexts)
    assert (
        np.array_equal(decode(bytes(data), "x.tif", 1)[0], pixels)
        and read_header(bytes(data), "x.tif").pages == 1 + count
    )


@pytest.mark.parametrize("error", [MemoryError(), ImportError("no codec"), zlib.error("bad"), struct.error("short")])
def test_whatever_a_library_raises_is_a_bad_image(tmp_path, monkeypatch, error):
    def raises(*_, **__):
        raise error

    path = saved(tmp_path, FIVE)
    monkeypatch.setattr(np, "frombuffer", raises)
    with pytest.raises(BadImage, match=f"a.npy is not a readable image .{str(error) or 'MemoryError'}"):
        decode(None, path, 5)


@pytest.mark.parametrize("compression", ["lzw", "zstd", "deflate"])
def test_tiff_may_be_compressed(tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", FIVE, compression=compression, predictor=2, planarconfig="separate")
    assert np.allclose(decode(None, str(tmp_path / "a.tif"), 5, 65535) * 257, FIVE)


TIFFS = {
    "plain strips": {"rowsperstrip": 7},
    "one plain strip": {"rowsperstrip": 50},
    "big endian": {"rowsperstrip": 50, "byteorder": ">"},
    "deflated strips": {"rowsperstrip": 3, "compression": "zlib", "predictor": True},
    "tiles": {"tile": (16, 32)},
    "deflated tiles": {"tile": (32, 16), "compression": "zlib"},
    "planes": {"planarconfig": "separate", "rowsperstrip": 5},
    "planes of tiles": {"planarconfig": "separate", "tile": (16, 16), "compression": "lzw"},
    "jpeg": {"tile": (16, 16), "compression": "jpeg", "photometric": "ycbcr"},
    "inverted": {"photometric": "miniswhite", "rowsperstrip": 9},
    "transparent": {"extrasamples": ["unassalpha"], "rowsperstrip": 9},
    "palette": {"photometric": "palette", "rowsperstrip": 4},
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", TIFFS)
def test_rows_of_a_large_tiff_are_those_of_the_whole(tmp_path, monkeypatch, name, dtype):
    if dtype == "uint16" and name in ("jpeg", "palette"):
        pytest.skip("8 bits alone")
    monkeypatch.setattr(reading, "BY_ROWS", 100)
    options, generator = dict(TIFFS[name]), np.random.default_rng(0)
    bands = {"transparent": (4,), "inverted": (), "palette": ()}.get(name, (3,))
    values = generator.integers(0, np.iinfo(dtype).max, (50, 40, *bands)).astype(dtype)
    if name == "palette":
        options["colormap"] = generator.integers(0, 65535, (3, 256)).astype(np.uint16)
    if name.startswith("planes"):
        values = np.moveaxis(values, -1, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, **{"photometric": "rgb"} | options)
    for channels in (1, 3):
        rules = Rules(channels, white=np.iinfo(dtype).max)
        whole = decode(None, str(path), channels, rules.white)
        for data in (None, path.read_bytes()):
            rows = rows_of(data, str(path), rules, lambda image, path: image)
            assert rows.shape == tuple(whole.shape)
            for top, end in ((0, 50), (0, 3), (6, 8), (13, 40), (47, 50)):
                assert torch.equal(rows[:, top:end], whole[:, top:end])
            rows.close()


def test_rows_that_need_the_others_are_not_read_alone(tmp_path, monkeypatch):
    """Missing values become the mean of all, and turned pictures have columns for rows."""
    path, values = tmp_path / "a.tif", np.ones((20, 20), np.uint8)
    finish = lambda image, path: image  # noqa: E731
    tifffile.imwrite(path, values)
    assert rows_of(None, str(path), Rules(1), finish) is None  # small
    monkeypatch.setattr(reading, "BY_ROWS", 100)
    assert rows_of(None, str(path), Rules(1), finish) is not None
    for changes in ({"extratags": [(42113, "s", 0, "7", True)]}, {"extratags": [(274, "H", 1, 6, True)]}):
        tifffile.imwrite(path, values, **changes)
        assert rows_of(None, str(path), Rules(1), finish) is None
    tifffile.imwrite(path, values.astype(np.float32))
    assert rows_of(None, str(path), Rules(1), finish) is None
    tifffile.imwrite(path, values)
    with pytest.raises(BadImage, match="400 pixels, more than --max_image_pixels 399"):
        rows_of(None, str(path), Rules(1, max_image_pixels=399), finish)
