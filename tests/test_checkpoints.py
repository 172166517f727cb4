import errno
import hashlib
import os
import pickle
import stat

import pytest
import torch
from accelerate import Accelerator

from modeling_mae.errors import TrainingStopped, UserError
from modeling_mae.training.checkpoints import Checkpoints, Progress, choose_checkpoint
from modeling_mae.training.manifest import (
    checkpoint_update,
    checkpoints_in,
    find_fault,
    read_manifest,
    write_manifest,
)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_progress_comes_back(tmp_path):
    loaded = Progress()
    Progress(update=7, epoch=2, best=0.5, losses=[1.0, 0.1 + 0.2]).save(tmp_path)
    loaded.load(tmp_path)
    assert vars(loaded) == {"update": 7, "epoch": 2, "best": 0.5, "losses": [1.0, 0.30000000000000004]}


@pytest.fixture
def checkpoints(tmp_path):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 1))
    return Checkpoints(accelerator, tmp_path, kept=2, made_with={"seed": 0})


def test_names_of_checkpoints(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-7-best", "checkpoint-", "my-checkpoint-3", "last"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert checkpoint_update(tmp_path / "checkpoint-10") == 10 and checkpoint_update("checkpoint-7-best") is None


def test_the_newest_checkpoints_stay(checkpoints):
    (checkpoints.folder / "checkpoint-7-best").mkdir()  # the user's copy
    assert checkpoints.newest() is None
    for update in (8, 9, 10):
        folder = checkpoints.save(Progress(update))
        assert folder == checkpoints.folder / f"checkpoint-{update}" == checkpoints.newest()
        assert (folder / "model.safetensors").exists()
    assert names(checkpoints.folder) == {"checkpoint-7-best", "checkpoint-9", "checkpoint-10"}


def test_a_checkpoint_is_complete_or_not_there(checkpoints, monkeypatch):
    written = checkpoints.accelerator.save_state

    def disk_full(folder):
        written(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints.save(Progress(3))
    monkeypatch.setattr(checkpoints.accelerator, "save_state", disk_full)
    with pytest.raises(
        TrainingStopped, match="no space left on device: .*partial-4 .*auto goes on from .*checkpoint-3"
    ):
        checkpoints.save(Progress(4))
    assert names(checkpoints.folder) == {"checkpoint-3"}  # the disk is not kept full
    assert find_fault(checkpoints.folder / "checkpoint-3") is None
    (checkpoints.folder / ".partial-4").mkdir()
    (checkpoints.folder / ".partial-4" / "rest-of-the-failure").touch()
    monkeypatch.undo()
    assert names(checkpoints.save(Progress(4))) == names(
        checkpoints.folder / "checkpoint-3"
    )  # nothing of the failure is in it
    assert names(checkpoints.folder) == {"checkpoint-3", "checkpoint-4"}


def test_a_checkpoint_is_written_once(checkpoints, monkeypatch):
    """A signal may ask for one right after the update that has one."""
    checkpoints.save(Progress(5))
    monkeypatch.setattr(checkpoints.accelerator, "save_state", lambda folder: pytest.fail("written again"))
    assert checkpoints.save(Progress(5)) == checkpoints.folder / "checkpoint-5"


def test_checkpoints_of_a_course_that_is_given_up_go(checkpoints, capsys):
    for name in ("checkpoint-3", "checkpoint-5", "checkpoint-8", "checkpoint-12", "checkpoint-12-best"):
        (checkpoints.folder / name).mkdir()
    checkpoints.remove_after(5)
    assert names(checkpoints.folder) == {"checkpoint-3", "checkpoint-5", "checkpoint-12-best"}
    assert capsys.readouterr().out == "removed    checkpoint-8, checkpoint-12: going on from update 5\n"
    checkpoints.remove_after(5)
    assert capsys.readouterr().out == ""


# --- what can be wrong with one ---


def test_files_are_readable_as_the_umask_says(checkpoints):
    before = os.umask(0o027)
    try:
        folder = checkpoints.save(Progress(5))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_the_manifest_names_every_file_with_size_and_checksum(checkpoints):
    folder = checkpoints.save(Progress(5))
    manifest = read_manifest(folder)
    assert manifest["made_with"] == {"seed": 0}
    assert set(manifest["files"]) == names(folder) - {"manifest.json"} > {"model.safetensors", "progress.json"}
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"flipped": content, "empty": b"", "half": content[: len(content) // 2]}[how])


@pytest.mark.parametrize("name", ["model.safetensors", "random_states_0.pkl", "progress.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "empty", "half", "missing"])
def test_a_damaged_file_is_passed_over_and_named(checkpoints, capsys, name, how):
    whole, broken = (checkpoints.save(Progress(update)) for update in (5, 9))
    if how == "missing":
        (broken / name).unlink()
    else:
        damage(broken / name, how)
    fault = find_fault(broken)
    # A flipped byte of the manifest shows as a checksum of some other file, or as text that is not JSON.
    assert fault and (name in fault or (name == "manifest.json" and how == "flipped"))
    assert choose_checkpoint(checkpoints.accelerator, checkpoints.folder, "auto") == whole
    assert capsys.readouterr().out == f"passed     {broken}: {fault}\n"
    with pytest.raises(UserError) as error:
        choose_checkpoint(checkpoints.accelerator, checkpoints.folder, str(broken))
    assert fault in str(error.value) and "\n" not in str(error.value)


def test_without_a_whole_checkpoint_auto_is_an_error_and_without_any_a_fresh_start(checkpoints):
    assert choose_checkpoint(checkpoints.accelerator, checkpoints.folder, "auto") is None
    assert choose_checkpoint(checkpoints.accelerator, checkpoints.folder, None) is None
    folder = checkpoints.save(Progress(5))
    (folder / "optimizer.bin").touch() if (folder / "optimizer.bin").exists() else (folder / "progress.json").unlink()
    with pytest.raises(UserError, match="no checkpoint to go on from .*checkpoint-5: .*--overwrite_output_dir"):
        choose_checkpoint(checkpoints.accelerator, checkpoints.folder, "auto")


def test_weights_that_are_not_finite_are_a_fault(checkpoints):
    checkpoints.accelerator._models[0].weight.data[0, 1] = float("nan")
    assert find_fault(checkpoints.save(Progress(5))) == "its weights are not finite (weight in model.safetensors)"


# --- strangers' checkpoints ---


class Bomb:
    """Unpickled, it makes a file: proof that a stranger's code has run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


PICKLES = ["random_states_0.pkl", "scaler.pt", "custom_checkpoint_0.pkl", ".metadata", "__0_0.distcp", "scheduler.bin"]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("module", [torch, pickle])
def test_a_crafted_file_runs_nothing(checkpoints, name, module):
    """The manifest is the stranger's too, so that sizes and checksums fit."""
    folder = checkpoints.save(Progress(5))
    with (folder / name).open("wb") as file:
        (module.save if module is torch else module.dump)(Bomb(folder.parent / "exploded"), file)
    write_manifest(folder, {})
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        choose_checkpoint(checkpoints.accelerator, checkpoints.folder, str(folder))
    assert not (folder.parent / "exploded").exists()


def test_the_test_of_crafted_files_can_fail(tmp_path):
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "bomb.pkl")
    torch.load(tmp_path / "bomb.pkl", weights_only=False)
    assert (tmp_path / "exploded").exists()
