"""Fills a room's settings from options, a recipe, or any other object with the same attribute names."""

from dataclasses import MISSING, fields
from typing import TypeVar


T = TypeVar("T")


def settings(kind: type[T], options: object) -> T:
    """The dataclass `kind`, its fields filled from the attributes of `options` with the same names, else by default.

    Raises:
        TypeError: a field has neither a default nor an attribute of `options`.
    """
    values = {field.name: getattr(options, field.name, MISSING) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if value is not MISSING})
