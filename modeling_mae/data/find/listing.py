"""What a folder holds: its images, its other files by the reason why they are left out, and its splits.

This listing is ours. `datasets` finds files with a glob pattern: it takes brackets in a path for wildcards, takes `::`
for a chain of archives, and does not say what it leaves out. The order of images and the class numbers are those of
its `imagefolder`.
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, features

from ...errors import UserError
from ..read.header import has_pydicom


SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NO_DECODER = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow knows by name only
OTHER_IMAGES = (".heic", ".heif", ".avif", ".avifs", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".eps")
CHUNK = 1 << 16  # paths
REASONS_NAMED = 6  # in one line; the rest are counted together


class NoSplit(UserError):
    """The data set lacks the split that was asked for."""


def image_endings() -> frozenset[str]:
    """Endings of the files that are read here, in lower case."""
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    missing = {ending for ending, kind in Image.registered_extensions().items() if kind in NO_DECODER}
    avif = set() if "avif" in features.get_supported_modules() else {".avif", ".avifs"}
    arrays = {".npy", ".npz"} | ({".dcm"} if has_pydicom() else set())
    return frozenset((known - missing - avif) | arrays)


@dataclass
class Listing:
    """The files of a folder. Paths are relative to it, with `/` between their parts, and sorted."""

    folder: str  # absolute
    images: pa.LargeStringArray  # there may be millions
    metadata: list[str]
    parquet: list[str]
    left_out: Mapping[tuple[str, str], int]  # number of files by (folder at the top, reason); "" for those at the top
    folders_left_out: list[tuple[str, str]]  # (path, reason)
    folders: list[str] = field(default_factory=list)  # at the top, those that links lead to among them

    def __post_init__(self):
        if isinstance(self.images, list):
            self.images = pa.array(self.images, pa.large_string())
        self.left_out = self._left_out = Counter(self.left_out)

    @classmethod
    def of(cls, folder: str, images: list[str], parquet: list[str]) -> "Listing":
        """A listing of these files alone."""
        return cls(folder, images, [], parquet, {}, [])

    def part(self, folders: Iterable[str], inside: bool) -> "Listing":
        """What lies in these folders at the top; with `inside` false all else."""
        folders = set(folders)

        def keep(path: str) -> bool:
            return ("/" in path and path.partition("/")[0] in folders) == inside

        within = np.zeros(len(self.images), bool)
        for folder in folders:
            within |= pc.starts_with(self.images, f"{folder}/").to_numpy(zero_copy_only=False)
        images = self.images.filter(pa.array(within == inside))
        metadata, parquet = ([path for path in paths if keep(path)] for paths in (self.metadata, self.parquet))
        left_out = {(top, why): count for (top, why), count in self.left_out.items() if (top in folders) == inside}
        folders_left_out = [(path, reason) for path, reason in self.folders_left_out if keep(f"{path}/")]
        kept_folders = [folder for folder in self.folders if (folder in folders) == inside]
        return Listing(self.folder, images, metadata, parquet, left_out, folders_left_out, kept_folders)

    def leave_out(self, count: int, reason: str) -> None:
        """Count files that turned out not to be among the images."""
        if count:
            self._left_out["", reason] += count

    def __str__(self) -> str:
        """`12 files left out: 7 .heic (not readable here), 3 hidden`; empty when nothing is left out."""
        by_reason: Counter[str] = Counter()
        for (_, reason), count in self.left_out.items():
            by_reason[reason] += count
        counts = sorted(by_reason.items(), key=lambda pair: (-pair[1], pair[0]))
        reasons = [f"{count:,} {reason}" for reason, count in counts[:REASONS_NAMED]]
        if counts[REASONS_NAMED:]:
            reasons.append(f"{sum(count for _, count in counts[REASONS_NAMED:]):,} others")
        reasons += [f"folder {path!r} ({reason})" for path, reason in self.folders_left_out[:REASONS_NAMED]]
        files, folders = self._left_out.total(), len(self.folders_left_out)
        amounts = [f"{files:,} file{'s' * (files != 1)}"] * bool(files)
        amounts += [f"{folders:,} folder{'s' * (folders != 1)}"] * bool(folders)
        return f"{' and '.join(amounts)} left out: {', '.join(reasons)}" if amounts else ""


def list_folder(folder: str | os.PathLike) -> Listing:
    """All files below `folder`.

    Raises:
        UserError: the folder does not exist or may not be read; names the nearest that exists.
    """
    if "://" in str(folder):
        raise UserError(f"{folder} is not a folder here, and a URL is read as a stream: add --streaming true")
    folder = Path(folder)
    if not folder.is_dir():
        parent = next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
        near = difflib.get_close_matches(folder.name, [path.name for path in parent.iterdir()], n=1)
        hint = f"did you mean {str(parent / near[0])!r}?" if near else f"{str(parent)!r} exists"
        raise UserError(f"folder {str(folder)!r} does not exist: {hint}")
    return _Walk(folder, image_endings()).listing()


class _Walk:
    """Reads a folder and those below it, one after another."""

    def __init__(self, folder: Path, endings: frozenset[str]):
        self.given, self.folder, self.endings = folder, os.path.abspath(folder), endings
        self.below: list[tuple[str, str]] = [("", "")]  # (folders still to read, why their files are left out)
        self.images: list[str] = []  # found last
        self.chunks: list[pa.LargeStringArray] = []  # found before
        self.metadata: list[str] = []
        self.parquet: list[str] = []
        self.folders: list[str] = []
        self.left_out: Counter[tuple[str, str]] = Counter()
        self.folders_left_out: list[tuple[str, str]] = []

    def listing(self) -> Listing:
        while self.below:
            path, reason = self.below.pop()
            place = os.path.join(self.folder, path)
            try:
                with os.scandir(place) as entries:
                    self._sort_in(entries, path, reason)
            except OSError as error:
                if not path:
                    raise UserError(
                        f"folder {str(self.given)!r} cannot be read ({error.strerror}): give another"
                    ) from error
                self.folders_left_out.append((path, str(error.strerror)))
            if len(self.images) >= CHUNK:
                self._pack()
        self._pack()
        images = pa.concat_arrays(self.chunks)
        images = images.take(pc.sort_indices(images))
        metadata, parquet, folders = sorted(self.metadata), sorted(self.parquet), sorted(self.folders)
        return Listing(self.folder, images, metadata, parquet, self.left_out, sorted(self.folders_left_out), folders)

    def _pack(self) -> None:
        """A million paths as Python objects would take several times the memory."""
        self.chunks.append(pa.array(self.images, pa.large_string()))
        self.images = []

    def _sort_in(self, entries: Iterable[os.DirEntry], path: str, reason: str) -> None:
        """Put each entry of the folder `path` where it belongs."""
        before = f"{path}/" if path else ""
        for entry in entries:
            name = entry.name
            _, dot, ending = name.rpartition(".")  # os.path.splitext takes a third of the whole time
            ending = f".{ending.lower()}" if dot else ""
            if (
                not reason
                and ending in self.endings
                and not name.startswith(".")
                and name.isascii()
                and entry.is_file(follow_symlinks=False)
            ):
                self.images.append(before + name)  # nearly all of a large folder
            else:
                self._sort_in_one(entry, before + name, ending, reason)

    def _sort_in_one(self, entry: os.DirEntry, path: str, ending: str, reason: str) -> None:
        slash = "/" in path
        if not slash and not entry.name.startswith(".") and entry.is_dir():
            self.folders.append(path)
        # Links to folders can form a circle, so they are not followed, except a split at the top.
        is_folder = entry.is_dir(follow_symlinks=not slash and split_of(entry.name) is not None)
        if entry.name.startswith("."):
            reason = "hidden"
        elif is_folder and entry.name.startswith("__"):
            reason = reason or "in folders that begin with __"
        if not reason and not entry.name.isascii() and _is_not_utf8(entry.name):
            reason = f"{'in folders ' * is_folder}with a name that is not UTF-8"
        if is_folder:
            self.below.append((path, reason))
        elif entry.is_symlink() and entry.is_dir():
            self.folders_left_out.append((path, "a link, not followed"))
        else:
            if not reason and not entry.is_file():
                reason = "dangling (links to nothing)" if entry.is_symlink() else "neither files nor folders"
            self._sort_in_file(path, entry.name, ending, reason)

    def _sort_in_file(self, path: str, name: str, ending: str, reason: str) -> None:
        if not reason and name in METADATA:
            self.metadata.append(path)
        elif not reason and ending in self.endings:
            self.images.append(path)
        elif not reason and ending == ".parquet":
            self.parquet.append(path)
        else:
            kind = "not readable here" if ending in OTHER_IMAGES else "not an image"
            kind = "install pydicom to read it" if ending == ".dcm" else kind
            top, slash, _ = path.partition("/")
            self.left_out[top if slash else "", reason or f"{ending or 'without an ending'} ({kind})"] += 1


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
    folders = listing.folders
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
    return listing.part(others, inside=False) if spelled else listing.part(chosen, inside=True)


def _refuse_beside(listing: Listing, splits: list[str], known: set[str]) -> None:
    """UserError where images, or what describes them, lie beside the folders of splits: they would be left out."""
    beside = listing.part(known, inside=False)
    count = len(beside.metadata) + len(beside.images)
    if count:
        first = beside.metadata[0] if beside.metadata else beside.images[0].as_py()
        raise UserError(
            f"folder {listing.folder!r} has the split{'s' * (len(splits) > 1)} {', '.join(splits)} and beside "
            f"{'them' if len(splits) > 1 else 'it'} {count:,} other files, as {first!r}: give the folder of "
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
        named = {known for word in re.findall(r"[a-z]+", part.lower()) if (known := split_of(word))}
        if re.search(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])", part.lower()):
            named.add(split_of(split) or split)
        if len(named) > 1:
            raise UserError(f"parquet file {path!r} names the splits {', '.join(sorted(named))}: rename it after one")
        if named:
            return named.pop()
    return None
