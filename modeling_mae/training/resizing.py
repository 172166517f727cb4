"""Progressive resizing: the first updates see smaller images, which cost a part of the arithmetic."""

from dataclasses import dataclass
from itertools import accumulate


SCALES = (1 / 2, 3 / 4)  # of the images' sides, one after the other


@dataclass(frozen=True)
class Resizing:
    """The size of the images at each update. The patches keep their size, so that one of a smaller image shows more.

    `size` and `patch` are (height, width) in pixels. `parts` of the updates, one after the other, see images with 1/2
    and with 3/4 of these sides, rounded to whole patches. The rest of the updates sees the whole size.
    """

    size: tuple[int, int]
    patch: tuple[int, int]
    parts: tuple[float, ...] = ()

    @property
    def stages(self) -> list[tuple[float, tuple[int, int]]]:
        """(part of the updates, size of their images), one after the other; the last has the whole size."""
        small = zip(self.parts, map(self._scaled, SCALES), strict=False)
        return [*small, (1 - sum(self.parts), self.size)]

    def _scaled(self, scale: float) -> tuple[int, int]:
        sides = zip(self.size, self.patch, strict=True)
        return tuple(max(1, int(scale * side / patch + 0.5)) * patch for side, patch in sides)

    def starts(self, updates: int) -> list[int]:
        """The first update of each stage, in a run of so many."""
        return [0, *(round(end * updates) for end in accumulate(self.parts))]

    def size_at(self, update: int, updates: int) -> tuple[int, int]:
        """The size at update `update` (0, 1, ...) of a run of so many: a pure function, like the learning rate."""
        stage = sum(start <= update for start in self.starts(updates)) - 1
        return self.stages[stage][1]

    def work(self, update: int, updates: int) -> float:
        """The pixels of an image in each update before `update`, added up. The time is about in proportion."""
        starts = self.starts(updates)
        return sum(
            max(0, min(update, end) - start) * size[0] * size[1]
            for start, end, (_, size) in zip(starts, [*starts[1:], updates], self.stages, strict=True)
        )

    def describe(self, updates: int) -> str:
        """The sizes of a run of so many updates, for people."""
        sizes = ["x".join(map(str, size)) for _, size in self.stages]
        steps = [f"then {size} from update {start:,}" for size, start in zip(sizes, self.starts(updates), strict=True)]
        return f"{sizes[0]} pixels, {', '.join(steps[1:])}"
