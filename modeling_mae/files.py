"""Writes files that are either complete or absent, with the umask's permissions, and recognises a full disk."""

import csv
import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets read a cell that begins with one as a formula


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path. The file written there replaces `path` at the end.

    After an error, `path` is as it was before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")  # files of this name are never pushed to the Hub
    partial.unlink(missing_ok=True)  # a link of this name would lead to another file
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)


def write_csv(path: Path, titles: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Writes a table as CSV. A text that a spreadsheet would read as a formula gets an apostrophe in front."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_harmless, titles))
        writer.writerows(map(_harmless, row) for row in rows)


def _harmless(cell):
    if not isinstance(cell, str) or not cell.startswith(FORMULA_SIGNS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def write_json(path: Path, content) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def share(folder: Path) -> None:
    """Give all files in `folder` the umask's permissions. safetensors makes files that only their owner can read."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


def is_full(error: BaseException) -> bool:
    """Whether a full disk or quota caused the error. safetensors and torch say it only in their messages."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    words = str(error).lower()
    return any(text in words for text in ("no space left", "quota exceeded", "file write failed", "unexpected pos"))
