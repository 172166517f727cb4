"""The real commands when something ends them that they cannot catch or foresee: what is said, and what is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import RECIPE, ROOT, TINY_GRAY, Copies, assert_same_run, photograph, run, start

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.training.endings import run_script


KILLS = 20
# Each script with what it writes between the end of the training and the report.
SCRIPTS = {"run_pretrain.py": "model.safetensors", "run_eval.py": "last/model.safetensors"}


@pytest.fixture(params=SCRIPTS)
def command(request, tmp_path):
    """(words, script) of a small run."""
    recipe = tmp_path / "small.yaml"
    if request.param == "run_pretrain.py":
        recipe.write_text(RECIPE)
        return (recipe,), request.param
    torch.manual_seed(0)
    MAEForPreTraining(MAEConfig(**TINY_GRAY)).save_pretrained(tmp_path / "encoder")
    image_processor((28, 28), [0.2], [0.3], 1).save_pretrained(tmp_path / "encoder")
    words = "--eval_crop_fraction 1 --max_train_samples 160 --max_eval_samples 53 --total_batch_size 32 --n_partial 2 "
    words += "--per_device_train_batch_size 16 --num_train_epochs 4 --warmup_epochs 0.5 --logging_steps 3 "
    words += "--dataloader_num_workers 0 --report_to none --config_overrides drop_path_rate=0.5"
    return ("--model_name_or_path", tmp_path / "encoder", *words.split()), request.param


def partials(folder: Path) -> set[tuple[str, int]]:
    """What is half written, with the time of its last change."""
    found = set()
    for path in folder.glob(".partial-*"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            pass
    return found


def newest(folder: Path) -> int:
    """The update of the newest checkpoint; 0 where there is none."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def assert_same_results(one: Path, other: Path):
    assert_same_run(one, other)
    for name in ("eval_results.json", "last/model.safetensors"):
        assert (one / name).exists() == (other / name).exists()
        assert not (one / name).exists() or (one / name).read_bytes() == (other / name).read_bytes()


def wait_for_a_write(process: subprocess.Popen, folder: Path, before: set, moments: random.Random) -> None:
    """Stops the process while something is half written; if it was quicker, it goes on to its next write."""
    while process.poll() is None:
        while not partials(folder) - before and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(moments.random() * 0.004)  # a small checkpoint takes some milliseconds
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.01)
        if partials(folder) - before:
            return
        process.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, command):
    """Half of the kills come while a file is being written, half at random, and the last when the training is done and
    the report is not."""
    (*words, script), moments = (*command[0], command[1]), random.Random(0)
    words += ["--num_train_epochs", 30, *["--eval_epochs", 4] * (script == "run_eval.py")]
    run(*words, "--checkpointing_steps", 50, "--output_dir", tmp_path / "whole", script=script)
    words += ["--checkpointing_steps", 1]
    folder, kills, in_a_write = tmp_path / "killed", 0, 0
    while kills < KILLS:
        before = partials(folder)
        process = start(*words, "--output_dir", folder, "--resume_from_checkpoint", "auto", script=script)
        if kills == KILLS - 1:
            while not (folder / SCRIPTS[script]).exists() and process.poll() is None:
                time.sleep(0.001)
        elif kills % 2:
            wait_for_a_write(process, folder, before, moments)
        else:  # at a time of start-up, or of one of the next updates
            end, last = time.monotonic() + moments.random() * 10, newest(folder) + moments.randint(1, 8)
            while time.monotonic() < end and newest(folder) < last and process.poll() is None:
                time.sleep(0.001)
        process.kill()
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it ended before it was killed: {output}"
        kills += 1
        in_a_write += bool(partials(folder) - before)
    run(*words, "--output_dir", folder, "--resume_from_checkpoint", "auto", script=script)
    print(f"\n{script}: {kills} kills, {in_a_write} during a write")
    assert in_a_write >= KILLS // 3 and not partials(folder)
    assert_same_results(tmp_path / "whole", folder)


@pytest.fixture
def photos(tmp_path) -> Path:
    """48 photographs of two classes in several shapes, so that loading workers decode them; some to evaluate on."""
    for split, count in (("train", 24), ("test", 6)):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                photograph(tmp_path / "photos" / split / name / f"{i}.jpg", i)
    return tmp_path / "photos"


def test_a_loading_worker_is_killed(tmp_path, command, photos):
    words, script = command
    words = (*words, "--train_dir", photos, "--config_overrides", "num_channels=3", "--dataloader_num_workers", 2)
    words += ("--total_batch_size", 16, "--num_train_epochs", 3000, "--max_train_steps", 3000, "--eval_epochs", 3000)
    if script == "run_pretrain.py":
        words = words[:-2]
    else:
        words += ("--image_mean", *[0.5] * 3, "--image_std", *[0.5] * 3)
        MAEForPreTraining(MAEConfig(**{**TINY_GRAY, "num_channels": 3})).save_pretrained(tmp_path / "encoder")
    process = Copies(script, (*words, "--output_dir", tmp_path / "run"))
    process.wait_for_line("update 3/")
    training = psutil.Process(process.pid)
    workers = [child for child in training.children() if child.cmdline() == training.cmdline()]
    assert len(workers) == 2
    workers[0].kill()
    output, _ = process.communicate()
    assert process.returncode == 1 and "Traceback" not in output, output
    error = output.splitlines()[-1]  # torch tells it in place of a batch, or as a signal in the middle of anything
    assert "a loading worker died" in error and "mostly because the memory was full" in error
    assert "--resume_from_checkpoint auto" in error and "fewer --dataloader_num_workers" in error


def test_what_is_printed_into_a_closed_pipe_is_dropped(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    said = []
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", sys.stderr)  # it is replaced too
        run_script(lambda arguments: said.extend(print(line, flush=True) for line in "ab"), None)
    assert len(said) == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run_pretrain.py"], indirect=True)
def test_a_closed_pipe_ends_nothing(tmp_path, command):
    words, script = command
    words = [sys.executable, script, *map(str, words), "--output_dir", str(tmp_path / "run")]
    shell = f'{" ".join(words)} | head -1; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and not done.stderr, done
    assert (tmp_path / "run" / "model.safetensors").exists() and (tmp_path / "run" / "README.md").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB, of which a file `filler` takes all but the given number of bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize(
    "command", [pytest.param("run_pretrain.py", marks=pytest.mark.slow), "run_eval.py"], indirect=True
)
@pytest.mark.parametrize("free", [600_000])
def test_a_full_disk(tmp_path, command, small_disk, free):
    words, script = command
    words = (*words, "--checkpointing_steps", 1, "--checkpoints_kept", 100)
    run(*words, "--output_dir", tmp_path / "whole", script=script)
    folder = small_disk / "run"
    (small_disk / "filler").write_bytes(b"0" * (8 * 2**20 - free))
    output = run(*words, "--output_dir", folder, code=1, script=script)
    error = output.splitlines()[-1]
    assert "no space left on device" in error and str(small_disk) in error, output
    assert "goes on from" in error or "start again" in error or "--resume_from_checkpoint auto" in error
    before = newest(folder)
    assert not partials(folder) and before > 0
    (small_disk / "filler").unlink()
    output = run(*words, "--output_dir", folder, "--resume_from_checkpoint", "auto", script=script)
    assert f"from update {before} of" in output
    assert_same_results(tmp_path / "whole", folder)
