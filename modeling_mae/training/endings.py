"""Ends a script: an error for the user becomes one line, any other keeps its traceback."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import TrainingStopped, UserError
from ..files import is_full


DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) ([^.]*)")  # in torch's message
RECEIVES_BATCH = "_try_get_data"  # the method of torch's loader that gets a batch from a worker


class OpenOutput:
    """A stream that outlives its reader: after `| head` has ended, output is dropped."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._unless_closed(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._unless_closed(self.stream.flush)

    def _unless_closed(self, action: Callable, *values):
        try:
            return action(*values)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            return None


def run_script(
    main: Callable,
    arguments,
    user_errors: tuple[type[Exception], ...] = (UserError,),
    script: str | None = None,
    go_on: str = "go on with --resume_from_checkpoint auto",
) -> None:
    """Run ``main(arguments)``. One of the `user_errors` ends the process with one line.

    The line begins with `script`, by default the file's name. `go_on` says how to go on after a machine failure.
    """
    sys.stdout, sys.stderr = OpenOutput(sys.stdout), OpenOutput(sys.stderr)
    script = script or Path(sys.argv[0]).name
    try:
        main(arguments)
    except KeyboardInterrupt:  # outside of a training, which would write a checkpoint
        ignore_loading_workers()
        print(f"{script}: stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        ignore_loading_workers()
        _end_in_one_line(error, script, arguments, user_errors, go_on)
        raise


def _end_in_one_line(
    error: Exception, script: str, arguments, user_errors: tuple[type[Exception], ...], go_on: str
) -> None:
    """End the process with one line if the error is for the user; else do nothing."""
    if isinstance(error, TrainingStopped):
        print(error, file=sys.stderr)
        sys.exit(error.code)
    if isinstance(error, user_errors):
        sys.exit(f"{script}: error: {one_line(error)}")
    if end := dead_worker(error):
        sys.exit(
            f"{script}: error: a loading worker died ({end}), mostly because the memory was full: give fewer "
            f"--dataloader_num_workers; {go_on}"
        )
    if isinstance(error, OSError) and is_full(error):
        place = error.filename or getattr(arguments, "output_dir", None) or arguments.output
        sys.exit(f"{script}: error: no space left on device ({place}): free some space, then {go_on}")
    if lost_process(error):
        # Not sys.exit, because a normal exit would wait for the process that is gone.
        print(
            f"{script}: error: another process of this run has ended ({' '.join(str(error).split())[:120]}): its own "
            f"message says why, or it was killed; {go_on}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def ignore_loading_workers() -> None:
    """From here on a dead loading worker raises no error, because the run is ending and may still have to write."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def one_line(error: Exception) -> str:
    """The message of an error. An error of a loading worker is the last line of a traceback text."""
    return " ".join(str(error).rpartition(f"{type(error).__name__}: ")[2].split())


def dead_worker(error: BaseException | None) -> str | None:
    """How a loading worker died, if that caused `error`; else None.

    torch is told by a signal, at any moment. The interrupted code may then raise another error."""
    while error is not None:
        if match := DEAD_WORKER.search(str(error)):
            return match[1]
        # The worker died while it sent a batch, and torch has not noticed yet.
        if isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and any(
            frame.name == RECEIVES_BATCH for frame in traceback.extract_tb(error.__traceback__)
        ):
            return "its connection is lost"
        error = error.__cause__ or error.__context__
    return None


def lost_process(error: Exception) -> bool:
    """Whether a collective operation failed because another process is gone."""
    if not isinstance(error, RuntimeError):
        return False
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    return isinstance(error, torch.distributed.DistError) or any(text in str(error) for text in words)
