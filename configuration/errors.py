"""The error for a wrong argument, and the checks that many arguments share."""

import math


class ArgumentError(ValueError):
    """An argument that cannot work. The message is one line: the value, the reason, the remedy.

    Not the package's UserError, because importing the package loads torch, and `--help` would take seconds.
    """


def require(args, name: str, holds, meaning: str) -> None:
    """Raises an ArgumentError unless `holds(value)`, also for each value of a list. None (not given) passes."""
    value = getattr(args, name)
    for item in value if isinstance(value, list) else [value]:
        if item is not None and not (math.isfinite(item) and holds(item)):
            raise ArgumentError(f"{name} {item} does not work: give {meaning}")


def exclude(args, one: str, other: str) -> None:
    if getattr(args, one) and getattr(args, other):
        values = f"{one} {getattr(args, one)!r} and {other} {getattr(args, other)!r}"
        raise ArgumentError(f"{values} exclude each other: give one")


def need(args, one: str, other: str) -> None:
    if getattr(args, one) and not getattr(args, other):
        raise ArgumentError(f"{one} {getattr(args, one)!r} means nothing without {other}: give both or neither")
