"""Where images come from: a data set by name, a Hub id, a folder of images or parquet files, the bundled images."""

import difflib
import os
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from ...errors import UserError
from ...settings import settings as settings_of
from ...words import SEMANTIC_SEGMENTATION, counted
from ..read.arrays import cell_of
from ..read.limits import MOST_PIXELS
from ..read.masks import KeptMask
from ..read.volumes import VolumeReader
from ..stream.formats.parquet import ARRAYS
from ..stream.shards import ShardedRows
from . import scenes
from .image_folder import image_folder
from .listing import Listing, list_place
from .masks import COLUMNS as MASK_COLUMNS
from .masks import (
    mask_column,
    masks_beside,
    masks_in,
    masks_not_left_out,
    names_of_numbers,
    rows_with_masks,
    with_mask_column,
)
from .slices import SliceSettings, sliced
from .splits import NoSplit, all_splits, choose_split
from .streams import only_split, stream_of_hub, stream_of_place
from .tables import caches, checked_rows, holds_images, is_saved, load_parquet, load_saved


NAMED = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "stl10": "jxie/stl10",
    "imagenet": "ILSVRC/imagenet-1k",
}
BUNDLED = Path(__file__).parents[3] / "data" / "fashion_mnist"
EVAL_SPLITS = ("validation", "val", "test")  # the first that exists is evaluated on
ROWS_AT_ONCE = 100_000  # that are looked at for their folder


@dataclass(frozen=True)
class SourceSettings:
    """Where images come from, and which of them are taken. The fields are named like the options."""

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_dir: str | list[str] | None = None
    mix: list[float] | None = None
    image_column_name: str | None = None
    label_column_name: str | None = None
    cache_dir: str | None = None
    streaming: bool = False
    train_split: str | None = "train"  # None: there are no training images
    eval_split: str | None = None
    validation_dir: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    problem_type: str | None = None
    mask_dir: str | None = None
    mask_column_name: str | None = None
    exclude: str | None = None  # a file that names images
    slices: str | None = None  # of stacks and volumes; None: the first page, and no volumes
    neighbour_slices: int = 0
    max_image_pixels: int = MOST_PIXELS

    @property
    def with_masks(self) -> bool:
        """Whether only images with a mask are wanted."""
        return self.problem_type == SEMANTIC_SEGMENTATION

    @property
    def names_masks(self) -> bool:
        """Whether an option says where the masks are."""
        return bool(self.mask_dir or self.mask_column_name)

    @property
    def place(self) -> str:
        """The folder of settings that have one."""
        assert isinstance(self.train_dir, str), self.train_dir  # several are loaded one by one
        return self.train_dir

    @property
    def cache(self) -> str | None:
        return os.path.expanduser(self.cache_dir) if self.cache_dir else None


