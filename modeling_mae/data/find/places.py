"""Any images that a person or a program names -> Source: a path, a URL pattern, a data set's name, Python objects."""

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import datasets
from PIL import Image

from ...errors import UserError
from ..read.endings import image_endings
from ..stream.formats import FORMATS
from ..stream.shard_cache import is_remote
from .sources import NAMED, Source, SourceSettings, find_image_column, find_label_column, load_source, still_encoded


Place: TypeAlias = str | os.PathLike | datasets.Dataset | Sequence[str | os.PathLike | Image.Image]
PATTERN_SIGNS = "*?[{"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # that PNG keeps as they are
TIFF_MODES = ("I", "F", "CMYK")


def open_place(place: Place, split: str | None = None, settings: SourceSettings | None = None) -> Source:
    """The images at `place`, still encoded.

    A path is a folder of images or of parquet files, an image, a parquet file or a tar file. A URL, a pattern of
    shards and a folder of tar files are read as a stream; with `streaming` other shards are, too. Any other word is a
    data set by name or a Hub id. A list holds paths and PIL images. `split` None takes all images of a path. The
    `settings` name no place.

    Raises:
        UserError: there is no such place or split, or it is unclear which images are meant.
    """
    settings = settings or SourceSettings()
    if isinstance(place, (str, os.PathLike)):
        return _open_word(os.path.expanduser(os.fspath(place)), split, settings)
    if isinstance(place, (datasets.DatasetDict, datasets.IterableDatasetDict, datasets.IterableDataset)):
        raise UserError(f"{type(place).__name__} is not one set of images: give one split of it, not streamed")
    if not isinstance(place, datasets.Dataset):
        dataset = _listed(place)
        return _of_dataset(dataset, f"{len(dataset):,} images", replace(settings, image_column_name="image"))
    return _of_dataset(place, "a data set", settings)


def _open_word(word: str, split: str | None, settings: SourceSettings) -> Source:
    ending = os.path.splitext(word)[1].lower()
    folder, stream = replace(settings, train_dir=word), replace(settings, train_dir=word, streaming=True)
    if is_remote(word) or (any(sign in word for sign in PATTERN_SIGNS) and not os.path.exists(word)):
        return load_source(stream, split)
    if os.path.exists(word):
        return load_source(stream if settings.streaming else folder, split)
    begins_here = "/" in word and os.path.isdir(word.partition("/")[0] or "/")
    if begins_here or word.startswith(".") or ending in (*FORMATS, *image_endings()) or word.count("/") > 1:
        return load_source(replace(folder, streaming=False), split)  # raises: it says what there is
    return load_source(replace(settings, dataset_name=word), split)


def _of_dataset(dataset: datasets.Dataset, name: str, settings: SourceSettings) -> Source:
    if settings.slices is not None:
        raise UserError(f"slices {settings.slices!r} are of files in a folder: give its path")
    if not len(dataset):
        raise UserError("there are no images: give some")
    image_column = find_image_column(dataset.features, settings.image_column_name)
    label_column = find_label_column(dataset.features, settings.label_column_name)
    return Source(still_encoded(dataset.with_format(None), image_column), image_column, label_column, name)


def _listed(images: Sequence) -> datasets.Dataset:
    cells: list[dict[str, bytes | str | None]] = []
    for image in images:
        if isinstance(image, Image.Image):
            cells.append({"bytes": _encoded(image), "path": None})
        elif isinstance(image, (str, os.PathLike)):
            cells.append({"bytes": None, "path": os.path.expanduser(os.fspath(image))})
        else:
            raise UserError(f"{type(image).__name__} is not an image: give paths or PIL images")
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": cells}, features=features)


def _encoded(image: Image.Image) -> bytes:
    """The pixels as they are, without loss. A turn that EXIF asks for is the caller's to do, as in transformers."""
    if image.mode not in (*PNG_MODES, *TIFF_MODES):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    if image.mode in PNG_MODES:
        image.save(buffer, "PNG", compress_level=1, exif=b"")
    else:
        image.save(buffer, "TIFF")
    return buffer.getvalue()


def described(place: Place, **options) -> dict | None:
    """What `open_place` takes to open the same images later, as JSON can hold it; None of Python objects."""
    if not isinstance(place, (str, os.PathLike)):
        return None
    word = os.path.expanduser(os.fspath(place))
    is_path = not is_remote(word) and word not in NAMED and (os.path.exists(word) or "{" in word or "*" in word)
    return {"place": os.path.abspath(word) if is_path else word, **{key: v for key, v in options.items() if v}}
