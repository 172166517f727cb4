"""`mae convert`: what it writes, and errors in one line."""

import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from conftest import copied
from test_interop import mae, vitmae

from modeling_mae import EvalNet, MAEForPreTraining, MAEModel, interop
from modeling_mae import __main__ as command
from modeling_mae.commands.convert import convert
from modeling_mae.errors import UserError


@pytest.fixture
def refused(monkeypatch):
    """Runs the command; returns the one line that it ends with."""

    def run(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["mae", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        line = str(ended.value)
        assert line.startswith("mae convert: error: ") and "\n" not in line
        return line

    return run


@pytest.mark.parametrize("name", ["nothing.pth", "nowhere", "me/nothing-of-this-name", "not a hub id"])
def test_missing_sources_are_one_line(tmp_path, refused, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source in (name, tmp_path / name):
        line = refused(source, tmp_path / "x")
        remedy = "give a file, a folder" if name.endswith(".pth") else "is neither a folder here nor a Hub id"
        assert str(source) in line and remedy in line
    assert not (tmp_path / "x").exists()


def test_broken_sources_are_one_line(tmp_path, refused):
    MAEModel(mae()).save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / "model.safetensors").unlink()
    assert "model.safetensors" in refused(tmp_path / "ours", tmp_path / "x")
    for name in ("model.safetensors", "model.pth"):
        (tmp_path / name).write_text("nothing of this kind")
        assert name in refused(tmp_path / name, tmp_path / "x")
    interop.save_timm(MAEModel(mae()), tmp_path / "timm")
    (tmp_path / "timm" / "model.safetensors").unlink()
    assert "model.safetensors" in refused(tmp_path / "timm", tmp_path / "x")


def test_fields_that_make_no_model_are_one_line(tmp_path, refused):
    MAEModel(mae()).save_pretrained(tmp_path / "ours")
    vitmae().save_pretrained(tmp_path / "theirs")
    for source in (tmp_path / "ours", tmp_path / "theirs"):
        for setting in ("mask_ratio=2", "pooling=maximum", "hidden_size=a"):
            field, value = setting.split("=")
            line = refused(source, tmp_path / "x", "--set", setting)
            assert field in line and value in line
        line = refused(source, tmp_path / "x", "--set", "image_size=33")
        assert "image_size=33x33 is not a multiple" in line and "40x40" in line
        assert "--set 'colour=1'" in refused(source, tmp_path / "x", "--set", "colour=1")
    with pytest.raises(UserError, match="to='tensorflow' is not a format; choose from mae"):
        convert(str(tmp_path / "ours"), tmp_path / "x", "tensorflow")


def test_a_given_image_size_counts_for_every_source(tmp_path):
    vitmae().save_pretrained(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), tmp_path / "ours", image_size=48)
    assert MAEForPreTraining.from_pretrained(tmp_path / "ours").config.grid == (6, 6)
    convert(str(tmp_path / "ours"), tmp_path / "larger", image_size=64)
    assert MAEForPreTraining.from_pretrained(tmp_path / "larger").config.grid == (8, 8)


@pytest.mark.parametrize("to", interop.FORMATS)
def test_refused_writes_are_one_line(tmp_path, refused, to):
    EvalNet(mae(num_labels=2, pooling="cls", num_hidden_layers=1)).save_pretrained(tmp_path / "ours")
    target = tmp_path / "taken"
    target.mkdir() if to in ("onnx", "torch") else target.write_text("a file")
    line = refused(tmp_path / "ours", target, "--to", to)
    assert str(target) in line and "cannot be written" in line and "another target" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("to", ["mae", "timm", "torch"])
def test_full_disks_are_one_line(tmp_path, refused, to):
    MAEModel(mae(num_hidden_layers=1)).save_pretrained(tmp_path / "ours")
    target = tmp_path / "target"
    if to != "torch":
        target.mkdir()
    (target if to == "torch" else target / "config.json").symlink_to("/dev/full")
    assert "No space left" in refused(tmp_path / "ours", target, "--to", to)


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    def fail(*arguments, **fields):
        raise RuntimeError("a fault")

    monkeypatch.setattr("modeling_mae.commands.convert.convert", fail)
    monkeypatch.setattr(sys, "argv", ["mae", "convert", "source", "target"])
    with pytest.raises(RuntimeError, match="a fault"):
        command.main()


def test_command(tmp_path):
    theirs = vitmae()
    theirs.save_pretrained(tmp_path / "theirs")
    script = tmp_path / "as_module"  # what `python -m` does
    script.write_text("import runpy\n\nrunpy.run_module('modeling_mae', run_name='__main__', alter_sys=True)\n")
    code, output = copied(script, ("convert", tmp_path / "theirs", tmp_path / "ours"))
    assert code == 0 and "MAEForPreTraining.from_pretrained" in output, output
    assert (tmp_path / "ours" / "modeling_mae.py").exists()
    code, output = copied(script, ("convert", tmp_path / "ours", tmp_path / "back", "--to", "transformers"))
    assert code == 0, output
    back = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(value, back[key]) for key, value in theirs.state_dict().items())
    code, output = copied(script, ("convert", tmp_path / "nothing.pth", tmp_path / "x"))
    assert code == 1 and output.count("\n") == 1 and "nothing.pth" in output