@dataclass
class Source:
    """One split of a data set. The images are still encoded. `name` and `left_out` are for people."""

    dataset: datasets.Dataset | ShardedRows
    image_column: str
    label_column: str | None
    name: str
    left_out: str = ""  # how many files of the folder are not among the images, and why
    dataset_id: str | None = None  # on the Hub
    folder: str | None = None  # absolute; what the images' files lie in
    mask_column: str | None = None
    mask_names: dict[int, str] = field(default_factory=dict)  # of the numbers in masks, where they have names
    parts: list["Source"] = field(default_factory=list)  # that were joined into this one
    shares: tuple[Fraction, ...] | None = None  # of the training that each part has, where these were given
    elsewhere: int = 0  # images of the folder that are in other splits
    volumes: VolumeReader | None = None  # that reads the rows which are slices
    masks: list[KeptMask] | None = None  # as they were decoded, if somebody has read them and they fit
    excluded: str = ""  # a checksum of the names that were left out
    numbers: list[int] | None = None  # of the rows among all, if some without a mask were left out
    max_image_pixels: int = MOST_PIXELS  # of a mask

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def is_stream(self) -> bool:
        return isinstance(self.dataset, ShardedRows)

    def cell(self, index: int) -> dict:
        """Bytes and path of an image. Raises a BadImage if it is a slice that cannot be read."""
        cell = cell_of(self.dataset[index][self.image_column])
        numbers = self.volumes.read(cell["path"]) if self.volumes else None
        return cell if numbers is None else {**cell_of(numbers), "path": cell["path"]}

    def located(self, index: int) -> tuple[int, int]:
        """(number of the part that an image is in, its index there). A source that is not joined is its only part."""
        for number, part in enumerate(self.parts):
            if index < len(part):
                return number, index
            index -= len(part)
        return 0, index

    def mask_cell(self, index: int) -> dict:
        """Bytes and path of the mask of an image, in a source that has masks."""
        number, index = self.located(index)
        if self.parts:
            return self.parts[number].mask_cell(index)
        cell = cell_of(self._masks[index][self.mask_column])
        numbers = self.volumes.read_mask(cell["path"]) if self.volumes else None
        return cell if numbers is None else {**cell_of(numbers), "path": cell["path"]}

    def take_masks(self) -> list[KeptMask] | None:
        """The decoded masks, if they were kept. They are given once, so that nobody holds them twice."""
        masks, self.masks = self.masks, None
        return masks

    @cached_property
    def _masks(self) -> Any:
        assert self.mask_column is not None
        if isinstance(self.dataset, ShardedRows):
            return self.dataset.of_column(self.mask_column)
        return self.dataset.select_columns([self.mask_column])

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the label column carries them."""
        label = self.dataset.features[self.label_column] if self.label_column else None
        return list(label.names) if isinstance(label, datasets.ClassLabel) and label.names else None

    @property
    def only_folder(self) -> str | None:
        """Name of the folder that all images lie in, where nothing is known of them but their paths."""
        features = self.dataset.features
        if list(features) != [self.image_column] or isinstance(features[self.image_column], ARRAYS):
            return None
        if isinstance(self.dataset, ShardedRows):
            return None  # a stream's folder says how shards are kept
        names: set[str] = set()
        for rows in self.dataset.with_format("arrow").iter(ROWS_AT_ONCE):
            paths = pc.fill_null(pc.struct_field(rows[self.image_column], "path"), "")
            folders = pc.unique(pc.replace_substring_regex(paths, r"/?[^/]*$", ""))
            names.update(os.path.basename(folder) for folder in folders.to_pylist())
            if len(names) > 1 or "" in names:
                return None
        return names.pop()


def load_source(
    settings: SourceSettings,
    split: str | None = "train",
    *,
    max_samples: int | None = None,
    exact_split: bool = False,
    listing: Listing | None = None,
) -> Source:
    """One split of one place: the folder `train_dir`, else `dataset_name` (a known name or a Hub id), else the bundled
    images.

    `split` None: all images of a folder, in any split; for a data set on the Hub, its only split.
    `exact_split`: if two folders mean the same split (`val`, `validation`), take the one with exactly this name.
    `listing`: of the folder, if it was listed before.

    Raises:
        NoSplit: the data set has no such split.
        UserError: the path, name or column does not exist, there are no images, or it is unclear which are meant.
    """
    if settings.train_dir is not None and not settings.streaming:
        listing = listing or _list(settings)
    if settings.streaming or (listing is not None and listing.only_streamed):
        return _load_stream(settings, split, max_samples)
    dataset_id, name, folder, left_out, elsewhere = None, settings.dataset_name, None, "", 0
    if listing is not None:
        name, folder = listing.name, listing.folder
        dataset, listing = _load_folder(listing, split, exact_split, settings)
        left_out, elsewhere = str(listing), listing.elsewhere
    elif name in (None, "fashion_mnist"):
        name = "fashion_mnist"
        dataset, _ = _load_folder(list_place(BUNDLED), split, exact_split, settings)
    elif name == scenes.NAME:
        dataset = _load_scenes(split, exact_split, settings)
    else:
        dataset_id = NAMED.get(name, name)
        dataset = _load_from_hub(name, settings.dataset_config_name, split, settings.cache)
    image_column = find_image_column(dataset.features, settings.image_column_name, settings.mask_column_name)
    label_column = find_label_column(dataset.features, settings.label_column_name)
    dataset = still_encoded(dataset, image_column)
    files = listing is not None and len(listing.images) > 0
    source = Source(dataset, image_column, label_column, name, left_out, dataset_id, folder, elsewhere=elsewhere)
    source = replace(source, max_image_pixels=settings.max_image_pixels)
    if not files:  # of images in a folder, paths are our own
        source = _checked(source, settings)
    if settings.with_masks:
        source = _only_masked(source, settings)
    if settings.slices is not None:
        source = _sliced(source, settings, files)
    if not len(source):
        raise UserError(f"{name}, split {split!r}, has no images: give another split or data set")
    return source if max_samples is None else _spread_over(source, max_samples)


def _spread_over(source: Source, count: int) -> Source:
    """At most `count` images, evenly spread: in a set that is sorted by class the first ones are of one class."""
    assert not isinstance(source.dataset, ShardedRows)
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    return source if count >= len(source) else replace(source, dataset=source.dataset.select(chosen))


def _told(source: Source, remark: str) -> str:
    """What is said of the images that are left out, with one more remark."""
    return "; ".join(filter(None, [source.left_out, remark]))


def _checked(source: Source, settings: SourceSettings) -> Source:
    """The rows that have an image."""
    folders = [source.folder] if source.folder else caches(settings.cache)
    dataset = checked_rows(source.dataset, source.image_column, folders, source.name)
    empty = len(source) - len(dataset)
    remark = f"{counted(empty, 'row')} left out: without an image" if empty else ""
    return replace(source, dataset=dataset, left_out=_told(source, remark))


def _only_masked(source: Source, settings: SourceSettings) -> Source:
    """The images with a mask."""
    column = mask_column(source.dataset.features, source.image_column, settings.mask_column_name, source.name)
    dataset = still_encoded(source.dataset, column)
    rows = rows_with_masks(dataset, column, source.name)
    dataset = dataset.select(rows)
    gone = len(source) - len(dataset)
    remark = f"{gone:,} of {len(source):,} images have no mask" if gone else ""
    names = scenes.CLASSES if source.name == scenes.NAME else names_of_numbers(source.folder)
    source = replace(source, dataset=dataset, mask_column=column, mask_names=names, left_out=_told(source, remark))
    return replace(source, numbers=[int(row) for row in rows] if settings.exclude else None)


def _sliced(source: Source, settings: SourceSettings, files: bool) -> Source:
    """The slices of volumes and stacks, which must be `files`."""
    if not files:
        raise UserError(f"slices {settings.slices!r} are of image files: give a folder of them with --train_dir")
    cache = os.path.join(settings.cache or datasets.config.HF_DATASETS_CACHE, "volumes")
    how = settings_of(SliceSettings, settings)
    found = sliced(source.dataset, source.image_column, source.mask_column, how, cache)
    return replace(source, dataset=found.dataset, volumes=found.reader, left_out=_told(source, found.remark))


def still_encoded(dataset: datasets.Dataset, image_column: str) -> datasets.Dataset:
    """The data set as a `Source` holds it: images in their files' bytes, arrays in their own type."""
    kind = dataset.features[image_column]
    if isinstance(kind, ARRAYS):
        return dataset.with_format("numpy", [image_column], output_all_columns=True, dtype=np.dtype(kind.dtype))
    return dataset.cast_column(image_column, datasets.Image(decode=False))


