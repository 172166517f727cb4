"""The training loop of both scripts, and its progress display."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import TrainingStopped, UserError
from .endings import dead_worker, ignore_loading_workers, one_line
from .launch import available_cores, local_processes
from .resizing import Resizing
from .sharded import gradient_norm, local_tensors
from .signals import StopRequest
from .state import Run
from .transfer import Transfer
from .waiting import Waiting, describe_waiting


SECONDS_BETWEEN_LINES = 10  # outside a terminal
# Without tqdm's time left, which assumes that all updates take equally long.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"


class Display:
    """Shows progress on the main process: in a terminal a bar, elsewhere lines for the first and the last log entry,
    and about every ten seconds in between.

    `later` is the work of the trainings that follow, relative to this training's. ``work(update)`` is the work of all
    updates before `update`. By default all updates count alike."""

    def __init__(self, main: bool, start: int, total: int, images_per_update: int, later: float = 0.0, work=float):
        self.main, self.start, self.total, self.images_per_update = main, start, total, images_per_update
        self.later, self.work = later, work
        self.began = self.last_time = time.perf_counter()
        self.last_line = -math.inf
        self.last_update = start
        bar = main and sys.stderr.isatty()
        self.bar = None
        if bar:
            self.bar = tqdm(total=total, initial=start, unit="update", dynamic_ncols=True, bar_format=BAR)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def show(self, entry: dict) -> float:
        """Show a log entry. Returns the images/s since the previous one."""
        now = time.perf_counter()
        images = (entry["step"] - self.last_update) * self.images_per_update
        speed = images / max(now - self.last_time, 1e-9)
        self.last_time, self.last_update = now, entry["step"]
        left, all_left = self.seconds_left(entry["step"], now)
        if self.bar is not None:
            figures = {"loss": f"{entry['loss']:.4f}", "lr": f"{entry['learning_rate']:.2e}"}
            figures |= {"images/s": f"{speed:.0f}", "waiting": f"{entry['waiting']:.0%}", "left": left}
            self.bar.set_postfix({**figures, **({"all left": all_left} if self.later else {})})
        elif self.main and (now - self.last_line >= SECONDS_BETWEEN_LINES or entry["step"] == self.total):
            self.last_line = now
            rest = f", {all_left} for all trainings" if self.later else ""
            print(
                f"update {entry['step']}/{self.total}  epoch {entry['epoch']:.2f}  loss {entry['loss']:.4f}  "
                f"lr {entry['learning_rate']:.2e}  {speed:.0f} images/s  waiting {entry['waiting']:.0%}  "
                f"{left} left{rest}",
                flush=True,
            )
        return speed

    def seconds_left(self, update: int, now: float) -> tuple[str, str]:
        """(time until the end of this training, time until the end of all trainings), as text."""
        pace = (now - self.began) / (self.work(update) - self.work(self.start))
        left, all_work = pace * (self.work(self.total) - self.work(update)), self.work(self.total)
        return tqdm.format_interval(left), tqdm.format_interval(left + self.later * all_work * pace)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@dataclass(frozen=True)
class MicroBatch:
    """The images of an update that one process sees at a time."""

    images: dict  # this process's, on its device
    number: int  # 0, 1, ... over all processes
    rows: slice  # the images' places in the total batch


class Update:
    """One update of the weights. The script calls `backward` for each micro-batch, and then `step`."""

    def __init__(self, run: Run, number: int, resizing: Resizing, next_batch: Callable[[], dict]):
        self.run, self.number, self.next_batch = run, number, next_batch
        self.size = resizing.size_at(number, run.schedule.updates)  # (height, width) of its images
        self.size_changes = len(resizing.stages) > 1  # during the run
        # Only every `logging_steps` updates, because reading the loss waits for the device.
        self.logs = (number + 1) % run.settings.logging_steps == 0 or number + 1 == run.schedule.updates
        self.loss: torch.Tensor | float = 0.0  # the mean over this process's images; stays on the device
        self.gradient_norm: torch.Tensor | None = None

    def micro_batches(self) -> Iterator[MicroBatch]:
        """This process's micro-batches. The processes add their gradients in the last one."""
        accelerator, size = self.run.accelerator, self.run.settings.per_device_train_batch_size
        for micro in range(accelerator.gradient_accumulation_steps):
            batch = self.next_batch()
            number = micro * accelerator.num_processes + accelerator.process_index
            with accelerator.accumulate(self.run.model):
                yield MicroBatch(batch, number, slice(number * size, (number + 1) * size))

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's mean `loss`, a scalar."""
        self.run.accelerator.backward(loss)
        self.loss = self.loss + loss.detach() / self.run.accelerator.gradient_accumulation_steps

    def step(self) -> None:
        """Change the weights, at the rate of the schedule."""
        run, optimizer = self.run, self.run.optimizer
        if self.logs:
            run.accelerator.unscale_gradients(optimizer)  # only does something in fp16
            self.gradient_norm = gradient_norm(run.model)
        optimizer.step()
        optimizer.zero_grad()


