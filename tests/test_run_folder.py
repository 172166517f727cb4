import json
import os
import socket

import pytest
from conftest import Copies

from modeling_mae.errors import UserError
from modeling_mae.training.run_folder import LOCK, MARK, claim_folder


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_starts_in_a_new_an_empty_or_its_own_folder(tmp_path):
    claim_folder(tmp_path / "new" / "folder", overwrite=False)
    (tmp_path / "empty").mkdir()
    claim_folder(tmp_path / "empty", overwrite=False)
    assert json.loads((tmp_path / "empty" / MARK).read_text())["process"] == os.getpid()
    (tmp_path / "empty" / "model.safetensors").touch()
    claim_folder(tmp_path / "empty", overwrite=False)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "history.jsonl").touch()  # of a run from before the mark
    claim_folder(tmp_path / "old", overwrite=False)


@pytest.mark.parametrize("name", ["README.md", "loss.png", "modeling_mae.py", "checkpoint-7"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_the_users_is_refused(tmp_path, name, overwrite):
    (tmp_path / name).mkdir() if name == "checkpoint-7" else (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds files that no run wrote .{name}.: give a new or empty folder"):
        claim_folder(tmp_path, overwrite)
    assert names(tmp_path) == {name}


def test_files_that_a_run_never_writes_are_left_alone_on_request(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt.*--overwrite_output_dir, which keeps these files"):
        claim_folder(tmp_path, overwrite=False)
    claim_folder(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    claim_folder(tmp_path, overwrite=False)
    mine = {"notes.txt", "labels.json", "checkpoint-7-best", "my-checkpoint-3"}
    for name in ("model.safetensors", "history.jsonl", "config.json", "README.md", "notes.txt", "labels.json"):
        (tmp_path / name).touch()
    for name in ("checkpoint-7", "checkpoint-7-best", "my-checkpoint-3", "pictures"):
        (tmp_path / name).mkdir()
    claim_folder(tmp_path, overwrite=False)
    assert len(names(tmp_path)) == 12
    claim_folder(tmp_path, overwrite=True)
    assert names(tmp_path) == mine | {MARK, LOCK}


@pytest.mark.parametrize("name", ["config.json", "pictures", MARK])
def test_a_link_is_not_written_through(tmp_path, name):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    outside.write_text("mine")
    claim_folder(folder, overwrite=False)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(UserError, match=f"holds a link .{name}."):
        claim_folder(folder, overwrite=False)
    assert outside.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file.* cannot be written .Not a directory.: give another"):
        claim_folder(tmp_path / "file" / "folder", overwrite=False)


def test_a_second_run_in_a_folder_is_refused_while_the_first_lives(tmp_path):
    folder, script = tmp_path / "run", tmp_path / "holder"
    script.write_text(
        "import time; from pathlib import Path; from modeling_mae.training.run_folder import claim_folder; "
        f"claim_folder(Path({str(folder)!r}), False); print('locked', flush=True); time.sleep(60)"
    )
    holder = Copies(script, ())
    holder.wait_for_line("locked")
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on {socket.gethostname()}, since 20"):
        claim_folder(folder, overwrite=True)
    holder.kill()
    claim_folder(folder, overwrite=False)  # a killed run blocks nobody
