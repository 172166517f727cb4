"""Stacks and volumes, slice by slice: NIfTI, series of DICOM files and DICOM files of several frames, TIFF of several
pages, NumPy arrays of three axes.

A slice is an array of numbers in the volume's window: `VolumeReader` gives it as the bytes of an .npy file, so that it
is read like any other array.
"""

import hashlib
import importlib.util
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...files import replacing
from .dicom import dicom_slice, series_header
from .endings import NIFTI
from .faults import BadImage, reading
from .frames import frames_of
from .header import numpy_header
from .limits import DEFLATE, Limit
from .meaning import Rules, numbers_of
from .tiff import full_pages, read_tiff


STACKED = (*NIFTI, ".npy", ".tif", ".tiff", ".dcm")  # endings of files that may hold several slices
COLOURS = 4  # an array with no more in its last axis is a picture
PERCENTILES = (0.5, 99.5)  # of a volume's values, that become black and white
SAMPLED = 1 << 22  # evenly spaced values of a volume, from which the percentiles are taken
BACKGROUND, FEWEST = 0.1, 0.01  # an empty slice has fewer than this share of pixels above this brightness
OPENED = 2  # volumes that a process keeps open; a compressed one may take gigabytes
SPARE = 1 << 30  # bytes of the disk that unpacked volumes leave free
LONGEST_HEADER = 1 << 24  # bytes of a NIfTI file before its values
SAME_SPACING = 0.01  # relative difference of pixels that count as square


