"""The training loop that both scripts share: updates, progress, history, checkpoints, exact resuming, leaving in
order."""

import ctypes
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration
from tqdm import tqdm

from .data import EpochBatches, make_loader
from .optim import learning_rate


def make_accelerator(folder: Path, trackers: list[str]) -> Accelerator:
    """Accelerate's state with its logs in `folder`; the libraries say only what went wrong."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return Accelerator(
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder)),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )


# What a run writes and a later one would take for its own; the user's other files stay.
WRITTEN = (
    "checkpoint-* .partial-* last tensorboard pictures history.jsonl trainer_state.json arguments.json knn.json "
    "results.json results.txt eval_results.json config.json preprocessor_config.json model*.safetensors "
    "model.safetensors.index.json"
).split()


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Make `folder`; with `overwrite` without the results and checkpoints of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [path for pattern in WRITTEN for path in folder.glob(pattern)] if overwrite else []:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def run_script(main: Callable[[], None], script: str) -> None:
    """Run `main`, and end the process with one line where it fails for a reason that its user can mend."""
    try:
        main()
    except TrainingStopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.code)
    except (OSError, ValueError) as error:
        # A loading process hands its error on inside a traceback: the last line is the error itself.
        text = str(error).rpartition("BadImage: ")[2]
        sys.exit(f"{script}: error: {' '.join(text.split())}")


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_run(folder: Path, arguments: dict, length: "Length", log: list[dict]) -> None:
    """arguments.json and trainer_state.json, of a run that is done."""
    write_json(folder / "arguments.json", arguments)
    state = {"global_step": length.updates, "epoch": length.updates / length.updates_per_epoch, "log_history": log}
    write_json(folder / "trainer_state.json", state)


@dataclass
class Length:
    """A run in updates, from a recipe's epochs, and its learning rates."""

    updates: int
    updates_per_epoch: int
    warmup: int
    peak: float
    floor: float = 0.0

    @classmethod
    def of(
        cls,
        images: int,
        *,
        total_batch_size: int,
        num_train_epochs: float,
        max_train_steps: int | None,
        warmup_epochs: float,
        base_learning_rate: float,
        floor: float = 0.0,
    ) -> "Length":
        """`base_learning_rate` is that of 256 images an update (paper, Section A.1: the linear scaling rule)."""
        updates_per_epoch = max(1, images // total_batch_size)
        return cls(
            updates=max_train_steps or math.ceil(num_train_epochs * updates_per_epoch),
            updates_per_epoch=updates_per_epoch,
            warmup=round(warmup_epochs * updates_per_epoch),
            peak=base_learning_rate * total_batch_size / 256,
            floor=floor,
        )

    def rate(self, update: int) -> float:
        return learning_rate(update, peak=self.peak, warmup=self.warmup, total=self.updates, floor=self.floor)

    def __str__(self) -> str:
        epochs = self.updates / self.updates_per_epoch
        return f"{self.updates:,} updates, {epochs:g} epochs of {self.updates_per_epoch}"


class TrainingStopped(Exception):
    """Training ended before its last update; the message says where, why and how to go on. `code` is the exit
    status."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


class Progress:
    """What a checkpoint keeps beside model, optimizer and RNG: updates done, epochs whose end has been attended to,
    the best accuracy so far, and the losses that are not yet logged."""

    def __init__(self):
        self.update = self.epoch = 0
        self.best = -1.0
        self.losses: list[float] = []

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


class History:
    """The log, one JSON line an entry in a file: nothing grows in memory, and a killed run has all of it."""

    def __init__(self, path: Path, main: bool):
        self.path, self.main = path, main

    def rewind(self, update: int) -> None:
        """Forget what was logged after `update`, at which training goes on."""
        if self.main:
            kept = [entry for entry in self.read() if entry["step"] <= update]
            self.path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def add(self, entry: dict) -> None:
        if self.main:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def read(self) -> list[dict]:
        entries = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the line that a kill cut off: later than any checkpoint
        return entries


class Checkpoints:
    """Folders `checkpoint-<update>` in `folder`: complete or not there, the newest `kept` of them."""

    def __init__(self, accelerator: Accelerator, folder: Path, kept: int):
        self.accelerator, self.folder, self.kept = accelerator, folder, kept

    @staticmethod
    def all(folder: Path) -> list[Path]:
        found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
        return sorted(found, key=lambda path: int(path.name.split("-")[1]))

    def newest(self) -> Path | None:
        return (self.all(self.folder) or [None])[-1]

    def save(self, update: int) -> Path:
        target = self.folder / f"checkpoint-{update}"
        if target.exists():
            return target
        partial = self.folder / f".partial-{update}"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            os.replace(partial, target)  # the one moment at which the checkpoint comes into being
            for old in self.all(self.folder)[: -self.kept]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return target


def save_model(accelerator: Accelerator, model: torch.nn.Module, folder: Path) -> None:
    """`save_pretrained` into `folder`, from sharded models too; what stood there stays until the new is complete."""
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        partial = folder / ".partial-model"
        unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
        unwrapped.save_pretrained(partial, state_dict=state)
        for file in partial.iterdir():
            os.replace(file, folder / file.name)
        partial.rmdir()
    accelerator.wait_for_everyone()


def init_trackers(accelerator: Accelerator, arguments: dict) -> None:
    """Start the trackers with the run's `arguments`. TensorBoard takes a project's name for a folder's."""
    names = [str(tracker) for tracker in accelerator.log_with]
    if names:
        plain = {key: value if isinstance(value, (int, float)) else str(value) for key, value in arguments.items()}
        accelerator.init_trackers("tensorboard" if names == ["tensorboard"] else "mae", config=plain)


@dataclass
class Run:
    """A run's state on disk and in checkpoints; `resumed` is the checkpoint it goes on from."""

    progress: Progress
    history: History
    checkpoints: Checkpoints
    resumed: Path | None


def open_run(accelerator: Accelerator, folder: Path, kept: int, resume: str | None) -> Run:
    """After `accelerator.prepare`: loads the checkpoint `resume` (its folder, or auto for the newest in `folder`) into
    everything prepared, and forgets what was logged after it."""
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    checkpoints = Checkpoints(accelerator, folder, kept)
    resumed = checkpoints.newest() if resume == "auto" else Path(resume) if resume else None
    if resumed:
        accelerator.load_state(str(resumed))
        # Those of a course that is given up here: the newest must be of this one.
        later = [path for path in checkpoints.all(folder) if int(path.name.split("-")[1]) > progress.update]
        if later and accelerator.is_main_process:
            print(f"removed    {', '.join(path.name for path in later)}: going on from update {progress.update}")
            for path in later:
                shutil.rmtree(path)
        accelerator.wait_for_everyone()
    history = History(folder / "history.jsonl", accelerator.is_main_process)
    history.rewind(progress.update)
    return Run(progress, history, checkpoints, resumed)


def make_batches(accelerator: Accelerator, images, run: Run, length: Length, *, batch_size, total, seed, num_workers):
    """This process's micro-batches of `batch_size`, `total` images an update, from where `run` stands."""
    batches = EpochBatches(len(images), batch_size, total, seed, run.progress.update, length.updates)
    return accelerator.prepare(make_loader(images, batches, num_workers))


class StopRequest:
    """SIGINT or SIGTERM, noted for the end of the update and agreed upon by all processes."""

    def __init__(self, accelerator: Accelerator):
        self.signal, self.noted = 0, 0.0
        # A group of its own on the CPU: asking the GPUs at every update would make each wait for its queue.
        self.group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        self.previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._note)
        self._hear_of_the_launcher()
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        # A second Ctrl-C is meant at once; launchers, though, pass the first one on to who has got it already.
        if self.signal and number == signal.SIGINT and time.monotonic() - self.noted > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.noted = number, time.monotonic()

    @staticmethod
    def _hear_of_the_launcher() -> None:
        # With one process, `accelerate launch` passes no signal on: its end is taken as one, where the system tells.
        if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG

    def agreed(self) -> int:
        """The signal that any process got, or 0."""
        if self.group is None:
            return self.signal
        flag = torch.tensor(self.signal)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self.group)
        return int(flag)


