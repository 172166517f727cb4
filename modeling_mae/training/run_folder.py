"""The folder that a run writes into: it must be empty, new or ours, and no other run may be writing there."""

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import TextIO

from ..errors import UserError
from .manifest import checkpoints_in


try:
    import fcntl
except ImportError:  # Windows has no such lock: there two runs in one folder are not noticed
    fcntl = None

MARK = ".mae_run.json"  # says that a run of ours writes here; the lock is on this file
# What a run writes, beside its checkpoints. Files of other names are the user's.
WRITTEN = (
    ".partial-* last tensorboard pictures history.jsonl trainer_state.json arguments.json summary.json knn.json "
    "results.json results.txt report.html eval_results.json config.json preprocessor_config.json model*.safetensors "
    "model.safetensors.index.json README.md loss.png features.png reconstruction.png neighbours.png training.png "
    "confusion.png partial.png predictions.parquet configuration_mae.py masking_mae.py modeling_mae.py "
    "image_processing_mae.py"
).split()


_locked: dict[Path, TextIO] = {}  # open files: the system frees their locks when the process ends, however it ends


def lock_folder(folder: Path) -> None:
    """Lock `folder` for this process until it ends.

    Raises:
        UserError: another process holds the lock; names it.
    """
    if folder.resolve() in _locked:
        return
    file = (folder / MARK).open("a+")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = json.loads(file.read() or "{}")
        raise UserError(
            f"output_dir {str(folder)!r} is in use by process {holder.get('process')} on {holder.get('host')}, since "
            f"{holder.get('since')}: wait for that run, stop it, or give another folder"
        ) from None
    except OSError:
        pass  # a file system without locks
    file.truncate(0)  # in place: the lock is on this very file
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
    file.flush()
    _locked[folder.resolve()] = file


def is_ours(folder: Path) -> bool:
    # The log is the mark of runs from before there was one.
    return (folder / MARK).exists() or (folder / "history.jsonl").exists()


def claim_folder(folder: Path, overwrite: bool) -> None:
    """Make `folder` and lock it. With `overwrite`, remove what an earlier run wrote, and nothing else.

    Raises:
        UserError: the folder holds files that no run wrote, another run is using it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [path.name for path in folder.iterdir() if path.name != MARK]
        ours = is_ours(folder)
        written = [path for pattern in WRITTEN for path in folder.glob(pattern)] + checkpoints_in(folder)
        if present and not ours and (written or not overwrite):
            names = ", ".join(sorted(path.name for path in written) or sorted(present)[:5])
            raise UserError(
                f"output_dir {str(folder)!r} holds files that no run wrote ({names}): give a new or empty folder"
                + ("" if written else ", or --overwrite_output_dir, which leaves them as they are")
            )
        links = [path.name for path in (*written, folder / MARK) if path.is_symlink()]
        if links and (not overwrite or MARK in links):
            raise UserError(
                f"output_dir {str(folder)!r} holds a link ({links[0]}), and a run would write where it leads: remove "
                "it, or give another folder"
            )
        lock_folder(folder)
        for path in written if overwrite else []:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise UserError(f"output_dir {str(folder)!r} cannot be written ({error.strerror}): give another") from error
