"""How many images each shard of a stream holds: counted once, kept in the cache, counted anew when a shard changes."""

import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from ...checked import made_of, read_json
from ...errors import UserError
from ..read.endings import image_endings
from .formats import Shard, format_of
from .formats.tar import Members
from .shard_cache import ShardCache, ShardError, attempt, file_system


THREADS = 32  # shards looked at at once: mostly waiting for a server


def index_shards(urls: list[str], cache: ShardCache) -> list[Shard]:
    """The shards at `urls`, in this order.

    Raises:
        UserError: a shard cannot be read, or the cache not written.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return list(pool.map(lambda url: _index(url, cache), urls))
        except ShardError as error:
            raise UserError(f"{error}: fix it, or leave it out") from error
        except OSError as error:
            place = str(cache.folder.parent)
            raise UserError(f"{place!r} cannot be used ({error.strerror}): give another --cache_dir") from error


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
    counted = f"{url} 2 {sorted(image_endings())}"  # how members of tar files count, and which are images
    kept = folder / f"{hashlib.sha256(counted.encode()).hexdigest()}.json"
    try:
        shard = made_of(Shard, kept, read_json(kept))
        if (shard.size, shard.stamp) == (size, stamp):
            return shard
    except UserError:
        pass  # not counted yet, or the file is damaged
    shard = Shard(url, size, stamp)
    attempt(lambda: format_of(shard).count(shard, cache), url)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump(asdict(shard), file)
    os.replace(file.name, kept)
    return shard


def _state(url: str) -> tuple[int | None, str]:
    """(bytes, what changes with the content) of a shard."""
    system, path = file_system(url)
    info = system.info(path)
    marks = [info.get(key) for key in ("ETag", "blob_id", "mtime", "LastModified")]
    return info.get("size"), " ".join(str(mark) for mark in marks if mark is not None)
