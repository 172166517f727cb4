"""Tar files of images and their label files, as webdataset writes them. A unit is a whole file."""

import copy
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa

from ....checked import parse
from ...read.endings import ending_of, image_endings, why_left_out, why_no_image
from ...read.faults import BadImage
from ..shard_cache import ShardCache, local_file
from .format import Member, Shard


IMAGE, LABEL, MASK = "image", "label", "mask"  # the columns
LABEL_FILES = (".cls", ".json", ".txt")
CHUNK = 1 << 20  # bytes
DAMAGES = (tarfile.ReadError, ValueError, MemoryError, OverflowError)  # what headers that are wrong raise


class Members(Sequence[Member]):
    """The images of a tar file in Arrow columns, because reading a Python object writes its reference count: each
    loading worker would slowly copy the whole list."""

    def __init__(self, members: Sequence[Member]):
        names, offsets, sizes, labels = zip(*members, strict=True) if members else ((), (), (), ())
        texts = (pa.array([_bytes_of(text) for text in column], pa.binary()) for column in (names, labels))
        numbers = (pa.array(column, pa.int64()) for column in (offsets, sizes))
        self.names, self.labels, self.offsets, self.sizes = *texts, *numbers

    def __len__(self) -> int:
        return len(self.names)

    def select(self, kept: pa.BooleanArray) -> "Members":
        """Those of the members that are `kept` ``(members,)``."""
        chosen = copy.copy(self)
        for column in ("names", "offsets", "sizes", "labels"):
            setattr(chosen, column, getattr(self, column).filter(kept))
        return chosen

    def labelled(self, labels: pa.BinaryArray) -> "Members":
        """The same members with these labels ``(members,)``."""
        chosen = copy.copy(self)
        chosen.labels = labels
        return chosen

    def __getitem__(self, row):
        name, label = (_text_of(texts[row].as_py()) for texts in (self.names, self.labels))
        return name, self.offsets[row].as_py(), self.sizes[row].as_py(), label


def _bytes_of(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")  # names need not be UTF-8


def _text_of(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogatepass")


@dataclass
class _Content:
    """What a tar file holds, put together member by member."""

    endings: frozenset[str] = field(default_factory=image_endings)
    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # name, offset, size by its path
    labels: dict[str, str] = field(default_factory=dict)  # by the name of the sample
    label_files: list[tuple[str, str]] = field(default_factory=list)  # name, and why it is no image
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)  # files by folder and reason

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        reason = why_left_out(member.name, self.endings) if member.isreg() else "links in tar files"
        reason = "in tar files with holes" if member.issparse() else reason
        ending = ending_of(member.name)
        if not reason:
            path = member.name.removeprefix("./")
            if self.images.pop(path, None):  # as tar unpacks them
                self.left_out[posixpath.dirname(member.name), "replaced later in its tar file"] += 1
            self.images[path] = (member.name, member.offset_data, member.size)
        elif reason == why_no_image(ending) and ending in LABEL_FILES:
            content, sample = tar.extractfile(member), samples_of(member.name)[0]
            label = _label(content.read(), ending) if content is not None else None
            if label is not None and (ending == ".cls" or sample not in self.labels):
                self.labels[sample] = label
            self.label_files.append((member.name, reason))
        elif not member.isdir():
            self.left_out[posixpath.dirname(member.name), reason] += 1

    def label_of(self, name: str) -> str | None:
        return next((self.labels[sample] for sample in samples_of(name) if sample in self.labels), None)

    def fill(self, shard: Shard) -> None:
        shard.members = [(*image, self.label_of(image[0])) for image in self.images.values()]
        shard.counts = [len(self.images)]
        samples = {sample for name, _, _ in self.images.values() for sample in samples_of(name)}
        for name, reason in self.label_files:
            if samples_of(name)[0] not in samples:
                self.left_out[posixpath.dirname(name), reason] += 1
        shard.left_out = [(folder, reason, count) for (folder, reason), count in self.left_out.items()]


def samples_of(name: str) -> list[str]:
    """What the sample of a file may be called, the longest first: `a/0.left` and `a/0` of `a/0.left.png`."""
    folder, slash, file = name.rpartition("/")
    parts = file.split(".")
    return [folder + slash + ".".join(parts[:count]) for count in range(max(1, len(parts) - 1), 0, -1)]


class Tar:
    def count(self, shard: Shard, cache: ShardCache) -> None:
        """If the file ends too early, the last image is one that cannot be read. What follows behind a damaged header,
        or behind the end of the archive, is counted as left out."""
        content = _Content()
        try:
            with tarfile.open(local_file(shard.url, shard.size, shard.stamp, cache), "r:") as tar:
                _read_members(tar, content)
        except DAMAGES as error:
            raise tarfile.ReadError(str(error) or type(error).__name__) from error
        content.fill(shard)

    def features(self, shards: list[Shard]) -> datasets.Features:
        """A label is a whole number, if all of them are, or else a word."""
        features = datasets.Features({IMAGE: datasets.Image(decode=False)})
        labels = [label for shard in shards for _, _, _, label in shard.members if label is not None]
        if any(shard.masks for shard in shards):
            features[MASK] = datasets.Image(decode=False)
        if labels:
            features[LABEL] = datasets.Value("int64" if all(map(str.isdecimal, labels)) else "string")
        return features

    def labels(self, shard: Shard, column: str, features: datasets.Features) -> list:
        labels = [label for _, _, _, label in shard.members]
        if features[column].dtype == "string":
            return labels
        return [None if label is None else int(label) for label in labels]

    def names(self, shard: Shard, unit: int, column: str) -> list[str | None]:
        """They begin with the shard's own name."""
        return [f"{os.path.basename(shard.url)}/{name}" for name, _, _, _ in shard.members]

    def open(self, shard: Shard, unit: int, column: str, cache: ShardCache) -> Callable[[int], dict]:
        # The open file stays readable after the cache has removed it.
        file = open(local_file(shard.url, shard.size, shard.stamp, cache), "rb")  # noqa: SIM115  # `read` keeps it

        members = shard.masks if column == MASK else shard.members

        def read(row: int) -> dict:
            name, offset, size, _ = members[row]
            try:
                data = os.pread(file.fileno(), size, offset)
            except OSError as error:
                raise BadImage(f"{name} of {shard.url} cannot be read ({error})") from error
            if len(data) != size:
                raise BadImage(f"{name} of {shard.url} is cut off: {len(data)} of {size} bytes")
            return {"bytes": data, "path": f"{name} of {shard.url}"}

        return read


def _read_members(tar: tarfile.TarFile, content: _Content) -> None:
    """All members up to the first that is damaged. ReadError and others where no image stands before it."""
    place = -1
    try:
        for member in tar:
            if member.size < 0 or member.offset <= place:
                raise tarfile.ReadError(f"the header at byte {member.offset} leads back")
            place = member.offset
            content.add(member, tar)
    except DAMAGES:
        if not content.images:
            raise
    if content.images and _something_follows(tar):
        content.left_out["", "rest of a tar file that is damaged or several joined"] += 1


def _something_follows(tar: tarfile.TarFile) -> bool:
    """Whether behind the last member that was read there is more than zeros, which fill up the file."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    while data := file.read(CHUNK):
        if data.strip(b"\0"):
            return True
    return False


def _label(data: bytes, ending: str) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    if ending != ".json":
        return text or None
    try:
        content = parse(text)
    except ValueError:
        return None
    label = next((content[key] for key in ("label", "cls") if key in content), None) if type(content) is dict else None
    return None if label is None else str(label)