def load_eval_split(
    settings: SourceSettings, split: str | None, *, max_samples: int | None = None, only_for_evaluation: bool = False
) -> tuple[Source, str]:
    """(source, split) to evaluate on, of one place: `split`, or the first of `EVAL_SPLITS` that exists.

    A folder that is `only_for_evaluation` needs no splits: without them all of it is taken.

    Raises:
        NoSplit: there is no such split.
        UserError: as `load_source`.
    """
    candidates = [split] if split else [*EVAL_SPLITS, *["train"] * only_for_evaluation]
    is_folder = settings.train_dir is not None and not settings.streaming
    listing, exact = _list(settings) if is_folder else None, split is not None
    missing: NoSplit | None = None
    for candidate in candidates:
        try:
            source = load_source(settings, candidate, max_samples=max_samples, exact_split=exact, listing=listing)
            return replace(source, elsewhere=0), candidate  # other splits are told of the training images
        except NoSplit as error:
            missing = error
    if split and missing:
        raise missing
    raise NoSplit(
        f"{settings.train_dir or settings.dataset_name!r} has no split {', '.join(EVAL_SPLITS)} to evaluate on: give "
        "--eval_split, or other images with --validation_dir"
    ) from missing


def _load_stream(settings: SourceSettings, split: str | None, max_samples: int | None) -> Source:
    if settings.slices is not None:
        raise UserError(f"slices {settings.slices!r} cannot be taken of a stream or tar file: unpack it into a folder")
    if max_samples is not None:
        raise UserError(
            f"{max_samples} samples cannot be taken of a stream or tar file, which is read whole: give fewer, or "
            "unpack it"
        )

    def find_column(features: datasets.Features) -> str:
        return find_image_column(features, settings.image_column_name, settings.mask_column_name)

    name, dataset_id = settings.dataset_name, None
    if settings.train_dir is None and name not in (None, "fashion_mnist"):
        name = dataset_id = NAMED.get(name, name)
        rows = stream_of_hub(
            name, settings.dataset_config_name, split, find_column, settings.cache, settings.with_masks
        )
    else:
        place = str(BUNDLED) if settings.train_dir is None else settings.place
        name = "fashion_mnist" if settings.train_dir is None else Path(place).name
        rows = stream_of_place(place, split, find_column, settings.cache, settings.with_masks)
    label_column = find_label_column(rows.features, settings.label_column_name)
    masks = None
    if settings.with_masks:
        masks = mask_column(rows.features, rows.image_column, settings.mask_column_name, str(name))
    names = names_of_numbers(settings.place) if settings.with_masks and settings.train_dir else {}
    source = Source(rows, rows.image_column, label_column, name, rows.left_out, dataset_id, None, masks, names)
    source = replace(source, max_image_pixels=settings.max_image_pixels)
    return replace(source, elsewhere=rows.elsewhere)


