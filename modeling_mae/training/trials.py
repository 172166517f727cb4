"""What updates that are tried before a training tell: how many images fit into memory, how many epochs into a time.

Trials change nothing of the run: they train a model of their own, and random states are put back.
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
from .sharded import settle_gradient_groups
from .state import batches_of


MOST_UPDATES, LEAST_UPDATES = 100, 3  # of a trial; the later half is timed, when loading has settled
MOST_SECONDS, TRIAL_SHARE = 60, 0.02  # a trial ends after this, or this part of the time there is
SPARE = 0.05  # part of the time for pictures, checkpoints, and what was not foreseen
NONE_FITS = -1  # after the last number of images; Accelerate takes it for one more, but not 0
ADAM_MOMENTS = 2  # tensors that AdamW keeps of each parameter


def find_batch_size(
    accelerator: Accelerator,
    model: torch.nn.Module,
    total: int,
    start: int,
) -> int:
    """The images at a time that every process can train on: `start`, or the largest smaller power of two that fits and
    with which updates of `total` images still come out even.

    `model` is an MAEForPreTraining, unwrapped: it must run without the other processes, since one of them may run out
    of memory alone. On a CPU `start` stays, because the system ends a process rather than raising an error.

    Raises:
        UserError: not even one image fits, or the model is sharded.
    """
    if accelerator.device.type == "cpu":
        accelerator.print(f"note       auto_batch_size looks only on a GPU: {start} images at a time stay")
        return start
    if accelerator.distributed_type == DistributedType.FSDP:
        raise UserError("auto_batch_size does not work with FSDP, whose processes cannot try alone: leave it out")
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
    """torch's random states, of the CPU and of `device`, are as before at the end."""
    generators = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device.type)]
    states = [generator.get_rng_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_rng_state(state)


def batch_sizes(total: int, start: int, processes: int) -> list[int]:
    """`start` images at a time on each process and every smaller power of two, where they divide an update of `total`.

    >>> batch_sizes(96, 24, processes=2)  # 48 on each
    [24, 16, 8, 4, 2, 1]
    """
    smaller = [1 << exponent for exponent in reversed(range(start.bit_length())) if 1 << exponent < start]
    sizes = [size for size in (start, *smaller) if total % (size * processes) == 0]
    return sizes or [start]  # the batch sizes do not fit each other at all, which split_batch explains


@dataclass(frozen=True)
class TrialSettings:
    """What the length of a run depends on, beside the time that an update takes."""

    max_hours: float
    num_train_epochs: float  # at most
    seed: int
    total_batch_size: int
    per_device_train_batch_size: int
    eval_every_epochs: int  # 0: the features are not looked at on the way
    knn: bool  # whether the features are computed twice at the end
    dataloader_num_workers: int | None = None
    repeated_augmentation: int = 1


class Trial:
    """A model and an optimizer that only take time, in place of those that will be trained."""

    def __init__(self, accelerator: Accelerator, config: MAEConfig, optimizer: OptimizerSettings):
        self.accelerator = accelerator
        with unchanged_random_states(accelerator.device):
            model = MAEForPreTraining(config)
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(model, optimizer))

    def close(self) -> None:
        """Free the memory."""
        del self.model, self.optimizer
        self.accelerator.free_memory()

    def seconds_an_update(self, batches: Iterable[dict], transform: Callable[[dict], torch.Tensor], most: float):
        """Seconds that an update takes, with its loading. `batches` are for `MOST_UPDATES`. `transform` gives the
        pixels ``(batch, channels, height, width)`` of a batch. The trial ends after `most` seconds."""
        accelerator, model, inner = self.accelerator, self.model, self.optimizer.optimizer
        settle_gradient_groups(model)
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
                loss.item()  # the device has done its work
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
    images_a_look: int,
) -> tuple[float, str]:
    """The epochs of a run that may take `max_hours`, and the reason, by timing some updates.

    `stages` are those of `Resizing`: (part of the updates, size of their images). `transform(batch, size)` gives the
    pixels. `images_a_look` are those whose features are computed each time. Such an image counts like one that is
    trained on.
    """
    accelerator, times = trial.accelerator, []
    for number, (part, size) in enumerate(stages):
        # Each trial reads images that are in no cache yet.
        updates = range(number * MOST_UPDATES, (number + 1) * MOST_UPDATES)
        batches = batches_of(images, settings, updates, accelerator)
        most = TRIAL_SHARE * part * settings.max_hours * 3600
        times.append(trial.seconds_an_update(batches, partial(transform, size=size), most))
    seconds = sum(part * an_update for (part, _), an_update in zip(stages, times, strict=True))
    an_epoch = seconds * max(1, len(images) // settings.total_batch_size)
    a_look = times[-1] / settings.total_batch_size * images_a_look
    epochs = fit_epochs(
        settings.max_hours,
        settings.num_train_epochs,
        an_epoch,
        seconds_of_a_look=a_look,
        epochs_between_looks=settings.eval_every_epochs,
        other_seconds=2 * a_look * settings.knn,
    )
    return epochs, f"an epoch takes {an_epoch:.3g} s by trial updates, for max_hours {settings.max_hours:g}"


def fit_epochs(
    hours: float,
    wanted: float,
    seconds_an_epoch: float,
    *,
    seconds_of_a_look: float = 0.0,
    epochs_between_looks: int = 0,
    other_seconds: float = 0.0,
) -> float:
    """How many epochs fit into `hours`, to a hundredth and at least that; or all that are `wanted`, if they fit.

    `seconds_of_a_look` at the features count every `epochs_between_looks` (0: never), at the end and once before.

    >>> fit_epochs(1, 800, 60)  # 57 of the 60 minutes are for epochs of a minute
    57.0
    >>> fit_epochs(1, 800, 2400)  # or of 40 minutes
    1.42
    """

    def seconds(epochs: float) -> float:
        looks = 1 + math.ceil(epochs / epochs_between_looks) if epochs_between_looks else 0
        return epochs * seconds_an_epoch + looks * seconds_of_a_look + other_seconds

    limit = hours * 3600 * (1 - SPARE)
    if seconds(wanted) <= limit:
        return wanted
    hundredths = range(1, math.ceil(100 * wanted) + 1)
    fitting = bisect.bisect_right(hundredths, limit, key=lambda hundredth: seconds(hundredth / 100))
    return min(wanted, max(1, fitting) / 100)
