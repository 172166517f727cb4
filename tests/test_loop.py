import sys
import time

from modeling_mae.training.loop import WRITTEN, Display, prepare_folder


ENTRY = {"step": 4, "epoch": 0.5, "loss": 0.25, "learning_rate": 1e-3}


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        display = Display(True, 0, 8, images_per_update=32)
        display.begin = display.last = time.perf_counter() - 2  # so long for 4 updates
        for _ in range(4):
            display.advance()
        assert 62 < display.reading(ENTRY) <= 64  # 4 x 32 images in 2 s
        display.close()
        captured = capsys.readouterr()
        if terminal:
            assert captured.out == ""
            assert all(text in captured.err for text in ("4/8", "images/s=6", "loss=0.2500", "lr=1.00e-03"))
        else:
            assert captured.err == "" and captured.out.count("\n") == 1
            start = "update 4/8  epoch 0.50  loss 0.2500  lr 1.00e-03  6"
            assert captured.out.startswith(start) and captured.out.endswith("images/s  00:02 left\n")
    Display(False, 0, 8, 32).reading(ENTRY)  # not the main process
    assert capsys.readouterr() == ("", "")


def test_overwriting_leaves_what_is_not_ours(tmp_path):
    for name in ("model.safetensors", "history.jsonl", "config.json", "notes.txt", "labels.json"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint-7").mkdir()
    prepare_folder(tmp_path, overwrite=False)
    assert len(list(tmp_path.iterdir())) == 6
    prepare_folder(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "labels.json"}
    assert "*" not in WRITTEN
