"""Files that cannot be read as images."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ...errors import UserError


REASON = 500  # characters of what a library says that are shown


class BadImage(UserError):
    """A file that cannot be read as an image. The message names it."""


def name_of(path: str | None) -> str:
    return path or "an image without a name"


def open_file(path: str) -> BinaryIO:
    """The file to read from. Where a table names a pipe or a device instead, reading would not end.

    Raises:
        OSError: it cannot be opened, or it is not a file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a file")
    return file


@contextmanager
def reading(path: str | None) -> Iterator[None]:
    """Everything that reading one file raises is a bad image: libraries raise whatever they like on damaged files."""
    try:
        yield
    except BadImage:
        raise
    except Exception as error:
        reason = re.sub(r" ?<_io.Buffered\w+ [^>]*>| ?<_io.BytesIO object at 0x\w+>", "", " ".join(str(error).split()))
        reason = reason.replace(f" {str(path)!r}", "") or type(error).__name__  # the message begins with the path
        raise BadImage(f"{name_of(path)} is not a readable image ({reason[:REASON]})") from error
