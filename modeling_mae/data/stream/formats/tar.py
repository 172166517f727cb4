"""Tar files of images and their label files, as webdataset writes them. A unit is a whole file."""

import os
import tarfile
from collections.abc import Callable, Iterable, Sequence

import datasets
import pyarrow as pa

from ....checked import parse
from ...read.faults import BadImage
from ..shard_cache import ShardCache, local_file
from .format import Member, Shard


IMAGE, LABEL = "image", "label"  # the columns
LABEL_FILES = ("cls", "json", "txt")
IMAGE_FILES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2")


class Members(Sequence[Member]):
    """The images of a tar file in Arrow columns, because reading a Python object writes its reference count: each
    loading worker would slowly copy the whole list."""

    def __init__(self, members: Iterable[Member]):
        names, offsets, sizes, labels = zip(*members, strict=True)
        texts = (pa.array([_bytes_of(text) for text in column], pa.binary()) for column in (names, labels))
        numbers = (pa.array(column, pa.int64()) for column in (offsets, sizes))
        self.names, self.labels, self.offsets, self.sizes = *texts, *numbers

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row):
        name, label = (_text_of(texts[row].as_py()) for texts in (self.names, self.labels))
        return name, self.offsets[row].as_py(), self.sizes[row].as_py(), label


def _bytes_of(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")  # names need not be UTF-8


def _text_of(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogatepass")


class Tar:
    def count(self, shard: Shard, cache: ShardCache) -> None:
        """If the file ends too early, the last image is one that cannot be read."""
        images, labels, place = [], {}, -1
        with tarfile.open(local_file(shard.url, shard.size, shard.stamp, cache), "r:") as tar:
            try:
                for member in tar:
                    if member.size < 0 or member.offset <= place:
                        raise tarfile.ReadError(f"the header at byte {member.offset} leads back")
                    place = member.offset
                    folder, slash, file = member.name.rpartition("/")
                    key, _, ending = file.partition(".")
                    key, ending = f"{folder}{slash}{key}", ending.lower()
                    if not member.isfile():
                        continue
                    if ending in IMAGE_FILES:
                        images.append((key, member.name, member.offset_data, member.size))
                    elif ending in LABEL_FILES:
                        content = tar.extractfile(member)
                        label = _label(content.read(), ending) if content is not None else None
                        if label is not None and (ending == "cls" or key not in labels):
                            labels[key] = label
            except tarfile.ReadError:
                if not images:
                    raise
        shard.members = [(name, offset, size, labels.get(key)) for key, name, offset, size in images]
        shard.counts = [len(shard.members)]

    def features(self, shards: list[Shard]) -> datasets.Features:
        """A label is a whole number, if all of them are, or else a word."""
        features = datasets.Features({IMAGE: datasets.Image(decode=False)})
        labels = [label for shard in shards for _, _, _, label in shard.members if label is not None]
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

        def read(row: int) -> dict:
            name, offset, size, _ = shard.members[row]
            try:
                data = os.pread(file.fileno(), size, offset)
            except OSError as error:
                raise BadImage(f"{name} of {shard.url} cannot be read ({error})") from error
            if len(data) != size:
                raise BadImage(f"{name} of {shard.url} is cut off: {len(data)} of {size} bytes")
            return {"bytes": data, "path": f"{name} of {shard.url}"}

        return read


def _label(data: bytes, ending: str) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    if ending != "json":
        return text or None
    try:
        content = parse(text)
    except ValueError:
        return None
    label = next((content[key] for key in ("label", "cls") if key in content), None) if type(content) is dict else None
    return None if label is None else str(label)
