"""What reading any kind of labels has in common: matching classes by name, and refusing what has no class."""

from ..errors import UserError
from .find.sources import Source


OTHER_COLUMN = "choose another split with --train_split or --eval_split, or another column with --label_column_name"


def only_one_is_named(names: list[str], known_names: list[str]) -> bool:
    """Whether one of two lists has names and the other only numbers: then the numbers are all there is to compare."""
    numbered = [all(name.isdecimal() for name in either) for either in (names, known_names)]
    return any(numbered) and not all(numbered) and len(names) <= len(known_names)


def refuse_unknown(source: Source, unknown: list[str]) -> None:
    if unknown:
        raise UserError(
            f"{source.name} has {len(unknown)} classes that the training images do not have "
            f"({', '.join(unknown[:5])}): evaluate on images of the trained classes, or train on these too"
        )


def refuse_unlabelled(source: Source, missing: int, total: int, what_is_none: str) -> None:
    if missing:
        raise UserError(f"{missing} of {total} images of {source.name} have no label ({what_is_none}): {OTHER_COLUMN}")
