"""Leaves out images that a file names, as near-duplicates."""

import csv
import hashlib
import os
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from ...files import FORMULA_SIGNS
from ..stream.shards import ShardedRows
from .row_names import RowNames
from .sources import Source


def without_excluded(parts: list[Source], path: str, only_some: bool = False) -> list[Source]:
    """The sources without the images that the file `path` names: the table of `mae neighbours --duplicates`, or a name
    in each line. Images are named as there: by their path in the folder, or by their number. With `only_some`,
    the sources are a part of the images, as those with masks: the file may name only others.

    Raises:
        UserError: the file cannot be read, it names none of the images or all of them, or a source is a stream.
    """
    listed, total, remaining = names_in(path), 0, []
    checksum = hashlib.sha256("\n".join(sorted(listed)).encode()).hexdigest()[:16]
    for part in parts:
        if isinstance(part.dataset, ShardedRows):
            raise UserError(f"exclude {path!r} cannot leave images out of the stream {part.name}: unpack it")
        names = RowNames(part).files(0, len(part), part.numbers)
        kept = [row for row, name in enumerate(names) if name not in listed]
        gone = len(names) - len(kept)
        total += gone
        if not kept:
            raise UserError(f"exclude {path!r} names all {len(names):,} images of {part.name}: leave some in")
        counted = f"{gone:,} of {len(names):,} images left out by {Path(path).name}" if gone else ""
        left_out = "; ".join(filter(None, [part.left_out, counted]))
        part = replace(part, dataset=part.dataset.select(kept), left_out=left_out, excluded=checksum, numbers=None)
        remaining.append(part)
    if not total and not only_some:
        example, name = next(iter(sorted(listed)), ""), RowNames(parts[0]).files(0, 1)[0]
        raise UserError(
            f"exclude {path!r} names none of the images of {', '.join(part.name for part in parts)}: it has "
            f"{example!r}, and they are named as {name!r}"
        )
    return remaining


def names_in(path: str) -> set[str]:
    """The names in the column `file` of a CSV file, or in the lines of another.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(os.path.expanduser(path), newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"exclude {path!r} cannot be read ({error}): give the file of `mae neighbours`") from None
    if rows and "file" in rows[0]:
        column = rows[0].index("file")
        return {_as_it_was(row[column]) for row in rows[1:] if len(row) > column}
    return {",".join(row) for row in rows}


def _as_it_was(name: str) -> str:
    """A name without the apostrophe that `write_csv` puts in front of what a spreadsheet would take for a formula."""
    return name[1:] if name[:1] == "'" and name[1:].startswith(FORMULA_SIGNS) else name
