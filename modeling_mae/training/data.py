"""Images from `datasets` sources, as uint8 batches in an order that is a pure function of the seed."""

import copy
import difflib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .augment import CenterCrop, RandomResizedCrop
from .decode import BadImage, decode


NAMED = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "stl10": "jxie/stl10",
    "imagenet": "ILSVRC/imagenet-1k",
}
BUNDLED = Path(__file__).parents[2] / "data" / "fashion_mnist"


EVAL_SPLITS = ("validation", "val", "test")


class NoSplit(ValueError):
    """A data set without the split that was asked for."""


@dataclass
class Source:
    """A split whose images are still encoded. `name` is for people."""

    dataset: datasets.Dataset
    image_column: str
    label_column: str | None
    class_names: list[str] | None
    name: str

    def __len__(self) -> int:
        return len(self.dataset)


def load_source(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    data_dir: str | None = None,
    split: str = "train",
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    max_samples: int | None = None,
    cache_dir: str | None = None,
) -> Source:
    """A split of a data set by name, of a Hub id, of a folder of images or parquet files, or of the bundled images.

    Raises:
        FileNotFoundError, ValueError: for a path, name, split or column that is not there, or images that are not
        found;
            one line that names the value.
    """
    if data_dir is None and dataset_name in (None, "fashion_mnist"):
        data_dir, dataset_name = str(BUNDLED), "fashion_mnist"
    if data_dir is not None:
        name = dataset_name or Path(data_dir).name
        loaded = _load_folder(Path(data_dir), split, cache_dir)
    else:
        name = dataset_name
        if Path(dataset_name).is_dir():
            raise ValueError(f"dataset_name {dataset_name!r} is a folder here: give it as --train_dir")
        hub_id = NAMED.get(dataset_name, dataset_name)
        if "/" not in hub_id:
            near = difflib.get_close_matches(dataset_name, [*NAMED, "fashion_mnist"], n=1)
            hint = (
                f": did you mean {near[0]!r}?"
                if near
                else f": those are {', '.join(NAMED)}, fashion_mnist, or a Hub id"
            )
            raise ValueError(f"dataset_name {dataset_name!r} is not known{hint}")
        try:
            loaded = datasets.load_dataset(hub_id, dataset_config_name, split=split, cache_dir=cache_dir)
        except ValueError as error:
            kind = NoSplit if "Unknown split" in str(error) else ValueError
            raise kind(f"data set {hub_id!r}, split {split!r}: {' '.join(str(error).split())}") from error
    image_column = find_image_column(loaded.features, image_column_name)
    label_column = find_label_column(loaded.features, label_column_name)
    label = loaded.features[label_column] if label_column else None
    class_names = list(label.names) if isinstance(label, datasets.ClassLabel) else None
    if max_samples is not None and max_samples < len(loaded):
        # Evenly spread: many sets are sorted by class, and the first images of all would be of one.
        loaded = loaded.select(np.linspace(0, len(loaded) - 1, max_samples).round().astype(int))
    if not len(loaded):
        raise ValueError(f"{name}, split {split!r}, has no images")
    loaded = loaded.cast_column(image_column, datasets.Image(decode=False))
    return Source(loaded, image_column, label_column, class_names, name)


def load_eval_source(
    dataset_name: str | None,
    dataset_config_name: str | None,
    data_dir: str | None,
    split: str | None,
    held_out: bool = False,
    **options,
) -> tuple[Source, str]:
    """(source, split): `load_source` of `split`, by default of the first of `EVAL_SPLITS` that there is; of a folder
    that is all `held_out`, where it has none of them, of everything.

    Raises:
        FileNotFoundError, ValueError: as `load_source`; when there is no such split.
    """
    for name in [split] if split else [*EVAL_SPLITS, *["train"] * held_out]:
        try:
            return load_source(dataset_name, dataset_config_name, data_dir, name, **options), name
        except NoSplit as error:
            last = error
    if split:
        raise last
    where = data_dir or dataset_name
    raise NoSplit(
        f"{where!r} has no split {', '.join(EVAL_SPLITS)} to evaluate on: give --eval_split, or other images with "
        "--validation_dir"
    ) from last


