"""A stream of shards: which ones a folder, a URL pattern or a Hub id has, and which of them are of a split."""

import glob
import os
import re
from collections.abc import Callable
from pathlib import Path

import datasets

from ...errors import UserError
from ..stream.formats import FORMATS
from ..stream.shard_cache import ShardCache, ShardError, attempt, file_system, is_remote
from ..stream.shard_index import index_shards
from ..stream.shards import ShardedRows, read_features
from .listing import Listing, NoSplit, choose_parquet


ENDINGS = tuple(FORMATS)
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def stream_of_place(
    place: str, split: str | None, find_column: Callable[[datasets.Features], str], cache_dir: str | None
) -> ShardedRows:
    """The shards of `split` in the folder or under the URL pattern `place`; for None all of them. `find_column`
    chooses the image column.

    Raises:
        NoSplit: no shard is of this split.
        UserError: there are no shards, or of two kinds, or one cannot be read.
    """
    shards = list_shards(place)
    if not shards:
        raise UserError(f"{place!r} has no shards: a stream takes {' or '.join(ENDINGS)} files")
    folders = [os.path.dirname(shard) + "/" for shard in shards]  # some are URLs, which commonpath would not keep
    common = os.path.commonprefix(folders).rpartition("/")[0]  # noqa: RUF071
    paths = [shard[len(common) + 1 :] for shard in shards]
    chosen = paths if split is None else choose_parquet(Listing.of(common or "/", [], paths), split)
    return _open([f"{common}/{path}" for path in chosen], place, find_column, cache_dir, None)


def stream_of_hub(
    hub_id: str,
    config: str | None,
    split: str | None,
    find_column: Callable[[datasets.Features], str],
    cache_dir: str | None,
) -> ShardedRows:
    """The shards of `split` of a data set on the Hub, as `datasets` finds them.

    Raises:
        NoSplit: the data set has no such split.
        UserError: it cannot be found, or does not consist of parquet or tar files.
    """
    try:
        builder = datasets.load_dataset_builder(hub_id, config, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise UserError(f"data set {hub_id!r}: {' '.join(str(error).split())}") from error
    files = builder.config.data_files or {}
    split = only_split(hub_id, list(files)) if split is None else split
    if split not in files:
        raise NoSplit(f"data set {hub_id!r} has no split {split!r}: it has {', '.join(files) or 'none'}")
    urls = [str(file) for file in files[split]]
    unreadable = [url for url in urls if not url.endswith(ENDINGS)]
    if unreadable:
        raise UserError(
            f"data set {hub_id!r} has {os.path.basename(unreadable[0])!r}, which is none of {', '.join(ENDINGS)}: go "
            "without --streaming"
        )
    return _open(urls, hub_id, find_column, cache_dir, builder.info.features)


def only_split(hub_id: str, splits: list[str]) -> str:
    """The split of a data set that has just one.

    Raises:
        UserError: it has several; names them.
    """
    if len(splits) != 1:
        raise UserError(f"data set {hub_id!r} has the splits {', '.join(splits) or 'none'}: name one with --split")
    return splits[0]


def list_shards(place: str) -> list[str]:
    """The sorted parquet and tar files of a folder (at any depth), or of a pattern with braces and wildcards.

    Raises:
        UserError: the place does not exist or cannot be listed.
    """
    if not is_remote(place) and os.path.isdir(os.path.expanduser(place)):
        folder = os.path.abspath(os.path.expanduser(place))
        return sorted(str(path) for path in Path(folder).rglob("*") if path.name.endswith(ENDINGS) and path.is_file())
    shards: list[str] = []
    for pattern in expand_braces(place):
        if not is_remote(pattern):
            shards += map(os.path.abspath, glob.glob(os.path.expanduser(pattern), recursive=True))
        elif pattern.endswith(ENDINGS) and not any(sign in pattern for sign in "*?["):
            shards.append(pattern)
        else:
            shards += _list_remote(pattern)
    if not shards:
        raise UserError(f"{place!r} is neither a folder nor a pattern of shards that are there: give --train_dir anew")
    return sorted({shard for shard in shards if shard.endswith(ENDINGS)})


def _list_remote(pattern: str) -> list[str]:
    def read():
        system, path = file_system(pattern)
        whole = path if any(sign in path for sign in "*?[") else f"{path.rstrip('/')}/**"
        return [system.unstrip_protocol(shard) for shard in system.glob(whole)]

    try:
        return attempt(read, pattern)
    except ShardError as error:
        raise UserError(
            f"{error}: look at the address and the network. Where a server lists no files, give a pattern that names "
            "each shard, as in shard-{000..999}.tar"
        ) from error


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` as a-08.tar, a-09.tar, a-10.tar; `{x,y}` as x and y. The width of the first number counts."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is None and int(last) < int(first):
        raise UserError(f"{pattern!r}: {{{first}..{last}}} counts down: give the smaller number first")
    values = words.split(",") if words else [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [expanded for value in values for expanded in expand_braces(f"{before}{value}{after}")]


def _open(
    urls: list[str], place: str, find_column: Callable, cache_dir: str | None, features: datasets.Features | None
) -> ShardedRows:
    endings = sorted({os.path.splitext(url)[1] for url in urls})
    if len(endings) > 1:
        raise UserError(f"{place!r} has {' and '.join(endings)} files: give a folder or pattern of one kind")
    cache = ShardCache(Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "streams" / "units")
    shards = index_shards(urls, cache)
    if not any(shard.counts and sum(shard.counts) for shard in shards):
        raise UserError(f"{place!r} has no images in its {len(shards)} shards: give others")
    try:
        features = features or read_features(shards)
    except ShardError as error:
        raise UserError(f"{error}: mend it") from error
    return ShardedRows(shards, features, find_column(features), cache)
