"""What updates that are tried before a training tell: how many images fit into memory, how many epochs into a time.

Trials change nothing of the run: their gradients are thrown away, and random states are put back.
"""

import bisect
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, find_executable_batch_size, send_to_device

from ..data.serve.images import Images
from ..errors import UserError
from .sharded import settle_gradient_groups


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
            shape = (size, model.config.num_channels, *model.config.image_height_width)
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


def unchanged_random_states(device: torch.device) -> AbstractContextManager:
    """torch's random states, which checkpoints keep, are as before at the end."""
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu}
    index = [kinds[device.type].current_device()] if device.type in kinds else []
    return torch.random.fork_rng(index, device_type=device.type if index else "cuda")


def batch_sizes(total: int, start: int, processes: int) -> list[int]:
    """`start` images at a time on each process and every smaller power of two, where they divide an update of `total`.

    >>> batch_sizes(96, 24, processes=2)  # 48 on each
    [24, 16, 8, 4, 2, 1]
    """
    smaller = [1 << exponent for exponent in reversed(range(start.bit_length())) if 1 << exponent < start]
    sizes = [size for size in (start, *smaller) if total % (size * processes) == 0]
    return sizes or [start]  # the batch sizes do not fit each other at all, which split_batch explains


def time_updates(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict],
    loss_of: Callable[[dict, int, int], torch.Tensor],
    hours: float,
) -> float:
    """Seconds that an update takes, with its loading. `model` and `optimizer` are prepared and new; `batches` are for
    `MOST_UPDATES`, and `loss_of` is that of `train`. `hours` is the time that such updates may take in the whole run.
    """
    settle_gradient_groups(model)  # before the first backward pass, as a run does that is never timed
    model.train()
    batches, inner = iter(batches), optimizer.optimizer
    moments = [time.perf_counter()]
    enough = False
    device = accelerator.device
    with unchanged_random_states(device):
        while not enough:
            for micro in range(accelerator.gradient_accumulation_steps):
                batch = send_to_device(next(batches), device, non_blocking=True)
                with accelerator.accumulate(model):
                    loss = loss_of(batch, len(moments) - 1, micro)
                    accelerator.backward(loss)
            # An update at the rate 0 by gradients of 0 takes its time and leaves every weight as it is.
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            inner.step()
            inner.zero_grad()
            loss.item()  # the device has done its work
            moments.append(time.perf_counter())
            late = moments[-1] - moments[0] > min(MOST_SECONDS, TRIAL_SHARE * hours * 3600)
            late = accelerator.reduce(torch.tensor(int(late), device=device), "sum") > 0
            enough = len(moments) > MOST_UPDATES or (len(moments) > LEAST_UPDATES and bool(late))
    inner.state.clear()
    accelerator.step = 0  # it counts micro-batches
    half = len(moments) // 2
    seconds = (moments[-1] - moments[half]) / (len(moments) - 1 - half)
    return float(accelerator.gather(torch.tensor([seconds], device=device)).max())


def fit_length(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    losses: list[tuple[float, Callable[[dict, int, int], torch.Tensor]]],
    *,
    hours: float,
    wanted: float,
    total_batch_size: int,
    images_a_look: int,
    epochs_between_looks: int,
    knn: bool,
    **loading,
) -> float:
    """The epochs, at most `wanted`, of a run that may take `hours`, by timing some updates. Prints the reason.

    `losses` are (part of the updates, their `loss_of` as in `train`), one for each size of images, the whole one last.
    An image that is looked at counts like one that is trained on. `images_a_look` are those whose features are
    computed every `epochs_between_looks`, and with `knn` twice at the end. `loading` goes to `training_loader`.
    """
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    times = []
    for number, (part, loss_of) in enumerate(losses):
        # Each trial reads images that are in no cache yet.
        updates = range(number * MOST_UPDATES, (number + 1) * MOST_UPDATES)
        batches = images.training_loader(updates=updates, total_batch_size=total_batch_size, **place, **loading)
        times.append(time_updates(accelerator, model, optimizer, batches, loss_of, part * hours))
    seconds = sum(part * an_update for (part, _), an_update in zip(losses, times, strict=True))
    an_epoch = seconds * max(1, len(images) // total_batch_size)
    a_look = times[-1] / total_batch_size * images_a_look
    looks = {"seconds_of_a_look": a_look, "epochs_between_looks": epochs_between_looks}
    epochs = fit_epochs(hours, wanted, an_epoch, **looks, other_seconds=2 * a_look * knn)
    why = f"an epoch takes {an_epoch:.3g} s by trial updates, for max_hours {hours:g}"
    accelerator.print(f"chosen     num_train_epochs={epochs:g}: {why}", flush=True)
    return epochs


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