def _load_folder(folder: Path, split: str, cache_dir: str | None) -> datasets.Dataset:
    if not folder.is_dir():
        parent = next(p for p in [folder, *folder.absolute().parents] if p.is_dir())
        near = difflib.get_close_matches(folder.name, [p.name for p in parent.iterdir()], n=1)
        hint = f"did you mean {str(parent / near[0])!r}?" if near else f"{str(parent)!r} exists"
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist: {hint}")
    files = [p for p in folder.rglob("*") if p.is_file()]
    if any(p.suffix == ".parquet" for p in files):
        kind, extensions = "parquet", {".parquet"}
    else:
        kind = "imagefolder"
        extensions = set(ImageFolder.EXTENSIONS)
    found = [p for p in files if p.suffix.lower() in extensions]
    if not found:
        seen = sorted({p.suffix or p.name for p in files})
        what = f"only {', '.join(seen[:5])} files" if files else "empty"
        raise FileNotFoundError(f"folder {str(folder)!r} has no images ({what}): give one with image or parquet files")
    try:
        if kind == "parquet":
            chosen = [p for p in found if _names_split(p.relative_to(folder), split)]
            others = any(_names_split(p.relative_to(folder), other) for p in found for other in EVAL_SPLITS)
            if not chosen and (split != "train" or others):
                names = ", ".join(str(p.relative_to(folder)) for p in found[:5])
                raise NoSplit(f"folder {str(folder)!r} has no parquet file of split {split!r}: it has {names}")
            files = {split: sorted(map(str, chosen or found))}
            return datasets.load_dataset("parquet", data_files=files, split=split, cache_dir=cache_dir)
        splits = {p.name for p in folder.iterdir() if p.is_dir()} & {"train", *EVAL_SPLITS}
        root = folder / split if split in splits else folder
        if split not in (splits or {"train"}):
            what = f"only {', '.join(sorted(splits))}" if splits else "no folders of splits"
            raise NoSplit(f"folder {str(folder)!r} has no split {split!r}, {what}: give another with the images")
        # Given as train, whatever its name: the split's folder is chosen already.
        pattern = {"train": str(root / "**")}
        return datasets.load_dataset("imagefolder", data_files=pattern, split="train", cache_dir=cache_dir)
    except datasets.exceptions.DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"folder {str(folder)!r} cannot be read as {kind}: {reason[:200]}") from error


def _names_split(path: Path, split: str) -> bool:
    """As a word of its own, in the file's or a folder's name: `test/0000.parquet`, `test-00000.parquet`."""
    return re.search(rf"(?<![a-z]){re.escape(split)}(?![a-z])", str(path).lower()) is not None


def find_image_column(features: datasets.Features, name: str | None) -> str:
    """The image column by name, or the only one there is."""
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name is not None:
        if name in images:
            return name
        raise ValueError(
            f"image_column_name {name!r} is not a column of images: those are {', '.join(images) or 'none'}"
        )
    if len(images) != 1:
        columns = ", ".join(images or features)
        raise ValueError(f"{len(images)} columns of images, in {columns}: say which with --image_column_name")
    return images[0]


def find_label_column(features: datasets.Features, name: str | None) -> str | None:
    """The label column by name, or the only one there is, or the finer of CIFAR-100's two; None without labels."""
    if name is not None:
        if name in features:
            return name
        raise ValueError(f"label_column_name {name!r} is not a column: those are {', '.join(features)}")
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if "fine_label" in labels:
        return "fine_label"
    return labels[0] if len(labels) == 1 else "label" if "label" in features else None


def _labels(source: Source) -> torch.Tensor | None:
    """Class numbers ``(images,)``; None where not every image has one."""
    if source.label_column is None or source.class_names is None:
        return None
    values = source.dataset[source.label_column][:]  # a list: the column itself reads the file for each element
    labelled = all(value is not None and value >= 0 for value in values)
    return torch.tensor(values, dtype=torch.int64) if labelled else None


