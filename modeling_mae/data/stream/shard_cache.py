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

from ...errors import UserError
from ..read.faults import BadImage


ATTEMPTS = 4
FIRST_WAIT = 0.5  # seconds after the first attempt; twice as long after each further one
SILENCE = 30  # seconds without a byte after which a server counts as lost
CACHE_BYTES = 16 << 30
PARTIAL = ".partial-"
FAULTS = (OSError, EOFError, ValueError, asyncio.TimeoutError, pa.ArrowException, tarfile.TarError)
# Errors of these clients have no base class in common with the others, and each client is loaded for its URLs alone.
CLIENTS = set("aiobotocore aiohttp botocore gcsfs google httpcore httpcore2 httpx httpx2 huggingface_hub".split())
S3 = ("run `pip install 'modeling-mae[s3]'`", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
GCS = ("run `pip install 'modeling-mae[gcs]'`", "run `gcloud auth application-default login`")
HUB = ("install huggingface_hub", "run `hf auth login`, or set HF_TOKEN")
OTHER = ("install what it names", "give them as its file system wants them")
# By a URL's scheme: what to do where the package is missing, and where credentials are.
REMEDIES = {"s3": S3, "s3a": S3, "gs": GCS, "gcs": GCS, "hf": HUB}


class ShardError(BadImage):
    """A shard that cannot be read after all attempts. Its images are bad images."""


def is_remote(url: str) -> bool:
    return "://" in url


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(file system, path in it) of a shard. A server that falls silent is an error.

    Raises:
        UserError: there is no such file system, or the package for it is not installed.
    """
    options = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_read=SILENCE)}
    try:
        return url_to_fs(url, **options)
    except ImportError as error:
        remedy, _ = REMEDIES.get(url.partition("://")[0], OTHER)
        raise UserError(f"{url} needs a package that is not installed ({_words(error)}): {remedy}") from error
    except ValueError as error:  # an unknown scheme
        raise UserError(f"{url} cannot be opened ({_words(error)}): give s3://, gs://, hf:// or https://") from error


def _words(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:150]


def attempt(action: Callable, url: str):
    """``action()``, several times where it fails.

    Raises:
        ShardError: the last attempt has failed too.
        UserError: the server wants to know who asks, and nothing here says it.
    """
    for number in range(ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if not isinstance(error, FAULTS) and type(error).__module__.partition(".")[0] not in CLIENTS:
                raise
            last = error
        if type(last) is UserError:
            raise last
        if "credentials" in str(last).lower():
            _, remedy = REMEDIES.get(url.partition("://")[0], OTHER)
            raise UserError(f"{url} cannot be read without credentials ({_words(last)}): {remedy}") from last
        if number < ATTEMPTS - 1 and not isinstance(last, FileNotFoundError):
            time.sleep(FIRST_WAIT * 2**number)
        elif isinstance(last, FileNotFoundError):
            break
    raise ShardError(f"shard {url} cannot be read ({_words(last)})") from last


class ShardCache:
    """Files under `folder`, each made once. Together they take at most `limit` bytes: then the least recently used are
    removed. Processes may make the same file at the same time. A file that is open stays readable after its removal.
    """

    def __init__(self, folder: Path, limit: int = CACHE_BYTES):
        self.folder, self.limit = folder, limit

    def get(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file `name`. If it is missing, ``make(path)`` makes it."""
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
    """Copy a shard to `target`. Raises an OSError if it is not `size` bytes long."""
    system, path = file_system(url)
    system.get_file(path, str(target))  # in as few requests as the file system can
    written = target.stat().st_size
    if size is not None and written != size:
        raise OSError(f"{written} of {size} bytes came")
