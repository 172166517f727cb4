import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mae.data.decode import BadImage, decode
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
    assert issubclass(BadImage, UserError)  # the user can mend it
    with pytest.raises(BadImage, match="an image without a name"):
        decode(b"no image", None, 3)


def test_files_have_one_channel_or_three(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "rgb.png")
    with pytest.raises(UserError, match=r"num_channels=4: .*1 \(gray\) or 3 \(RGB\)"):
        read(tmp_path / "rgb.png", 4)