class MemoryImages(Dataset):
    """All images decoded once, ``images (n, channels, height, width)`` uint8; batches are cropped on the device."""

    in_memory = True

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        crop: RandomResizedCrop | CenterCrop,
        bad: torch.Tensor | None = None,
    ):
        self.images, self.labels, self.crop = images, labels, crop
        self.bad = torch.zeros(len(images), dtype=torch.bool) if bad is None else bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict:
        """`pairs` of (epoch, index), all of one epoch."""
        indices = [index for _, index in pairs]
        boxes, flips = self.crop(pairs[0][0], indices, *self.images.shape[2:])
        batch = {"images": self.images[indices], "boxes": boxes, "flips": flips}
        return batch if self.labels is None else {**batch, "labels": self.labels[indices]}


class FileImages(Dataset):
    """Images decoded and cropped to `size` when asked for, in loading processes."""

    in_memory = False

    def __init__(
        self,
        source: Source,
        crop: RandomResizedCrop | CenterCrop,
        size: tuple[int, int],
        num_channels: int,
        on_bad_image: str = "error",
        labels: torch.Tensor | None = None,
    ):
        self.source, self.crop, self.size = source, crop, size
        self.num_channels, self.on_bad_image = num_channels, on_bad_image
        self.labels = _labels(source) if labels is None else labels
        self.bad = torch.zeros(len(source), dtype=torch.bool).share_memory_()  # loading processes write into it

    def __len__(self) -> int:
        return len(self.source)

    def decode(self, index: int) -> tuple[torch.Tensor, int]:
        """(image, its index): of the next readable image in place of a bad one when those are skipped."""
        for step in range(len(self)):
            i = (index + step) % len(self)
            cell = self.source.dataset[i][self.source.image_column]
            try:
                return decode(cell["bytes"], cell["path"], self.num_channels), i
            except BadImage as error:
                if self.on_bad_image == "error":
                    raise BadImage(f"{error}: mend or remove it, or go on without it by --on_bad_image skip") from None
                if not self.bad[i]:
                    self.bad[i] = True
                    print(f"skipped    {error}", file=sys.stderr, flush=True)
        raise BadImage(f"none of the {len(self)} images of {self.source.name} can be read")

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict:
        """`pairs` of (epoch, index), all of one epoch."""
        decoded, indices = zip(*(self.decode(index) for _, index in pairs), strict=True)
        heights, widths = ([image.shape[axis] for image in decoded] for axis in (1, 2))
        boxes, flips = self.crop(pairs[0][0], indices, heights, widths)
        images = []
        for image, box, flip in zip(decoded, boxes.tolist(), flips.tolist(), strict=True):
            image = F.resized_crop(image, *box, list(self.size), InterpolationMode.BICUBIC, antialias=True)
            images.append(image.flip(2) if flip else image)
        batch = {"images": torch.stack(images)}
        return batch if self.labels is None else {**batch, "labels": self.labels[list(indices)]}


def make_images(
    source: Source,
    crop: RandomResizedCrop | CenterCrop,
    size: tuple[int, int],
    num_channels: int,
    on_bad_image: str = "error",
    memory_budget: int | None = None,
    labels: torch.Tensor | None = None,
) -> MemoryImages | FileImages:
    """In memory when all images have one size and take at most `memory_budget` bytes (a quarter of the free memory, 8
    GiB at most, shared among this machine's processes), else from their files. `labels (images,)` in place of the
    source's own."""
    files = FileImages(source, crop, size, num_channels, on_bad_image, labels)
    budget = _memory_budget() if memory_budget is None else memory_budget
    sample = [files.decode(i)[0] for i in np.linspace(0, len(files) - 1, min(16, len(files))).astype(int).tolist()]
    shapes = {tuple(image.shape) for image in sample}
    if len(shapes) > 1 or len(files) * sample[0].numel() > budget:
        return files
    images = torch.empty(len(files), *sample[0].shape, dtype=torch.uint8)
    labels = None if files.labels is None else files.labels.clone()
    rows = source.dataset.select_columns([source.image_column])
    for start in range(0, len(files), 1000):
        for i, cell in enumerate(rows[start : start + 1000][source.image_column], start):
            try:
                image = decode(cell["bytes"], cell["path"], num_channels)
            except BadImage:
                image, other = files.decode(i)
                if labels is not None:
                    labels[i] = files.labels[other]
            if image.shape != images.shape[1:]:
                return files
            images[i] = image
    return MemoryImages(images, labels, crop, files.bad)


