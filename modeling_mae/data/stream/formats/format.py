"""What every format of shards can do, and what a shard is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import datasets

from ..shard_cache import ShardCache


Member = tuple[str, int, int, str | None]  # name, offset, size and label of an image in its file


@dataclass
class Shard:
    """A file of images. `stamp` changes when the file does. `counts` are the images of each unit, which is read at
    once. `members` are the images of a format whose files have no list of their own, `masks` theirs in the same order
    where masks are wanted, and `left_out` their other files as (folder, reason, number)."""

    url: str
    size: int | None
    stamp: str
    counts: list[int] = field(default_factory=list)
    members: Sequence[Member] = field(default_factory=list)
    left_out: list[tuple[str, str, int]] = field(default_factory=list)
    masks: Sequence[Member] = field(default_factory=list)


class Format(Protocol):
    """A format of shards. All but `count` read a shard that was counted before.

    They raise what the libraries raise; `attempt` calls them again where that may help.
    """

    def count(self, shard: Shard, cache: ShardCache) -> None:
        """Fill `counts` and `members` of a new shard."""
        ...

    def features(self, shards: list[Shard]) -> datasets.Features:
        """The columns of the shards."""
        ...

    def labels(self, shard: Shard, column: str, features: datasets.Features) -> list:
        """The column of labels."""
        ...

    def names(self, shard: Shard, unit: int, column: str) -> list[str | None]:
        """File names of a unit's images."""
        ...

    def open(self, shard: Shard, unit: int, column: str, cache: ShardCache) -> Callable[[int], dict]:
        """A function that gives bytes and path of the unit's image by its number. It may raise a BadImage."""
        ...
