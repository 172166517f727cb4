"""What several test modules share: a tiny model, and the real commands as a user starts them.

Large libraries are imported where they are needed: the process that hands out the tests reads this file too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import PIL
import psutil
import pytest
from as_script import as_script
from PIL import Image


if TYPE_CHECKING:
    import torch

    from modeling_mae import MAEConfig


gc.disable()  # until the tests are collected: imports make very many objects, and Python would look at them often

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
picture_epochs: 0
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
LATE = ["timm", "sklearn.linear_model", "scipy.io", "tensorboard", *(f"PIL.{plugin}" for plugin in PIL._plugins)]
PREPARED.set_forkserver_preload(["run_pretrain", "run_eval", *LATE])


def pytest_configure(config):
    if not re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr")):  # the other tests expect a CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)
    else:
        # One cache of data sets for all processes of this session, empty at its start. `datasets` holds a file lock
        # while it builds one: the first process builds, the others wait for it and read.
        cache = tempfile.TemporaryDirectory(prefix="datasets-", ignore_cleanup_errors=True)
        config.add_cleanup(cache.cleanup)
        os.environ["HF_DATASETS_CACHE"] = cache.name


def pytest_collection_finish():
    gc.freeze()  # what was imported stays to the end: a collection need not go through it
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """Nor through what earlier modules have left. Else each figure's collection takes up to 0.8 s."""
    gc.freeze()


def tiny_config(**changes) -> MAEConfig:
    from modeling_mae import MAEConfig

    return MAEConfig(**{**TINY, **changes})


@pytest.fixture
def heeded_signals():
    """No signal is ignored, though a shell may have started the tests so: with nohup, or in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


class Copies:
    """A command by copies of a process that has the libraries, with what the tests need of `subprocess.Popen`.

    It runs in `folder`. `launcher` and `environment` are those of `start`: the processes are then what `accelerate
    launch` would start."""

    def __init__(self, script, arguments, folder=ROOT, launcher=(), **environment):
        self.output, self.store = tempfile.NamedTemporaryFile(), None
        environments = self._launched(launcher, environment) if launcher else [environment]
        words = (script, list(map(str, arguments)), self.output.name, folder)
        self.processes = [PREPARED.Process(target=as_script, args=(*words, each)) for each in environments]
        with mock.patch.dict(os.environ, ENVIRONMENT):
            for process in self.processes:
                process.start()
        atexit.register(self.kill)  # what a failed test has left must not hold up the end

    def _launched(self, launcher, environment) -> list[dict[str, str]]:
        """What the launcher would change in the environment of each process."""
        import torch
        from accelerate.commands import launch

        arguments = launch.launch_command_parser().parse_args([*launcher, "script"])
        with mock.patch.dict(os.environ, {**ENVIRONMENT, **environment}):
            whole = launch.prepare_multi_gpu_env(launch._validate_launch_command(arguments)[0])
        settings = {name: value for name, value in whole.items() if os.environ.get(name) != value}
        # In place of the launcher, this process has the store in which the others find each other.
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        settings |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)}
        count = arguments.num_processes
        settings |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        return [{**settings, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]

    @property
    def pid(self) -> int:
        return self.processes[0].pid

    @property
    def returncode(self) -> int:
        """Of the first process that failed, else 0."""
        return next((process.exitcode for process in self.processes if process.exitcode), 0)

    def poll(self) -> int | None:
        return None if any(process.is_alive() for process in self.processes) else self.returncode

    def wait_for_line(self, start: str) -> None:
        """Wait until a line that begins so is printed, or the command has ended."""
        while f"\n{start}" not in f"\n{self.printed}" and self.poll() is None:
            time.sleep(0.01)

    @property
    def printed(self) -> str:
        return Path(self.output.name).read_text()

    def communicate(self, timeout=300) -> tuple[str, None]:
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        self.kill()
        atexit.unregister(self.kill)
        return self.printed, None

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            os.kill(process.pid, number)

    def kill(self) -> None:
        """End the processes, and their loading workers, which else keep the run's folder for some seconds."""
        running = [psutil.Process(process.pid) for process in self.processes if process.is_alive()]
        workers = [child for process in running for child in process.children(recursive=True)]
        for process in (*running, *workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.processes:
            process.join()
        psutil.wait_procs(workers)


def run(*arguments, code=0, script="run_pretrain.py", **options) -> str:
    """What the command prints, run by `Copies`. It must end with this exit code, and without a traceback."""
    ended, output = copied(script, arguments, **options)
    assert ended == code and "Traceback" not in output, output
    return output


def copied(script, arguments, folder=ROOT, **options) -> tuple[int, str]:
    """Exit code and output of the command in `Copies`."""
    copies = Copies(script, arguments, folder, **options)
    output, _ = copies.communicate()
    return copies.returncode, output


def dealt_batches(images, processes: int, **options) -> list[dict]:
    """The batches of `training_loader` over all processes, in the order in which they are trained on."""
    shares = [
        list(images.training_loader(process_index=index, num_processes=processes, **options))
        for index in range(processes)
    ]
    return [batch for turn in zip(*shares, strict=True) for batch in turn]


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
    from modeling_mae.training.state import History

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
    from safetensors.torch import load_file

    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return load_file(folder / "model.safetensors"), without_waiting(history)


def assert_same_weights(one, other):
    import torch

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