def updates(
    run: Run,
    resizing: Resizing,
    after_epoch: Callable[[int, int], None] = lambda epoch, update: None,
    later: float = 0.0,
) -> Iterator[Update]:
    """The updates that the run still has to do. After each, it logs, writes checkpoints, and stops if a signal came.

    `after_epoch(epoch, update)` runs after each whole epoch, before its checkpoint, and after the last update. The
    loss is read from the device only for a log entry and before a checkpoint. `later` is as in `Display`. `resizing`
    says which size the images of an update have.

    Raises:
        TrainingStopped: a signal came or an update has no images (a checkpoint is written), or the loss or the weights
            are not finite (none is written).
    """
    progress, schedule = run.progress, run.schedule
    work = partial(resizing.work, updates=schedule.updates)
    main = run.accelerator.is_main_process
    images = run.settings.total_batch_size
    display = Display(main, progress.update, schedule.updates, images, later, work)
    unread: list[torch.Tensor] = []  # losses still on the device, at most logging_steps of them
    device = run.accelerator.device
    waiting, batches = Waiting(device), map(Transfer(device), run.batches)
    began = time.perf_counter()
    run.model.train()
    try:
        with StopRequest(run.accelerator) as stop:
            end_epoch(run, after_epoch)  # a signal may have come before an epoch's `after_epoch`
            for number in range(progress.update, schedule.updates):
                for group in run.optimizer.param_groups:
                    group["lr"] = schedule.rate_of(group, number)
                update = Update(run, number, resizing, BatchSource(run, batches, stop, waiting, unread).next)
                yield update
                unread.append(torch.as_tensor(update.loss))
                progress.update = number + 1
                display.advance()
                if update.logs:
                    read_losses(run, unread)
                    log_entry(run, display, update, waiting)
                signal_number = stop.agreed()
                if not signal_number:
                    end_epoch(run, after_epoch)
                if progress.update % run.checkpointing_steps == 0 or number + 1 == schedule.updates or signal_number:
                    folder = save_checkpoint(run, unread)
                    if signal_number:
                        raise stopped_by_signal(run, signal_number, folder)
            say_waiting(run, waiting)
    finally:
        run.seconds += time.perf_counter() - began
        display.close()


def end_epoch(run: Run, after_epoch: Callable[[int, int], None]) -> None:
    """Calls `after_epoch` if an epoch or the run has ended, unless that was done already."""
    progress, schedule = run.progress, run.schedule
    epoch = math.ceil(schedule.epoch(progress.update))
    due = progress.update % schedule.updates_per_epoch == 0 or progress.update == schedule.updates
    if due and epoch > progress.epoch:
        check_finite(run)
        after_epoch(epoch, progress.update)
        progress.epoch = epoch
        run.model.train()


