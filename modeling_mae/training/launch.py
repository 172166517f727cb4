"""How a script starts and ends: the Accelerator, signals, errors in one line.

This is the only place that reads the launcher's environment, but for LOCAL_RANK in `configuration/parsing.py`.
"""

import ctypes
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration

from ..errors import UserError
from ..files import is_full


MAX_LOADING_WORKERS = 8
MAX_IMAGE_MEMORY = 8 << 30  # bytes of decoded images that the processes of a machine keep in memory
DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) ([^.]*)")  # in torch's message
RECEIVES_BATCH = "_try_get_data"  # the method of torch's loader that gets a batch from a worker
PR_SET_PDEATHSIG = 1  # of Linux' prctl


class TrainingStopped(Exception):
    """Training ended before its last update. The message says where, why and how to go on; `code` is the exit
    status."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


class OpenOutput:
    """A stream that outlives its reader: after `| head` has read enough, what is printed is dropped."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._unless_closed(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._unless_closed(self.stream.flush)

    def _unless_closed(self, action: Callable, *values):
        try:
            return action(*values)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            return None


def run_script(main: Callable, arguments, mendable: tuple[type[Exception], ...] = (UserError,)) -> None:
    """Run ``main(arguments)``. An error that is `mendable` by the user ends the process with one line."""
    sys.stdout, sys.stderr = OpenOutput(sys.stdout), OpenOutput(sys.stderr)
    script = Path(sys.argv[0]).name
    try:
        main(arguments)
    except Exception as error:
        ignore_loading_workers()
        _end_in_one_line(error, script, arguments, mendable)
        raise


