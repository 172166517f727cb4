"""Starts a script: the Accelerator, its trackers, and the machine's resources.

Only this file reads the launcher's environment, except for LOCAL_RANK in `configuration/parsing.py`.
"""

import os
from pathlib import Path

import datasets
import psutil
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend, ProjectConfiguration, gather_object
from joblib import cpu_count

from ..data.serve.decoded import Machine, Memory
from ..errors import UserError
from ..words import counted


MAX_LOADING_WORKERS = 8
BUSY_SECONDS = 0.3  # in which the other programs' use of the cores is measured
_ENDED: list = []  # process groups, see `end_training`
MAX_IMAGE_MEMORY = 8 << 30  # bytes of decoded images that the processes of a machine keep in memory


def make_accelerator(folder: Path, trackers: list[str]) -> Accelerator:
    """The Accelerator, with the trackers' logs in `folder`. From here on the libraries only report errors."""
    for library, name in (("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM"), ("FSDP", "FSDP1")):
        is_fsdp2 = library == "FSDP" and os.environ.get("FSDP_VERSION") == "2"
        if os.environ.get(f"ACCELERATE_USE_{library}") == "true" and not is_fsdp2:
            raise UserError(
                f"{name} is not supported: run `accelerate config` without it, or share a large model by FSDP2 "
                "(--use_fsdp --fsdp_version 2)"
            )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    accelerator = Accelerator(
        log_with=trackers or None, project_config=ProjectConfiguration(str(folder), logging_dir=str(folder))
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher has started {started} processes, but each only sees {accelerator.num_processes}: "
            "on CPUs, set ACCELERATE_USE_CPU=true before `accelerate launch`"
        )
    compiler = accelerator.state.dynamo_plugin
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else None
    if plugin is not None and torch.__version__ < "2.11":
        raise UserError(
            f"torch {torch.__version__} computes wrong norms of weights that FSDP shards, which LARS divides by: "
            "install torch 2.11 or later, or leave FSDP out"
        )
    if plugin is not None and "FULL" not in str(plugin.state_dict_type):
        raise UserError(
            f"fsdp_state_dict_type {plugin.state_dict_type} writes checkpoints that are not safe to read: set it to "
            "FULL_STATE_DICT in the launcher's configuration"
        )
    if plugin is not None and compiler.backend != DynamoBackend.NO and not compiler.use_regional_compilation:
        raise UserError(
            f"dynamo_backend {compiler.backend.value.lower()} compiles a model that FSDP shards only block by block: "
            "add --dynamo_use_regional_compilation after `accelerate launch`"
        )
    return accelerator


def describe_parallelism(accelerator: Accelerator) -> str:
    """Describes the parallelism that really runs: its kind, processes, threads, and the compiler. If cores are idle,
    or too few for the threads, it says what to do."""
    kind, threads, cores = accelerator.distributed_type.value, torch.get_num_threads(), available_cores()
    line = f"{accelerator.num_processes} processes ({kind})" if accelerator.num_processes > 1 else "1 process"
    line += f" x {counted(threads, 'thread')}"
    compiler = accelerator.state.dynamo_plugin.backend
    if compiler != DynamoBackend.NO:
        line += f", compiled by {compiler.value.lower()}"
    if accelerator.device.type == "cpu" and threads * local_processes() < cores:
        line += (
            f", of {cores} cores: to use all, start with `accelerate launch --num_cpu_threads_per_process "
            f"{cores // local_processes()} ...`"
        )
    if accelerator.device.type == "cpu" and threads > 1 and (note := crowding(threads, cores, busy_cores())):
        line += f"\n{note}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and accelerator.distributed_type != DistributedType.FSDP:
        line += f"\nnote       FSDP was requested, but Accelerate runs {kind}: it only shards models on accelerators"
    return line


