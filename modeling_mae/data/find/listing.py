"""What a folder holds: its images, its other files by the reason why they are left out, and its splits.

This listing is ours. `datasets` finds files with a glob pattern: it takes brackets in a path for wildcards, takes `::`
for a chain of archives, and does not say what it leaves out. The order of images and the class numbers are those of
its `imagefolder`.
"""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import UserError
from ...words import counted
from ..read.endings import (
    ARCHIVES,
    MASK_ENDING,
    MASK_WORDS,
    NIFTI,
    ending_of,
    image_endings,
    why_hidden,
    why_no_image,
)
from ..stream.formats import FORMATS
from .layout import class_names, lies_in, masks_among, split_of


CLASSES_FILES = ("classes.json", "classes.txt")  # name the classes of masks
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CHUNK = 1 << 16  # paths
REASONS_NAMED = 6  # in one line; the rest are counted together
MASKS = "masks beside images"
MASK_SUFFIX = re.compile(rf"(?i)[._-]({MASK_WORDS})\.(?=(nii\.)?[^./]+$)")


def text_array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@dataclass
class Listing:
    """The files of a folder or of a tar file. Paths are relative to it, with `/` between their parts.

    Those of a folder are sorted. `splits` are folders that name a split, so that they are no classes."""

    folder: str  # absolute
    images: pa.LargeStringArray = field(default_factory=lambda: text_array([]))  # there may be millions
    metadata: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    streamed: list[str] = field(default_factory=list)  # files of images, as .tar, that are read as a stream alone
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)  # number of files by (folder, reason)
    folders_left_out: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)
    folders: list[str] = field(default_factory=list)  # at the top, also those without images
    splits: list[str] = field(default_factory=list)
    elsewhere: int = 0  # images in other splits
    file: str = ""  # the only one that was asked for

    @property
    def name(self) -> str:
        """Of the folder, or of the file that alone was asked for."""
        return self.file or os.path.basename(self.folder)

    @property
    def only_streamed(self) -> bool:
        return bool(self.streamed) and not len(self.images) and not self.parquet

    @property
    def shards(self) -> list[str]:
        return sorted(self.parquet + self.streamed)

    @cached_property
    def parents(self) -> pa.DictionaryArray:
        """The folder of each image, empty for the top."""
        # A regular expression, not os.path.dirname: a million paths take half a second.
        return pc.replace_substring_regex(self.images, r"/?[^/]*$", "").dictionary_encode()

    @cached_property
    def image_folders(self) -> list[str]:
        return self.parents.dictionary.to_pylist()

    def part(self, folders: Container[str], inside: bool) -> "Listing":
        """What lies in these folders; with `inside` false all else."""

        def keep(folder: str) -> bool:
            return lies_in(folder, folders) == inside

        kept = np.array([keep(folder) for folder in self.image_folders], bool)
        images = self.images.filter(pa.array(kept[self.parents.indices.to_numpy()]))
        metadata, parquet, streamed = (
            [path for path in paths if keep(os.path.dirname(path))]
            for paths in (self.metadata, self.parquet, self.streamed)
        )
        left_out = Counter({(folder, why): count for (folder, why), count in self.left_out.items() if keep(folder)})
        folders_left_out = [(path, reason) for path, reason in self.folders_left_out if keep(path)]
        return Listing(self.folder, images, metadata, parquet, streamed, left_out, folders_left_out, self.folders)

    def mask_files(self) -> list[str]:
        """The files that are masks of others. Metadata name masks themselves."""
        return [] if self.metadata else self.images.filter(pa.array(self._is_mask)).to_pylist()

    def without_masks(self) -> "Listing":
        """The images without those that are masks of others, which are counted. Metadata name images themselves."""
        gone = self._is_mask
        if self.metadata or not gone.any():
            return self
        left_out = Counter(self.left_out)
        for number, count in enumerate(np.bincount(self.parents.indices.to_numpy()[gone]).tolist()):
            left_out[self.image_folders[number], MASKS] += count
        return replace(self, images=self.images.filter(pa.array(~gone)), left_out=+left_out)

    def without_folder(self, folder: str) -> "Listing":
        """The images without those below an absolute path, which hold masks and are counted as such."""
        inside = os.path.relpath(folder, self.folder)
        gone = len(self.part({inside}, inside=True).images)
        rest = replace(self.part({inside}, inside=False), file=self.file) if gone else self
        if gone:
            rest.left_out[inside, MASKS] += gone
        return rest

    @cached_property
    def _is_mask(self) -> np.ndarray:
        """Of each image whether it is a mask of another ``(images,)``."""
        masks = masks_among(self.image_folders)
        is_mask = np.array([lies_in(folder, masks) for folder in self.image_folders], bool)
        gone = is_mask[self.parents.indices.to_numpy()]
        named = pc.match_substring_regex(self.images, MASK_ENDING)
        if pc.any(named).as_py():
            samples = pc.replace_substring_regex(self.images.filter(pc.invert(named)), r"(\.nii)?\.[^./]*$", "")
            keys = pc.replace_substring_regex(self.images, MASK_ENDING, "")
            gone = gone | pc.and_(named, pc.is_in(keys, samples)).to_numpy(zero_copy_only=False)
        return gone

    def classes(self) -> tuple[list[str], np.ndarray] | None:
        """The names of the classes, and the number of each image's class ``(images,)``: the nearest folder that is no
        split. None unless all images lie equally deep, in folders of several names."""
        top = os.path.basename(self.folder)
        parents = [name or top for name in class_names(self.image_folders, set(self.splits))]
        composed = [unicodedata.normalize("NFC", name) for name in parents]
        if len(set(composed)) < len(set(parents)):  # one word, whose accents two systems wrote in two ways
            parents = composed
        names = sorted(set(parents))
        if len(names) < 2 or len({folder.count("/") + bool(folder) for folder in self.image_folders}) > 1:
            return None
        number = {name: i for i, name in enumerate(names)}
        return names, np.array([number[name] for name in parents])[self.parents.indices.to_numpy()]

    def leave_out(self, count: int, reason: str) -> None:
        """Count files that turned out not to be among the images."""
        if count:
            self.left_out["", reason] += count

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
        files, folders = self.left_out.total(), len(self.folders_left_out)
        amounts = [counted(files, "file")] * bool(files)
        amounts += [counted(folders, "folder")] * bool(folders)
        return f"{' and '.join(amounts)} left out: {', '.join(reasons)}" if amounts else ""


