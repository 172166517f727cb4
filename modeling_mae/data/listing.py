"""What a folder holds: its images, its other files by the reason why they are left out, and its splits.

This listing is ours. `datasets` finds files with a glob pattern: it takes brackets in a path for wildcards, takes `::`
for a chain of archives, and does not say what it leaves out. The order of images and the class numbers are those of
its `imagefolder`.
"""

import difflib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from ..errors import UserError
from .arrays import has_pydicom


SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NO_DECODER = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow knows by name only
OTHER_IMAGES = (".heic", ".heif", ".avif", ".avifs", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".eps")
REASONS_NAMED = 6  # in one line; the rest are counted together


class NoSplit(UserError):
    """The data set lacks the split that was asked for."""


def image_endings() -> frozenset[str]:
    """Endings of the files that are read here, in lower case."""
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    missing = {ending for ending, kind in Image.registered_extensions().items() if kind in NO_DECODER}
    avif = set() if features.check("avif") else {".avif", ".avifs"}
    arrays = {".npy", ".npz"} | ({".dcm"} if has_pydicom() else set())
    return frozenset((known - missing - avif) | arrays)


@dataclass
class Listing:
    """The files of a folder. Paths are relative to it, with `/` between their parts, and sorted."""

    folder: str  # absolute
    images: list[str]
    metadata: list[str]
    parquet: list[str]
    left_out: list[tuple[str, str]]  # (path, reason)
    folders_left_out: list[tuple[str, str]]  # (path, reason)

    def part(self, keep) -> "Listing":
        """The files and folders whose path `keep` accepts."""
        pairs = ([pair for pair in pairs if keep(pair[0])] for pairs in (self.left_out, self.folders_left_out))
        paths = ([path for path in paths if keep(path)] for paths in (self.images, self.metadata, self.parquet))
        return Listing(self.folder, *paths, *pairs)

    def __str__(self) -> str:
        """`12 files left out: 7 .heic (not readable here), 3 hidden`; empty when nothing is left out."""
        counts = Counter(reason for _, reason in self.left_out).most_common()
        reasons = [f"{count:,} {reason}" for reason, count in counts[:REASONS_NAMED]]
        if counts[REASONS_NAMED:]:
            reasons.append(f"{sum(count for _, count in counts[REASONS_NAMED:]):,} others")
        reasons += [f"folder {path!r} ({reason})" for path, reason in self.folders_left_out[:REASONS_NAMED]]
        files, folders = len(self.left_out), len(self.folders_left_out)
        amounts = [f"{files:,} file{'s' * (files != 1)}"] * bool(files)
        amounts += [f"{folders:,} folder{'s' * (folders != 1)}"] * bool(folders)
        return f"{' and '.join(amounts)} left out: {', '.join(reasons)}" if amounts else ""


def list_folder(folder: str | os.PathLike) -> Listing:
    """All files below `folder`.

    Raises:
        UserError: the folder does not exist or may not be read; names the nearest that exists.
    """
    folder = Path(folder)
    if not folder.is_dir():
        parent = next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
        near = difflib.get_close_matches(folder.name, [path.name for path in parent.iterdir()], n=1)
        hint = f"did you mean {str(parent / near[0])!r}?" if near else f"{str(parent)!r} exists"
        raise UserError(f"folder {str(folder)!r} does not exist: {hint}")
    endings = image_endings()
    listing = Listing(os.path.abspath(folder), [], [], [], [], [])
    below: list[tuple[str, str]] = [("", "")]  # (folders still to read, why their files are left out)
    while below:
        path, reason = below.pop()
        try:
            with os.scandir(os.path.join(listing.folder, path)) as entries:
                for entry in entries:
                    _sort_in(entry, f"{path}/{entry.name}" if path else entry.name, reason, listing, below, endings)
        except OSError as error:
            if not path:
                raise UserError(f"folder {str(folder)!r} cannot be read ({error.strerror}): give another") from error
            listing.folders_left_out.append((path, error.strerror))
    for paths in (listing.images, listing.metadata, listing.parquet, listing.folders_left_out):
        paths.sort()
    return listing


def _sort_in(entry: os.DirEntry, path: str, reason: str, listing: Listing, below: list, endings: frozenset) -> None:
    """Put one entry of a folder where it belongs."""
    # Links to folders can form a circle, so they are not followed, except a split at the top.
    is_folder = entry.is_dir(follow_symlinks="/" not in path and split_of(entry.name) is not None)
    if entry.name.startswith("."):
        reason = "hidden"
    elif is_folder and entry.name.startswith("__"):
        reason = reason or "in folders that begin with __"
    if is_folder:
        below.append((path, reason))
    elif entry.is_symlink() and entry.is_dir():
        listing.folders_left_out.append((path, "a link, not followed"))
    else:
        ending = os.path.splitext(entry.name)[1].lower()
        if not reason and not entry.is_file():
            reason = "dangling (links to nothing)" if entry.is_symlink() else "neither files nor folders"
        if not reason and not entry.name.isascii() and _is_not_utf8(entry.name):
            reason = "with a name that is not UTF-8"
        if not reason and entry.name in METADATA:
            listing.metadata.append(path)
        elif not reason and ending in endings:
            listing.images.append(path)
        elif not reason and ending == ".parquet":
            listing.parquet.append(path)
        else:
            kind = "not readable here" if ending in OTHER_IMAGES else "not an image"
            kind = "install pydicom to read it" if ending == ".dcm" else kind
            listing.left_out.append((path, reason or f"{ending or 'without an ending'} ({kind})"))


