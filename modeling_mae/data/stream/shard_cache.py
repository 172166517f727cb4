"""What a stream reads: retried, checked, and kept in a folder of bounded size that all processes share."""

import asyncio
import hashlib
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from ..read.faults import BadImage


ATTEMPTS = 4
FIRST_WAIT = 0.5  # seconds after the first attempt; twice as long after each further one
SILENCE = 30  # seconds without a byte after which a server counts as lost
CACHE_BYTES = 16 << 30
PIECE = 1 << 20  # bytes copied at a time
PARTIAL = ".partial-"
FAULTS = (OSError, EOFError, ValueError, asyncio.TimeoutError, pa.ArrowException, tarfile.TarError)


class ShardError(BadImage):
    """A shard that cannot be read after all attempts. Its images are bad images."""


def is_remote(url: str) -> bool:
    return "://" in url


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(file system, path in it) of a shard. A server that falls silent is an error."""
    options = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_read=SILENCE)}
    return url_to_fs(url, **options)


def attempt(action: Callable, url: str):
    """``action()``, several times where it fails.

    Raises:
        ShardError: the last attempt has failed too.
    """
    for number in range(ATTEMPTS):
        try:
            return action()
        except FAULTS as error:
            last = error
        except Exception as error:
            # aiohttp's errors have no base class in common with the others, and it is loaded for HTTP alone.
            if not type(error).__module__.startswith("aiohttp"):
                raise
            last = error
        if number < ATTEMPTS - 1 and not isinstance(last, FileNotFoundError):
            time.sleep(FIRST_WAIT * 2**number)
        elif isinstance(last, FileNotFoundError):
            break
    reason = " ".join(str(last).split()) or type(last).__name__
    raise ShardError(f"shard {url} cannot be read ({reason[:150]})") from last


class ShardCache:
    """Files under `folder`, each made once. Together they take at most `limit` bytes: then the least recently used are
    removed. Processes may make the same file at the same time. A file that is open stays readable after its removal.
    """

    def __init__(self, folder: Path, limit: int = CACHE_BYTES):
        self.folder, self.limit = folder, limit

    def get(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file `name`, made by ``make(path)`` where there is none."""
        path = self.folder / name
        try:
            os.utime(path)
            return path
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=PARTIAL, dir=self.folder)
        os.close(descriptor)
        try:
            make(Path(partial))
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
        self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        files = []
        for entry in os.scandir(self.folder):
            try:
                if not entry.name.startswith(PARTIAL):
                    files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
            except FileNotFoundError:
                continue  # another process has thrown it away
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            if path != str(newest):
                Path(path).unlink(missing_ok=True)
                total -= size


def local_file(url: str, size: int | None, stamp: str, cache: ShardCache) -> Path:
    """The shard itself, or its copy in the cache."""
    if not is_remote(url):
        return Path(url)
    return cache.get(hashlib.sha256(f"{url} {stamp}".encode()).hexdigest(), lambda path: download(url, size, path))


def download(url: str, size: int | None, target: Path) -> None:
    """Copy a shard to `target`. OSError where it is not `size` bytes long."""
    system, path = file_system(url)
    with system.open(path, "rb", cache_type="none", block_size=0) as source, open(target, "wb") as file:
        while piece := source.read(PIECE):
            file.write(piece)
        written = file.tell()
    if size is not None and written != size:
        raise OSError(f"{written} of {size} bytes came")
