"""Which part of a listing is a split: by the folders of images, or by the names of shards."""

import os
import re
from collections import Counter

from ...errors import UserError
from .layout import above, folds_among, perhaps_splits, split_of, splits_among
from .listing import Listing


class NoSplit(UserError):
    """The data set lacks the split that was asked for."""


def all_splits(listing: Listing) -> Listing:
    """All images, with the folders that are splits and no classes."""
    splits = splits_among(listing.image_folders)
    beside = listing.part(splits, inside=False)
    listing.splits = [] if len(beside.images) else list(splits)
    return listing


def choose_split(listing: Listing, split: str, exact: bool = False) -> Listing:
    """The part of `listing` that is `split`: what lies in folders of this name, at any depth, or everything where no
    folder is a split.

    With `exact` a folder named just so is taken although another is spelled as the same split.

    Raises:
        NoSplit: there is no such split.
        UserError: the folders may be understood in several ways; says what to give.
    """
    folders = sorted({*listing.image_folders, *map(os.path.dirname, listing.metadata), *listing.folders} - {""})
    splits = splits_among(folders, asked=split)
    wanted = split_of(split) or split
    spelled = [folder for folder in splits if split_of(os.path.basename(folder))]
    chosen = [folder for folder, known in splits.items() if known == wanted]
    named = [folder for folder in chosen if os.path.basename(folder) == split]
    if named and (exact or split not in {"train", "validation", "test"}):
        chosen = named
    _refuse_folds(listing, folds_among(folders, splits))
    if not splits:
        _refuse_unclear(listing, perhaps_splits(folders))
        if wanted != "train":
            raise NoSplit(
                f"folder {listing.folder!r} has no split {split!r}, no folders of splits: give another with the images"
            )
        return listing
    if spelled:
        _refuse_beside(listing, spelled, {*splits})
    if not chosen:
        raise NoSplit(
            f"folder {listing.folder!r} has no split {split!r}, only {_some(spelled)}: give another with the images, "
            f"as {os.path.join(listing.folder, spelled[0])!r}"
        )
    _refuse_several(listing, chosen, wanted)
    others = {*spelled} - {*chosen}
    part = listing.part(others, inside=False) if spelled else listing.part(chosen, inside=True)
    _refuse_inside(part, chosen, wanted)
    part.splits, part.elsewhere = chosen, len(listing.images) - len(part.images)
    return part


def _some(folders: list[str]) -> str:
    return ", ".join([*folders[:4], *["..."] * (len(folders) > 4)])


def _refuse_folds(listing: Listing, folds: list[str]) -> None:
    """Raises a UserError if folders are parts of a cross-validation: a person must say which of them train."""
    if folds:
        places = [os.path.join(listing.folder, fold) for fold in folds[:2]]
        raise UserError(
            f"folder {listing.folder!r} has the folds {_some(folds)}: give those to train on, as --train_dir "
            f"{' '.join(places)}, and another as --validation_dir"
        )


def _refuse_unclear(listing: Listing, unclear: list[str]) -> None:
    """Raises a UserError if names such as train2017 and val2017 would be taken for classes."""
    if unclear:
        raise UserError(
            f"folder {listing.folder!r} has {_some(unclear)}, which may be splits or classes: give the folder of one "
            f"split, as {os.path.join(listing.folder, unclear[0])!r}, or rename them to train, validation, test"
        )


def _refuse_several(listing: Listing, chosen: list[str], wanted: str) -> None:
    """Raises a UserError if two folders beside each other, or at different depths, are the same split."""
    number = Counter(map(os.path.dirname, chosen))
    twice = [folder for folder in chosen if number[os.path.dirname(folder)] > 1]
    uneven = len({folder.count("/") for folder in chosen}) > 1
    if twice or uneven:
        names = " and ".join(map(repr, (twice or sorted(chosen, key=lambda folder: folder.count("/")))[:4]))
        raise UserError(
            f"folder {listing.folder!r} has {names}, both the split {wanted!r}: give the folder of one, as "
            f"{os.path.join(listing.folder, (twice or chosen)[0])!r}"
        )


def _refuse_beside(listing: Listing, splits: list[str], known: set[str]) -> None:
    """Raises a UserError if images, or their metadata, lie beside the folders of splits: they would be left out."""
    beside = listing.part(known, inside=False)
    count = len(beside.metadata) + len(beside.images)
    if count:
        first = beside.metadata[0] if beside.metadata else beside.images[0].as_py()
        raise UserError(
            f"folder {listing.folder!r} has the split{'s' * (len(splits) > 1)} {_some(splits)} and beside "
            f"{'them' if len(splits) > 1 else 'it'} {count:,} other files, as {first!r}: give the folder of "
            f"one split, as {os.path.join(listing.folder, splits[0])!r}, or rename {splits[0]!r} if it is a class"
        )


def _refuse_inside(part: Listing, chosen: list[str], wanted: str) -> None:
    """Raises a UserError if a folder inside the chosen split has the name of another split and is not a class: its
    images would be mixed in."""
    if all(os.path.dirname(folder) in chosen for folder in part.image_folders):
        return  # classes called train and test on purpose
    places = {place for folder in part.image_folders for place in above(folder) if place not in chosen}
    inner = sorted(place for place in places if split_of(os.path.basename(place)) not in (None, wanted))
    if inner:
        raise UserError(
            f"folder {part.folder!r} has {_some(inner)} inside {_some(chosen)}: give the folder of one split, or "
            f"rename {inner[0]!r} if it is a class"
        )


def choose_shards(listing: Listing, split: str) -> list[str] | None:
    """The shards whose path names `split`. None if no path names a split.

    Raises:
        NoSplit: the paths name other splits.
        UserError: a name says two splits.
    """
    splits = {path: _split_of_path(path, split) for path in listing.shards}
    chosen = [path for path, known in splits.items() if known == (split_of(split) or split)]
    if not chosen and any(splits.values()):
        raise _lacks(listing, split)
    return chosen or None


def refuse_undivided(listing: Listing, split: str) -> None:
    """NoSplit if `split` is not training, for which everything counts."""
    if split_of(split) != "train":
        raise _lacks(listing, split)


def _lacks(listing: Listing, split: str) -> NoSplit:
    found = ", ".join(listing.shards[:5])
    return NoSplit(
        f"folder {listing.folder!r} has no file of split {split!r}: it has {found}; give another split, or rename"
    )


def _split_of_path(path: str, split: str) -> str | None:
    """The split that the deepest part of `path` names as a word of its own: `test/0.parquet`, `test-0.parquet`."""
    for part in reversed(path.split("/")):
        named = {known for word in re.findall(r"[a-z]+", part.lower()) if (known := split_of(word))}
        if re.search(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])", part.lower()):
            named.add(split_of(split) or split)
        if len(named) > 1:
            raise UserError(f"{path!r} names the splits {', '.join(sorted(named))}: rename it after one")
        if named:
            return named.pop()
    return None