def list_place(place: str | os.PathLike, volumes: bool = False) -> Listing:
    """All files below a folder; of a file that is an image or holds images, this file alone. With `volumes` the
    images include NIfTI files.

    Raises:
        UserError: there is no such folder, or it may not be read; names the nearest that exists. Or a file of another
            kind.
    """
    if "://" in str(place):
        raise UserError(f"{place} is not a folder here, and a URL is read as a stream: add --streaming true")
    folder, endings = Path(place), image_endings().union(NIFTI if volumes else ())
    if folder.is_file():
        return _list_file(folder, endings)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is neither a file nor a folder: give one")
    if not folder.is_dir():
        parent = next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
        near = difflib.get_close_matches(folder.name, [path.name for path in parent.iterdir()], n=1)
        hint = f"did you mean {str(parent / near[0])!r}?" if near else f"{str(parent)!r} exists"
        raise UserError(f"folder {str(folder)!r} does not exist: {hint}")
    return _Walk(folder, endings).listing()


def _list_file(file: Path, endings: frozenset[str]) -> Listing:
    above, name = os.path.split(os.path.abspath(file))
    ending = ending_of(name)
    if ending == ".parquet":
        return Listing(above, parquet=[name], file=name)
    if ending in FORMATS:
        return Listing(above, streamed=[name], file=name)
    if ending in endings:
        return Listing(above, text_array([name]), file=name)
    if ending in NIFTI:
        raise UserError(f"{str(file)!r} is a volume: add --slices all")
    if ending in ARCHIVES:
        raise UserError(f"{str(file)!r} is packed: unpack it and give the folder (a plain .tar is read as it is)")
    raise UserError(
        f"{str(file)!r} is neither an image nor a {' or '.join(FORMATS)} file: give such a file, or a folder of images"
    )


