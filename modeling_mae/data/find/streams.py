"""A stream of shards: which ones a folder, a URL pattern or a Hub id has, and which of them are of a split."""

import glob
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import UserError
from ...words import counted
from ..stream.formats import FORMATS, Shard
from ..stream.formats.format import Member
from ..stream.formats.tar import Members
from ..stream.shard_cache import ShardCache, ShardError, attempt, file_system, is_remote
from ..stream.shard_index import index_shards
from ..stream.shards import ShardedRows, read_features
from .listing import Listing, list_place, text_array
from .masks import masks_beside, masks_not_left_out
from .splits import NoSplit, all_splits, choose_shards, choose_split, refuse_undivided


ENDINGS = tuple(FORMATS)
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def stream_of_place(
    place: str,
    split: str | None,
    find_column: Callable[[datasets.Features], str],
    cache_dir: str | None,
    only_masked: bool = False,
) -> ShardedRows:
    """The shards of `split` in the folder or under the URL pattern `place`; for None all of them. `find_column`
    chooses the image column. `only_masked`: of tar files the images with a mask, and these masks.

    Raises:
        NoSplit: no shard is of this split.
        UserError: there are no shards, or of two kinds, or one cannot be read.
    """
    listing = _listed(place)
    if not listing.shards:
        found = str(listing) or counted(len(listing.images), "image")
        raise UserError(
            f"{place!r} has no shards ({found}): a stream takes {' or '.join(ENDINGS)} "
            "files, so go without --streaming"
        )
    listing.leave_out(len(listing.images) + len(listing.metadata), "beside shards")
    named = None if split is None else choose_shards(listing, split)
    if named is None and split is not None and (listing.parquet or not listing.streamed):
        refuse_undivided(listing, split)
    cache = _cache(cache_dir)
    shards = _indexed([f"{listing.folder}/{path}" for path in named or listing.shards], place, cache)
    split = split if named is None else None
    return _opened(shards, replace(listing, folder=place), find_column, cache, split=split, only_masked=only_masked)


def _listed(place: str) -> Listing:
    if not is_remote(place) and os.path.exists(os.path.expanduser(place)):
        return list_place(os.path.expanduser(place))
    shards = list_shards(place)
    folders = [os.path.dirname(shard) + "/" for shard in shards]  # some are URLs, which commonpath would not keep
    common = os.path.commonprefix(folders).rpartition("/")[0]  # noqa: RUF071
    paths = [shard[len(common) + 1 :] for shard in shards]
    parquet = [path for path in paths if path.endswith(".parquet")]
    return Listing(common or "/", parquet=parquet, streamed=[path for path in paths if path not in {*parquet}])


def _chosen_members(
    shards: list[Shard], place: str, split: str | None, only_masked: bool
) -> tuple[list[Shard], Listing]:
    """The shards with their images of `split`, and the listing of these: as in a folder none is a mask, and folders
    are splits or, if no image has a label, classes. With `only_masked` also the masks of the images that have one.

    Raises:
        NoSplit, UserError: as `choose_split`.
    """
    members = [shard.members if isinstance(shard.members, Members) else Members([]) for shard in shards]
    names = pa.concat_arrays([part.names.cast(pa.large_binary()).cast(pa.large_string()) for part in members])
    listing = Listing(place, names)
    for shard in shards:
        listing.left_out.update({(folder, reason): count for folder, reason, count in shard.left_out})
    whole, masks = listing, dict[str, Member]()
    listing = listing.without_masks()
    listing = all_splits(listing) if split is None else choose_split(listing, split)
    if only_masked:
        masks = _members_of_masks(members, masks_beside(whole))
        masked = pc.is_in(listing.images, text_array(list(masks)))
        listing = masks_not_left_out(replace(listing, images=listing.images.filter(masked)))
        listing.leave_out(len(masked) - len(listing.images), "without a mask")
    if len(listing.images) < len(names):
        kept = pc.is_in(names, listing.images)
        members = [part.select(here) for part, here in zip(members, _cut(kept, members), strict=True)]
    classes = listing.classes() if all(part.labels.null_count == len(part) for part in members) else None
    if classes is not None:
        words = pa.array([name.encode() for name in classes[0]], pa.binary()).take(pa.array(classes[1]))
        members = [part.labelled(here) for part, here in zip(members, _cut(words, members), strict=True)]
    counted = [
        replace(shard, members=part, counts=[len(part)], masks=[masks[name] for name, *_ in part] if masks else [])
        for shard, part in zip(shards, members, strict=True)
    ]
    return counted, listing


