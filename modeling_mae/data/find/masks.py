"""Which mask belongs to which image: files by their names, tables by their columns."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import UserError
from ..read.masks import COLOUR
from ..stream.formats.parquet import ARRAYS
from .image_folder import image_column
from .layout import above, masks_among
from .listing import CLASSES_FILES, MASK_SUFFIX, MASKS, Listing, list_place


MASK = "mask"  # the column of masks that are files
COLUMNS = (MASK, "masks", "annotation", "annotations", "label", "labels", "segmentation", "ground_truth", "gt")
NUMBER = re.compile(r"\d+|#[0-9a-fA-F]{6}")  # of a class in classes.json
ROWS_AT_ONCE = 100_000  # whose cells are looked at for a mask


class NoMasks(UserError):
    """The images have no masks, and nobody has named any."""


def key_of(path: str) -> str:
    """What an image and its mask have in common: `a/0` of `a/0.jpg`, `a/0.mask.png` and `a/0_mask.png`."""
    return os.path.splitext(MASK_SUFFIX.sub(".", path))[0]


def masks_beside(listing: Listing) -> dict[str, str]:
    """{key of an image: path of its mask}, of the files that are masks of others in a listing.

    Raises:
        UserError: an image has two masks.
    """
    folders, masks = masks_among(listing.image_folders), dict[str, str]()
    for path in listing.mask_files():
        place = next((place for place in above(os.path.dirname(path)) if place in folders), None)
        moved = path if place is None else folders[place] + path.removeprefix(place)
        _enter(masks, key_of(moved), path, listing.folder)
    return masks


def masks_in(folder: str) -> dict[str, str]:
    """The same of a folder of masks, whose files are called as the images. The paths are absolute."""
    listing, masks = list_place(os.path.expanduser(folder)), dict[str, str]()
    for path in listing.images.to_pylist():
        _enter(masks, key_of(path), f"{listing.folder}/{path}", listing.folder)
    return masks


def _enter(masks: dict[str, str], key: str, path: str, folder: str) -> None:
    if key in masks:
        raise UserError(f"{folder!r} has two masks of one image, {masks[key]!r} and {path!r}: remove one")
    masks[key] = path


def with_mask_column(dataset: datasets.Dataset, images: Listing, masks: dict[str, str]) -> datasets.Dataset:
    """The data set of `images` with the column of their masks; empty where an image has none."""
    paths = [masks.get(os.path.splitext(path)[0]) for path in images.images.to_pylist()]
    whole = [path and os.path.join(images.folder, path).removeprefix("/") for path in paths]
    table = dataset.data.table.append_column(MASK, image_column("", pa.array(whole, pa.large_string())))
    features = datasets.Features({**dataset.features, MASK: datasets.Image(decode=False)})
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(datasets.table.InMemoryTable(table), info=info, fingerprint=dataset._fingerprint)


def mask_column(features: datasets.Features, image: str, name: str | None, place: str) -> str:
    """The column `name` of masks, or the only one that is called so, or the only one of images beside `image`.

    Raises:
        NoMasks: there is none.
        UserError: there are several, or none is called `name`.
    """
    kinds = (datasets.Image, *ARRAYS)
    columns = [column for column, kind in features.items() if isinstance(kind, kinds) and column != image]
    if name is None:
        columns = [column for column in columns if column.lower() in COLUMNS] or columns
    if name is not None and name in columns:
        return name
    if name is not None or len(columns) != 1:
        raise (UserError if name or columns else NoMasks)(
            f"{place} has {len(columns)} columns of masks ({', '.join(columns) or 'none'}): name one with "
            "--mask_column_name, put masks into a folder masks beside the folder images, or give --mask_dir"
        )
    return columns[0]


def rows_with_masks(dataset: datasets.Dataset, column: str, place: str) -> np.ndarray:
    """The numbers of the rows that have a mask.

    Raises:
        NoMasks: no row has one.
    """
    filled: list[np.ndarray] = []
    for rows in dataset.select_columns([column]).with_format("arrow").iter(ROWS_AT_ONCE):
        cells = rows[column].combine_chunks()
        there = pc.is_valid(cells)
        if pa.types.is_struct(cells.type):
            parts = [pc.is_valid(pc.struct_field(cells, name)) for name in ("bytes", "path")]
            there = pc.and_(there, pc.or_(*parts))
        filled.append(there.to_numpy(zero_copy_only=False))
    chosen = np.flatnonzero(np.concatenate(filled))
    if not len(chosen):
        raise NoMasks(
            f"none of the {len(dataset):,} images of {place} has a mask: name each mask like its image, in a folder "
            "masks beside the folder images, or give --mask_dir"
        )
    return chosen


def masks_not_left_out(listing: Listing) -> Listing:
    """The listing of images whose masks are read too, so that they are not counted as left out."""
    counts = {key: count for key, count in listing.left_out.items() if key[1] != MASKS}
    return replace(listing, left_out=type(listing.left_out)(counts))


def names_of_numbers(folder: str | None) -> dict[int, str]:
    """{number in the masks: name} from classes.json or classes.txt in the folder, or in the one above; empty without.
    A colour as "#ff8000" stands for the number that `decode_mask` gives it.

    Raises:
        UserError: the file names no classes.
    """
    places = [Path(folder), Path(folder).parent] if folder else []
    path = next((place / name for place in places for name in CLASSES_FILES if (place / name).is_file()), None)
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin a file with a mark
        content = json.loads(text) if path.suffix == ".json" else text.split("\n")
        if isinstance(content, list):
            content = {i: name for i, name in enumerate(content) if str(name).strip()}
        numbered = all(NUMBER.fullmatch(str(key)) for key in content)
        pairs = content.items() if numbered else [(number, name) for name, number in content.items()]
        named = {_number(str(number)): str(name).strip() for number, name in pairs}
        if not named or len({*named.values()}) < len(named):
            raise ValueError("two classes have one name, or there is none")
        return named
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{str(path)!r} names no classes ({str(error)[:100]}): write {{"0": "ground", ...}} or {{"#ff8000": '
            '"leaf", ...}, or in classes.txt a name on each line'
        ) from None


def _number(text: str) -> int:
    if not text.startswith("#"):
        return int(text)
    colour = int(text[1:], 16)
    return colour + COLOUR * (colour > 0)
