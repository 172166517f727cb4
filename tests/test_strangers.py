"""Files that strangers made: each is what its format says, a bad image, or counted as left out. Nothing in silence."""

import io
import os
import struct
import tarfile
import unicodedata
import zlib

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from flat import load_source
from PIL import Image

from modeling_mae.data.read.decode import decode
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.read.header import read_header
from modeling_mae.data.stream import shard_cache
from modeling_mae.errors import UserError


RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 9, 3)).astype(np.uint8)
RIGHT_TOP = 6  # the orientation that a quarter to the right brings upright
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(shard_cache, "FIRST_WAIT", 0.01)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, bits: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """By the rules of the format, with other chunks before and after the pixels."""
    rows = values.reshape(len(values), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        each = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]  # (height, samples, bits)
        lines = [np.packbits(row.ravel()).tobytes() for row in each]
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + body + after + chunk(b"IEND", b"")


def saved(values: np.ndarray, format: str, **options) -> bytes:
    Image.fromarray(values).save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    return b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 3, 1, orientation) + b"\0\0\0\0"


def shown(data: bytes, channels: int, **rules) -> np.ndarray:
    image = decode(data, "x", channels, **rules).permute(1, 2, 0).numpy()
    header = read_header(data, "x")
    assert (header.height, header.width) == image.shape[:2]
    return image


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_level_of_gray_png(bits, channels):
    values = RANDOM.integers(0, 1 << bits, (6, 9))
    data = png(values, bits, 0, chunk(b"tRNS", struct.pack(">H", 1)))
    expected = np.where(values == 1, 255, values * 255 // ((1 << bits) - 1))
    assert np.array_equal(shown(data, channels), np.stack([expected] * channels, -1))


@pytest.mark.parametrize("bits", [8, 16])
def test_png_may_say_behind_its_pixels_how_it_is_turned(bits):
    values = RGB.astype(int) * (257 if bits == 16 else 1)
    data = png(values, bits, 2, after=chunk(b"eXIf", exif(RIGHT_TOP)))
    np.testing.assert_allclose(shown(data, 3), np.rot90(RGB, -1), atol=1e-3)


@pytest.mark.parametrize("place", [0, 9, 300])
def test_orientations_that_do_not_exist(place):
    tag = [(274, "H", 1, place, True)]
    tifffile.imwrite(file := io.BytesIO(), RGB, photometric="rgb", metadata=None, extratags=tag)
    deep = png(RGB.astype(int) * 257, 16, 2, chunk(b"eXIf", exif(place)))
    for data in (file.getvalue(), deep, saved(RGB, "WEBP", lossless=True, exif=exif(place))):
        np.testing.assert_allclose(shown(data, 3), RGB, atol=1e-3)
    jpeg = saved(RGB, "JPEG", exif=exif(place))
    assert shown(jpeg, 3).shape == RGB.shape


def test_an_orientation_in_xmp_alone_does_not_count():
    """As in browsers, and in every kind of file."""
    webp = saved(RGB, "WEBP", lossless=True, xmp=XMP)
    text = png(RGB.astype(int), 8, 2, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP))
    for data in (webp, text):
        assert np.array_equal(shown(data, 3), RGB)
    Image.fromarray(RGB).convert("CMYK").save(file := io.BytesIO(), "JPEG", xmp=XMP)
    assert shown(file.getvalue(), 3).shape == shown(saved(RGB, "JPEG", xmp=XMP), 3).shape == RGB.shape


def test_around_the_first_frame_of_gif_nothing_is_shown():
    """A canvas of 9 x 6, whose first frame of 2 x 2 stands at (5, 3); 4 codes of 3 bits, between clear and end."""
    colours = bytes([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 100, 50])
    codes = sum(code << 3 * place for place, code in enumerate([4, 3, 1, 4, 2, 3, 5])).to_bytes(3, "little")
    screen = b"GIF89a" + struct.pack("<HHBBB", 9, 6, 0xF1, 0, 0) + colours
    data = screen + b"," + struct.pack("<HHHHB", 5, 3, 2, 2, 0) + b"\2\3" + codes + b"\0;"
    expected = np.full((6, 9, 3), 255)
    expected[3:5, 5:7] = [[[200, 100, 50], [40, 50, 60]], [[70, 80, 90], [200, 100, 50]]]
    assert np.array_equal(shown(data, 3), expected)


