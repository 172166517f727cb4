"""Several folders, or several streams, as one source, with the shares that training takes of them."""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import datasets
import numpy as np

from ...errors import UserError
from ..stream.formats.parquet import ARRAYS
from ..stream.shard_index import fingerprint_of
from ..stream.shards import ShardedRows
from .excluded import without_excluded
from .slices import merged
from .sources import EVAL_SPLITS, Source, SourceSettings, load_eval_split, load_source
from .splits import NoSplit


IMAGE = "image"  # the column of the images, whatever it is called in each source


def load_training_source(settings: SourceSettings) -> Source:
    """The images to train on, still encoded: `train_split` of `train_dir` or `dataset_name`; of several folders all
    images. `mix` holds their shares of the training.

    Raises:
        UserError: as `load_source`, or the images of the folders cannot stand beside each other.
    """
    most = settings.max_train_samples
    if not isinstance(settings.train_dir, list):
        if settings.exclude is None:
            return load_source(settings, settings.train_split, max_samples=most)
        whole = [load_source(settings, settings.train_split)]
        return _spread(without_excluded(whole, settings.exclude, settings.with_masks), most)[0]
    parts = [load_source(replace(settings, train_dir=place), settings.train_split) for place in settings.train_dir]
    if settings.exclude is not None:
        parts = without_excluded(parts, settings.exclude, settings.with_masks)
    return join(_spread(parts, most), settings.mix)


def load_eval_source(settings: SourceSettings) -> tuple[Source, str]:
    """(source, split) to evaluate on: `validation_dir`, else `eval_split`, else the first of `EVAL_SPLITS` that
    exists; of several folders all images of the first split that each of them has.

    Raises:
        NoSplit: there is no such split.
        UserError: as `load_training_source`.
    """
    most, alone = settings.max_eval_samples, bool(settings.validation_dir)
    if alone:
        place = settings.validation_dir
        settings = replace(settings, train_dir=place, dataset_name=None, dataset_config_name=None)
    if not isinstance(settings.train_dir, list):
        return load_eval_split(settings, settings.eval_split, max_samples=most, only_for_evaluation=alone)
    places = [replace(settings, train_dir=place) for place in settings.train_dir]
    missing: NoSplit | None = None
    for candidate in [settings.eval_split] if settings.eval_split else EVAL_SPLITS:
        try:
            parts = [load_eval_split(place, candidate)[0] for place in places]
            return join(_spread(parts, most), None), candidate
        except NoSplit as error:
            missing = error
    if settings.eval_split and missing:
        raise missing
    raise NoSplit(
        f"{', '.join(map(repr, settings.train_dir))} have no split {', '.join(EVAL_SPLITS)} that is in all of them: "
        "give --eval_split, or other images with --validation_dir"
    ) from missing


def join(parts: list[Source], mix: list[float] | None) -> Source:
    """The images of `parts` one after another.

    Raises:
        UserError: some are encoded images and others arrays, or arrays of another shape.
    """
    shares, names = None, [part.name for part in parts]
    if mix is not None:
        shares = exact_shares(mix)
        names = [f"{name} ({float(share):.3g})" for name, share in zip(names, shares, strict=True)]
    elsewhere = sum(part.elsewhere for part in parts)
    left_out = "; ".join(f"{part.name}: {part.left_out}" for part in parts if part.left_out)
    dataset = (
        JoinedShards(parts) if all(isinstance(part.dataset, ShardedRows) for part in parts) else _concatenated(parts)
    )
    volumes = merged([part.volumes for part in parts if part.volumes])
    source = Source(dataset, IMAGE, None, " + ".join(names), left_out, parts=parts, shares=shares, elsewhere=elsewhere)
    first = parts[0]
    source = replace(source, excluded=first.excluded, volumes=volumes, max_image_pixels=first.max_image_pixels)
    return replace(source, mask_column=first.mask_column, mask_names=first.mask_names)  # each reads its own


def exact_shares(mix: Sequence[float]) -> tuple[Fraction, ...]:
    """The weights as parts of 1. They count as they are written: 0.7 is seven tenths."""
    exact = [Fraction(str(weight)) for weight in mix]
    return tuple(weight / sum(exact) for weight in exact)