def _is_not_utf8(name: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in name)  # what Python reads other bytes as


def split_of(name: str) -> str | None:
    """train, validation or test where `name` is a usual spelling of one, in any case."""
    return next((split for split, names in SPELLINGS.items() if name.lower() in names), None)


def choose_split(listing: Listing, split: str, exact: bool = False) -> Listing:
    """The part of `listing` that is `split`: a folder at the top, or everything where no folder there is a split.

    With `exact` a folder named just so is taken although another is spelled as the same split.

    Raises:
        NoSplit: there is no such split.
        UserError: the folders may be understood in several ways; says what to give.
    """
    with os.scandir(listing.folder) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    spelled = {name: split_of(name) for name in folders if split_of(name)}
    wanted = split_of(split) or split
    chosen = [name for name, known in spelled.items() if known == wanted]
    if split in folders and (exact or split not in SPELLINGS or split not in chosen):
        chosen = [split]
    if len(chosen) > 1:
        names = " and ".join(map(repr, chosen))
        raise UserError(
            f"folder {listing.folder!r} has {names}, both the split {wanted!r}: give the folder of one, as "
            f"{os.path.join(listing.folder, chosen[0])!r}"
        )
    if not spelled and not chosen:
        _refuse_unclear_splits(listing, folders)
        if wanted != "train":
            raise NoSplit(
                f"folder {listing.folder!r} has no split {split!r}, no folders of splits: give another with the images"
            )
        return listing
    if spelled:
        _refuse_beside(listing, list(spelled), {*spelled, *chosen})
    if not chosen:
        raise NoSplit(
            f"folder {listing.folder!r} has no split {split!r}, only {', '.join(spelled)}: give another with the "
            "images"
        )
    others = {*spelled} - {*chosen}
    part = listing.part(lambda path: path.partition("/")[0] not in others)
    return part if spelled else part.part(lambda path: path.startswith(f"{chosen[0]}/"))


def _refuse_beside(listing: Listing, splits: list[str], known: set[str]) -> None:
    """UserError where images, or what describes them, lie beside the folders of splits: they would be left out."""
    beside = [path for path in (*listing.metadata, *listing.images) if path.partition("/")[0] not in known]
    if beside:
        raise UserError(
            f"folder {listing.folder!r} has the split{'s' * (len(splits) > 1)} {', '.join(splits)} and beside "
            f"{'them' if len(splits) > 1 else 'it'} {len(beside):,} other files, as {beside[0]!r}: give the folder of "
            f"one split, as {os.path.join(listing.folder, splits[0])!r}, or rename {splits[0]!r} if it is a class"
        )


def _refuse_unclear_splits(listing: Listing, folders: list[str]) -> None:
    """UserError where names such as train2017 and val2017 would be taken for classes."""
    named = {name: split_of(re.split(r"[^A-Za-z]", name)[0]) for name in folders}
    named = {name: split for name, split in named.items() if split}
    if len(set(named.values())) > 1:
        names = ", ".join(list(named)[:4])
        raise UserError(
            f"folder {listing.folder!r} has {names}, which may be splits or classes: give the folder of one split, as "
            f"{os.path.join(listing.folder, next(iter(named)))!r}, or rename them to train, validation, test"
        )


def choose_parquet(listing: Listing, split: str) -> list[str]:
    """The parquet files whose path names `split`; all of them for training where no path names a split.

    Raises:
        NoSplit: there is no such file.
        UserError: a name says two splits.
    """
    wanted = split_of(split) or split
    splits = {path: _split_of_path(path, split) for path in listing.parquet}
    chosen = [path for path, known in splits.items() if known == wanted]
    if not chosen and (wanted != "train" or any(splits.values())):
        raise NoSplit(
            f"folder {listing.folder!r} has no parquet file of split {split!r}: it has "
            f"{', '.join(listing.parquet[:5])}"
        )
    return chosen or listing.parquet


def _split_of_path(path: str, split: str) -> str | None:
    """The split that the deepest part of `path` names as a word of its own: `test/0.parquet`, `test-0.parquet`."""
    for part in reversed(path.split("/")):
        named = {split_of(word) for word in re.findall(r"[a-z]+", part.lower())} - {None}
        if re.search(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])", part.lower()):
            named.add(split_of(split) or split)
        if len(named) > 1:
            raise UserError(f"parquet file {path!r} names the splits {', '.join(sorted(named))}: rename it after one")
        if named:
            return named.pop()
    return None
