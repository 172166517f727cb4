"""A run in training, and what it writes besides checkpoints: history and model."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from ..checked import check, count, invalid_file, made_of, number, parse
from ..data.serve.images import Images
from ..data.serve.order import split_batch
from ..errors import TrainingStopped, UserError
from ..files import is_full, share, write_text
from ..words import counted
from .checkpoints import Checkpoints, Progress
from .launch import loading_workers
from .manifest import MANIFEST, check_architecture, check_changes, read_manifest
from .optim import Schedule
from .sharded import fix_gradient_buckets, original_class
from .tuning import ADAPTER, has_adapters, merged, save_adapter


class History:
    """The log in a file, one JSON line per entry. It does not grow in memory, and survives a kill."""

    def __init__(self, path: Path, main: bool):
        self.path, self.main = path, main

    def rewind(self, update: int) -> None:
        """Remove the entries after `update`, from which training goes on."""
        if self.main:
            kept = [entry for entry in self.read() if entry["step"] <= update]
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def add(self, entry: dict) -> None:
        if self.main:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def has(self, key: str) -> bool:
        """Whether an entry has `key`. The answer is the same on every process."""
        return bool(broadcast_object_list([self.main and any(key in entry for entry in self.read())])[0])

    def read(self) -> list[dict]:
        entries = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                entries.append(check(self.path, parse(line), {"step": count, "epoch": number}, needed=("step",)))
            except json.JSONDecodeError:
                break  # a kill cut this line off, so it is later than any checkpoint
            except UserError:
                raise
            except ValueError as error:
                raise invalid_file(self.path, str(error)) from None
        return entries


@dataclass(frozen=True)
class RunSettings:
    """The settings of batches, log and checkpoints."""

    seed: int
    total_batch_size: int  # images per update
    per_device_train_batch_size: int  # images at a time on each process
    logging_steps: int  # updates between two log entries
    checkpointing_steps: str  # a number of updates, or epoch
    checkpoints_kept: int
    allow_changes: bool
    dataloader_num_workers: int | None = None
    repeated_augmentation: int = 1


def batches_of(images: Images, settings: Any, updates: range, accelerator: Accelerator) -> DataLoader:
    """This process's micro-batches for the `updates`. `settings` has the attributes of `RunSettings`."""
    return images.training_loader(
        seed=settings.seed,
        batch_size=settings.per_device_train_batch_size,
        total_batch_size=settings.total_batch_size,
        updates=updates,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=loading_workers(settings.dataloader_num_workers),
        repeats=settings.repeated_augmentation,
    )


@dataclass(frozen=True)
class Place:
    """Where a training writes, and which checkpoint it goes on from."""

    folder: Path
    checkpoint: Path | None = None  # from `choose_checkpoint`; None for a fresh start
    after_checkpoint: Callable[[Path], None] = lambda folder: None


@dataclass
class Run:
    """One training: model, optimizer, length, images, and its state on disk."""

    accelerator: Accelerator
    model: torch.nn.Module  # prepared
    optimizer: torch.optim.Optimizer  # prepared
    schedule: Schedule
    settings: RunSettings
    place: Place
    progress: Progress
    history: History
    checkpoints: Checkpoints
    batches: DataLoader  # this process's micro-batches, from the next update on
    batches_can_fail: bool
    seconds: float = 0.0  # since the run was opened
    waited: float = 0.0  # seconds of these spent waiting for images

    @property
    def checkpointing_steps(self) -> int:
        steps = self.settings.checkpointing_steps
        return self.schedule.updates_per_epoch if steps == "epoch" else int(steps)

    def describe(self) -> dict[str, str]:
        """Batch, length, rate and precision in words. The batch says how the images of an update are split."""
        accelerator, settings, place = self.accelerator, self.settings, self.place
        steps = counted(accelerator.gradient_accumulation_steps, "accumulation step")
        at_once = counted(settings.per_device_train_batch_size, "image")
        processes = counted(accelerator.num_processes, "process", "processes")
        goes_on = f", from update {self.progress.update} of {place.checkpoint}" if place.checkpoint else ""
        return {
            "batch": f"{settings.total_batch_size} = {processes} x {at_once} x {steps}",
            "length": f"{self.schedule}{goes_on}",
            "rate": self.schedule.describe_rate(),
            "precision": f"{accelerator.mixed_precision}, on {accelerator.device}",
        }

    def __str__(self) -> str:
        return ", ".join(f"{subject} {text}" for subject, text in self.describe().items())

    @property
    def share_waited(self) -> float:
        """The share of its time, 0..1, in which it waited for images."""
        return self.waited / max(self.seconds, 1e-9)


