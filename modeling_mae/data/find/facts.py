"""Number, size and channels of unknown images, by a sample: what the settings of a run on them follow from."""

import io
import statistics
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..read.arrays import cell_of, read_array
from ..read.bit_depth import BadImage
from ..read.decode import ERRORS, name_of
from ..stream.shards import ShardedRows
from .sources import Source


HEADER_SAMPLE = 64  # files, evenly spaced
GRAY = {"1", "L", "LA", "La", "I", "F"}  # Pillow's modes of one channel, beside those of 16 bits
ORIENTATION, TURNED = 0x0112, 5  # the EXIF tag, and its lowest value that exchanges height and width


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
    shapes, faults = [], []
    for i in indices:
        cell = cell_of(rows[i][source.image_column])
        try:
            shapes.append(file_shape(cell["bytes"], cell["path"]))
        except BadImage as error:
            faults.append(error)
    if not shapes:
        raise faults[0]
    heights, widths, channels = zip(*shapes, strict=True)
    # Gray files among coloured ones are read as coloured ones.
    number = 3 if set(channels) == {1, 3} else statistics.mode(channels)
    size = statistics.median_low(heights), statistics.median_low(widths)
    return ImageFacts(count, *size, len(bands) if bands else number)


def file_shape(data: bytes | None, path: str | None) -> tuple[int, int, int]:
    """(height, width, channels) of an image file, as it is seen upright; of a picture from its header alone.

    Raises:
        BadImage: it cannot be read.
    """
    name = name_of(path)
    try:
        array = read_array(data, path, name)
        if array is not None:
            return _array_shape(*array[:2], name)
        with Image.open(io.BytesIO(data) if data is not None else path) as header:
            gray = header.mode in GRAY or header.mode.startswith("I;")
            # Of other formats, reading the tag would decode the picture.
            tags = header.getexif() if header.format in ("JPEG", "MPO", "TIFF") else {}
            turned = int(tags.get(ORIENTATION) or 0) >= TURNED
            height, width = header.size if turned else header.size[::-1]
            return height, width, 1 if gray else 3
    except ERRORS as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"{name} is not a readable image ({' '.join(str(error).split())[:120]})") from error


def _array_shape(values: np.ndarray, axis: int | None, name: str) -> tuple[int, int, int]:
    if values.ndim not in (2, 3) or not values.size:
        shape = "x".join(map(str, values.shape))
        raise BadImage(f"{name} has the shape {shape}: save height x width, with bands first or last")
    if values.ndim == 2:
        return *values.shape, 1
    axis = int(np.argmin(values.shape)) if axis is None else axis
    height, width = (n for i, n in enumerate(values.shape) if i != axis)
    return height, width, values.shape[axis]