class _Walk:
    """Reads a folder and those below it, one after another."""

    def __init__(self, folder: Path, endings: frozenset[str]):
        self.given, self.folder, self.endings = folder, os.path.abspath(folder), endings
        self.root = os.path.realpath(folder)
        # Folders still to read: (path, why their files are left out, where the links that lead there stand and end).
        self.below: list[tuple[str, str, tuple[str, ...]]] = [("", "", (self.root,))]
        self.images: list[str] = []  # found last
        self.chunks: list[pa.LargeStringArray] = []  # found before
        self.found = Listing(self.folder)

    def listing(self) -> Listing:
        found = self.found
        while self.below:
            path, reason, links = self.below.pop()
            place = os.path.join(self.folder, path)
            try:
                with os.scandir(place) as entries:
                    self._sort_in(entries, path, reason, links)
            except OSError as error:
                if not path:
                    raise UserError(
                        f"folder {str(self.given)!r} cannot be read ({error.strerror}): give another"
                    ) from error
                found.folders_left_out.append((path, str(error.strerror)))
            if len(self.images) >= CHUNK:
                self._pack()
        self._pack()
        images = pa.concat_arrays(self.chunks)
        found.images = images.take(pc.sort_indices(images))
        for paths in (found.metadata, found.parquet, found.streamed, found.folders, found.folders_left_out):
            paths.sort()
        return found

    def _pack(self) -> None:
        """A million paths as Python objects would take several times the memory."""
        self.chunks.append(text_array(self.images))
        self.images = []

    def _sort_in(self, entries: Iterable[os.DirEntry], path: str, reason: str, links: tuple[str, ...]) -> None:
        """Put each entry of the folder `path` where it belongs."""
        before = f"{path}/" if path else ""
        for entry in entries:
            name = entry.name
            _, dot, ending = name.rpartition(".")  # as `ending_of`, without the time of a call
            ending = f".{ending.lower()}" if dot else ""
            if (
                not reason
                and ending in self.endings
                and not name.startswith(".")
                and name.isascii()
                and entry.is_file(follow_symlinks=False)
            ):
                self.images.append(before + name)  # nearly all of a large folder
            elif _leads_to(entry.is_dir):
                self._sort_in_folder(entry, before + name, reason, links)
            else:
                reason_here = reason or why_hidden(name, False)
                if not reason_here and not _leads_to(entry.is_file):
                    leads = os.path.exists(entry.path)
                    reason_here = "neither files nor folders" if leads else "dangling (links to nothing)"
                self._sort_in_file(before + name, ending, reason_here)

    def _sort_in_folder(self, entry: os.DirEntry, path: str, reason: str, links: tuple[str, ...]) -> None:
        if path == entry.name and not entry.name.startswith("."):
            self.found.folders.append(path)
        reason = reason or why_hidden(entry.name, True)
        if entry.is_symlink():
            target, stands = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
            links = (*links, stands, target)
            why_not = reason or self._why_not_followed(path, target, links[:-1])
            if why_not:
                self.found.folders_left_out.append((path, why_not))
                return
        self.below.append((path, reason, links))

    def _why_not_followed(self, path: str, target: str, links: tuple[str, ...]) -> str:
        if any(_within(place, target) for place in links):
            return "a link in a circle"
        is_split = "/" not in path and split_of(path) is not None
        hidden = any(why_hidden(name, True) for name in os.path.relpath(target, self.root).split("/"))
        listed = _within(target, self.root) and not hidden
        return "a link to what is listed anyway" if listed and not is_split else ""

    def _sort_in_file(self, path: str, ending: str, reason: str) -> None:
        folder, _, name = path.rpartition("/")
        ending = NIFTI[1] if ending == ".gz" and ending_of(name) in NIFTI else ending
        if reason:
            self.found.left_out[folder, reason] += 1
        elif name in CLASSES_FILES:
            pass  # read with the masks
        elif name in METADATA:
            self.found.metadata.append(path)
        elif ending in self.endings:
            self.images.append(path)
        elif ending == ".parquet":
            self.found.parquet.append(path)
        elif ending in FORMATS:
            self.found.streamed.append(path)
        else:
            self.found.left_out[folder, why_no_image(ending)] += 1


def _leads_to(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # links in a circle
        return False


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