class Display:
    """A bar on a terminal, one line at each reading elsewhere; on the main process only."""

    def __init__(self, main: bool, start: int, total: int, images_per_update: int):
        self.main, self.start, self.total, self.images = main, start, total, images_per_update
        self.begin = self.last = time.perf_counter()
        self.last_update = start
        bar = main and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, unit="update", dynamic_ncols=True) if bar else None

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def reading(self, entry: dict) -> float:
        """Shows a log entry; images/s since the one before."""
        now = time.perf_counter()
        rate = (entry["step"] - self.last_update) * self.images / max(now - self.last, 1e-9)
        self.last, self.last_update = now, entry["step"]
        if self.bar is not None:
            figures = {
                "loss": f"{entry['loss']:.4f}",
                "lr": f"{entry['learning_rate']:.2e}",
                "images/s": f"{rate:.0f}",
            }
            self.bar.set_postfix(figures)
        elif self.main:
            done = entry["step"] - self.start
            left = (now - self.begin) / done * (self.total - entry["step"])
            print(
                f"update {entry['step']}/{self.total}  epoch {entry['epoch']:.2f}  loss {entry['loss']:.4f}  "
                f"lr {entry['learning_rate']:.2e}  {rate:.0f} images/s  {tqdm.format_interval(left)} left",
                flush=True,
            )
        return rate

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer,
    batches: Iterable,
    *,
    run: Run,
    length: Length,
    loss_of: Callable[[object, int, int], torch.Tensor],
    images_per_update: int,
    logging_steps: int,
    checkpointing_steps: int,
    after_epoch: Callable[[int, int], None] = lambda epoch, update: None,
    after_checkpoint: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Runs the updates `run.progress.update` ... `length.updates` - 1.

    `batches` yields this process's micro-batches, `accelerator.gradient_accumulation_steps` of them an update.
    `loss_of(batch, update, micro)` is the loss of one; `after_epoch(epoch, update)` runs after each whole epoch,
    before its checkpoint, and at the last update; `after_checkpoint(folder)` after each one written. The loss is read
    from the device only every `logging_steps` updates and before a checkpoint.

    Raises:
        TrainingStopped: after a signal (with a checkpoint written), or when the loss or the weights are not finite
            (without one).
    """
    progress, history, checkpoints = run.progress, run.history, run.checkpoints
    total_updates, updates_per_epoch = length.updates, length.updates_per_epoch
    display = Display(accelerator.is_main_process, progress.update, total_updates, images_per_update)
    pending: list[torch.Tensor] = []  # losses still on the device, at most logging_steps of them
    batches = iter(batches)
    micro_steps = accelerator.gradient_accumulation_steps

    def read_losses() -> None:
        if not pending:
            return
        losses = accelerator.reduce(torch.stack(pending), reduction="mean").tolist()
        pending.clear()
        first = progress.update - len(losses) + 1
        for update, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise stopped_by(f"the loss of update {update} is {loss}", update)
        progress.losses += losses

    def stopped_by(what: str, update: int) -> TrainingStopped:
        last = checkpoints.newest()
        way = f"go on from {last} with --resume_from_checkpoint {last}" if last else "start again"
        return TrainingStopped(
            f"{what} (learning rate {length.rate(update - 1):.3e}): {way}, and a lower --base_learning_rate, a longer "
            "--warmup_epochs, or bf16 or full precision in place of fp16"
        )

    def check_weights() -> None:
        # A finite loss can leave weights that are not: these must not become the newest checkpoint.
        norms = torch.stack(torch._foreach_norm([p.detach() for p in model.parameters()]))
        if not torch.isfinite(norms).all():
            raise stopped_by(f"the weights after update {progress.update} are not finite", progress.update)

    def end_epoch() -> None:
        epoch = math.ceil(progress.update / updates_per_epoch)
        due = progress.update % updates_per_epoch == 0 or progress.update == total_updates
        if due and epoch > progress.epoch:
            check_weights()
            after_epoch(epoch, progress.update)
            progress.epoch = epoch
            model.train()

    model.train()
    try:
        with StopRequest(accelerator) as stop:
            end_epoch()  # a signal may have come between an epoch's last update and what follows it
            for update in range(progress.update, total_updates):
                for group in optimizer.param_groups:
                    group["lr"] = length.rate(update) * group.get("lr_scale", 1.0)
                loss = 0.0
                for micro in range(micro_steps):
                    with accelerator.accumulate(model):
                        micro_loss = loss_of(next(batches), update, micro)
                        accelerator.backward(micro_loss)
                        optimizer.step()
                        optimizer.zero_grad()
                    loss = loss + micro_loss.detach() / micro_steps
                pending.append(loss)
                progress.update = done = update + 1
                display.advance()

                if done % logging_steps == 0 or done == total_updates:
                    read_losses()
                    entry = {
                        "step": done,
                        "epoch": done / updates_per_epoch,
                        "loss": sum(progress.losses) / len(progress.losses),
                        "learning_rate": length.rate(update),
                    }
                    progress.losses = []
                    history.add(entry)
                    speed = display.reading(entry)
                    values = {
                        "loss": entry["loss"],
                        "learning_rate": entry["learning_rate"],
                        "images_per_second": speed,
                    }
                    accelerator.log(values, step=done)
                number = stop.agreed()
                if not number:
                    end_epoch()
                if done % checkpointing_steps == 0 or done == total_updates or number:
                    read_losses()
                    check_weights()
                    folder = checkpoints.save(done)
                    after_checkpoint(folder)
                    if number:
                        name = signal.Signals(number).name
                        raise TrainingStopped(
                            f"stopped by {name} after update {done} of {total_updates}, nothing is lost: the same "
                            f"command with --resume_from_checkpoint auto goes on from {folder}",
                            code=128 + number,
                        )
    finally:
        display.close()
