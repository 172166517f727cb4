"""From the options of a run to the settings of a room."""

import dataclasses
from typing import TypeVar


T = TypeVar("T")


def settings(kind: type[T], options: object) -> T:
    """A `kind`, which is a frozen dataclass. Its fields have the values of the options of the same names.

    A field that no option has keeps its default.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # mypy has no bound for dataclasses
    return kind(**{name: getattr(options, name) for name in names if hasattr(options, name)})
