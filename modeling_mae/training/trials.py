"""Tries updates before a training, to find how many images fit into memory, and how many epochs into a time.

Trials do not change the run: they train a separate model, and restore the random states.
"""

import bisect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, find_executable_batch_size, send_to_device

from ..configuration_mae import MAEConfig
from ..data.serve.images import Images
from ..errors import UserError
from ..modeling_mae import MAEForPreTraining
from .optim import OptimizerSettings, make_optimizer
from .sharded import fix_gradient_buckets
from .state import batches_of
from .tuning import TuningSettings


MOST_UPDATES, LEAST_UPDATES = 100, 3  # per trial; only the later half is timed, when loading is steady
MOST_SECONDS, TRIAL_SHARE = 60, 0.02  # a trial ends after this, or after this share of max_hours
SPARE = 0.05  # share of the time reserved for pictures, checkpoints and delays
NONE_FITS = -1  # tried after the last batch size; Accelerate would not try 0
ADAM_MOMENTS = 2  # tensors that AdamW keeps per parameter


def find_batch_size(
    accelerator: Accelerator,
    model: torch.nn.Module,
    total: int,
    start: int,
) -> int:
    """The largest micro-batch that fits on every process: `start`, or a smaller power of two that divides updates of
    `total` images.

    `model` is an unwrapped MAEForPreTraining: it must run without the other processes, because a single one may run
    out of memory. On a CPU the result is `start`, because the system kills a process that takes too much memory.

    Raises:
        UserError: not even one image fits, or the model is sharded.
    """
    if accelerator.device.type == "cpu":
        accelerator.print(f"note       auto_batch_size only works on a GPU: {start} images at a time stay")
        return start
    if accelerator.distributed_type == DistributedType.FSDP:
        raise UserError("auto_batch_size does not work with FSDP, whose processes cannot run alone: leave it out")
    sizes = iter([*batch_sizes(total, start, accelerator.num_processes), NONE_FITS])

    def attempt(size: int) -> int:
        if size != NONE_FITS:
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(ADAM_MOMENTS)]
            config = cast(MAEConfig, model.config)
            shape = (size, config.num_channels, *config.image_height_width)
            model(torch.zeros(shape, device=accelerator.device)).loss.backward()
            del moments
        return size

    finder = find_executable_batch_size(attempt, next(sizes), lambda: next(sizes))
    with unchanged_random_states(accelerator.device):
        fitting = finder()
    model.zero_grad()
    fitting = int(accelerator.gather(torch.tensor([fitting], device=accelerator.device)).min())
    if fitting == NONE_FITS:
        raise UserError("not even one image at a time fits into the GPU's memory: give a smaller model or image_size")
    return fitting


