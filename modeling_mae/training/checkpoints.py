"""Writes checkpoints, completely or not at all, and chooses the one to go on from."""

import errno
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from ..errors import TrainingStopped, UserError
from ..files import is_full, share, write_json
from .manifest import PROGRESS, checkpoint_name, checkpoint_update, checkpoints_in, find_fault, write_manifest


@dataclass
class Progress:
    """What a checkpoint keeps as JSON, in addition to model, optimizer and random states."""

    update: int = 0  # updates done
    epoch: int = 0  # epochs for which `after_epoch` has run
    best: float | None = None  # the best epoch's score
    losses: list[float] = field(default_factory=list)  # read from the device, but not logged yet

    def save(self, folder: Path) -> None:
        write_json(folder / PROGRESS, vars(self))

    def load(self, folder: Path) -> None:
        values = json.loads((folder / PROGRESS).read_text())
        vars(self).update({name: values[name] for name in vars(self)})


class Checkpoints:
    """The folders `checkpoint-<update>` in `folder`. Each is complete or absent. The newest `kept` stay."""

    def __init__(self, accelerator: Accelerator, folder: Path, kept: int, made_with: dict):
        self.accelerator, self.folder, self.kept, self.made_with = accelerator, folder, kept, made_with

    def newest(self) -> Path | None:
        found = checkpoints_in(self.folder)
        return found[-1] if found else None

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint of the current state.

        Raises:
            TrainingStopped: the disk is full. The incomplete checkpoint is removed.
        """
        target = self.folder / checkpoint_name(progress.update)
        if target.exists():
            return target
        partial = self.folder / f".partial-{progress.update}"
        main_process = self.accelerator.is_main_process
        if main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        error = None
        try:
            self._check_space()
            self.accelerator.save_state(str(partial))
        except (OSError, RuntimeError, SafetensorError) as reason:
            if not is_full(reason):
                raise
            error = reason
        self._stop_if_full(error, partial)
        if main_process:
            try:
                progress.save(partial)
                share(partial)
                write_manifest(partial, self.made_with)
                os.replace(partial, target)  # the checkpoint appears in this one step
            except OSError as reason:
                error = reason
        self._stop_if_full(error, partial)
        if main_process:
            for old in checkpoints_in(self.folder)[: -self.kept]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return target

    def _check_space(self) -> None:
        # Checked first, because torch aborts the process if the disk fills up while it writes.
        newest = self.newest()
        files = newest.iterdir() if newest and self.accelerator.is_main_process else []
        needed = sum(path.stat().st_size for path in files)
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _stop_if_full(self, error: Exception | None, partial: Path) -> None:
        """Stops all processes if one had an error, because the others would wait for it for ever."""
        failed = torch.tensor(int(error is not None), device=self.accelerator.device)
        if not self.accelerator.reduce(failed, "sum"):
            return
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if error is not None and not is_full(error):
            raise error
        newest = self.newest()
        go_on = f"--resume_from_checkpoint auto goes on from {newest}" if newest else "start again"
        raise TrainingStopped(
            f"no space left on device: {partial} could not be written and is removed. Free some space, then {go_on}"
        )

    def remove_after(self, update: int) -> None:
        """Remove checkpoints later than `update`, because the newest checkpoint must be one of this run."""
        later = [path for path in checkpoints_in(self.folder) if (checkpoint_update(path) or 0) > update]
        if later and self.accelerator.is_main_process:
            print(f"removed    {', '.join(path.name for path in later)}: going on from update {update}")
            for path in later:
                shutil.rmtree(path)
        self.accelerator.wait_for_everyone()


def choose_checkpoint(accelerator: Accelerator, folder: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from: the folder `resume`, or for auto the newest undamaged one in `folder`.

    Prints which checkpoints it skips, and why. None for a fresh start.

    Raises:
        UserError: the given checkpoint is damaged, or all in `folder` are.
    """
    chosen: list[str | None] = [None]
    if accelerator.is_main_process and resume is not None:
        candidates = checkpoints_in(folder)[::-1] if resume == "auto" else [Path(resume).expanduser()]
        faults = {}
        for candidate in candidates:
            faults[candidate] = find_fault(candidate)
            if faults[candidate] is None:
                chosen = [str(candidate)]
                break
        else:
            if candidates:
                reasons = "; ".join(f"{path}: {fault}" for path, fault in faults.items())
                raise UserError(
                    f"no checkpoint to go on from ({reasons}): give another, or start over with --overwrite_output_dir"
                )
        for path, fault in faults.items():
            if fault:
                print(f"passed     {path}: {fault}", flush=True)
    path = broadcast_object_list(chosen)[0]
    return Path(path) if path else None