def psd(mode: int, depth: int, planes: bytes, channels: int) -> bytes:
    start = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, 6, 9, depth, mode)
    return start + struct.pack(">IIIH", 0, 0, 0, 0) + planes


def test_psd_of_bits_and_of_lab():
    bits = RANDOM.integers(0, 2, (6, 9)).astype(np.uint8)
    data = psd(0, 1, np.packbits(bits, axis=1).tobytes(), 1)
    assert np.array_equal(shown(data, 1)[..., 0], 255 * (1 - bits))  # a bit is ink
    with pytest.raises(BadImage, match="colours of CIELAB: save it as RGB"):
        decode(psd(9, 8, RGB.tobytes(), 3), "x", 3)  # was white all over


@pytest.mark.parametrize("bits", [2, 4, 6, 7])
def test_jpeg_2000_of_few_bits(bits):
    values = RANDOM.integers(0, 1 << bits, (16, 24)).astype(np.uint8)
    data = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits)
    expected = values * 255.0 / ((1 << bits) - 1)
    np.testing.assert_allclose(shown(data, 1)[..., 0], expected, atol=0.51)


def test_dicom_of_one_bit():
    pydicom = pytest.importorskip("pydicom")
    bits = RANDOM.integers(0, 2, (8, 8)).astype(np.uint8)
    about = pydicom.Dataset()
    about.file_meta = pydicom.dataset.FileMetaDataset()
    about.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    about.SOPClassUID, about.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    about.Rows = about.Columns = 8
    about.SamplesPerPixel, about.PhotometricInterpretation, about.PixelRepresentation = 1, "MONOCHROME2", 0
    about.BitsAllocated = about.BitsStored = 1
    about.HighBit, about.PixelData = 0, np.packbits(bits, bitorder="little").tobytes()
    pydicom.dcmwrite(file := io.BytesIO(), about, enforce_file_format=True)
    assert np.array_equal(shown(file.getvalue(), 1)[..., 0], bits * 255)


