import errno
import json

import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_config

from modeling_mae import MAEModel
from modeling_mae.errors import TrainingStopped
from modeling_mae.training.state import History, save_model


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


def test_the_old_model_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    config = tiny_config()
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
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(second, "save_pretrained", disk_full)
    with pytest.raises(TrainingStopped, match="no space left on device: the model could not be written"):
        save_model(accelerator, second, tmp_path)
    assert same_weights(first)
    monkeypatch.undo()
    assert names(tmp_path) == before  # the disk is not kept full
    (tmp_path / ".partial-model").mkdir()
    (tmp_path / ".partial-model" / "rest-of-the-failure").touch()
    save_model(accelerator, second, tmp_path)
    assert same_weights(second) and names(tmp_path) == before
    assert (tmp_path / "notes.txt").read_text() == "the user's"