def _spread(parts: list[Source], count: int | None) -> list[Source]:
    """At most `count` images, evenly spread over all parts; None takes all.

    Raises:
        UserError: a part has none of them.
    """
    ends = np.cumsum([len(part) for part in parts])
    if count is None or count >= ends[-1]:
        return parts
    chosen = np.linspace(0, ends[-1] - 1, count).round().astype(int)
    fewer = []
    for part, end in zip(parts, ends.tolist(), strict=True):
        rows = chosen[(chosen >= end - len(part)) & (chosen < end)] - (end - len(part))
        if not len(rows):
            raise UserError(f"{count} samples leave none of {part.name}: give more with --max_train_samples")
        fewer.append(replace(part, dataset=_files_of(part).select(rows)))
    return fewer


def sample(source: Source, count: int) -> Source:
    """At most about `count` images of a source, evenly spaced, of each part as many. A stream stays one."""
    if source.parts:
        return join([sample(part, max(1, count // len(source.parts))) for part in source.parts], None)
    if len(source) <= count:
        return source
    if isinstance(source.dataset, ShardedRows):
        return replace(source, dataset=SomeRows(source.dataset, source.dataset.spread(count)))
    rows = np.linspace(0, len(source) - 1, count).astype(int)
    return replace(source, dataset=source.dataset.select(rows))


def _files_of(part: Source) -> datasets.Dataset:
    if isinstance(part.dataset, ShardedRows):
        raise UserError(f"{part.name} is read as a stream, which joins streams only, and whole: unpack it")
    return part.dataset


def _concatenated(parts: list[Source]) -> datasets.Dataset:
    kinds = [part.dataset.features[part.image_column] for part in parts]
    for part, kind in zip(parts, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"{parts[0].name} holds {_describe(kinds[0])} and {part.name} {_describe(kind)}: bring them into one "
                "form, or train on one of them"
            )
    columns = [_files_of(part).with_format(None).select_columns([part.image_column]) for part in parts]
    columns = [
        column.rename_column(part.image_column, IMAGE) if part.image_column != IMAGE else column
        for part, column in zip(parts, columns, strict=True)
    ]
    dataset = datasets.concatenate_datasets(columns)
    if isinstance(kinds[0], ARRAYS):
        return dataset.with_format("numpy", [IMAGE], dtype=np.dtype(kinds[0].dtype))
    return dataset


def _describe(kind) -> str:
    return f"arrays of shape {kind.shape} and {kind.dtype}" if isinstance(kind, ARRAYS) else "encoded images"


class JoinedShards(ShardedRows):
    """The rows of several streams one after another. Of their columns it has the images alone."""

    def __init__(self, parts: list[Source]):
        self.parts: list[ShardedRows] = [part.dataset for part in parts]
        self.image_column, self.features = IMAGE, datasets.Features({IMAGE: datasets.Image(decode=False)})
        self.shards = [shard for part in self.parts for shard in part.shards]
        self.units = [unit for part in self.parts for unit in part.units]
        self.counts = tuple(count for part in self.parts for count in part.counts)
        self.offsets = [0, *itertools.accumulate(self.counts)]
        self.starts = [0, *itertools.accumulate(map(len, self.parts))]  # of the parts
        self.fingerprint = fingerprint_of(self.shards)

    def __getstate__(self) -> dict:
        return self.__dict__  # each part leaves out its open files itself

    def __getitem__(self, row: Any) -> Any:
        part = bisect.bisect_right(self.starts, row) - 1
        (cell,) = self.parts[part][row - self.starts[part]].values()
        return {IMAGE: cell}


class SomeRows(ShardedRows):
    """The chosen rows of a stream."""

    def __init__(self, rows: ShardedRows, chosen: list[int]):
        self.rows, self.chosen, self.features, self.image_column = rows, chosen, rows.features, rows.image_column
        self.counts, self.offsets = (len(chosen),), [0, len(chosen)]

    def of_column(self, column: str) -> "SomeRows":
        return SomeRows(self.rows.of_column(column), self.chosen)

    def __getstate__(self) -> dict:
        return self.__dict__

    def __getitem__(self, row: Any) -> Any:
        return self.rows[self.chosen[row]]