def _memory_budget() -> int:
    free = 32 << 30  # where the system does not tell: macOS, Windows
    if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(8 << 30, free // 4) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def count_bad(accelerator, images: MemoryImages | FileImages) -> int:
    """Images that were skipped by any process."""
    return int((accelerator.reduce(images.bad.int().to(accelerator.device), "sum") > 0).sum())


def with_crop(images: MemoryImages | FileImages, crop: RandomResizedCrop | CenterCrop) -> MemoryImages | FileImages:
    """The same images under another crop, sharing what is in memory."""
    other = copy.copy(images)
    other.crop = crop
    return other


class Part(Dataset):
    """The images of another data set at `places`; the crop of an image stays what it is in the whole."""

    def __init__(self, images: MemoryImages | FileImages, places: np.ndarray):
        self.images, self.places = images, places
        self.labels = images.labels[torch.from_numpy(places)]

    @property
    def in_memory(self) -> bool:
        return self.images.in_memory

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict:
        return self.images.__getitems__([(epoch, int(self.places[index])) for epoch, index in pairs])


class EpochBatches(Sampler):
    """Lists of (epoch, index) for the micro-batches of updates `start_update` ... `updates` - 1, over all epochs.

    Epoch e goes through a permutation that depends on (seed, e) alone; what does not fill its last update is left out,
    another rest in each epoch. Accelerate deals the micro-batches to the processes in turn.

    Raises:
        ValueError: when an epoch has no whole update, or `batch_size` does not divide `total_batch_size`.
    """

    drop_last = True

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        total_batch_size: int,
        seed: int,
        start_update: int,
        updates: int,
    ):
        if total_batch_size > num_images:
            raise ValueError(
                f"total_batch_size {total_batch_size} is more than the {num_images} images there are: "
                "give a smaller one"
            )
        if total_batch_size % batch_size:
            raise ValueError(f"batches of {batch_size} do not divide total_batch_size {total_batch_size}")
        self.num_images, self.batch_size, self.total_batch_size = num_images, batch_size, total_batch_size
        self.seed, self.start_update, self.updates = seed, start_update, updates

    def __len__(self) -> int:
        return (self.updates - self.start_update) * (self.total_batch_size // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.num_images // self.total_batch_size
        current = None
        for update in range(self.start_update, self.updates):
            epoch, place = divmod(update, per_epoch)
            if epoch != current:
                current, order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
            chosen = order[place * self.total_batch_size : (place + 1) * self.total_batch_size].tolist()
            for first in range(0, self.total_batch_size, self.batch_size):
                yield [(epoch, index) for index in chosen[first : first + self.batch_size]]


def measure_mean_std(images: MemoryImages | FileImages, samples: int = 2048) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, where white is 1, over evenly spaced images."""
    chosen = np.linspace(0, len(images) - 1, min(samples, len(images))).astype(int).tolist()
    count, total, squares = 0, 0.0, 0.0
    for i in chosen:
        image = images.images[i] if isinstance(images, MemoryImages) else images.decode(i)[0]
        values = image.double().flatten(1) / 255
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    std = (squares / count - mean**2).clamp(min=0).sqrt()
    # A channel of one value has nothing to scale by.
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) or 1.0 for v in std.tolist()]


def make_loader(images: MemoryImages | FileImages, batches: EpochBatches, num_workers: int) -> DataLoader:
    """Batches as the data set makes them. What lies in memory is cut in this process: a worker would only copy it."""
    workers = 0 if getattr(images, "in_memory", False) else num_workers
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_same,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )


def _same(batch: dict) -> dict:
    return batch