def _members_of_masks(members: list[Members], masks: dict[str, str]) -> dict[str, Member]:
    """The mask of each image by its name, if it is in the same shard. `masks` are those of `masks_beside`."""
    found = {}
    for part in members:
        files = {member[0]: member for member in part}
        for name in files:
            mask = files.get(masks.get(os.path.splitext(name)[0], ""))
            if mask is not None:
                found[name] = mask
    return found


def _cut(values: pa.Array, members: list[Members]) -> list[pa.Array]:
    """The values of each shard's members."""
    ends = itertools.accumulate(map(len, members))
    return [values[end - len(part) : end] for part, end in zip(members, ends, strict=True)]


def stream_of_hub(
    hub_id: str,
    config: str | None,
    split: str | None,
    find_column: Callable[[datasets.Features], str],
    cache_dir: str | None,
    only_masked: bool = False,
) -> ShardedRows:
    """The shards of `split` of a data set on the Hub, as `datasets` finds them. The rest as for `stream_of_place`.

    Raises:
        NoSplit: the data set has no such split.
        UserError: it cannot be found, or does not consist of shards.
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
    cache = _cache(cache_dir)
    shards, features = _indexed(urls, hub_id, cache), builder.info.features
    return _opened(shards, Listing(hub_id), find_column, cache, features=features, only_masked=only_masked)


def only_split(hub_id: str, splits: list[str]) -> str:
    """The split of a data set that has just one.

    Raises:
        UserError: it has several; names them.
    """
    if len(splits) != 1:
        raise UserError(f"data set {hub_id!r} has the splits {', '.join(splits) or 'none'}: name one with --split")
    return splits[0]


def list_shards(place: str) -> list[str]:
    """The sorted shards of a pattern with braces and wildcards, or of a URL.

    Raises:
        UserError: the place does not exist or cannot be listed.
    """
    shards: list[str] = []
    for pattern in expand_braces(place):
        if not is_remote(pattern):
            shards += map(os.path.abspath, glob.glob(os.path.expanduser(pattern), recursive=True))
        elif pattern.endswith(ENDINGS) and not any(sign in pattern for sign in "*?["):
            shards.append(pattern)
        else:
            shards += _list_remote(pattern)
    if not shards:
        raise UserError(f"{place!r} is neither a folder nor a pattern of shards that are there: check the path")
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


def _cache(cache_dir: str | None) -> ShardCache:
    return ShardCache(Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "streams" / "units")


def _indexed(urls: list[str], place: str, cache: ShardCache) -> list[Shard]:
    endings = sorted({os.path.splitext(url)[1].lower() for url in urls})
    if len(endings) > 1:
        raise UserError(f"{place!r} has {' and '.join(endings)} files: give a folder or pattern of one kind")
    return index_shards(urls, cache)


def _opened(
    shards: list[Shard],
    listing: Listing,
    find_column: Callable,
    cache: ShardCache,
    *,
    features: datasets.Features | None = None,
    split: str | None = None,
    only_masked: bool = False,
) -> ShardedRows:
    """The rows of these shards of the place `listing`. Of tar files those in which `split` is a folder."""
    elsewhere = 0
    listing.leave_out(sum(not sum(shard.counts) for shard in shards), "without images")
    if any(isinstance(shard.members, Members) for shard in shards):
        shards, inside = _chosen_members(shards, listing.folder, split, only_masked)
        elsewhere = inside.elsewhere
        for (_, reason), count in inside.left_out.items():
            listing.leave_out(count, reason)
    elif split is not None:
        refuse_undivided(listing, split)
    left_out = str(listing)
    if not any(sum(shard.counts) for shard in shards):
        found = f" ({left_out})" if left_out else ""
        raise UserError(f"{listing.folder!r} has no images in its {len(shards)} shards{found}: give others")
    try:
        features = features or read_features(shards)
    except ShardError as error:
        raise UserError(f"{error}: fix it") from error
    rows = ShardedRows(shards, features, find_column(features), cache)
    rows.left_out, rows.elsewhere = left_out, elsewhere
    return rows
