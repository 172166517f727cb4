"""What `mae app --to_space` writes and pushes."""

import argparse
import ast
import configparser
import io

import datasets
import numpy as np
import pytest
import tifffile
import yaml
from conftest import ROOT
from hub_server import served_hub
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_app import encoded, random_pixels, saved
from test_meaning import dicom, dicom_bytes

from modeling_mae.app.command import add_arguments
from modeling_mae.app.explorer import Explorer
from modeling_mae.data.read.decode import decode
from modeling_mae.errors import UserError


pytest.importorskip("gradio", reason="the app needs gradio")

from modeling_mae.app import space as space_module  # noqa: E402


@pytest.fixture
def server(monkeypatch):
    with served_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def checkpoint(tmp_path):
    saved(tmp_path / "run")
    return tmp_path / "run"


def make(*words) -> None:
    parser = argparse.ArgumentParser()
    run = add_arguments(parser)
    run(parser.parse_args(list(map(str, words))))


def card_of(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def test_a_space_is_pushed_and_is_complete(server, checkpoint, tmp_path, capsys):
    pictures = tmp_path / "pictures" / "sub"
    pictures.mkdir(parents=True)
    for i in range(5):
        Image.fromarray(random_pixels(i)).save(pictures / f"{i}.png")
    folder = tmp_path / "space"
    options = ("--images", pictures.parent, "--max_images", 2, "--private")
    make(checkpoint, "--to_space", "me/demo", "--space_dir", folder, *options)
    assert "pushed" in capsys.readouterr().out
    repo, files = server.repos["me/demo"], server.files("me/demo")
    assert repo.sdk == "gradio" and repo.private
    written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert written.items() <= files.items()
    assert sorted(name for name in written if name.startswith("images/")) == [
        "images/000000-0.png",
        "images/000004-4.png",
    ]
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "modeling_mae").rglob("*.py")}
    assert {name for name in written if name.startswith("modeling_mae/")} == package
    card = card_of(files["README.md"].decode())
    assert (card["sdk"], card["app_file"], card["title"]) == ("gradio", "app.py", "demo")
    assert "models" not in card  # the checkpoint is in the Space
    calls = [node for node in ast.walk(ast.parse(files["app.py"])) if isinstance(node, ast.Call)]
    assert [ast.literal_eval(word) for word in calls[0].args] == ["model", "images", 2]
    ours, theirs = Explorer(str(checkpoint)), Explorer(str(folder / "model"))
    assert ours.processing == theirs.processing and theirs.reconstructs
    assert all((theirs.model.state_dict()[key] == value).all() for key, value in ours.model.state_dict().items())


def test_all_images_of_a_small_folder_go_into_the_space(tmp_path):
    for i in range(10):
        Image.fromarray(random_pixels(i)).save(tmp_path / f"{i}.png")
    assert space_module._copy_images(str(tmp_path), tmp_path / "copied", 1000) == 10
    assert sorted(path.name for path in (tmp_path / "copied").iterdir()) == [f"{i:06d}-{i}.png" for i in range(10)]


def test_without_a_token_the_command_is_printed(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(space_module, "get_token", lambda: None)
    monkeypatch.chdir(tmp_path)
    make("run", "--to_space", "me/demo")
    assert "hf upload me/demo demo . --repo-type space" in capsys.readouterr().out
    assert (tmp_path / "demo" / "app.py").exists()
    (tmp_path / "demo" / "model" / "old.bin").write_bytes(b"")
    make("run", "--to_space", "me/demo")  # over its own
    assert not (tmp_path / "demo" / "model" / "old.bin").exists()


def test_a_checkpoint_of_the_hub_is_named(tmp_path):
    space_module.write_app(tmp_path, "me/demo", "you/mae", "you/mae", None, 10)
    card = card_of((tmp_path / "README.md").read_text())
    assert card["models"] == ["you/mae"]
    assert "serve('you/mae', None, 10, title='you/mae', hosts=['*'])" in (tmp_path / "app.py").read_text()


def test_what_does_not_work_is_one_line(server, checkpoint, tmp_path):
    for name in ("demo", "me/", "a/b/c", "me/de mo"):
        with pytest.raises(UserError, match="--to_space needs"):
            make(checkpoint, "--to_space", name, "--space_dir", tmp_path / "space")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="--to_space did not write it"):
        make(checkpoint, "--to_space", "me/demo", "--space_dir", tmp_path / "other")
    with pytest.raises(UserError, match="not yours.*hf upload you/demo"):
        make(checkpoint, "--to_space", "you/demo", "--space_dir", tmp_path / "space")
    for words, message in ((("--max_images", 0), "at least 1"), (("--port", 70000), "65535")):
        with pytest.raises(UserError, match=message):
            make(checkpoint, *words)


def test_a_space_installs_what_the_app_needs():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"] + config["options.extras_require"]["app"]
    assert sorted(space_module.REQUIREMENTS.split()) == sorted(lines.split())


def test_no_other_file_goes_into_a_space(checkpoint, tmp_path, monkeypatch):
    """A parquet row may name any file of this machine."""
    monkeypatch.setattr(space_module, "get_token", lambda: None)
    secret = tmp_path / "passwd"
    secret.write_text("root:x:0:0\n")
    outside = tmp_path / "outside.png"
    Image.fromarray(random_pixels(0)).save(outside)
    picture = encoded(random_pixels(1))
    for name, (value, message) in {
        "secret": ({"bytes": None, "path": str(secret)}, "outside this folder"),
        "outside": ({"bytes": None, "path": str(outside)}, "outside this folder"),
        "text": ({"bytes": secret.read_bytes(), "path": "0.png"}, "0.png is not a readable image .*: leave it out"),
    }.items():
        (tmp_path / name).mkdir()
        rows = datasets.Dataset.from_list([{"image": {"bytes": picture, "path": "a.png"}}, {"image": value}])
        rows.cast_column("image", datasets.Image(decode=False)).to_parquet(tmp_path / name / "train.parquet")
        target = tmp_path / f"s-{name}"
        with pytest.raises(UserError, match=message):
            make(checkpoint, "--to_space", "me/demo", "--space_dir", target, "--images", tmp_path / name)
        assert b"root:" not in b"".join(file.read_bytes() for file in target.rglob("*.png"))


