"""The images of a stream: those of files, in an order that reads few shards at a time."""

import numpy as np

from .images import FileImages
from .lanes import LaneOrder
from .order import Order


SAMPLED_UNITS = 16  # that samples are taken from


class StreamedImages(FileImages):
    """Images of a stream. Neighbours in the order of training lie in few shards."""

    where = "streamed"

    def order(self, total_batch_size: int, seed: int) -> Order | LaneOrder:
        if self._rows is not None:
            return super().order(total_batch_size, seed)  # of a part of the images; a unit has few of them
        return LaneOrder(self.source.dataset.counts, total_batch_size, seed)

    def spread(self, count: int) -> list[int]:
        """At most `count` images, evenly spaced within evenly spaced units: few shards need to be read."""
        offsets, counts = self.source.dataset.offsets, self.source.dataset.counts
        filled = [unit for unit, images in enumerate(counts) if images]
        units = [filled[i] for i in np.unique(np.linspace(0, len(filled) - 1, SAMPLED_UNITS).astype(int))]
        each = max(1, count // len(units))
        chosen = [
            offsets[unit] + np.unique(np.linspace(0, counts[unit] - 1, each).astype(int)) for unit in units[:count]
        ]
        return np.concatenate(chosen).tolist()
