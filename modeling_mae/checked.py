"""What is read from files that anybody can have changed: checked, so that a fault is one line and not a traceback."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UserError


MAX_BYTES = 2**28  # of a file; a log of a million lines has half of it
Kind = Callable[[Any], bool]
T = TypeVar("T")


# --- kinds of values ---


def anything(value: Any) -> bool:
    return True


def text(value: Any) -> bool:
    return isinstance(value, str)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def figure(value: Any) -> bool:
    """A result: any number, also NaN."""
    return isinstance(value, (int, float)) and not flag(value) and not abs(value) > 1e300


def number(value: Any) -> bool:
    return figure(value) and value == value


def share(value: Any) -> bool:
    return number(value) and 0 <= value <= 1


def count(value: Any) -> bool:
    return isinstance(value, int) and number(value) and 0 <= value < 1e15


def optional(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def listed(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def mapped(kind: Kind, names: Kind = text) -> Kind:
    return lambda value: isinstance(value, dict) and all(names(key) and kind(item) for key, item in value.items())


def plain(value: Any) -> bool:
    """A setting: one value, or a list of such."""
    return all(item is None or text(item) or flag(item) or figure(item) for item in _items(value))


def folder(value: Any) -> bool:
    return value is None or all(map(text, _items(value)))


def square(value: Any) -> bool:
    return listed(listed(count))(value) and all(len(row) == len(value) for row in value)


def digits(value: Any) -> bool:
    return text(value) and value.isascii() and value.isdigit() and len(value) < 10


def _items(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def kind_of(hint: Any) -> Kind:
    """The values of a type: str, bool, int from 0 on, finite float, None, and dicts, lists, tuples and unions of
    these."""
    origin, inner = get_origin(hint), [kind_of(part) for part in get_args(hint)]
    if origin in (Union, UnionType):
        return lambda value: any(kind(value) for kind in inner)
    if origin in (list, Sequence):
        return listed(*inner)
    if origin is dict:
        return mapped(inner[1], inner[0])
    if origin is tuple:
        return lambda value: (
            isinstance(value, list)
            and len(value) == len(inner)
            and all(kind(item) for kind, item in zip(inner, value, strict=True))
        )
    simple = {str: text, bool: flag, int: count, float: number, NoneType: lambda value: value is None, Any: anything}
    return simple[hint]


# --- what a file holds ---


def parse(content: str | bytes) -> Any:
    """What JSON says. ValueError: it is none, or nobody can read it."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """What the file holds, or None if there is no file.

    Raises:
        UserError: it is a link, too large, or not JSON.
    """
    try:
        if path.is_symlink():
            raise ValueError("it is a link, which may lead anywhere")
        if not path.exists():
            return None
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): fix or remove it") from None


def invalid_file(path: Path | str, what: str) -> UserError:
    return UserError(f"{str(path)!r} is not a file of a run ({what}): fix or remove it")


def check(path: Path | str, content: Any, kinds: dict[str, Kind], *, needed: Iterable[str] = ()) -> dict[str, Any]:
    """`content` of the file `path`, whose values by name are of their `kinds`.

    Raises:
        UserError: they are not, or one of those `needed` is missing; names it.
    """
    if not isinstance(content, dict):
        raise invalid_file(path, f"a {type(content).__name__} instead of names and values")
    for name in needed:
        if name not in content:
            raise invalid_file(path, f"{name} is missing")
    for name, kind in kinds.items():
        if name in content and not kind(content[name]):
            value = content[name]
            shown = f"a {type(value).__name__}" if isinstance(value, (list, dict)) else repr(str(value)[:40])
            raise invalid_file(path, f"{name} cannot be {shown}")
    return content


def made_of(cls: type[T], path: Path | str, content: Any) -> T:
    """The dataclass `cls` with the `content` of the file `path`, whose fields' types are its shape.

    Raises:
        UserError: a value has another type, or a field is missing or too many.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # it is a dataclass
    hints, missing = get_type_hints(cls), dataclasses.MISSING
    needed = [field.name for field in fields if field.default is missing and field.default_factory is missing]
    values = check(path, content, {field.name: kind_of(hints[field.name]) for field in fields}, needed=needed)
    for name in values.keys() - {field.name for field in fields}:
        raise invalid_file(path, f"{name[:40]} is not known")
    return cls(**values)
