"""Number, size and channels of unknown images, by a sample: what the settings of a run on them follow from."""

import statistics
from dataclasses import dataclass

import numpy as np

from ..read.faults import BadImage
from ..read.header import read_header
from ..stream.shards import ShardedRows
from .sources import Source


HEADER_SAMPLE = 64  # files, evenly spaced


@dataclass(frozen=True)
class ImageFacts:
    """The number of images, the median height and width of the files in pixels, and the channels most of them have."""

    count: int
    height: int
    width: int
    channels: int


def image_facts(source: Source, bands: list[int] | None = None) -> ImageFacts:
    """The facts of the images of `source`, the same on every process. `bands` are those that a model is to see.

    A file that cannot be read counts for nothing here: opening the images deals with it.

    Raises:
        BadImage: none of the files looked at can be read; the message is the first one's.
    """
    rows, count = source.dataset, len(source)
    indices = np.unique(np.linspace(0, count - 1, HEADER_SAMPLE).astype(int)).tolist()
    if isinstance(rows, ShardedRows):
        indices = rows.spread(HEADER_SAMPLE)  # from few shards
    headers, faults = [], []
    for i in indices:
        try:
            cell = source.cell(i)
            headers.append(read_header(cell["bytes"], cell["path"]))
        except BadImage as error:
            faults.append(error)
    if not headers:
        raise faults[0]
    channels = [header.channels for header in headers]
    # Gray files among coloured ones are read as coloured ones.
    number = 3 if set(channels) == {1, 3} else statistics.mode(channels)
    height = statistics.median_low([header.height for header in headers])
    width = statistics.median_low([header.width for header in headers])
    return ImageFacts(count, height, width, len(bands) if bands else number)
