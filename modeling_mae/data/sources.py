"""Where images come from: a data set by name, a Hub id, a folder of images or parquet files, the bundled images."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..errors import UserError


NAMED = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "stl10": "jxie/stl10",
    "imagenet": "ILSVRC/imagenet-1k",
}
BUNDLED = Path(__file__).parents[2] / "data" / "fashion_mnist"
EVAL_SPLITS = ("validation", "val", "test")  # the first that exists is evaluated on


class NoSplit(UserError):
    """The data set lacks the split that was asked for."""


@dataclass
class Source:
    """One split of a data set. The images are still encoded. `name` is for people."""

    dataset: datasets.Dataset
    image_column: str
    label_column: str | None
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the label column carries them."""
        label = self.dataset.features[self.label_column] if self.label_column else None
        return list(label.names) if isinstance(label, datasets.ClassLabel) and label.names else None


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
    """One split of `data_dir` (a folder) or `dataset_name` (a known name or a Hub id); the bundled images by default.

    Raises:
        NoSplit: the data set has no such split.
        UserError: the path, name or column does not exist, or there are no images.
    """
    if data_dir is None and dataset_name in (None, "fashion_mnist"):
        data_dir, dataset_name = str(BUNDLED), "fashion_mnist"
    if data_dir is not None:
        name = dataset_name or Path(data_dir).name
        dataset = _load_folder(Path(data_dir), split, cache_dir)
    else:
        name = dataset_name
        dataset = _load_from_hub(dataset_name, dataset_config_name, split, cache_dir)
    image_column = find_image_column(dataset.features, image_column_name)
    label_column = find_label_column(dataset.features, label_column_name)
    if max_samples is not None and max_samples < len(dataset):
        # Evenly spread: many sets are sorted by class, and their first images would all be of one class.
        dataset = dataset.select(np.linspace(0, len(dataset) - 1, max_samples).round().astype(int))
    if not len(dataset):
        raise UserError(f"{name}, split {split!r}, has no images: give another split or data set")
    dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    return Source(dataset, image_column, label_column, name)


def load_eval_source(split: str | None, only_for_evaluation: bool = False, **options) -> tuple[Source, str]:
    """(source, split) to evaluate on: `split`, or the first of `EVAL_SPLITS` that exists.

    `options` are `load_source`'s. A folder that is `only_for_evaluation` needs no splits: without them all of it is
    taken.

    Raises:
        NoSplit: there is no such split.
        UserError: as `load_source`.
    """
    candidates = [split] if split else [*EVAL_SPLITS, *["train"] * only_for_evaluation]
    for candidate in candidates:
        try:
            return load_source(split=candidate, **options), candidate
        except NoSplit as error:
            missing = error
    if split:
        raise missing
    place = options.get("data_dir") or options.get("dataset_name")
    raise NoSplit(
        f"{place!r} has no split {', '.join(EVAL_SPLITS)} to evaluate on: give --eval_split, or "
        "other images with --validation_dir"
    ) from missing


def _load_from_hub(
    dataset_name: str, dataset_config_name: str | None, split: str, cache_dir: str | None
) -> datasets.Dataset:
    if Path(dataset_name).is_dir():
        raise UserError(f"dataset_name {dataset_name!r} is a folder here: give it as --train_dir")
    hub_id = NAMED.get(dataset_name, dataset_name)
    if "/" not in hub_id:
        near = difflib.get_close_matches(dataset_name, [*NAMED, "fashion_mnist"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give {', '.join(NAMED)}, fashion_mnist or a Hub id"
        raise UserError(f"dataset_name {dataset_name!r} is not known: {hint}")
    try:
        return datasets.load_dataset(hub_id, dataset_config_name, split=split, cache_dir=cache_dir)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        kind = NoSplit if "Unknown split" in str(error) else UserError
        raise kind(f"data set {hub_id!r}, split {split!r}: {' '.join(str(error).split())}") from error


def _load_folder(folder: Path, split: str, cache_dir: str | None) -> datasets.Dataset:
    if not folder.is_dir():
        parent = next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
        near = difflib.get_close_matches(folder.name, [path.name for path in parent.iterdir()], n=1)
        hint = f"did you mean {str(parent / near[0])!r}?" if near else f"{str(parent)!r} exists"
        raise UserError(f"folder {str(folder)!r} does not exist: {hint}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    parquet = [path for path in files if path.suffix == ".parquet"]
    if not parquet and not any(path.suffix.lower() in ImageFolder.EXTENSIONS for path in files):
        endings = sorted({path.suffix or path.name for path in files})
        content = f"only {', '.join(endings[:5])} files" if files else "empty"
        raise UserError(f"folder {str(folder)!r} has no images ({content}): give one with image or parquet files")
    kind = "parquet" if parquet else "imagefolder"
    files_of_split = _parquet_files(folder, parquet, split) if parquet else _image_pattern(folder, split)
    try:
        return datasets.load_dataset(kind, data_files={split: files_of_split}, split=split, cache_dir=cache_dir)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"folder {str(folder)!r} cannot be read as {kind}: {reason[:200]}") from error


def _parquet_files(folder: Path, files: list[Path], split: str) -> list[str]:
    """The files whose path names `split`; all of them for training where no file names a split."""
    chosen = [path for path in files if _names_split(path.relative_to(folder), split)]
    has_splits = any(_names_split(path.relative_to(folder), name) for path in files for name in EVAL_SPLITS)
    if not chosen and (split != "train" or has_splits):
        names = ", ".join(str(path.relative_to(folder)) for path in files[:5])
        raise NoSplit(f"folder {str(folder)!r} has no parquet file of split {split!r}: it has {names}")
    return sorted(map(str, chosen or files))


def _image_pattern(folder: Path, split: str) -> str:
    """The pattern of the split's images: in its folder, or in all of `folder` where no folder is a split."""
    splits = {path.name for path in folder.iterdir() if path.is_dir()} & {"train", *EVAL_SPLITS}
    if split not in (splits or {"train"}):
        content = f"only {', '.join(sorted(splits))}" if splits else "no folders of splits"
        raise NoSplit(f"folder {str(folder)!r} has no split {split!r}, {content}: give another with the images")
    return str((folder / split if split in splits else folder) / "**")


def _names_split(path: Path, split: str) -> bool:
    """Whether the path has `split` as a word of its own: `test/0000.parquet`, `test-00000.parquet`."""
    return re.search(rf"(?<![a-z]){re.escape(split)}(?![a-z])", str(path).lower()) is not None


def find_image_column(features: datasets.Features, name: str | None) -> str:
    """The image column `name`, or the only image column."""
    columns = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name is not None:
        if name in columns:
            return name
        raise UserError(
            f"image_column_name {name!r} is not a column of images: those are {', '.join(columns) or 'none'}"
        )
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
    return columns[0] if len(columns) == 1 else usual[0] if usual else None
