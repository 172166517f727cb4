"""Fills a room's settings from options, a recipe, or any other object with the same attribute names."""

from dataclasses import MISSING, fields
from typing import TypeVar


T = TypeVar("T")


def settings(kind: type[T], options: object) -> T:
    """The dataclass `kind`, filled with the attributes of `options` that are named like its fields, else with its
    defaults.

    Raises:
        TypeError: a field has no default, and `options` no such attribute.
    """
    values = {field.name: getattr(options, field.name, MISSING) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if value is not MISSING})