def test_pictures_of_a_space_are_written_anew_and_all_go(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(space_module, "get_token", lambda: None)
    (tmp_path / "pictures").mkdir()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "who took it", 6  # a description; turned by a quarter
    for i in range(10):
        Image.fromarray(random_pixels(i, (32, 48, 3))).save(tmp_path / "pictures" / f"{i}.png", exif=exif)
    make(checkpoint, "--to_space", "me/demo", "--space_dir", tmp_path / "space", "--images", tmp_path / "pictures")
    written = sorted((tmp_path / "space" / "images").iterdir())
    assert len(written) == 10 and b"who took it" not in b"".join(path.read_bytes() for path in written)
    assert (np.asarray(Image.open(written[3])) == np.rot90(random_pixels(3, (32, 48, 3)), -1)).all()


SECRET = "Doe^Jane"


def files_with_a_secret() -> dict[str, tuple[bytes, int, float | None]]:
    """{name: (bytes that hold SECRET, channels to read, white)}."""
    random, notes, exif = np.random.default_rng(0), PngInfo(), Image.Exif()
    notes.add_text("Author", SECRET)
    exif[0x010E], exif[0x0112] = SECRET, 6
    pictures = {
        "deep.png": (Image.fromarray(random.integers(0, 60000, (6, 8)).astype(np.uint16)), {"pnginfo": notes}, 1),
        "palette.png": (Image.fromarray(random_pixels(1)).quantize(8), {"pnginfo": notes}, 3),
        "ink.jpg": (Image.fromarray(random_pixels(2)).convert("CMYK"), {"exif": exif, "comment": SECRET}, 3),
        "clear.webp": (Image.fromarray(random_pixels(3, (6, 8, 4))), {"lossless": True, "exif": exif}, 3),
    }
    found: dict[str, tuple[bytes, int, float | None]] = {}
    for name, (picture, options, channels) in pictures.items():
        file = io.BytesIO()
        picture.save(file, {"jpg": "JPEG"}.get(name[-3:], name.split(".")[1].upper()), **options)
        found[name] = (file.getvalue(), channels, 65535 if name == "deep.png" else None)
    film = io.BytesIO()
    frames = [Image.fromarray(random_pixels(i)).quantize(8) for i in (4, 5)]
    frames[0].save(film, "GIF", save_all=True, append_images=frames[1:], comment=SECRET)
    found["film.gif"] = (film.getvalue(), 3, None)
    deep = random.integers(0, 60000, (6, 8, 4)).astype(np.uint16)
    tiffs = {
        "bands.tif": (np.moveaxis(deep, -1, 0), {"photometric": "minisblack", "planarconfig": "separate"}, 4),
        "clear.tif": (deep, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, 3),
        "premultiplied.tif": (
            np.minimum(deep, deep[..., 3:]),
            {"photometric": "rgb", "extrasamples": ["assocalpha"]},
            3,
        ),
        "white is 0.tif": (deep[..., 0] // 256, {"photometric": "miniswhite", "dtype": np.uint8}, 1),
    }
    for name, (values, options, channels) in tiffs.items():
        file = io.BytesIO()
        values = values.astype(options.pop("dtype", values.dtype))
        tifffile.imwrite(file, values, description=SECRET, **options)
        found[name] = (file.getvalue(), channels, 65535 if values.dtype == np.uint16 else None)
    packed = io.BytesIO()
    np.savez(packed, **{SECRET: random.random((5, 6, 8)).astype(np.float32)})
    found["packed.npz"] = (packed.getvalue(), 5, 1)
    file = io.BytesIO()
    np.save(file, random.integers(0, 256, (6, 8, 5)).astype(np.uint8))
    found["array.npy"] = (file.getvalue() + SECRET.encode(), 5, None)
    return found


@pytest.mark.parametrize("name", files_with_a_secret())
def test_nothing_but_pixels_goes_into_a_space(name):
    data, channels, white = files_with_a_secret()[name]
    assert SECRET.encode() in data
    written, pixels = space_module._rewritten(name, data)
    assert SECRET.encode() not in pixels and written.startswith(name.rpartition(".")[0])
    before, after = decode(data, name, channels, white), decode(pixels, written, channels, white)
    assert (before.float() - after.float()).abs().max() < 0.01 and before.dtype == after.dtype


def test_no_name_of_a_patient_goes_into_a_space():
    pytest.importorskip("pydicom")
    levels = np.arange(4096, dtype=np.uint16)[:: 4096 // 48][:48].reshape(6, 8)
    for window in ({}, {"WindowCenter": 2000, "WindowWidth": 900}, {"RescaleSlope": 1, "RescaleIntercept": -1024}):
        data = dicom_bytes(dicom(levels, PatientName=SECRET, **window))
        assert SECRET.encode() in data
        written, pixels = space_module._rewritten("scan.dcm", data)
        assert SECRET.encode() not in pixels
        np.testing.assert_allclose(decode(data, "scan.dcm", 1, 65535), decode(pixels, written, 1, 65535), atol=0.01)
