"""Progressive resizing: the first updates see smaller images, which need less arithmetic."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..words import counted


SCALES = (1 / 2, 3 / 4)  # shares of the images' full height and width, one after the other
# The first updates see full-size images, so that a GPU runs out of memory at once and not after days. The second is
# needed because the optimizer's state exists only then.
WHOLE_AT_START = 2


@dataclass(frozen=True)
class Resizing:
    """The size of the images at each update. The patches keep their size, so a patch of a smaller image shows more.

    `size` and `patch` are (height, width) in pixels. `parts` are the shares of the updates that see images with 1/2
    and then 3/4 of these sides, rounded to whole patches. All other updates, and the first `WHOLE_AT_START`, see
    full-size images.
    """

    size: tuple[int, int]
    patch: tuple[int, int]
    parts: tuple[float, ...] = ()

    @property
    def stages(self) -> list[tuple[float, tuple[int, int]]]:
        """(share of the updates, size of their images), one after the other. The last has the full size."""
        parts: dict[tuple[int, int], float] = {}  # two scales may round to the same size
        sizes = (*map(self._scaled, SCALES[: len(self.parts)]), self.size)
        for part, size in zip((*self.parts, 1 - sum(self.parts)), sizes, strict=True):
            if part > 0:
                parts[size] = parts.get(size, 0) + part
        return [(part, size) for size, part in parts.items()]

    def _scaled(self, scale: float) -> tuple[int, int]:
        height, width = (max(1, int(scale * side / patch + 0.5)) * patch for side, patch in self._sides)
        return height, width

    @property
    def _sides(self) -> list[tuple[int, int]]:
        """(side, patch) for the height and for the width."""
        return list(zip(self.size, self.patch, strict=True))

    def _starts(self, updates: int) -> list[tuple[int, tuple[int, int]]]:
        """(first update, size) of the full-size start and of each stage, in a run of `updates`."""
        stages = self.stages
        ends = accumulate((part for part, _ in stages[:-1]), initial=0.0)
        # Rounded down, so that the last update always has the full size.
        starts = [max(WHOLE_AT_START, int(end * updates + 1e-9)) for end in ends]
        return [(0, self.size), *zip(starts, (size for _, size in stages), strict=True)]

    def size_at(self, update: int, updates: int) -> tuple[int, int]:
        """The size at update `update` (0, 1, ...) of a run of `updates`: a pure function, like the learning rate."""
        return [size for start, size in self._starts(updates) if start <= update][-1]

    def work(self, update: int, updates: int) -> float:
        """The sum over the updates before `update` of the pixels of an image. Time is about proportional to it, unless
        loading takes longer."""
        starts = [*self._starts(updates), (updates, self.size)]
        return sum(
            max(0, min(update, end) - start) * size[0] * size[1] for (start, size), (end, _) in pairwise(starts)
        )

    def describe(self, updates: int, done: int = 0) -> str:
        """Describes the sizes of a run of `updates` that has `done` some of them. Empty if there is only one size."""
        first, *later = ((start, "x".join(map(str, size))) for start, size in self._starts(updates)[1:])
        steps = [f"{size} after {counted(start, 'update')}" for start, size in later]
        now = f"; {'x'.join(map(str, self.size_at(done, updates)))} now" if done else ""
        return f"{first[1]} pixels, {', '.join(steps)}{now}" if later else ""
