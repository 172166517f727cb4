"""Claims the folder of a run: it must be new, empty or a run's, and no other run may be writing there."""

import os
import shutil
import socket
import time
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..checked import check, read_json
from ..errors import UserError
from ..files import write_json
from .manifest import checkpoints_in


MARK = ".mae_run.json"  # marks a folder as a run's
LOCK = ".mae_run.lock"
# What a run writes, besides its checkpoints. Files with other names are the user's.
WRITTEN = (
    ".partial-* adapter last tensorboard pictures history.jsonl trainer_state.json arguments.json summary.json "
    "knn.json results.json results.txt report.html eval_results.json config.json preprocessor_config.json "
    "model*.safetensors model.safetensors.index.json README.md loss.png features.png reconstruction.png "
    "neighbours.png training.png confusion.png worst.png partial.png worth.png worth.json each_image.npy "
    "predictions.parquet configuration_mae.py masking_mae.py modeling_mae.py image_processing_mae.py "
    "segmentation_mae.py"
).split()


_locks: dict[Path, BaseFileLock] = {}  # held until this process ends: then the system frees them


def lock_folder(folder: Path) -> None:
    """Lock `folder` for this process until it ends.

    Raises:
        UserError: another process holds the lock. The message names it.
    """
    folder = folder.resolve()
    if folder in _locks:
        return
    lock, mark = FileLock(folder / LOCK), folder / MARK
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = check(mark, read_json(mark) or {}, {})
        raise UserError(
            f"output_dir {str(folder)!r} is in use by process {holder.get('process')} on {holder.get('host')}, since "
            f"{holder.get('since')}: wait for that run, stop it, or give another folder"
        ) from None
    except (OSError, NotImplementedError):
        pass  # a file system without locks
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    write_json(mark, {"process": os.getpid(), "host": socket.gethostname(), "since": since})
    _locks[folder] = lock


def is_ours(folder: Path) -> bool:
    # Older runs have no mark, but they have a log.
    return (folder / MARK).exists() or (folder / "history.jsonl").exists()


def claim_folder(folder: Path, overwrite: bool) -> None:
    """Make `folder` and lock it. With `overwrite`, remove what an earlier run wrote, and nothing else.

    Raises:
        UserError: the folder holds files that no run wrote, another run is using it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [path.name for path in folder.iterdir() if path.name not in (MARK, LOCK)]
        ours = is_ours(folder)
        written = [path for pattern in WRITTEN for path in folder.glob(pattern)] + checkpoints_in(folder)
        if present and not ours and (written or not overwrite):
            names = ", ".join(sorted(path.name for path in written) or sorted(present)[:5])
            raise UserError(
                f"output_dir {str(folder)!r} holds files that no run wrote ({names}): give a new or empty folder"
                + ("" if written else ", or --overwrite_output_dir, which keeps these files")
            )
        links = [path.name for path in (*written, folder / MARK) if path.is_symlink()]
        if links and (not overwrite or MARK in links):
            raise UserError(
                f"output_dir {str(folder)!r} holds a link ({links[0]}), and the run would write to its target: remove "
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
