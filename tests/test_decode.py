import io

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mae.data.read import decode as decode_module
from modeling_mae.data.read.decode import decode
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.read.header import plain_jpeg_size
from modeling_mae.errors import UserError


COLOURS = np.zeros((8, 12, 3), np.uint8)
COLOURS[:, :6] = (200, 40, 10)
COLOURS[:, 6:] = (20, 90, 220)


def read(path, channels=3):
    return decode(path.read_bytes(), str(path), channels)


def test_kinds_of_files(tmp_path):
    expected = torch.from_numpy(COLOURS).permute(2, 0, 1)
    image = Image.fromarray(COLOURS)
    for name, saved, tolerance in (
        ("rgb.png", image, 0),
        ("palette.gif", image.quantize(4), 3),
        ("rgb.jpg", image, 12),
        ("cmyk.jpg", image.convert("CMYK"), 12),
    ):
        saved.save(tmp_path / name, **({"quality": 98, "subsampling": 0} if name.endswith("jpg") else {}))
        result = read(tmp_path / name)
        assert result.dtype == torch.uint8 and result.shape == (3, 8, 12), name
        assert (result.int() - expected.int()).abs().max() <= tolerance, name
        assert read(tmp_path / name, 1).shape == (1, 8, 12), name
        assert torch.equal(decode(None, str(tmp_path / name), 3), result), name


def test_alpha_16_bit_and_orientation(tmp_path):
    alpha = np.dstack([COLOURS, np.full((8, 12), 255, np.uint8)])
    alpha[:, :6, 3] = 0
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    result = read(tmp_path / "alpha.png")
    assert (result[:, :, :6] == 255).all() and result[:, 0, 7].tolist() == [20, 90, 220]  # on white
    Image.fromarray((np.arange(96).reshape(8, 12) * 257 * 2).astype(np.uint16)).save(tmp_path / "deep.png")
    assert read(tmp_path / "deep.png", 1)[0].tolist() == (np.arange(96).reshape(8, 12) * 2).tolist()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(COLOURS).save(tmp_path / "turned.jpg", exif=exif, quality=98, subsampling=0)
    turned = read(tmp_path / "turned.jpg")
    assert turned.shape == (3, 12, 8)
    assert abs(int(turned[0, 1, 4]) - 200) < 12 and abs(int(turned[2, 10, 4]) - 220) < 12


def test_bad_files_are_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:1500])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.jpg", "text.jpg"):
        with pytest.raises(BadImage, match=name) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value) and "0x" not in str(error.value)
    assert issubclass(BadImage, UserError)  # the user can fix it
    with pytest.raises(BadImage, match="an image without a name"):
        decode(b"no image", None, 3)


def test_files_have_one_channel_or_three(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "rgb.png")
    with pytest.raises(BadImage, match=r"picture of 1 \(gray\) or 3 \(RGB\) channels, and the model takes 4"):
        read(tmp_path / "rgb.png", 4)


def jpegs():
    """Waves in every form that PIL writes: (channels, file)."""
    for size in ((33, 47), (16, 16), (1, 1), (101, 8)):
        x, y = np.meshgrid(*map(np.arange, size))
        pixels = 128 + 100 * np.sin(x / 3 + np.arange(3)[:, None, None]) * np.cos(y / 5)
        image = Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8))
        for options in ({"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}):
            for quality in (40, 95):
                for channels, mode in ((3, "RGB"), (1, "L")):
                    image.convert(mode).save(file := io.BytesIO(), "JPEG", quality=quality, **options)
                    yield size, channels, file.getvalue()


def test_simplejpeg_gives_the_pixels_of_torchvision(monkeypatch):
    pytest.importorskip("simplejpeg")
    files = list(jpegs())
    ours = [decode(data, None, channels) for _, _, data in files for channels in (1, 3)]
    monkeypatch.setattr(decode_module, "simplejpeg", None)
    theirs = [decode(data, None, channels) for _, _, data in files for channels in (1, 3)]
    assert len(ours) == 2 * 64 and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert all(one.stride() == other.stride() for one, other in zip(ours, theirs, strict=True) if one.shape[0] == 3)


def test_a_plain_jpeg_tells_its_size():
    for (width, height), _, data in jpegs():
        assert plain_jpeg_size(data) == (height, width)
        assert all(plain_jpeg_size(data[:end]) is None for end in range(2, 20))
    image, exif = Image.fromarray(COLOURS), Image.Exif()
    exif[0x0112] = 6
    for options in ({"exif": exif}, {"comment": b"x" * 300}):
        image.save(file := io.BytesIO(), "JPEG", **options)
        assert plain_jpeg_size(file.getvalue()) == (None if "exif" in options else (8, 12))
    image.convert("CMYK").save(file := io.BytesIO(), "JPEG")
    assert plain_jpeg_size(file.getvalue()) is None
