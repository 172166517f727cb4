"""Files that hold several slices -> a row for each slice, called `scan.nii.gz#z=87`. The volume is its group."""

import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ...checked import check, count, listed, number, read_json, text
from ...errors import UserError
from ...files import write_json
from ...words import SLICES, counted
from ..read.dicom import SeriesHeader, series_header
from ..read.endings import NIFTI, ending_of
from ..read.faults import BadImage
from ..read.limits import MOST_PIXELS
from ..read.volumes import (
    STACKED,
    VolumeFacts,
    VolumeReader,
    checksum_of_files,
    has_nibabel,
    look_through,
    open_volume,
    unpacked_file,
)
from .image_folder import dataset_of, image_column


VOLUME_OF_A_SLICE = r"^(.*?)(?:#z=\d+)?$"  # of its name; another image is a volume of its own
THREADS = 4  # volumes that are looked through at a time
LINE_SECONDS = 10  # between two lines that say how far it is
Window = tuple[float, float] | None  # (black, white)
KINDS = {"files": listed(text), "count": count, "window": listed(number), "empty": listed(count)}


@dataclass(frozen=True)
class SliceSettings:
    """Which slices of a volume are images. The fields are named like the options."""

    slices: str = "all"  # or middle:32, or every:4
    neighbour_slices: int = 0  # on each side, that are channels of a slice
    max_image_pixels: int = MOST_PIXELS  # of what is read into memory: a compressed volume, or a slice

    def __post_init__(self):
        if not SLICES.fullmatch(self.slices) or self.neighbour_slices < 0:
            raise UserError(
                f"slices {self.slices!r}, neighbour_slices {self.neighbour_slices}: give all, middle:32 or every:4, "
                "and a number of neighbours"
            )

    def chosen(self, count: int) -> range:
        """The numbers of the slices that are taken of a volume of `count`."""
        match = SLICES.fullmatch(self.slices)
        assert match is not None
        kind, wanted = match[1], int(match[2] or 1)
        if kind == "middle":
            first = max(0, (count - wanted) // 2)
            return range(first, min(count, first + wanted))
        return range(0, count, wanted)


@dataclass(frozen=True)
class Sliced:
    """A data set with a row for each slice, what reads them, and what to say about it."""

    dataset: datasets.Dataset
    reader: VolumeReader
    remark: str


def sliced(dataset: datasets.Dataset, image: str, mask: str | None, settings: SliceSettings, cache: str) -> Sliced:
    """The data set with a row for each slice of the files that are volumes. It has the label of its file. Other rows
    stay as they are, also those of volumes that cannot be read: reading them says why.

    Raises:
        UserError: a package is missing, or a mask has another number of slices than its volume.
    """
    table = dataset.with_format("arrow")[:]
    paths = pc.struct_field(table[image], "path").to_pylist()
    if not has_nibabel() and (volume := next((path for path in paths if ending_of(path) in NIFTI), None)):
        raise UserError(f"{volume!r} is NIfTI: pip install 'modeling-mae[nifti]' to read it")
    reader = VolumeReader(settings.neighbour_slices, settings.max_image_pixels, cache)
    volumes = _volumes(paths)  # in the order of their first rows
    files = [tuple(paths[row] for row in rows) for _, rows, _ in volumes]
    found = _looked_through(files, [window for *_, window in volumes], reader)
    masks = None if mask is None else pc.struct_field(table[mask], "path").to_pylist()
    kept, names, kept_masks, empty = list[int](), list[str](), list[str | None](), 0
    for (name, rows, _), facts in zip(volumes, found, strict=True):
        if isinstance(facts, BadImage) and len(rows) == 1:
            reader.faults[name] = str(facts)
        if not isinstance(facts, VolumeFacts):
            kept += rows
            names += [paths[row] for row in rows]
            kept_masks += [masks[row] if masks else None for row in rows]
            continue
        reader.volumes[name] = facts
        chosen, dark = settings.chosen(facts.count), {*facts.empty}
        shown = [z for z in chosen if z not in dark]
        empty += len(chosen) - len(shown)
        of_slice = [rows[z] if len(rows) > 1 else rows[0] for z in shown]
        kept += of_slice
        names += [f"{name}#z={z}" for z in shown]
        if masks:
            kept_masks += _masks_of(facts, [masks[row] for row in of_slice], shown, reader)
    if not kept:
        raise UserError(f"all {empty:,} slices of {counted(len(reader.volumes), 'volume')} are empty: give others")
    table = table.take(pa.array(kept))
    columns = {key: table.column(key) for key in table.column_names} | {image: _path_column(names)}
    if mask is not None:
        columns[mask] = _path_column(kept_masks)
    return Sliced(dataset_of(columns, dict(dataset.features), image), reader, _remark(reader, empty))


def _path_column(paths: list) -> pa.ChunkedArray:
    return image_column("", pa.array([path and path.removeprefix("/") for path in paths], pa.large_string()))


def _remark(reader: VolumeReader, empty: int) -> str:
    if not reader.volumes:
        return "no file is a stack or volume, so --slices changes nothing"
    said = f"slices of {counted(len(reader.volumes), 'volume')}, {empty:,} empty ones left out"
    cache = str(reader.cache)
    kept = [unpacked_file(name, cache).exists() for name in reader.volumes if ending_of(name) == NIFTI[1]]
    if not all(kept):
        return f"{said}, no room to unpack {kept.count(False):,} of them in {cache}, which is slow (give --cache_dir)"
    return f"{said}, unpacked in {cache}" if kept else said


def _volumes(paths: list[str]) -> list[tuple[str, list[int], Window]]:
    """(name, rows, window) of each file, or of each DICOM series, whose rows are in the order of its slices. The name
    of a series is its identifier, in the folder of its files. Its window is that of all its files, else None."""
    series: dict[tuple, list[tuple[SeriesHeader, str, int]]] = defaultdict(list)
    for row, path in enumerate(paths):
        if ending_of(path) == ".dcm":
            with suppress(BadImage):  # it stays a row of its own, and says what is wrong when it is read
                header = series_header(path)
                if header is not None:
                    series[os.path.dirname(path), header.key].append((header, path, row))
    volumes, grouped, taken = list[tuple[str, list[int], Window]](), set[int](), set[str]()
    for (folder, key), members in series.items():
        if len(members) > 1:
            rows = [row for *_, row in sorted(members, key=lambda of: (of[0].position, of[0].number, of[1]))]
            name = os.path.join(folder, key[0])
            while name in taken:  # planes of another direction in the same series
                name += "-other"
            taken.add(name)
            windows = {header.window for header, *_ in members}
            volumes.append((name, rows, windows.pop() if len(windows) == 1 else None))
            grouped.update(rows)
    volumes += [(path, [row], None) for row, path in enumerate(paths) if row not in grouped]
    return sorted(volumes, key=lambda volume: min(volume[1]))


def _looked_through(
    files: list[tuple[str, ...]], windows: list[Window], reader: VolumeReader
) -> list[VolumeFacts | BadImage | None]:
    """The facts of each volume, None of a picture, or why it cannot be read."""

    def look(of: tuple[str, ...], window: Window) -> VolumeFacts | BadImage | None:
        if len(of) == 1 and ending_of(of[0]) not in STACKED:
            return None
        try:
            return _kept_facts(of, window, reader)
        except BadImage as error:
            return error

    began = time.monotonic()
    facts = []
    with ThreadPoolExecutor(THREADS) as pool:
        for seen in pool.map(look, files, windows):
            facts.append(seen)
            if time.monotonic() - began > LINE_SECONDS:
                began = time.monotonic()
                print(f"volumes    {len(facts):,} of {len(files):,} looked through", file=sys.stderr, flush=True)
    return facts


def _kept_facts(files: tuple[str, ...], window: Window, reader: VolumeReader) -> VolumeFacts | None:
    """The facts of a volume as they were found before, if no file has changed since; else they are found now."""
    try:
        kept = Path(str(reader.cache)) / f"{checksum_of_files(files)}-{reader.most_pixels}.json"
    except OSError as error:
        raise BadImage(f"{files[0]} cannot be read ({error.strerror})") from None
    if kept.exists():
        with suppress(UserError):  # written by another version
            values = check(kept, read_json(kept), KINDS, needed=tuple(KINDS))
            low, high = values["window"]
            return VolumeFacts(tuple(values["files"]), values["count"], (low, high), tuple(values["empty"]))
    facts = look_through(files, reader.most_pixels, reader.cache, window)
    if facts is not None:
        with suppress(OSError):  # it is found anew next time
            write_json(kept, asdict(facts))
    return facts


def _masks_of(facts: VolumeFacts, masks: list[str | None], chosen: list[int], reader: VolumeReader) -> list:
    """The mask of each slice: the same slice of the volume's mask. A file of a series has its own."""
    if len(facts.files) > 1 or masks[:1] == [None]:
        return masks
    path = str(masks[0]) if masks else ""
    volume = open_volume((path,), reader.most_pixels, reader.cache) if path else None
    if path and (volume is None or volume.count != facts.count):
        slices = "one picture" if volume is None else f"{volume.count} slices"
        raise UserError(f"{path!r} has {slices}, and its volume {facts.count} slices: give it the same")
    return [f"{path}#z={z}" for z in chosen]


def merged(readers: list[VolumeReader]) -> VolumeReader | None:
    """One for the slices of several sources; None where none has slices."""
    if not readers:
        return None
    reader = VolumeReader(readers[0].neighbours, readers[0].most_pixels, readers[0].cache)
    for one in readers:
        reader.volumes.update(one.volumes)
        reader.faults.update(one.faults)
    return reader
