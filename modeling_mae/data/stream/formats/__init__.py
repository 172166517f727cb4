"""The formats of shards, by the ending of their files. A format is a file here that does what `Format` says, and a
line in `FORMATS`."""

import os

from .format import Format, Shard
from .parquet import Parquet
from .tar import Tar


FORMATS: dict[str, Format] = {".parquet": Parquet(), ".tar": Tar()}


def format_of(shard: Shard) -> Format:
    return FORMATS[os.path.splitext(shard.url)[1]]
