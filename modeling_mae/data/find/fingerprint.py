"""A checksum of a data set that is the same on every machine, to see whether a run goes on with the same images."""

import hashlib

import numpy as np

from ..read.faults import BadImage
from ..stream.shards import ShardedRows
from .sources import Source


SAMPLED_IMAGES = 64  # evenly spaced
SAMPLED_BYTES = 1 << 16  # of each image: headers and the first rows


def fingerprint(source: Source) -> str:
    """Number of images, and a checksum over a sample of their bytes and labels. Paths and caches do not count."""
    if isinstance(source.dataset, ShardedRows):
        return source.dataset.fingerprint  # a sample of the images would read many shards
    checksum = hashlib.sha256(f"{len(source)}{source.excluded}".encode())
    for i in np.unique(np.linspace(0, len(source) - 1, SAMPLED_IMAGES).astype(int)).tolist():
        checksum.update(_first_bytes(source, i))
        checksum.update(str(source.dataset[i].get(source.label_column)).encode())
    without = ", with exclude" if source.excluded else ""  # a refusal names the option
    return f"{len(source):,} images, {checksum.hexdigest()[:16]}{without}"


def _first_bytes(source: Source, index: int) -> bytes:
    try:
        cell = source.cell(index)
        if cell["bytes"] is not None:
            return cell["bytes"][:SAMPLED_BYTES]
        with open(cell["path"], "rb") as file:
            return file.read(SAMPLED_BYTES)
    except (OSError, BadImage):
        return b""  # a bad image is reported when it is decoded
