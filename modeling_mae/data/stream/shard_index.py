"""How many images each shard of a stream holds: counted once, kept in the cache, counted anew when a shard changes."""

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from ...errors import UserError
from .shard_cache import ShardCache, ShardError, attempt, download, file_system, is_remote


THREADS = 32  # shards looked at at once: mostly waiting for a server
LABEL_FILES = ("cls", "json", "txt")
IMAGE_FILES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2")


class Members(Sequence):
    """(name, offset, size, label) of each image of a tar file, in Arrow columns. Of Python objects each loading worker
    would get a copy in time: to look at one is to write its count of references.
    """

    def __init__(self, members: Iterable[tuple[str, int, int, str | None]]):
        names, offsets, sizes, labels = zip(*members, strict=True)
        texts = (pa.array([_bytes_of(text) for text in column], pa.binary()) for column in (names, labels))
        numbers = (pa.array(column, pa.int64()) for column in (offsets, sizes))
        self.names, self.labels, self.offsets, self.sizes = *texts, *numbers

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[str, int, int, str | None]:
        name, label = (_text_of(texts[row].as_py()) for texts in (self.names, self.labels))
        return name, self.offsets[row].as_py(), self.sizes[row].as_py(), label


def _bytes_of(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")  # names need not be UTF-8


def _text_of(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogatepass")


@dataclass
class Shard:
    """A parquet or tar file. `stamp` changes when the file does. `counts` are the images of each row group, or of the
    tar file. `members` are (name, offset, size, label) of a tar file's images."""

    url: str
    size: int | None
    stamp: str
    counts: list[int] = field(default_factory=list)
    members: Sequence[tuple[str, int, int, str | None]] = field(default_factory=list)


def index_shards(urls: list[str], cache: ShardCache) -> list[Shard]:
    """The shards at `urls`, in this order.

    Raises:
        UserError: a shard cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return list(pool.map(lambda url: _index(url, cache), urls))
        except ShardError as error:
            raise UserError(f"{error}: mend it, or leave it out") from error


def fingerprint_of(shards: list[Shard]) -> str:
    """Number of images, and a checksum over names, sizes and counts. Folders and hosts do not count."""
    rows = [[os.path.basename(shard.url), shard.size, shard.counts] for shard in shards]
    checksum = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return f"{sum(sum(shard.counts) for shard in shards):,} images, {checksum[:16]}"


def _index(url: str, cache: ShardCache) -> Shard:
    shard = _counted(url, cache)
    return replace(shard, members=Members(shard.members)) if shard.members else shard


def _counted(url: str, cache: ShardCache) -> Shard:
    size, stamp = attempt(lambda: _state(url), url)
    folder = cache.folder.parent / "index"
    kept = folder / f"{hashlib.sha256(url.encode()).hexdigest()}.json"
    try:
        shard = Shard(**json.loads(kept.read_text()))
        if (shard.size, shard.stamp) == (size, stamp):
            return shard
    except (OSError, ValueError, TypeError):
        pass  # not counted yet
    shard = Shard(url, size, stamp)
    if url.endswith(".parquet"):
        shard.counts = attempt(lambda: _row_groups(url), url)
    else:
        shard.members = attempt(lambda: _members(local_file(shard, cache)), url)
        shard.counts = [len(shard.members)]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump(asdict(shard), file)
    os.replace(file.name, kept)
    return shard


def local_file(shard: Shard, cache: ShardCache) -> Path:
    """The shard itself, or its copy in the cache."""
    if not is_remote(shard.url):
        return Path(shard.url)
    name = hashlib.sha256(f"{shard.url} {shard.stamp}".encode()).hexdigest()
    return cache.get(name, lambda path: download(shard.url, shard.size, path))


def _state(url: str) -> tuple[int | None, str]:
    """(bytes, what changes with the content) of a shard."""
    system, path = file_system(url)
    info = system.info(path)
    marks = [info.get(key) for key in ("ETag", "blob_id", "mtime", "LastModified")]
    return info.get("size"), " ".join(str(mark) for mark in marks if mark is not None)


def _row_groups(url: str) -> list[int]:
    system, path = file_system(url)
    with system.open(path, "rb") as file:
        metadata = pyarrow.parquet.ParquetFile(file).metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def _members(path: Path) -> list[tuple[str, int, int, str | None]]:
    """The images of a tar file, each with the text of its label file. Where the file ends too early, the last image
    is one that cannot be read."""
    images, labels = [], {}
    with tarfile.open(path, "r:") as tar:
        try:
            for member in tar:
                folder, slash, file = member.name.rpartition("/")
                key, _, ending = file.partition(".")
                key, ending = f"{folder}{slash}{key}", ending.lower()
                if not member.isfile():
                    continue
                if ending in IMAGE_FILES:
                    images.append((key, member.name, member.offset_data, member.size))
                elif ending in LABEL_FILES:
                    label = _label(tar.extractfile(member).read(), ending)
                    if label is not None and (ending == "cls" or key not in labels):
                        labels[key] = label
        except tarfile.ReadError:
            if not images:
                raise
    return [(name, offset, size, labels.get(key)) for key, name, offset, size in images]


def _label(data: bytes, ending: str) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    if ending != "json":
        return text or None
    try:
        content = json.loads(text)
    except ValueError:
        return None
    label = next((content[key] for key in ("label", "cls") if key in content), None) if type(content) is dict else None
    return None if label is None else str(label)
