import os
import signal
import sys
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from modeling_mae.data.read.faults import BadImage
from modeling_mae.errors import TrainingStopped, UserError
from modeling_mae.training import launch, signals
from modeling_mae.training.endings import run_script
from modeling_mae.training.launch import feature_memory, image_memory, loading_workers, make_accelerator
from modeling_mae.training.signals import StopRequest


@pytest.fixture(autouse=True)
def script_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/anywhere/run_pretrain.py", "demo"])


def raising(error):
    def main(arguments):
        raise error

    return main


def test_the_arguments_reach_the_script():
    calls = []
    run_script(calls.append, "arguments")
    assert calls == ["arguments"]


def test_what_the_user_can_fix_is_one_line():
    with pytest.raises(SystemExit) as stop:
        run_script(raising(UserError("output_dir 'x' cannot\nbe written: give another")), None)
    # Python prints a text and ends with status 1.
    assert stop.value.code == "run_pretrain.py: error: output_dir 'x' cannot be written: give another"
    with pytest.raises(SystemExit) as stop:
        run_script(raising(KeyError("x")), None, user_errors=(UserError, KeyError))
    assert stop.value.code == "run_pretrain.py: error: 'x'"


@pytest.mark.parametrize("error", [ValueError("shapes do not fit"), RuntimeError("out of memory")])
def test_every_other_error_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        run_script(raising(error), None)
    assert raised.value is error