def _list(settings: SourceSettings) -> Listing:
    if settings.place == "":
        raise UserError("the folder of images '' is empty: give its path, or . for the current folder")
    return list_place(os.path.expanduser(settings.place), volumes=settings.slices is not None)


def _load_scenes(split: str | None, exact_split: bool, settings: SourceSettings) -> datasets.Dataset:
    if split not in scenes.COUNTS:
        raise NoSplit(f"{scenes.NAME} has no split {split!r}: it has {', '.join(scenes.COUNTS)}")
    garments, _ = _load_folder(list_place(BUNDLED), split, exact_split, replace(settings, problem_type=None))
    return scenes.scenes(still_encoded(garments, "image"), split)


def _load_from_hub(
    dataset_name: str, dataset_config_name: str | None, split: str | None, cache_dir: str | None
) -> datasets.Dataset:
    if Path(dataset_name).is_dir():
        raise UserError(f"dataset_name {dataset_name!r} is a folder here: give it as --train_dir")
    hub_id = NAMED.get(dataset_name, dataset_name)
    if "/" not in hub_id:
        near = difflib.get_close_matches(dataset_name, [*NAMED, "fashion_mnist", scenes.NAME], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give {', '.join(NAMED)}, fashion_mnist or a Hub id"
        raise UserError(f"dataset_name {dataset_name!r} is not known: {hint}")
    try:
        dataset = datasets.load_dataset(hub_id, dataset_config_name, split=split, cache_dir=cache_dir)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        kind = NoSplit if "Unknown split" in str(error) else UserError
        part = f", split {split!r}" if split else ""
        raise kind(f"data set {hub_id!r}{part}: {' '.join(str(error).split())}") from error
    return dataset if split is not None else dataset[only_split(hub_id, list(dataset))]


def _load_folder(
    listing: Listing, split: str | None, exact: bool, settings: SourceSettings
) -> tuple[datasets.Dataset, Listing]:
    """The data set of a split, and the listing of its files with what is left out."""
    if is_saved(listing):
        return load_saved(listing.folder, split), Listing(listing.folder)
    if not listing.parquet and not listing.images:
        nothing = str(listing) or ("only metadata" if listing.metadata else "empty")
        raise UserError(f"folder {listing.folder!r} has no images ({nothing}): give one with image or parquet files")
    if listing.parquet and (not listing.images or holds_images(listing)):
        dataset = load_parquet(listing, split, settings.cache)
        listing.leave_out(len(listing.images) + len(listing.metadata) + len(listing.streamed), "beside parquet files")
        return dataset, replace(listing, images=listing.images[:0])
    images = listing.without_masks()
    if settings.mask_dir:
        images = images.without_folder(os.path.abspath(os.path.expanduser(settings.mask_dir)))
    part = all_splits(images) if split is None else choose_split(images, split, exact)
    part.leave_out(len(part.parquet), ".parquet (no column of images)")
    part.leave_out(len(part.streamed), "shards beside images")
    if not settings.with_masks or part.metadata:
        return image_folder(part), part
    part = masks_not_left_out(part)
    masks = masks_in(settings.mask_dir, settings.slices is not None) if settings.mask_dir else masks_beside(listing)
    return with_mask_column(image_folder(part), part, masks), part


def find_image_column(features: datasets.Features, name: str | None, masks: str | None = None) -> str:
    """The image column `name`, or the only image column beside that of the `masks`."""
    columns = [column for column, feature in features.items() if isinstance(feature, (datasets.Image, *ARRAYS))]
    if name is not None:
        if name in columns:
            return name
        raise UserError(
            f"image_column_name {name!r} is not a column of images: those are {', '.join(columns) or 'none'}"
        )
    if len(columns) > 1:
        columns = [column for column in columns if column.lower() not in MASK_COLUMNS and column != masks]
    if len(columns) != 1:
        names = ", ".join(columns or features)
        raise UserError(f"{len(columns)} columns of images, in {names}: name one with --image_column_name")
    return columns[0]


def find_label_column(features: datasets.Features, name: str | None) -> str | None:
    """The label column `name`, or the only column of classes or lists of classes; `fine_label` of CIFAR-100's two.
    Else `label` or `labels`, whatever it holds. None without labels."""
    if name is not None:
        if name in features:
            return name
        raise UserError(f"label_column_name {name!r} is not a column: those are {', '.join(features)}")
    columns = [
        column
        for column, feature in features.items()
        if isinstance(getattr(feature, "feature", feature), datasets.ClassLabel)  # of a list, what it holds
    ]
    if "fine_label" in columns:
        return "fine_label"
    usual = [column for column in ("label", "labels") if column in features]
    usual = [column for column in usual if not isinstance(features[column], (datasets.Image, *ARRAYS))]  # masks
    return columns[0] if len(columns) == 1 else usual[0] if usual else None