@pytest.mark.parametrize(("alpha_bits", "opaque"), [(0, 1), (8, 0)])
def test_tga_without_bits_of_transparency(alpha_bits, opaque):
    """Many programs leave the fourth byte at 0 and say in the header that it means nothing."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 9, 6, 32, 0x20 | alpha_bits)
    pixels = np.dstack([RGB[..., ::-1], np.zeros((6, 9), np.uint8)])
    assert np.array_equal(shown(header + pixels.tobytes(), 3), RGB * opaque + 255 * (1 - opaque))


def bare_tiff(**tags) -> bytes:
    """By the rules of the format: gray bytes in one strip, and `tags` by their numbers, as ``_339=3``."""
    levels = RGB[..., 0].tobytes()
    named = {256: 9, 257: 6, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6, 279: len(levels)}
    named |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(named.items()))
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(levels)) + levels + struct.pack("<H", len(named)) + entries + bytes(4)
    )


def test_tiff_of_numbers_that_are_not_read():
    assert np.array_equal(shown(bare_tiff(), 1)[..., 0], RGB[..., 0])
    assert np.array_equal(shown(bare_tiff(_339=4), 1)[..., 0], RGB[..., 0])  # "undefined" is read as whole numbers
    with pytest.raises(BadImage, match=r"a kind of numbers that is not read here \(8 bits\): save 8 or 16"):
        decode(bare_tiff(_339=3), "x", 1)  # decimals of 8 bits


def test_an_empty_nodata_tag_says_nothing():
    tifffile.imwrite(file := io.BytesIO(), RGB[..., 0], metadata=None, extratags=[(42113, "s", 0, " ", True)])
    assert np.array_equal(shown(file.getvalue(), 1)[..., 0], RGB[..., 0])


def cut_off_files() -> dict:
    slope = np.add.outer(np.arange(96), np.arange(128)) + RANDOM.integers(0, 30, (96, 128))
    picture = np.stack([slope] * 3, -1).astype(np.uint8)
    tifffile.imwrite(striped := io.BytesIO(), picture, photometric="rgb", compression="jpeg", rowsperstrip=16)
    bands = np.stack([slope.astype(np.uint16)] * 3)
    tifffile.imwrite(imagej := io.BytesIO(), bands, imagej=True, metadata={"axes": "CYX"})
    return {
        "12 bits": (imagecodecs.jpeg_encode(slope.astype(np.uint16) * 8, bitspersample=12), 1),
        "strips": (striped.getvalue(), 3),
        "bands": (imagej.getvalue(), 3),
    }


@pytest.mark.parametrize("name", ["12 bits", "strips", "bands"])
def test_what_is_cut_off_is_not_made_up(name):
    whole, channels = cut_off_files()[name]
    assert shown(whole, channels).shape == (96, 128, channels)
    for tenth in range(1, 10):
        with pytest.raises(BadImage):
            decode(whole[: len(whole) * tenth // 10], "x", channels)


def test_a_cache_that_cannot_be_written(tmp_path):
    tar_of(tmp_path / "x.tar", [("a.png", 1)])
    with pytest.raises(
        UserError, match=r"x.tar/streams' cannot be used \(Not a directory\): give another --cache_dir"
    ):
        load_source(train_dir=str(tmp_path / "x.tar"), cache_dir=str(tmp_path / "x.tar"))


LEVELS = {"a.png": 1, "b.png": 2, "c.png": 3, "d.png": 4}


def level_png(level: int) -> bytes:
    return saved(np.full((4, 4, 3), level, np.uint8), "PNG")


def tar_of(path, members) -> bytes:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, level in members:
            info, data = tarfile.TarInfo(name), level_png(level)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def levels_of(source) -> list[int]:
    """The level of each picture of one, by PIL."""
    return [Image.open(io.BytesIO(source.cell(i)["bytes"])).getpixel((0, 0))[0] for i in range(len(source))]


def test_the_last_of_two_members_of_one_name_counts(tmp_path):
    tar_of(tmp_path / "x.tar", [("a.png", 1), ("b.png", 2), ("./a.png", 3)])
    source = load_source(train_dir=str(tmp_path / "x.tar"))
    assert levels_of(source) == [2, 3]  # what tar unpacks
    assert source.left_out == "1 file left out: 1 replaced later in its tar file"


def damaged(tar: bytes) -> bytes:
    """With another letter in the name of the third member, so that its checksum is wrong."""
    place = tar.index(b"c.png\0")
    return tar[:place] + b"x" + tar[place + 1 :]


@pytest.mark.parametrize(
    ("change", "count"),
    [(damaged, 2), (lambda tar: tar * 2, 4), (lambda tar: tar[: tar.index(b"c.png\0") + 100], 2)],
    ids=["header", "joined", "cut off"],
)
def test_the_rest_of_a_tar_file_is_no_secret(tmp_path, change, count):
    path = tmp_path / "x.tar"
    path.write_bytes(change(tar_of(path, LEVELS.items())))
    source = load_source(train_dir=str(path))
    assert levels_of(source) == [1, 2, 3, 4][:count]
    assert source.left_out == "1 file left out: 1 rest of a tar file that is damaged or several joined"


@pytest.mark.parametrize("kind", [b"L", b"x"])
@pytest.mark.parametrize("size", [1 << 60, 1 << 63])
def test_names_of_any_length_in_a_tar(tmp_path, kind, size):
    info = tarfile.TarInfo("z.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = b"\x80" + size.to_bytes(11, "big"), kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    start = tar_of(path, [("a.png", 1)])[:1024]
    path.write_bytes(start + bytes(header) + bytes(1536))
    source = load_source(train_dir=str(path))
    assert levels_of(source) == [1] and "rest of a tar file" in source.left_out
    path.write_bytes(bytes(header) + bytes(1536))
    with pytest.raises(UserError, match="cannot be read"):
        load_source(train_dir=str(path))


def test_files_with_holes_in_a_tar(tmp_path):
    path = tmp_path / "x.tar"
    head = tarfile.TarInfo("hole.png")
    header = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[124:136] = b"S", b"%011o\0" % 512
    header[386:410], header[483:495] = (
        b"%011o\0" % 0 + b"%011o\0" % 512,
        b"%011o\0" % (1 << 20),
    )  # GNU's map, real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    whole = tar_of(path, [("a.png", 1)])
    path.write_bytes(bytes(header) + level_png(9).ljust(512, b"\0") + whole)
    source = load_source(train_dir=str(path))
    assert levels_of(source) == [1] and source.left_out == "1 file left out: 1 in tar files with holes"


@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_table_that_names_a_pipe_or_a_device(tmp_path, target):
    """Reading them would not end."""
    if target == "pipe":
        os.mkfifo(tmp_path / "p.png")
    else:
        os.symlink(target, tmp_path / "p.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": "p.png"}], kind)}), tmp_path / "t.parquet")
    cell = load_source(train_dir=str(tmp_path)).cell(0)
    for read in (lambda: decode(cell["bytes"], cell["path"], 3), lambda: read_header(cell["bytes"], cell["path"])):
        with pytest.raises(BadImage, match="it is not a file"):
            read()


@pytest.mark.parametrize("features", ['{"info": 1}', "[" * 100_000, "{"])
@pytest.mark.parametrize("streaming", [False, True])
def test_features_that_are_none(tmp_path, features, streaming):
    table = pa.table({"image": pa.array([level_png(1)], pa.binary())})
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="cannot be read") as error:
        load_source(train_dir=str(tmp_path), streaming=streaming)
    assert "\n" not in str(error.value)


def pictures(folder, names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(level_png(LEVELS.get(name, 9)))


def test_rows_that_are_the_same_count_once(tmp_path):
    pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_text("file_name,label\nb.png,y\na.png,x\nb.png,y\na.png,z\n")
    source = load_source(train_dir=str(tmp_path))
    assert [source.dataset[i]["label"] for i in range(len(source))] == ["y", "x", "z"]  # two labels are two rows
    assert source.left_out == "1 file left out: 1 of the same row twice in metadata.csv"


def test_names_of_files_that_are_no_words(tmp_path):
    pictures(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": ["a.png"]}\n')
    with pytest.raises(UserError, match="has no words in the column file_name"):
        load_source(train_dir=str(tmp_path))


@pytest.mark.parametrize(
    "names",
    [("trainset", "testset"), ("1_train", "2_test"), ("TrainData", "TestData"), ("trn", "tst"), ("trn", "holdout")],
)
@pytest.mark.parametrize("above", ["", "x/y/"])
def test_more_names_that_may_be_splits(tmp_path, names, above):
    pictures(tmp_path, [f"{above}{name}/{label}/{i}.png" for name in names for label in "ab" for i in range(2)])
    with pytest.raises(UserError, match="which may be splits or classes"):
        load_source(train_dir=str(tmp_path))


@pytest.mark.parametrize(
    "places",
    [
        ("train/x/train", "train/x/val"),
        ("train", "train/Validation"),
        ("a/train/b/dev",),
    ],
)
def test_splits_inside_of_splits(tmp_path, places):
    """They would be classes, or all be trained on."""
    pictures(tmp_path, [f"{place}/{i}.png" for place in places for i in range(2)])
    with pytest.raises(UserError, match=f"has {places[-1]} inside .*rename '{places[-1]}' if it is a class"):
        load_source(train_dir=str(tmp_path))


@pytest.mark.parametrize("folder", ["@eaDir", "$RECYCLE.BIN", "lost+found", "#recycle", "System Volume Information"])
def test_folders_that_systems_make(tmp_path, folder):
    pictures(tmp_path, ["x/a.png", f"x/{folder}/a.png/thumb.png", f"{folder}/b.png"])
    source = load_source(train_dir=str(tmp_path))
    assert len(source) == 1 and source.left_out == f"2 files left out: 2 in folders called {folder}"
    tar_of(tmp_path / "t.tar", [("a.png", 1), (f"{folder}/b.png", 2)])
    assert levels_of(load_source(train_dir=str(tmp_path / "t.tar"))) == [1]


def test_one_class_whose_accents_two_systems_wrote(tmp_path):
    pictures(tmp_path, [f"{unicodedata.normalize(form, 'é')}/{form}.png" for form in ("NFC", "NFD")] + ["b/a.png"])
    source = load_source(train_dir=str(tmp_path))
    assert source.class_names == ["b", unicodedata.normalize("NFC", "é")]
    assert source.dataset["label"][:] == [0, 1, 1]


def test_jsonl_nested_too_deeply(tmp_path):
    pictures(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "x": ' + "[" * 3000 + "]" * 3000 + "}\n")
    with pytest.raises(UserError, match="cannot be read"):
        load_source(train_dir=str(tmp_path))


def test_pipes_are_neither_files_nor_folders(tmp_path):
    pictures(tmp_path, ["a.png"])
    os.mkfifo(tmp_path / "p.png")
    os.symlink(tmp_path / "p.png", tmp_path / "l.png")
    assert load_source(train_dir=str(tmp_path)).left_out == "2 files left out: 2 neither files nor folders"
    with pytest.raises(UserError, match="is neither a file nor a folder: give one"):
        load_source(train_dir=str(tmp_path / "p.png"))