def open_run(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    schedule: Schedule,
    settings: RunSettings,
    place: Place,
    made_with: dict,
) -> Run:
    """Open a training: a fresh one, or one that goes on from the checkpoint of its `place`.

    `model` and `optimizer` are prepared already. `made_with` are the settings that decide the weights. They are saved
    in each checkpoint. Going on with other settings needs `allow_changes`.

    Going on loads the checkpoint, and removes later log entries and checkpoints.

    Raises:
        UserError: the checkpoint does not fit, or the batch sizes do not fit each other or the number of images.
    """
    accelerator.gradient_accumulation_steps = split_batch(
        settings.total_batch_size, settings.per_device_train_batch_size, accelerator.num_processes
    )
    progress, checkpoint = Progress(), place.checkpoint
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    made_with = {**made_with, "precision": accelerator.mixed_precision, "schedule": asdict(schedule)}
    # Recorded, because crops from files are rounded to 8 bits, and crops from memory are not.
    made_with["image_cache"] = "from files" if images.decodes else "in memory"
    made_with |= {"processes": accelerator.num_processes, "versions": versions}
    checkpoints = Checkpoints(accelerator, place.folder, settings.checkpoints_kept, made_with)
    if checkpoint:
        changes = check_changes(checkpoint, made_with, settings.allow_changes)
        _load_state(accelerator, model, checkpoint)
        progress.load(checkpoint)
        changes += _new_length(checkpoint, schedule, progress.update)
        accelerator.print(*(f"changed    {change}\n" for change in changes), sep="", end="", flush=True)
        checkpoints.remove_after(progress.update)
    fix_gradient_buckets(model)
    history = History(place.folder / "history.jsonl", accelerator.is_main_process)
    history.rewind(progress.update)
    batches = batches_of(images, settings, range(progress.update, schedule.updates), accelerator)
    return Run(
        accelerator,
        model,
        optimizer,
        schedule,
        settings,
        place,
        progress,
        history,
        checkpoints,
        batches,
        images.can_fail,
    )


def _load_state(accelerator: Accelerator, model: torch.nn.Module, checkpoint: Path) -> None:
    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
    check_architecture(checkpoint, {name: tuple(value.shape) for name, value in unwrapped.state_dict().items()})
    try:
        accelerator.load_state(str(checkpoint))
    except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"checkpoint {str(checkpoint)!r} cannot be loaded ({reason[:200]}): give another, or start over with "
            "--overwrite_output_dir"
        ) from error
    # It counts micro-batches, whose size differs from the checkpoint's if the accumulation has changed.
    accelerator.step = 0


def _new_length(checkpoint: Path, schedule: Schedule, update: int) -> list[str]:
    """A line about the learning rate of a longer or shorter run. Empty if the length is the same.

    Raises:
        UserError: the run would end before the checkpoint.
    """
    if update > schedule.updates:
        raise UserError(
            f"checkpoint {str(checkpoint)!r} is at update {update}, but the run has only {schedule.updates}: give "
            "more --num_train_epochs or --max_train_steps"
        )
    before = made_of(Schedule, checkpoint / MANIFEST, read_manifest(checkpoint)["made_with"].get("schedule"))
    if before.updates == schedule.updates:
        return []
    return [
        f"length {before.updates} -> {counted(schedule.updates, 'update')}: the rate follows the new curve from here "
        f"on, {before.rate(update):.3e} -> {schedule.rate(update):.3e} at update {update}"
    ]


def save_model(accelerator: Accelerator, model: torch.nn.Module, folder: Path) -> None:
    """`save_pretrained` into `folder`, also for sharded and compiled models. Adapters are merged, and also written
    into a folder beside the model. Old files stay until the new ones are complete."""
    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)  # a compiled model has other names
    state = accelerator.get_state_dict(unwrapped)
    if accelerator.is_main_process:
        partial = folder / ".partial-model"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if has_adapters(unwrapped):
                save_adapter(unwrapped, state, partial / ADAPTER)
                state = merged(unwrapped, state)
            with original_class(unwrapped):
                unwrapped.save_pretrained(partial, state_dict=state)
            share(partial)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not is_full(error):
                raise
            raise TrainingStopped(
                f"no space left on device: the model could not be written into {folder}. Free some space, then "
                "--resume_from_checkpoint auto goes on from the newest checkpoint"
            ) from error
        for file in [path for path in partial.rglob("*") if path.is_file()]:
            target = folder / file.relative_to(partial)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
        shutil.rmtree(partial)
    accelerator.wait_for_everyone()