def _end_in_one_line(error: Exception, script: str, arguments, mendable: tuple[type[Exception], ...]) -> None:
    """End the process with one line, if the error is one that a user can understand; else do nothing."""
    if isinstance(error, TrainingStopped):
        print(error, file=sys.stderr)
        sys.exit(error.code)
    if isinstance(error, mendable):
        sys.exit(f"{script}: error: {one_line(error)}")
    if end := dead_worker(error):
        sys.exit(
            f"{script}: error: a loading worker died ({end}), mostly because the memory was full: go on with "
            "--resume_from_checkpoint auto and fewer --dataloader_num_workers"
        )
    if isinstance(error, OSError) and is_full(error):
        sys.exit(
            f"{script}: error: no space left on device ({error.filename or arguments.output_dir}): free some space, "
            "then go on with --resume_from_checkpoint auto"
        )
    if lost_process(error):
        # Not sys.exit: leaving in order would wait for the process that is gone.
        print(
            f"{script}: error: another process of this run has ended ({' '.join(str(error).split())[:120]}): its own "
            "message says why, or it was killed; go on with --resume_from_checkpoint auto",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def ignore_loading_workers() -> None:
    """From here on the death of a loading worker raises nothing: the run is ending, and may still have to write."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def one_line(error: Exception) -> str:
    """The message of an error. A loading worker's arrives inside the text of its traceback, which ends with it."""
    return " ".join(str(error).rpartition(f"{type(error).__name__}: ")[2].split())


def dead_worker(error: BaseException | None) -> str | None:
    """How a loading worker has ended, if that caused `error`; else None.

    torch learns of it by a signal, at any moment. The code that the signal interrupts may then raise another error."""
    while error is not None:
        if match := DEAD_WORKER.search(str(error)):
            return match[1]
        # A batch was on its way: the process that held its memory is gone, and torch has not noticed yet.
        if isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and any(
            frame.name == RECEIVES_BATCH for frame in traceback.extract_tb(error.__traceback__)
        ):
            return "its connection is lost"
        error = error.__cause__ or error.__context__
    return None


def lost_process(error: Exception) -> bool:
    """Whether a collective failed because another process is gone."""
    if not isinstance(error, RuntimeError):
        return False
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    return isinstance(error, torch.distributed.DistError) or any(text in str(error) for text in words)


def make_accelerator(folder: Path, trackers: list[str]) -> Accelerator:
    """Accelerate's state, with the trackers' logs in `folder`. The libraries report only errors from here on."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    accelerator = Accelerator(
        log_with=trackers or None, project_config=ProjectConfiguration(str(folder), logging_dir=str(folder))
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher has started {started} processes, but each sees {accelerator.num_processes} in all: "
            "on CPUs, set ACCELERATE_USE_CPU=true before `accelerate launch`"
        )
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else None
    if plugin is not None and "FULL" not in str(plugin.state_dict_type):
        raise UserError(
            f"fsdp_state_dict_type {plugin.state_dict_type} writes checkpoints that are not safe to read: set it to "
            "FULL_STATE_DICT in the launcher's configuration"
        )
    return accelerator


def describe_parallelism(accelerator: Accelerator) -> str:
    """Which kind of parallelism really runs, with how many processes and threads; what to do where cores lie idle."""
    kind, threads, cores = accelerator.distributed_type.value, torch.get_num_threads(), available_cores()
    line = f"{accelerator.num_processes} processes ({kind})" if accelerator.num_processes > 1 else "1 process"
    line += f" x {threads} thread{'s' if threads > 1 else ''}"
    if accelerator.device.type == "cpu" and threads * local_processes() < cores:
        line += (
            f", of {cores} cores: to use all, start with `accelerate launch --num_cpu_threads_per_process "
            f"{cores // local_processes()} ...`"
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and accelerator.distributed_type != DistributedType.FSDP:
        line += f"\nnote       FSDP was asked for, and Accelerate runs {kind}: it shards models on accelerators only"
    return line


def hardware(accelerator: Accelerator) -> dict:
    """What a report says of the machine."""
    return {
        "processes": accelerator.num_processes,
        "device_type": accelerator.device.type,
        "precision": accelerator.mixed_precision,
    }


def describe_batch(accelerator: Accelerator, total: int, at_once: int) -> str:
    """How the `total` images of an update come about, `at_once` on each process."""
    return (
        f"{total} = {accelerator.num_processes} processes x {at_once} images x "
        f"{accelerator.gradient_accumulation_steps} accumulation steps"
    )


def init_trackers(accelerator: Accelerator, arguments: dict) -> None:
    """Start the trackers with the run's `arguments`."""
    names = [str(tracker) for tracker in accelerator.log_with]
    if names:
        plain = {key: value if isinstance(value, (int, float)) else str(value) for key, value in arguments.items()}
        # TensorBoard takes a project's name for a folder's.
        accelerator.init_trackers("tensorboard" if names == ["tensorboard"] else "mae", config=plain)


def log_image(accelerator: Accelerator, name: str, image: torch.Tensor, update: int) -> None:
    """Give ``image (height, width, 3)`` uint8 to the trackers that take images."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: image.numpy()[None]}, step=update, **options)


def local_processes() -> int:
    """Training processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_workers(given: int | None) -> int:
    """Loading workers of each process: as `given`, or one a core of this machine, shared among its processes."""
    if given is not None:
        return given
    return min(MAX_LOADING_WORKERS, available_cores() // local_processes())


def image_memory() -> int:
    """Bytes of decoded images that one process may keep: a quarter of the free memory, shared among the machine's
    processes."""
    free = 32 << 30  # where the system does not say: macOS, Windows
    if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(MAX_IMAGE_MEMORY, free // 4) // local_processes()


def count_faults(accelerator: Accelerator, sets: list) -> dict[str, int]:
    """How many images of all `sets` any process has `skipped`, or found `incomplete`. Every process must ask."""

    def count(flags: torch.Tensor) -> int:
        return int((accelerator.reduce(flags.int().to(accelerator.device), "sum") > 0).sum())

    kinds = ("skipped", "incomplete")
    return {kind: sum(count(getattr(images, kind)) for images in sets) for kind in kinds}


# SIGHUP: the terminal is gone. SIGUSR1: SLURM's warning before the time limit (`--signal USR1@60`).
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """A signal to stop, noted until the end of the update and agreed upon by all processes."""

    def __init__(self, accelerator: Accelerator):
        self.signal, self.noted_at = 0, 0.0
        # A group of its own on the CPU: asking the GPUs at every update would make each wait for its queue.
        self.group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        self.previous_handlers = {}

    def __enter__(self):
        for signal_number in STOP_SIGNALS:
            if signal.getsignal(signal_number) != signal.SIG_IGN:  # nohup ignores SIGHUP, and means it
                self.previous_handlers[signal_number] = signal.signal(signal_number, self._note)
        self._end_with_the_launcher()
        return self

    def __exit__(self, *_):
        for signal_number, handler in self.previous_handlers.items():
            signal.signal(signal_number, handler)

    def _note(self, signal_number, frame):
        # A second Ctrl-C means: at once. But launchers repeat the first one to processes that already have it.
        if self.signal and signal_number == signal.SIGINT and time.monotonic() - self.noted_at > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.noted_at = signal_number, time.monotonic()

    @staticmethod
    def _end_with_the_launcher() -> None:
        # With one process, `accelerate launch` does not pass a signal on. Linux can send one when it ends.
        if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def agreed(self) -> int:
        """The number of the signal that any process got, or 0."""
        return self.largest(self.signal)

    def largest(self, number: int) -> int:
        """The largest `number` that any process gives. All must ask, at the same place of the training."""
        if self.group is None:
            return number
        flag = torch.tensor(number)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self.group)
        return int(flag)
