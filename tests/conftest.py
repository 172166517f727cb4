"""What several test modules share: a tiny model, and the real commands as a user starts them."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from as_script import as_script
from PIL import Image
from safetensors.torch import load_file

from modeling_mae import MAEConfig
from modeling_mae.training.state import History


ROOT = Path(__file__).parents[1]
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
# For the bundled images, 28 x 28 and gray.
TINY_GRAY = {
    **TINY,
    "image_size": 28,
    "patch_size": 7,
    "num_channels": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_num_hidden_layers": 1,
}
RECIPE = f"""
max_train_samples: 160
total_batch_size: 32
per_device_train_batch_size: 16
max_train_steps: 20
warmup_epochs: 1
base_learning_rate: 1.0e-2
logging_steps: 3
checkpointing_steps: 7
picture_epochs: 2
knn: false
report_to: none
config_overrides: {json.dumps(TINY_GRAY)}
"""
# Options of `start`. Port 0 lets the launcher choose a free one, so that tests can run side by side.
TWO_PROCESSES = {
    "launcher": ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
    "ACCELERATE_USE_CPU": "true",
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
# A process that has imported the libraries, and has done nothing else. Copies of it run the scripts: importing takes
# longer than a tiny training.
PREPARED = multiprocessing.get_context("forkserver")
PREPARED.set_forkserver_preload(["run_pretrain", "run_eval", "timm", "sklearn.linear_model", "tensorboard"])


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    else:
        # One cache of data sets for all processes of this session, empty at its start. `datasets` holds a file lock
        # while it builds one: the first process builds, the others wait for it and read.
        cache = tempfile.TemporaryDirectory(prefix="datasets-", ignore_cleanup_errors=True)
        config.add_cleanup(cache.cleanup)
        os.environ["HF_DATASETS_CACHE"] = cache.name


def tiny_config(**changes) -> MAEConfig:
    return MAEConfig(**{**TINY, **changes})


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A small recipe for run_pretrain.py: 20 updates over 160 bundled images."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def start(*arguments, script="run_pretrain.py", launcher=(), **environment) -> subprocess.Popen:
    """The command from the root of the repository, with output and errors in one pipe.

    `launcher` holds the options of `accelerate launch`. Without them the script starts alone, so that a signal reaches
    the script itself. The keywords in `environment` are environment variables."""
    command = [sys.executable, script]
    if launcher:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *launcher, script]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments, code=0, script="run_pretrain.py", **options) -> str:
    """What the command prints. It must end with this exit code, and without a traceback.

    With `options` of `start` it is that command. Without, a copy of a process with the libraries runs the script."""
    ended, output = started(*arguments, script=script, **options) if options else copied(script, arguments)
    assert ended == code and "Traceback" not in output, output
    return output


def started(*arguments, **options) -> tuple[int, str]:
    """Exit code and output of `start`."""
    process = start(*arguments, **options)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()  # a command that hangs must not outlive its test
    return process.returncode, output


def copied(script, arguments, folder=ROOT) -> tuple[int, str]:
    """Exit code and output of the script in a copy of the process that has imported the libraries.

    It runs in `folder`."""
    with tempfile.NamedTemporaryFile() as output:
        process = PREPARED.Process(target=as_script, args=(script, list(map(str, arguments)), output.name, folder))
        with mock.patch.dict(os.environ, ENVIRONMENT):
            process.start()
        try:
            process.join(timeout=300)
        finally:
            process.kill()
            process.join()
        return process.exitcode, Path(output.name).read_text()


def processes_of(folder) -> list[int]:
    """Those that train into `folder`: the script's, without the launcher and without loading workers."""
    pids = []
    for path in (path for path in os.scandir("/proc") if path.name.isdecimal()):
        try:
            with open(f"{path.path}/cmdline", "rb") as file:
                words = file.read().decode().split("\0")
        except OSError:
            continue
        if str(folder) in words and any(word.endswith("run_pretrain.py") for word in words[:3]):
            pids.append(int(path.name))
    return pids


def wait_for_update(process: subprocess.Popen, folder: Path, update: int) -> None:
    """Wait until the run in `folder` has logged this update or a later one, or has ended."""
    log = History(folder / "history.jsonl", main=False)
    while process.poll() is None and not any(entry["step"] >= update for entry in log.read()):
        time.sleep(0.01)


def run_in_turn(*commands, script="run_pretrain.py") -> list[tuple[int, str]]:
    """(exit code, output) of each command."""
    return [copied(script, command) for command in commands]


def without_waiting(log: list[dict]) -> list[dict]:
    """A log without the parts of the time that went by waiting for images: the clock decides these alone."""
    assert all(0 <= entry["waiting"] <= 1 for entry in log if "loss" in entry)
    return [{key: value for key, value in entry.items() if key != "waiting"} for entry in log]


def weights_and_history(folder) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The weights and the log that a run left, but for the time that it waited."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return load_file(folder / "model.safetensors"), without_waiting(history)


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def assert_same_run(one, other):
    """Two folders hold the same weights and the same log, to the last bit."""
    (weights, history), (other_weights, other_history) = weights_and_history(one), weights_and_history(other)
    assert history == other_history
    assert_same_weights(weights, other_weights)


def photograph(path=None, i=0, **options) -> Image.Image:
    """Image `i` of a series, upright for odd `i`. It is saved at `path` where there is one."""
    pixels = np.random.default_rng(i).integers(0, 255, (5, 7, 3), np.uint8)
    image = Image.fromarray(pixels).resize((200, 300) if i % 2 else (300, 200))
    if path is not None:
        image.save(path, **options)
    return image