class BatchSource:
    """The source of one update's micro-batches. All processes drop the update if one has no images."""

    def __init__(self, run: Run, batches: Iterator[dict], stop: StopRequest, waiting: Waiting, unread: list):
        self.run, self.batches, self.stop, self.waiting, self.unread = run, batches, stop, waiting, unread
        self.buffers = [buffer.clone() for buffer in run.model.buffers()] if run.batches_can_fail else []

    def next(self) -> dict:
        batch = next_batch(self.run, self.batches, self.stop, self.waiting)
        if not isinstance(batch, str):
            return batch
        # The update is dropped, so BatchNorm must not count it.
        for buffer, before in zip(self.run.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        checkpoint = save_checkpoint(self.run, self.unread) if self.run.progress.update else None
        raise stopped_without_images(self.run, batch, checkpoint, self.stop.signal)


def next_batch(run: Run, batches: Iterator[dict], stop: StopRequest, waiting: Waiting) -> dict | str:
    """The next batch. If this or another process has none, the reason as text."""
    batch, reason, began = None, "", time.perf_counter()
    try:
        with waiting:
            batch = next(batches)
    except Exception as error:
        ignore_loading_workers()  # they must not interrupt the checkpoint
        if isinstance(error, UserError):
            reason = one_line(error)
        elif dead_worker(error):
            reason = "a loading worker died, mostly because the memory was full: give fewer --dataloader_num_workers"
        else:
            raise
    run.waited += time.perf_counter() - began
    failed = stop.largest(int(batch is None)) if run.batches_can_fail else batch is None
    if failed or batch is None:
        return reason or "another process has no images, and says why"
    return batch


def save_checkpoint(run: Run, unread: list[torch.Tensor]) -> Path:
    read_losses(run, unread)
    check_finite(run)
    folder = run.checkpoints.save(run.progress)
    run.place.after_checkpoint(folder)
    return folder


def how_to_go_on(run: Run) -> str:
    newest = run.checkpoints.newest()
    return f"go on from {newest} with --resume_from_checkpoint {newest}" if newest else "start again"


def read_losses(run: Run, unread: list[torch.Tensor]) -> None:
    """Move the losses, averaged over the processes, from the device into the progress."""
    if not unread:
        return
    losses = run.accelerator.reduce(torch.stack(unread), reduction="mean").tolist()
    unread.clear()
    for update, loss in enumerate(losses, run.progress.update - len(losses) + 1):
        if not math.isfinite(loss):
            raise not_finite(run, f"the loss of update {update} is {loss}", update)
    run.progress.losses += losses


def log_entry(run: Run, display: Display, update: Update, waiting: Waiting) -> None:
    """Log the mean loss since the last entry, and the largest share of the time that a process waited for images. The
    history also gets the image size if it changes, and the trackers get the last gradient's norm."""
    progress, schedule = run.progress, run.schedule
    entry = {
        "step": progress.update,
        "epoch": schedule.epoch(progress.update),
        "loss": sum(progress.losses) / len(progress.losses),
        "learning_rate": schedule.rate(progress.update - 1),
        "waiting": round(largest_of_processes(run, waiting.read()), 3),
        **({"image_size": update.size} if update.size_changes else {}),
    }
    progress.losses = []
    run.history.add(entry)
    speed = display.show(entry)
    values = {key: entry[key] for key in ("loss", "learning_rate", "waiting")}
    values |= {"images_per_second": speed}
    values["gradient_norm"] = float(update.gradient_norm or 0.0)  # read_losses has waited already
    run.accelerator.log(values, step=progress.update)


def largest_of_processes(run: Run, number: float) -> float:
    return run.accelerator.gather(torch.tensor([number], device=run.accelerator.device)).max().item()


def say_waiting(run: Run, waiting: Waiting) -> None:
    """Print how long the training waited for images, and what to do about it."""
    share = largest_of_processes(run, waiting.overall())
    workers = run.batches.num_workers
    # A process on a GPU needs one core, a process on the CPU needs all its threads.
    spare_cores = available_cores() - local_processes() * (workers + 1)
    run.accelerator.print(describe_waiting(share, workers, spare_cores, not run.batches_can_fail), flush=True)


def check_finite(run: Run) -> None:
    # After a finite loss, weights may still not be finite. They must not become the newest checkpoint.
    norms = torch.stack(torch._foreach_norm(local_tensors(run.model)))
    if run.accelerator.reduce((~torch.isfinite(norms)).sum(), "sum"):
        update = run.progress.update
        raise not_finite(run, f"the weights after update {update} are not finite", update)


def not_finite(run: Run, reason: str, update: int) -> TrainingStopped:
    return TrainingStopped(
        f"{reason} (learning rate {run.schedule.rate(update - 1):.3e}): {how_to_go_on(run)}, and --allow_changes true "
        "with a lower --base_learning_rate, a longer --warmup_epochs, or bf16 or full precision instead of fp16"
    )


def stopped_without_images(run: Run, reason: str, checkpoint: Path | None, signal_number: int) -> TrainingStopped:
    done = run.progress.update
    go_on = f"--resume_from_checkpoint auto goes on from {checkpoint}" if checkpoint else "start again"
    text = f"stopped after update {done} of {run.schedule.updates}: {reason}. Then {go_on}"
    return TrainingStopped(text, code=128 + signal_number if signal_number else 1)


def stopped_by_signal(run: Run, signal_number: int, checkpoint: Path) -> TrainingStopped:
    return TrainingStopped(
        f"stopped by {signal.Signals(signal_number).name} after update {run.progress.update} of "
        f"{run.schedule.updates}. Nothing is lost: the same command with --resume_from_checkpoint auto goes on from "
        f"{checkpoint}",
        code=128 + signal_number,
    )
