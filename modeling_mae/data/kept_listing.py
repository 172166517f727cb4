"""What a folder of very many files holds, kept in the cache, so that the next run need not read all its folders.

A file that is added, removed or renamed changes the times of the folder it lies in. So the kept listing holds as long
as every folder has the times it had. A file that is written anew in place changes no folder, and no listing. A link to
a file elsewhere is not followed up: where its target goes away, the image is a bad one.
"""

import hashlib
import json
import os
import time
from pathlib import Path

import datasets
import pyarrow as pa

from ..files import replacing


FORMAT = 1  # of the file, and of the rules by which a folder is read; another number makes all kept listings void
KEPT_FROM = 10_000  # files; fewer are read in a moment
SETTLED = 2_000_000_000  # nanoseconds without a change after which a folder's times tell of the next one


class KeptListing:
    """The place in the cache for the listing of `folder`. With other `endings` of images the listing is another."""

    def __init__(self, folder: str, endings: frozenset[str], cache_dir: str | None):
        self.folder = os.path.realpath(folder)
        self.rules = [FORMAT, self.folder, sorted(endings)]
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()
        self.file = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "listings" / f"{name}.arrow"

    def read(self) -> dict | None:
        """What `write` was given as `fields`; None where nothing is kept, or the folder has changed since."""
        try:
            checksum, content = _halves(self.file.read_bytes())
            if checksum != hashlib.sha256(content).digest():
                return None
            table = pa.ipc.open_file(content).read_all()
            kept = json.loads(table.schema.metadata[b"listing"])
            rules, times, fields = kept["rules"], kept["times"], kept["fields"]
            if rules != self.rules or not self._unchanged(times, fields["folders_left_out"]):
                return None
            return {**fields, "images": table.column("images").combine_chunks()}
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None

    def _unchanged(self, times: dict[str, list[int]], folders_left_out: list) -> bool:
        for path, before in times.items():
            if folder_times(os.path.join(self.folder, path)) != before:
                return False
        # What could not be read may be readable for another user.
        unread = [os.path.join(self.folder, path) for path, _ in folders_left_out]
        return not any(os.access(path, os.R_OK | os.X_OK) for path in unread if not os.path.islink(path))

    def write(self, images: pa.LargeStringArray, fields: dict, times: dict[str, list[int]], began: int) -> None:
        """Keep `images` and the other `fields`. `times` are each folder's before it was read, the first of them at
        `began`. Nothing is kept of few files or of a folder that had just changed, nor in a cache that cannot be
        written."""
        if len(images) + sum(count for _, _, count in fields["left_out"]) < KEPT_FROM:
            return
        if any(began - max(changed, created) < SETTLED for changed, created, *_ in times.values()):
            return  # a change within the same tick of the clock would go unseen
        try:
            kept = json.dumps({"rules": self.rules, "times": times, "fields": fields})
            table = pa.table({"images": images}).replace_schema_metadata({"listing": kept})
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(table)
            content = sink.getvalue()
            with replacing(self.file) as partial, open(partial, "wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
        except OSError:
            pass


def folder_times(path: str) -> list[int]:
    """What changes when an entry of this folder does. The time of the last change of the folder itself is among it:
    copying programs set the other one back."""
    state = os.stat(path)
    return [state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_nlink]


def now() -> int:
    """Nanoseconds, on the clock of the file system."""
    return time.time_ns()


def _halves(data: bytes) -> tuple[bytes, bytes]:
    length = hashlib.sha256().digest_size
    return data[:length], data[length:]