def test_a_stopped_training_ends_with_its_code(capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(raising(TrainingStopped("stopped after update 7", code=143)), None)
    assert stop.value.code == 143 and capsys.readouterr().err == "stopped after update 7\n"
    with pytest.raises(SystemExit) as stop:
        run_script(raising(TrainingStopped("the loss of update 7 is nan")), None)
    assert stop.value.code == 1


def test_control_c_before_the_training_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(raising(KeyboardInterrupt()), None)
    assert stop.value.code == 130 and capsys.readouterr().err == "run_pretrain.py: stopped by SIGINT\n"


class OneBadImage(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise BadImage("cat.jpg is not a readable image (truncated): fix it")


def test_the_error_of_a_loading_worker_is_one_line():
    """torch raises it again with the worker's traceback as its message."""
    loader = DataLoader(OneBadImage(), batch_size=None, num_workers=1)
    with pytest.raises(BadImage, match="Traceback"):
        next(iter(loader))
    with pytest.raises(SystemExit) as stop:
        run_script(lambda arguments: next(iter(loader)), None)
    assert stop.value.code == "run_pretrain.py: error: cat.jpg is not a readable image (truncated): fix it"


def test_a_dead_loading_worker_is_one_line_whatever_it_interrupts():
    """torch raises in the middle of anything; here a library that was interrupted raises an error of its own."""

    def main(arguments):
        try:
            raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
        except RuntimeError:
            raise SystemError("returned a result with an exception set")  # noqa: B904

    with pytest.raises(SystemExit) as stop:
        run_script(main, None)
    assert "a loading worker died (is killed by signal: Killed)" in stop.value.code
    assert "--resume_from_checkpoint auto" in stop.value.code


def test_a_batch_whose_loading_worker_is_gone_is_one_line():
    """The connection to the worker breaks before torch notices its death. Other broken connections are no worker's."""

    def _try_get_data(arguments):
        raise ConnectionResetError(104, "Connection reset by peer")

    def reaches_a_server(arguments):
        raise ConnectionResetError(104, "Connection reset by peer")

    assert hasattr(_MultiProcessingDataLoaderIter, _try_get_data.__name__)
    with pytest.raises(SystemExit) as stop:
        run_script(_try_get_data, None)
    assert "a loading worker died (its connection is lost)" in stop.value.code
    with pytest.raises(ConnectionResetError):
        run_script(reaches_a_server, None)


def test_a_loading_worker_for_each_core_of_the_machine(monkeypatch):
    for cores, processes, expected in (
        (6, 1, 6),
        (6, 2, 3),
        (6, 4, 1),
        (6, 8, 0),
        (64, 1, 8),
        (64, 4, 8),
        (64, 16, 4),
    ):
        monkeypatch.setattr(launch, "available_cores", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert loading_workers(None) == expected
        assert loading_workers(0) == 0 and loading_workers(13) == 13  # as given
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert loading_workers(None) == 8


@pytest.mark.parametrize(
    "machine, cores, processes, threads, busy, said",
    [
        (2, 2, 1, 2, 0.1, []),
        (2, 2, 1, 2, 1.4, ["2 threads, free cores: 1; other programs keep 1.4 of 2 cores busy", "per_process 1 "]),
        (2, 2, 1, 8, 0.0, ["8 threads, free cores: 2. ", "per_process 2 "]),
        (64, 4, 2, 4, 30.0, ["8 threads, free cores: 4. ", "per_process 2 "]),  # a container with a quota
        (64, 4, 2, 2, 30.0, []),
        (64, 64, 4, 16, 32.0, ["64 threads, free cores: 32; other programs keep 32.0 of 64", "per_process 8 "]),
    ],
)
def test_more_threads_than_free_cores_are_one_line(monkeypatch, machine, cores, processes, threads, busy, said):
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    note = launch.crowding(threads, cores, busy)
    assert all(part in note for part in said) and bool(said) == bool(note) and "\n" not in note


def test_a_quota_of_cores_and_other_programs_are_seen(monkeypatch):
    """Both scripts print `describe_parallelism`."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # as a container's quota for one core
    assert launch.available_cores() == 1
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 75.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert launch.busy_cores() == 6.0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    accelerator = Accelerator(cpu=True)
    described = launch.describe_parallelism(accelerator).splitlines()
    assert described[0] == "1 process x 4 threads" and len(described) == 2
    assert "free cores: 1" in described[1] and "--num_cpu_threads_per_process 1 " in described[1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # a single thread waits for no other
    assert launch.describe_parallelism(accelerator) == "1 process x 1 thread"


def has_free(monkeypatch, gibibytes: int) -> None:
    memory = mock.Mock(available=gibibytes << 30, free=0)  # what caches hold is available, though not free
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_memory_for_decoded_images(monkeypatch):
    accelerator = Accelerator(cpu=True)
    for gibibytes, given, expected in ((16, "auto", 4), (400, "auto", 8), (16, "off", 0), (16, "12.5", 12.5)):
        has_free(monkeypatch, gibibytes)
        memory = image_memory(accelerator, given, 3)
        assert memory.budget == expected * (1 << 30) and memory.machine.first and memory.num_workers == 3
    has_free(monkeypatch, 16)
    with pytest.raises(UserError, match="image_cache 17 is more than the 16.0 GiB of free memory"):
        image_memory(accelerator, "17", 0)


def test_each_machine_has_its_first_process_and_the_least_memory_counts(monkeypatch):
    """Process 3 of 4, on the second of two machines."""
    has_free(monkeypatch, 16)
    monkeypatch.setattr(
        "modeling_mae.training.launch.gather_object",
        lambda values: [0, 0, *values, *values] if values == [2] else [8 << 30, 8 << 30, *values, *values],
    )
    process = SimpleNamespace(num_processes=4, process_index=3, local_process_index=1)
    memory = image_memory(process, "auto", 0)
    assert memory.budget == 2 << 30
    machine = memory.machine
    assert not machine.first and machine.first_rank == 2 and machine.count == 2 and not machine.alone


def test_the_processes_of_a_machine_share_the_memory_for_features(monkeypatch):
    for gibibytes, processes, expected in ((16, 1, 4), (16, 2, 2), (16, 4, 1), (400, 1, 8), (400, 4, 2)):
        has_free(monkeypatch, gibibytes)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert feature_memory() == expected << 30


def test_a_signal_is_noted_and_the_handlers_come_back(heeded_signals):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with StopRequest(Accelerator(cpu=True)) as stop:
        assert stop.agreed() == 0
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # launchers repeat a signal: the first one counts
        assert stop.agreed() == signal.SIGTERM
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_second_ctrl_c_stops_at_once(monkeypatch, heeded_signals):
    clock = [100.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with StopRequest(Accelerator(cpu=True)) as stop:
        signal.raise_signal(signal.SIGINT)
        clock[0] += 0.5
        signal.raise_signal(signal.SIGINT)  # the launcher's copy of the first one
        clock[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.agreed() == signal.SIGINT


@pytest.mark.parametrize(
    "library, name", [("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM"), ("FSDP", "FSDP1")]
)
def test_launchers_of_other_libraries_are_one_line(tmp_path, monkeypatch, library, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{library}", "true")
    with pytest.raises(UserError, match=f"{name} is not supported.*--fsdp_version 2"):
        make_accelerator(tmp_path, [])
