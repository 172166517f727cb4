"""Shared by pushing and fetching: the files that go with a checkpoint, and retries."""

import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled


LOG = ("history.jsonl",)
# A classifier's run also needs its best epoch so far, which is not in the checkpoints.
LOG_AND_BEST = (*LOG, "model*.safetensors*", "config.json", "*.py")
WAITS = (1, 4, 10)  # seconds before each retry; huggingface_hub retries most requests itself, too
T = TypeVar("T")


def retried(action: Callable[[], T]) -> T:
    for wait in WAITS:
        try:
            return action()
        except Exception as error:
            if refused(error) or isinstance(error, OfflineModeIsEnabled):
                raise
        time.sleep(wait)
    return action()


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that caused `error`; the client may have wrapped it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status
        error = error.__cause__
    return None


def refused(error: BaseException) -> bool:
    """Whether a retry would fail too. A timeout, a concurrent commit and too many requests pass."""
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in (408, 409, 412, 429)


def reason(error: BaseException) -> str:
    if type(error) is RuntimeError and error.__cause__:  # the client wraps what broke an upload
        error = error.__cause__
    return " ".join((str(error) or type(error).__name__).split())[:200]


def matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
