"""How the settings of a room are filled from options, a recipe or any other object with the same names."""

from dataclasses import MISSING, fields
from typing import TypeVar


T = TypeVar("T")


def settings(kind: type[T], options: object) -> T:
    """The dataclass `kind` with the attributes of `options` that have its fields' names; defaults for the rest.

    Raises:
        TypeError: `options` lack a field that has no default.
    """
    values = {field.name: getattr(options, field.name, MISSING) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if value is not MISSING})
