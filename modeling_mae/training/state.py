"""What a run keeps on disk: progress, history, checkpoints, the model. `Run` holds all that `train` needs."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..data.images import Images
from ..errors import UserError
from .optim import Schedule


# What a run writes and a later one would take for its own. The user's other files stay.
WRITTEN = (
    "checkpoint-* .partial-* last tensorboard pictures history.jsonl trainer_state.json arguments.json knn.json "
    "results.json results.txt eval_results.json config.json preprocessor_config.json model*.safetensors "
    "model.safetensors.index.json"
).split()
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_name(update: int) -> str:
    return f"checkpoint-{update}"


def checkpoint_update(path: Path | str) -> int | None:
    """The update after which the checkpoint of this name was written; None where the name is not a checkpoint's."""
    match = CHECKPOINT.fullmatch(Path(path).name)
    return int(match[1]) if match else None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest last."""
    paths = [path for path in folder.glob("checkpoint-*") if checkpoint_update(path) is not None]
    return sorted(paths, key=checkpoint_update)


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Make `folder`; with `overwrite` remove the results and checkpoints of an earlier run from it.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [path for pattern in WRITTEN for path in folder.glob(pattern)] if overwrite else []:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise UserError(f"output_dir {str(folder)!r} cannot be written ({error.strerror}): give another") from error


class Progress:
    """What a checkpoint keeps beside model, optimizer and random states."""

    def __init__(self):
        self.update = 0  # updates done
        self.epoch = 0  # epochs whose end has been attended to
        self.best = -math.inf  # score of the best epoch: its accuracy, or what else the problem goes by
        self.losses: list[float] = []  # read, but not logged yet

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


class History:
    """The log in a file, one JSON line an entry. Nothing grows in memory, and a killed run has all of it."""

    def __init__(self, path: Path, main: bool):
        self.path, self.main = path, main

    def rewind(self, update: int) -> None:
        """Forget what was logged after `update`, where training goes on."""
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
                break  # a kill cut this line off: it is later than any checkpoint
        return entries


class Checkpoints:
    """Folders `checkpoint-<update>` in `folder`. Each is complete or not there; the newest `kept` stay."""

    def __init__(self, accelerator: Accelerator, folder: Path, kept: int):
        self.accelerator, self.folder, self.kept = accelerator, folder, kept

    def newest(self) -> Path | None:
        return (checkpoints_in(self.folder) or [None])[-1]

    def save(self, update: int) -> Path:
        target = self.folder / checkpoint_name(update)
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
            for old in checkpoints_in(self.folder)[: -self.kept]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return target

    def remove_after(self, update: int) -> None:
        """Remove the checkpoints of a course that is given up: the newest must be of the present one."""
        later = [path for path in checkpoints_in(self.folder) if checkpoint_update(path) > update]
        if later and self.accelerator.is_main_process:
            print(f"removed    {', '.join(path.name for path in later)}: going on from update {update}")
            for path in later:
                shutil.rmtree(path)
        self.accelerator.wait_for_everyone()


@dataclass
class Run:
    """One training: what is trained and for how long, its images, and its state on disk."""

    accelerator: Accelerator
    model: torch.nn.Module  # prepared
    optimizer: torch.optim.Optimizer  # prepared
    schedule: Schedule
    progress: Progress
    history: History
    checkpoints: Checkpoints
    resumed_from: Path | None
    batches: object  # this process's micro-batches, from where the run stands
    images_per_update: int
    logging_steps: int
    checkpointing_steps: int
    after_checkpoint: Callable[[Path], None]

    @property
    def start(self) -> str:
        """Where the run goes on from, as the end of a sentence; empty for a fresh start."""
        return f", from update {self.progress.update} of {self.resumed_from}" if self.resumed_from else ""


def open_run(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    schedule: Schedule,
    folder: Path,
    *,
    resume: str | None,
    seed: int,
    batch_size: int,
    total_batch_size: int,
    num_workers: int,
    logging_steps: int,
    checkpointing_steps: int,
    checkpoints_kept: int,
    after_checkpoint: Callable[[Path], None] = lambda folder: None,
) -> Run:
    """Open a training in `folder`: fresh, or going on from `resume` (a checkpoint's folder, or auto for the newest).

    `model` and `optimizer` are prepared already. Going on loads the checkpoint into them, and forgets what was logged
    and saved after it.

    Raises:
        UserError: the batch sizes do not fit each other or the number of images.
    """
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    checkpoints = Checkpoints(accelerator, folder, checkpoints_kept)
    resumed_from = checkpoints.newest() if resume == "auto" else Path(resume) if resume else None
    if resumed_from:
        accelerator.load_state(str(resumed_from))
        checkpoints.remove_after(progress.update)
    history = History(folder / "history.jsonl", accelerator.is_main_process)
    history.rewind(progress.update)
    batches = images.training_loader(
        seed=seed,
        batch_size=batch_size,
        total_batch_size=total_batch_size,
        updates=range(progress.update, schedule.updates),
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=num_workers,
    )
    return Run(
        accelerator,
        model,
        optimizer,
        schedule,
        progress,
        history,
        checkpoints,
        resumed_from,
        batches,
        images_per_update=total_batch_size,
        logging_steps=logging_steps,
        checkpointing_steps=checkpointing_steps,
        after_checkpoint=after_checkpoint,
    )


def load_model(model_class: type[PreTrainedModel], checkpoint: str, **options) -> PreTrainedModel:
    """``model_class.from_pretrained(checkpoint, **options)``.

    Raises:
        UserError: there is no such checkpoint, its weights cannot be read, or they do not fit its config.json.
    """
    try:
        return model_class.from_pretrained(checkpoint, **options)
    except (OSError, SafetensorError, ValueError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model_name_or_path {checkpoint!r} cannot be loaded: {reason[:300]}") from error


def save_model(accelerator: Accelerator, model: torch.nn.Module, folder: Path) -> None:
    """`save_pretrained` into `folder`, from sharded models too. The old files stay until the new are complete."""
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        partial = folder / ".partial-model"
        unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
        unwrapped.save_pretrained(partial, state_dict=state)
        for file in partial.iterdir():
            os.replace(file, folder / file.name)
        partial.rmdir()
    accelerator.wait_for_everyone()