def crowding(threads: int, cores: int, busy: float) -> str:
    """A note if the `threads` of each process have too few cores, else an empty text. The processes may use `cores`;
    other programs keep `busy` of the machine's cores busy."""
    machine = os.cpu_count() or cores
    free = max(1, min(cores, round(machine - busy)))
    if threads * local_processes() <= free:
        return ""
    total = threads * local_processes()
    fitting = max(1, free // local_processes())
    why = f"; other programs keep {busy:.1f} of {machine} cores busy" if total <= cores else ""
    return (
        f"note       {total} threads, free cores: {free}{why}. Each step waits for the slowest thread, so it can take "
        f"ten times as long: start with `accelerate launch --num_cpu_threads_per_process {fitting} ...`"
    )


def busy_cores() -> float:
    """How many of the machine's cores other programs keep busy now. Not the load average, because that still counts
    what ended a minute ago, such as the pre-training before an evaluation."""
    return psutil.cpu_percent(interval=BUSY_SECONDS) / 100 * (os.cpu_count() or 1)  # this process sleeps meanwhile


def init_trackers(accelerator: Accelerator, arguments: dict) -> None:
    """Start the trackers with the run's `arguments`."""
    names = [str(tracker) for tracker in accelerator.log_with]
    if names:
        plain = {key: value if isinstance(value, (int, float)) else str(value) for key, value in arguments.items()}
        # TensorBoard uses the project's name as a folder name.
        accelerator.init_trackers("tensorboard" if names == ["tensorboard"] else "mae", config=plain)


def end_training(accelerator: Accelerator) -> None:
    """Ends the trackers and the processes' group.

    A model of several processes refers to the group. In torch 2.7, a process can wait for ever when its model drops
    the last reference to it. So one reference is kept until Python ends.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _ENDED.append(torch.distributed.group.WORLD)
    accelerator.end_training()


def log_image(accelerator: Accelerator, name: str, image: torch.Tensor, update: int) -> None:
    """Log ``image (height, width, 3)`` uint8 to the trackers that take images."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: image.numpy()[None]}, step=update, **options)


def started_by_launcher() -> bool:
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def local_processes() -> int:
    """Number of training processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_cores() -> int:
    """Cores that this process may use, by its affinity and by the quota of its container."""
    return cpu_count()


def loading_workers(given: int | None) -> int:
    """Loading workers of each process: as `given`, or the machine's cores divided among its processes."""
    if given is not None:
        return given
    return min(MAX_LOADING_WORKERS, available_cores() // local_processes())


def image_memory(accelerator: Accelerator, image_cache: str, workers: int | None) -> Memory:
    """The memory for decoded images. `image_cache` is a number of GiB, off, or auto: a quarter of the free memory.
    Each process has `workers` loading workers.

    Raises:
        UserError: a machine has less free memory than `image_cache`.
    """
    free = psutil.virtual_memory().available
    machine, num_workers = Machine(), loading_workers(workers) * local_processes()
    if accelerator.num_processes > 1:
        first = accelerator.process_index - accelerator.local_process_index
        count = gather_object([first]).count(first)
        machine = Machine(accelerator.process_index, first, count, lambda value: gather_object([value]), alone=False)
    free = min(machine.gather(free))  # the processes must agree, even if their machines differ
    if image_cache == "auto":
        return Memory(min(MAX_IMAGE_MEMORY, free // 4), machine, num_workers)
    budget = 0 if image_cache == "off" else int(float(image_cache) * (1 << 30))
    if budget > free:
        raise UserError(
            f"image_cache {image_cache} is more than the {free / (1 << 30):.1f} GiB of free memory: give less, or auto"
        )
    return Memory(budget, machine, num_workers)


def feature_memory() -> int:
    """Bytes of frozen features that one process may keep: a quarter of the free memory, divided among the machine's
    processes."""
    return min(MAX_IMAGE_MEMORY, psutil.virtual_memory().available // 4) // local_processes()


def smallest_budget(accelerator: Accelerator, memory_budget: int) -> int:
    """The smallest budget of all processes, so that all decide alike. Every process must call this."""
    return int(accelerator.gather(torch.tensor([memory_budget], device=accelerator.device)).min())


def count_faults(accelerator: Accelerator, sets: list) -> dict[str, int]:
    """How many images of all `sets` any process has `skipped`, or found `incomplete`. Every process must call this."""

    def count(flags: torch.Tensor) -> int:
        return int((accelerator.reduce(flags.int().to(accelerator.device), "sum") > 0).sum())

    kinds = ("skipped", "incomplete")
    return {kind: sum(count(getattr(images, kind)) for images in sets) for kind in kinds}
