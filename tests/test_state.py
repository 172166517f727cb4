import json

import pytest
import torch
from accelerate import Accelerator

from modeling_mae import MAEConfig, MAEModel
from modeling_mae.errors import UserError
from modeling_mae.training.state import (
    Checkpoints,
    History,
    Progress,
    checkpoint_update,
    checkpoints_in,
    prepare_folder,
    save_model,
)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_overwriting_leaves_what_is_not_ours(tmp_path):
    for name in ("model.safetensors", "history.jsonl", "config.json", "notes.txt", "labels.json"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint-7").mkdir()
    prepare_folder(tmp_path, overwrite=False)
    assert len(names(tmp_path)) == 6
    prepare_folder(tmp_path, overwrite=True)
    assert names(tmp_path) == {"notes.txt", "labels.json"}
    prepare_folder(tmp_path / "new" / "folder", overwrite=True)
    assert (tmp_path / "new" / "folder").is_dir()
    with pytest.raises(UserError, match="notes.txt.* cannot be written"):
        prepare_folder(tmp_path / "notes.txt" / "folder", overwrite=False)


def test_the_log_is_forgotten_after_where_training_goes_on(tmp_path):
    history = History(tmp_path / "history.jsonl", main=True)
    assert history.read() == []
    entries = [{"step": step, "loss": 1 / step} for step in (5, 10, 15, 20)]
    for entry in entries:
        history.add(entry)
    assert history.read() == entries
    history.rewind(12)
    assert history.read() == entries[:2]
    history.add(entries[3])
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*entries[:2], entries[3]]


def test_a_line_that_a_kill_cut_off_is_no_entry(tmp_path):
    history = History(tmp_path / "history.jsonl", main=True)
    history.add({"step": 5, "loss": 0.5})
    with history.path.open("a") as file:
        file.write('{"step": 10, "lo')
    assert history.read() == [{"step": 5, "loss": 0.5}]
    history.rewind(5)
    history.add({"step": 10, "loss": 0.25})  # on a line of its own
    assert history.read() == [{"step": 5, "loss": 0.5}, {"step": 10, "loss": 0.25}]


def test_only_the_main_process_writes_the_log(tmp_path):
    history = History(tmp_path / "history.jsonl", main=False)
    history.add({"step": 5})
    history.rewind(0)
    assert not history.path.exists()


def test_progress_comes_back():
    progress, loaded = Progress(), Progress()
    progress.update, progress.epoch, progress.best, progress.losses = 7, 2, 0.5, [1.0, 2.0]
    loaded.load_state_dict(progress.state_dict())
    assert vars(loaded) == {"update": 7, "epoch": 2, "best": 0.5, "losses": [1.0, 2.0]}


@pytest.fixture
def checkpoints(tmp_path):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 1))
    return Checkpoints(accelerator, tmp_path, kept=2)


def test_names_of_checkpoints(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-7-best", "checkpoint-", "my-checkpoint-3", "last"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert checkpoint_update(tmp_path / "checkpoint-10") == 10 and checkpoint_update("checkpoint-7-best") is None


def test_the_newest_checkpoints_stay(checkpoints):
    (checkpoints.folder / "checkpoint-7-best").mkdir()  # the user's copy
    assert checkpoints.newest() is None
    for update in (8, 9, 10):
        folder = checkpoints.save(update)
        assert folder == checkpoints.folder / f"checkpoint-{update}" == checkpoints.newest()
        assert (folder / "model.safetensors").exists()
    assert names(checkpoints.folder) == {"checkpoint-7-best", "checkpoint-9", "checkpoint-10"}


def test_a_checkpoint_is_complete_or_not_there(checkpoints, monkeypatch):
    written = checkpoints.accelerator.save_state

    def disk_full(folder):
        written(folder)
        raise OSError("no space left")

    checkpoints.save(3)
    monkeypatch.setattr(checkpoints.accelerator, "save_state", disk_full)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(4)
    assert [path.name for path in checkpoints_in(checkpoints.folder)] == ["checkpoint-3"]
    (checkpoints.folder / ".partial-4" / "rest-of-the-failure").touch()
    monkeypatch.undo()
    assert names(checkpoints.save(4)) == names(checkpoints.folder / "checkpoint-3")  # nothing of the failure is in it
    assert names(checkpoints.folder) == {"checkpoint-3", "checkpoint-4"}


def test_a_checkpoint_is_written_once(checkpoints, monkeypatch):
    """A signal may ask for one right after the update that has one."""
    checkpoints.save(5)
    monkeypatch.setattr(checkpoints.accelerator, "save_state", lambda folder: pytest.fail("written again"))
    assert checkpoints.save(5) == checkpoints.folder / "checkpoint-5"


def test_checkpoints_of_a_course_that_is_given_up_go(checkpoints, capsys):
    for name in ("checkpoint-3", "checkpoint-5", "checkpoint-8", "checkpoint-12", "checkpoint-12-best"):
        (checkpoints.folder / name).mkdir()
    checkpoints.remove_after(5)
    assert names(checkpoints.folder) == {"checkpoint-3", "checkpoint-5", "checkpoint-12-best"}
    assert capsys.readouterr().out == "removed    checkpoint-8, checkpoint-12: going on from update 5\n"
    checkpoints.remove_after(5)
    assert capsys.readouterr().out == ""


def test_the_old_model_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    config = MAEConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    accelerator = Accelerator(cpu=True)
    first, second = MAEModel(config), MAEModel(config)
    (tmp_path / "notes.txt").write_text("the user's")
    save_model(accelerator, first, tmp_path)
    before = names(tmp_path)
    assert {"notes.txt", "config.json", "model.safetensors"} <= before and ".partial-model" not in before

    def same_weights(model) -> bool:
        saved = MAEModel.from_pretrained(tmp_path).state_dict()
        return all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())

    assert same_weights(first)
    written = second.save_pretrained

    def disk_full(folder, **options):
        written(folder, **options)
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(second, "save_pretrained", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_model(accelerator, second, tmp_path)
    assert same_weights(first)
    monkeypatch.undo()
    (tmp_path / ".partial-model" / "rest-of-the-failure").touch()
    save_model(accelerator, second, tmp_path)
    assert same_weights(second) and names(tmp_path) == before
    assert (tmp_path / "notes.txt").read_text() == "the user's"
