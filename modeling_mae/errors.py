"""The kinds of errors that end a command with one line instead of a traceback."""

from pathlib import Path


class UserError(ValueError):
    """An error that the user can fix. The message is one line: the value, the reason, the remedy."""


class TrainingStopped(Exception):
    """Training ended before its last update. The message says where, why and how to go on. `code` is the exit
    status."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def refuse_missing(checkpoint: str) -> None:
    """Refuse a `checkpoint` that is not on this machine and cannot be a Hub id, because asking the Hub takes long.

    Raises:
        UserError: it is not a file or folder, and not owner/name, or owner is a folder here.
    """
    path = Path(checkpoint)
    if not path.exists() and (path.parent.is_dir() or checkpoint.count("/") != 1):
        raise UserError(
            f"checkpoint {checkpoint!r} is neither a folder here nor a Hub id: give the output_dir of a run, or "
            "owner/name"
        )


def not_found(checkpoint: str, error: Exception) -> UserError:
    """The error for a `checkpoint` that is not on this machine. `error` is the Hub's answer."""
    reason = " ".join(str(error.__cause__ or error).split()).split(". ")[0].rstrip(".")
    return UserError(
        f"checkpoint {checkpoint!r} is neither a folder here nor a Hub id that can be reached ({reason[:200]}): check "
        "the path, or the network and the id"
    )