@contextmanager
def unchanged_random_states(device: torch.device) -> Iterator[None]:
    """Restores torch's random states, of the CPU and of `device`, at the end."""
    generators = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device.type)]
    states = [generator.get_rng_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_rng_state(state)


def batch_sizes(total: int, start: int, processes: int) -> list[int]:
    """`start` images per process and every smaller power of two, if they divide an update of `total`.

    >>> batch_sizes(96, 24, processes=2)  # 48 on each
    [24, 16, 8, 4, 2, 1]
    """
    smaller = [1 << exponent for exponent in reversed(range(start.bit_length())) if 1 << exponent < start]
    sizes = [size for size in (start, *smaller) if total % (size * processes) == 0]
    return sizes or [start]  # if none fits, split_batch explains why


@dataclass(frozen=True)
class TrialSettings:
    """What the length of a run depends on, besides the time per update."""

    max_hours: float
    num_train_epochs: float  # at most
    seed: int
    total_batch_size: int
    per_device_train_batch_size: int
    eval_every_epochs: int  # 0: the features are not measured during the training
    knn: bool  # whether the features are computed twice at the end
    dataloader_num_workers: int | None = None
    repeated_augmentation: int = 1
    model_name_or_path: str | None = None  # weights that are measured at the start too


class Trial:
    """A model and an optimizer for timing only, not the ones that will be trained."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: MAEConfig,
        optimizer: OptimizerSettings,
        tuning: TuningSettings,
        changed: frozenset[str] = frozenset(),
    ):
        """`changed` as in `TuningSettings.apply`."""
        self.accelerator = accelerator
        with unchanged_random_states(accelerator.device):
            model = MAEForPreTraining(config)
            tuning.apply(model, changed=changed)
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(model, optimizer))

    def close(self) -> None:
        """Frees the memory."""
        del self.model, self.optimizer
        self.accelerator.free_memory()

    def seconds_per_update(self, batches: Iterable[dict], transform: Callable[[dict], torch.Tensor], most: float):
        """Seconds per update, including loading. `batches` are enough for `MOST_UPDATES`. `transform` returns the
        pixels ``(batch, channels, height, width)`` of a batch. The trial ends after `most` seconds."""
        accelerator, model, inner = self.accelerator, self.model, self.optimizer.optimizer
        fix_gradient_buckets(model)
        model.train()
        batches, device = iter(batches), accelerator.device
        moments, enough = [time.perf_counter()], False
        with unchanged_random_states(device):
            while not enough:
                for _ in range(accelerator.gradient_accumulation_steps):
                    batch = send_to_device(next(batches), device, non_blocking=True)
                    with accelerator.accumulate(model):
                        loss = model(transform(batch)).loss
                        accelerator.backward(loss)
                inner.step()
                inner.zero_grad()
                loss.item()  # waits until the device is done
                moments.append(time.perf_counter())
                late = torch.tensor(int(moments[-1] - moments[0] > min(MOST_SECONDS, most)), device=device)
                late = accelerator.reduce(late, "sum") > 0
                enough = len(moments) > MOST_UPDATES or (len(moments) > LEAST_UPDATES and bool(late))
        accelerator.step = 0  # it counts micro-batches
        half = len(moments) // 2
        seconds = (moments[-1] - moments[half]) / (len(moments) - 1 - half)
        return float(accelerator.gather(torch.tensor([seconds], device=device)).max())


def fit_length(
    trial: Trial,
    images: Images,
    transform: Callable[..., torch.Tensor],
    stages: list[tuple[float, tuple[int, int]]],
    settings: TrialSettings,
    images_per_measurement: int,
) -> tuple[float, str]:
    """(epochs of a run that may take `max_hours`, the reason as text). Times some updates.

    `stages` are those of `Resizing`: (share of the updates, size of their images). `transform(batch, size)` returns
    the pixels. A measurement computes the features of `images_per_measurement` images, each as costly as a training
    image.
    """
    accelerator, times = trial.accelerator, []
    for number, (part, size) in enumerate(stages):
        # Each trial reads images that are not in a cache yet.
        updates = range(number * MOST_UPDATES, (number + 1) * MOST_UPDATES)
        batches = batches_of(images, settings, updates, accelerator)
        most = TRIAL_SHARE * part * settings.max_hours * 3600
        times.append(trial.seconds_per_update(batches, partial(transform, size=size), most))
    seconds = sum(part * an_update for (part, _), an_update in zip(stages, times, strict=True))
    per_epoch = seconds * max(1, len(images) // settings.total_batch_size)
    per_measurement = times[-1] / settings.total_batch_size * images_per_measurement
    starts = settings.model_name_or_path is not None and settings.eval_every_epochs > 0
    epochs = fit_epochs(
        settings.max_hours,
        settings.num_train_epochs,
        per_epoch,
        seconds_per_measurement=per_measurement,
        epochs_between_measurements=settings.eval_every_epochs,
        other_seconds=per_measurement * (2 * settings.knn + starts),
    )
    return epochs, f"an epoch takes {per_epoch:.3g} s (timed on trial updates), max_hours is {settings.max_hours:g}"


def fit_epochs(
    hours: float,
    wanted: float,
    seconds_per_epoch: float,
    *,
    seconds_per_measurement: float = 0.0,
    epochs_between_measurements: int = 0,
    other_seconds: float = 0.0,
) -> float:
    """How many epochs fit into `hours`, in steps of 0.01 and at least 0.01, but at most `wanted`.

    The features are measured at the start, at the end, and every `epochs_between_measurements` (0: never).

    >>> fit_epochs(1, 800, 60)  # 57 of the 60 minutes are for epochs of a minute
    57.0
    >>> fit_epochs(1, 800, 2400)  # or of 40 minutes
    1.42
    """

    def seconds(epochs: float) -> float:
        measurements = 1 + math.ceil(epochs / epochs_between_measurements) if epochs_between_measurements else 0
        return epochs * seconds_per_epoch + measurements * seconds_per_measurement + other_seconds

    limit = hours * 3600 * (1 - SPARE)
    if seconds(wanted) <= limit:
        return wanted
    hundredths = range(1, math.ceil(100 * wanted) + 1)
    fitting = bisect.bisect_right(hundredths, limit, key=lambda hundredth: seconds(hundredth / 100))
    return min(wanted, max(1, fitting) / 100)