@dataclass(frozen=True)
class Volume:
    """`count` slices: ``read(z)`` gives ``(height, width)`` of one, or ``(3, height, width)`` of one in colours.

    `spacing` is the height and width of a pixel in any unit. `as_it_is` are numbers that no window changes. `window`
    (black, white) is that of the file, if it has one for all slices.
    """

    count: int
    read: Callable[[int], np.ndarray]
    spacing: tuple[float, float] = (1.0, 1.0)
    inverted: bool = False  # the lowest value is white
    as_it_is: bool = False
    window: tuple[float, float] | None = None

    def shown(self, values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
        """float32 from 0 to 1 of values in this window. Missing values are black."""
        low, high = window
        with np.errstate(invalid="ignore"):
            shown = ((values.astype(np.float32) - np.float32(low)) / np.float32(high - low or 1)).clip(0, 1)
        return np.nan_to_num(1 - shown if self.inverted else shown, nan=0.0)


@dataclass(frozen=True)
class VolumeFacts:
    """Where the slices of a volume are, its window (black, white), and its empty slices."""

    files: tuple[str, ...]  # one, or one for each slice
    count: int
    window: tuple[float, float]
    empty: tuple[int, ...]


def has_nibabel() -> bool:
    return importlib.util.find_spec("nibabel") is not None


def open_volume(files: tuple[str, ...], most_pixels: int, cache: str | None = None) -> Volume | None:
    """The volume in a file, or in the files of a DICOM series, one for each slice; None of a file with one picture.

    Compressed files are unpacked into the folder `cache`, if its disk has room, and into memory otherwise. The process
    keeps the last volumes open.

    Raises:
        BadImage: it cannot be read, or is larger than `most_pixels`.
    """
    with reading(files[0]):
        stat = os.stat(files[0])
    return _kept_open(files, most_pixels, cache, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=OPENED)
def _kept_open(files: tuple[str, ...], most_pixels: int, cache: str | None, stamp: tuple[int, int]) -> Volume | None:
    """`stamp` changes with the file."""
    path = files[0]
    with reading(path):
        if len(files) > 1:
            return _dicom_series(files, most_pixels)
        limit = Limit.of(None, path, most_pixels)
        if path.lower().endswith(NIFTI):
            return _nifti(path, limit, cache)
        if path.lower().endswith(".dcm"):
            return _dicom_frames(path, limit)
        return _numpy(path, limit) if path.lower().endswith(".npy") else _tiff(path, limit)


def look_through(
    files: tuple[str, ...], most_pixels: int, cache: str | None, window: tuple[float, float] | None = None
) -> VolumeFacts | None:
    """Reads all slices of a volume once; None of a file with one picture. `window` is that of all files of a DICOM
    series; without one, it is measured.

    Raises:
        BadImage: as `open_volume`, or no slice can be read.
    """
    volume = open_volume(files, most_pixels, cache)
    if volume is None:
        return None
    samples, empty, fault = dict[int, np.ndarray](), set[int](), BadImage(f"{files[0]} has no slices: remove it")
    for z in range(volume.count):
        try:
            values = volume.read(z)
        except BadImage as error:  # a bad image of its own
            fault = error
            continue
        step = max(1, math.isqrt(math.ceil(values.size * volume.count / SAMPLED)))
        known = values[np.isfinite(values)]
        if not known.size or known.min() == known.max():
            empty.add(z)
        samples[z] = values[..., ::step, ::step].astype(np.float32)
    if not samples:
        raise fault
    window = window or volume.window or _window(list(samples.values()))
    empty |= {z for z, seen in samples.items() if (volume.shown(seen, window) > BACKGROUND).mean() < FEWEST}
    return VolumeFacts(files, volume.count, window, tuple(sorted(empty)))


def _window(samples: list[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([seen.ravel() for seen in samples])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 0.0
    low, high = np.percentile(values, PERCENTILES).tolist()
    return (low, high) if high > low else (float(values.min()), float(values.max()))


class VolumeReader:
    """Slices by their names, `volume#z=3`. `volumes` are the facts of each; `faults` say why others cannot be read.
    With `neighbours` a slice has 2 n + 1 channels, the slices below, itself, and those above; edges are repeated."""

    def __init__(self, neighbours: int, most_pixels: int, cache: str | None):
        self.neighbours, self.most_pixels, self.cache = neighbours, most_pixels, cache
        self.volumes: dict[str, VolumeFacts] = {}
        self.faults: dict[str, str] = {}

    def read(self, path: str | None) -> np.ndarray | None:
        """The slice ``(height, width)`` or ``(channels, height, width)`` of this name, float32 in the volume's window
        or uint8 as it is; None where no volume is called so.

        Raises:
            BadImage: the slice, or its volume, cannot be read.
        """
        if path in self.faults:
            raise BadImage(self.faults[path])
        name, z = volume_and_slice(path)
        facts = self.volumes.get(name)
        if facts is None:
            return None
        volume = self._opened(facts.files)
        if not self.neighbours:
            return self._shown(volume, facts.window, z)
        stacked = [min(max(0, z + away), facts.count - 1) for away in range(-self.neighbours, self.neighbours + 1)]
        channels = [self._shown(volume, facts.window, each) for each in stacked]
        if channels[0].ndim == 3:
            raise BadImage(f"{path} has colours, and neighbouring slices are channels of gray ones: leave them out")
        return np.stack(channels)

    def read_mask(self, path: str | None) -> np.ndarray | None:
        """The numbers of the mask ``(height, width)`` of this name; None where it is no slice.

        Raises:
            BadImage: it cannot be read.
        """
        name, z = volume_and_slice(path)
        if z < 0:
            return None
        volume = self._opened((name,))
        return square_pixels(volume.read(z), volume.spacing, "nearest")

    def _opened(self, files: tuple[str, ...]) -> Volume:
        volume = open_volume(files, self.most_pixels, self.cache)
        if volume is None:
            raise BadImage(f"{files[0]} is one picture now, and was a stack of slices: start again")
        return volume

    def _shown(self, volume: Volume, window: tuple[float, float], z: int) -> np.ndarray:
        values = volume.read(z)
        if volume.as_it_is:
            return values
        return square_pixels(volume.shown(values, window), volume.spacing, "bilinear")


def volume_and_slice(path: str | None) -> tuple[str, int]:
    """The volume's name and the number of a slice called `path`; -1 of what is no slice."""
    name, sign, number = (path or "").rpartition("#z=")
    return (name, int(number)) if sign and number.isdecimal() else (path or "", -1)


def nearest_pixels(count: int, length: int) -> np.ndarray:
    """The pixels that nearest resizing of `length` pixels to `count` takes ``(count,)``."""
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)


def square_pixels(values: np.ndarray, spacing: tuple[float, float], mode: str) -> np.ndarray:
    """``(..., height, width)`` with pixels as fine as the finer of the two sides."""
    finest, sides = min(spacing), values.shape[-2:]
    if max(spacing) <= finest * (1 + SAME_SPACING):
        return values
    size = [round(count * side / finest) for count, side in zip(sides, spacing, strict=True)]
    if mode == "nearest":
        rows, columns = (nearest_pixels(new, old) for new, old in zip(size, sides, strict=True))
        return values[..., rows, :][..., columns]
    image = torch.from_numpy(np.ascontiguousarray(values)).reshape(1, -1, *sides)
    return F.interpolate(image, size, mode=mode, align_corners=False).numpy().reshape(*values.shape[:-2], *size)


def _check_size(limit: Limit, height: int, width: int, spacing: tuple[float, float]) -> None:
    """BadImage where a slice is too large, once its pixels are square."""
    finest = min(spacing)
    if not (math.isfinite(sum(spacing)) and finest > 0):
        raise ValueError(f"pixels of {spacing[0]:g} x {spacing[1]:g}")
    limit.check(round(height * spacing[0] / finest) * round(width * spacing[1] / finest))


# --- NIfTI ---


def _nifti(path: str, limit: Limit, cache: str | None) -> Volume:
    """Axial slices from the feet to the head, as a viewer shows them: the patient's right on the left, the face on
    top."""
    import nibabel  # late: few sets need it
    from nibabel.orientations import apply_orientation, io_orientation

    with nibabel.openers.ImageOpener(path) as file:
        start = file.read(540)
    header: Any = nibabel.Nifti2Header if start[4:7] == b"n+2" else nibabel.Nifti1Header
    before = float(header(start[: header.sizeof_hdr], check=False)["vox_offset"])
    if not 0 <= before <= LONGEST_HEADER:  # nibabel would read all that stands before the values
        raise BadImage(f"{path} has a header of {before:,.0f} bytes: write it anew")
    image: Any = nibabel.load(path)
    data, shape = image.dataobj, image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or not all(shape):
        raise BadImage(
            f"{path} has the shape {'x'.join(map(str, image.shape))}: save one volume of three axes a file, as by "
            "nibabel.four_to_three"
        )
    kind = np.dtype(data.dtype)
    if kind.kind not in "iuf":
        raise BadImage(f"{path} has values of the type {kind}: save whole numbers or decimals")
    size = math.prod(shape)
    packed = DEFLATE if path.lower().endswith(".gz") else 1
    limit.check(size, size * kind.itemsize // packed)
    turned = io_orientation(image.affine)
    sides = nibabel.affines.voxel_sizes(image.affine)
    sides = {int(axis): float(side) for (axis, _), side in zip(turned, sides, strict=True)}  # of right, front, top
    spacing = sides[1], sides[0]

    def slices() -> np.ndarray:
        values = apply_orientation(np.asarray(data.get_unscaled()).reshape(shape, order="F"), turned)
        return values[::-1, ::-1].transpose(2, 1, 0)  # (bottom to top, front to back, right to left)

    counts = {int(axis): count for (axis, _), count in zip(turned, shape, strict=True)}
    _check_size(limit, counts[1], counts[0], spacing)
    values = slices() if packed == 1 else _unpacked(path, slices, cache)
    slope, inter = float(data.slope), float(data.inter)

    def read(z: int) -> np.ndarray:
        number = np.asarray(values[z])
        return number if (slope, inter) == (1, 0) else (number * slope + inter).astype(np.float32)

    return Volume(len(values), read, spacing)


def checksum_of_files(files: tuple[str, ...]) -> str:
    """A name for what is kept of these files, until one of them changes."""
    stats = [os.stat(file) for file in files]
    told = [(os.path.abspath(file), stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)]
    return hashlib.sha256(repr(told).encode("utf-8", "replace")).hexdigest()[:32]


def unpacked_file(path: str, cache: str) -> Path:
    """Where the slices of a compressed file are kept."""
    return Path(cache) / f"{checksum_of_files((path,))}.unpacked"


def _unpacked(path: str, slices: Callable[[], np.ndarray], cache: str | None) -> np.ndarray:
    """The slices of a compressed file, from the folder `cache`; from memory if that has no room for them."""
    kept = unpacked_file(path, cache) if cache else None
    if kept is not None:
        with suppress(OSError, ValueError):
            return np.load(kept, "r", allow_pickle=False)
    values = slices()
    if kept is None:
        return values
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(kept.parent).free < values.nbytes + SPARE:
            return values
        with replacing(kept) as partial, partial.open("wb") as file:
            np.save(file, np.ascontiguousarray(values), allow_pickle=False)
        return np.load(kept, "r", allow_pickle=False)
    return values


# --- other kinds ---


def _numpy(path: str, limit: Limit) -> Volume | None:
    with open(path, "rb") as file:
        shape, _, kind = numpy_header(file)
    if len(shape) != 3 or shape[2] <= COLOURS:
        return None
    limit.check(shape[1] * shape[2], math.prod(shape) * kind.itemsize)
    if kind.kind not in "buif" or not all(shape):
        raise BadImage(f"{path} has values of the type {kind}, {'x'.join(map(str, shape))}: save numbers")
    values = np.load(path, "r", allow_pickle=False)
    return Volume(len(values), lambda z: np.asarray(values[z]), as_it_is=kind == np.uint8)


def _tiff(path: str, limit: Limit) -> Volume | None:
    numbers, kind = full_pages(path)
    if len(numbers) < 2:
        return None

    def read(z: int) -> np.ndarray:
        with reading(f"{path}#z={z}"):
            return _page(path, numbers[z], limit)

    return Volume(len(numbers), read, as_it_is=kind in (np.uint8, np.bool_))


def _page(path: str, number: int, limit: Limit) -> np.ndarray:
    with open(path, "rb") as file:
        stored = read_tiff(file, path, limit, number)
    channels = 1 if stored.colour in ("gray", "bands") else 3
    values = numbers_of(stored, Rules(channels), path).values  # (channels, height, width)
    return values[0] if channels == 1 else values


def _dicom_series(files: tuple[str, ...], most_pixels: int) -> Volume:
    limit, first = Limit.of(None, files[0], most_pixels), series_header(files[0])
    if first is None:
        raise ValueError("no plane of a series")
    _check_size(limit, *first.shape, first.spacing)

    def read(z: int) -> np.ndarray:
        with reading(files[z]):
            return dicom_slice(files[z], Limit.of(None, files[z], most_pixels))

    return Volume(len(files), read, first.spacing, first.inverted)


def _dicom_frames(path: str, limit: Limit) -> Volume | None:
    frames = frames_of(path)
    if frames is None:
        return None
    frames.check(limit)
    _check_size(limit, int(frames.about.Rows), int(frames.about.Columns), frames.spacing)

    def read(z: int) -> np.ndarray:
        with reading(f"{path}#z={z}"):
            return frames.read(z)

    return Volume(frames.count, read, frames.spacing, frames.inverted, frames.as_it_is, frames.window)
