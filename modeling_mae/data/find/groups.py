"""Which images belong together, as those of a patient, a site or a scene."""

import re

import numpy as np

from ...errors import UserError
from ..stream.shards import ShardedRows
from .row_names import RowNames
from .sources import Source


NAMES_AT_ONCE = 100_000


def groups_of(source: Source, group_by: str) -> np.ndarray:
    """The name of each image's group ``(images,)``: its value in the column `group_by`, or what the regular expression
    finds in its file name (its first group in brackets, if there is one). Each folder of several has names of its own.

    Raises:
        UserError: neither a column nor a regular expression, or images without a group.
    """
    if source.parts:
        return np.concatenate([groups_of(part, group_by) for part in source.parts])
    if group_by in source.dataset.features:
        dataset = source.dataset
        values = dataset[group_by] if isinstance(dataset, ShardedRows) else dataset.with_format(None)[group_by][:]
        return _known(source, group_by, [None if value is None else str(value) for value in values])
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        columns = ", ".join(source.dataset.features)
        raise UserError(
            f"group_by {group_by!r} is neither a column of {source.name} ({columns}) nor a regular "
            f"expression ({error})"
        ) from None
    found: list[str | None] = []
    for start in range(0, len(source), NAMES_AT_ONCE):
        for name in RowNames(source).files(start, min(start + NAMES_AT_ONCE, len(source))):
            match = pattern.search(name)
            found.append((match[1] if pattern.groups else match[0]) if match else None)
    return _known(source, group_by, found)


def _known(source: Source, group_by: str, names: list[str | None]) -> np.ndarray:
    missing = sum(name is None for name in names)
    if missing:
        columns = ", ".join(source.dataset.features)
        example = RowNames(source).files(names.index(None), names.index(None) + 1)[0]
        raise UserError(
            f"group_by {group_by!r} finds no group for {missing:,} of {len(names):,} images of {source.name}, as "
            f"{example!r}: give a regular expression that finds one in every file name, or a column ({columns})"
        )
    return np.array(names, dtype=str)
