"""Tables with a row for each image, in memory or as a file. Shared by `mae features` and `mae predict`."""

import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
import transformers
from accelerate import Accelerator

from ..checkpoint import Checkpoint
from ..data.find.places import Place, described, open_place
from ..data.find.row_names import RowNames
from ..data.read.limits import MOST_PIXELS
from ..data.serve.images import ImageSettings
from ..errors import UserError
from ..settings import settings as settings_of
from ..training.launch import loading_workers, make_accelerator
from ..words import counted
from .inputs import Inputs, ProgressBar, columns_of, describe_crop, names_checksum, open_inputs, weights_checksum
from .parts import WRITERS, Parts, batches_of_parts, differences, finished_settings, table_of


BATCH = 64  # images at a time; a ViT-L without gradients then fits into 8 GiB
PLACE = ("split", "dataset_config_name", "image_column_name", "label_column_name", "streaming", "cache_dir")


@dataclass(frozen=True)
class ApplySettings:
    """Which images a checkpoint is applied to, and how they are read.

    Raises:
        UserError: the batch size or the number of pixels is below 1.
    """

    split: str | None = None  # by default all images of a path
    dataset_config_name: str | None = None
    image_column_name: str | None = None
    label_column_name: str | None = None
    streaming: bool = False
    cache_dir: str | None = None
    on_bad_image: str = "error"  # or skip: name unreadable images and leave them out
    max_image_pixels: int = MOST_PIXELS  # larger files are bad images
    batch_size: int = BATCH  # images at a time
    num_workers: int | None = None  # processes that read images; by default one for each core, 0 for none

    def __post_init__(self):
        for name in ("batch_size", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is not at least 1")

    @property
    def place(self) -> dict[str, Any]:
        """The settings for `open_place`."""
        return {name: getattr(self, name) for name in PLACE}

    def described(self, images: Place) -> dict | None:
        """JSON from which the same images can be opened later. None for Python objects."""
        return described(images, **self.place)

    def open(
        self,
        checkpoint: Checkpoint,
        images: Place,
        accelerator: Accelerator | None = None,
        white: float | None = None,
        say: Callable[[str], None] = print,
    ) -> Inputs:
        """The images as `checkpoint` sees them. With `accelerator`, one process opens them before the others.

        Raises:
            UserError: as `open_place` and `open_inputs`.
        """
        with nullcontext() if accelerator is None else accelerator.main_process_first():
            source = open_place(images, **self.place)
        return open_inputs(checkpoint, source, settings=settings_of(ImageSettings, self), white=white, say=say)


@dataclass(frozen=True)
class Job:
    """A model, the images that it is applied to, and the columns to compute.

    `compute` returns tensors ``(images, ...)`` for ``pixel_values``. `finish` turns these into readable columns with
    the given `types`. `decides` are the settings that decide the values, besides checkpoint and images.
    """

    inputs: Inputs
    model: transformers.PreTrainedModel
    compute: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    decides: dict
    finish: Callable[[dict], dict] = lambda columns: columns
    types: dict[str, pyarrow.DataType] = field(default_factory=dict)

    def columns(self, settings: ApplySettings, progress: bool) -> dict[str, Any]:
        """The columns of all images, computed by this process."""
        accelerator = Accelerator()
        torch.nn.Module.to(self.model, accelerator.device)
        batches = [rows for part in batches_of_parts(len(self.inputs), settings.batch_size) for rows in part]
        bar, pieces = ProgressBar(len(self.inputs), progress), []
        workers = loading_workers(settings.num_workers)
        computed = columns_of(accelerator, self.inputs, batches, self.compute, workers)
        for rows, piece in zip(batches, computed, strict=True):
            pieces.append(piece)
            bar.advance(len(rows))
        bar.close()
        joined: dict[str, Any] = {}
        for name, first in pieces[0].items():
            parts = [piece[name] for piece in pieces]
            is_array = isinstance(first, np.ndarray)
            joined[name] = np.concatenate(parts) if is_array else [value for part in parts for value in part]
        return self.finish(joined)


@dataclass(frozen=True)
class Output:
    """The file to write, its format (None: by the file's ending), and whether it may replace an existing one."""

    output: str | Path
    to: str | None = None
    overwrite: bool = False

    def prepared(self, formats: tuple[str, ...]) -> Path:
        """Checks the file's path, which must end in one of `formats`, before any long work.

        Raises:
            UserError: the name is a URL or has another ending, or its folder cannot be written.
        """
        target = local_path(self.output)
        kinds = (self.to,) if self.to else formats
        if target.suffix[1:] not in kinds:
            raise UserError(f"{str(target)!r} must end in {' or '.join(f'.{kind}' for kind in kinds)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"folder {str(target.parent)!r} cannot be made ({error.strerror}): give another"
            ) from error
        if target.is_dir() or not os.access(target.parent, os.W_OK):
            raise UserError(f"{str(target)!r} cannot be written: give a path in a folder that you can write to")
        return target


def local_path(output: str | Path) -> Path:
    """The absolute path of a file to write.

    Raises:
        UserError: it is a URL.
    """
    if re.match(r"\w[\w+.-]+:/", str(output)):  # pathlib drops one of the two slashes
        raise UserError(f"output {str(output)!r} is a URL: give a path on this machine, and copy the file afterwards")
    return Path(output).expanduser().absolute()


def quiet_accelerator() -> Accelerator:
    """An Accelerator with the launcher's settings. From here on the libraries only report errors."""
    return make_accelerator(Path("."), [])


def absolute(checkpoint: str) -> str:
    """The folder's absolute path. A Hub id stays as it is."""
    return os.path.abspath(checkpoint) if os.path.isdir(checkpoint) else checkpoint


def write_rows(
    accelerator: Accelerator, job: Job, target: Path, overwrite: bool, settings: ApplySettings, about: dict
) -> None:
    """Compute the missing parts of the file `target` on all processes, and merge them. `about` goes into a parquet
    file's metadata.

    Raises:
        UserError: the file or parts of it exist, with other settings.
    """
    inputs, say = job.inputs, accelerator.print
    made_with = {
        "weights": weights_checksum(job.model),
        "images": f"{len(inputs):,}, {names_checksum(inputs.source)}",
        **{key: value for key, value in asdict(inputs.processing).items() if value is not None},
        "size": list(inputs.images.size),
        "on_bad_image": settings.on_bad_image,
        "batch_size": settings.batch_size,
        "precision": f"{accelerator.mixed_precision} on {accelerator.device.type}",
        **job.decides,
    }
    parts = Parts(accelerator, target, made_with, batches_of_parts(len(inputs), settings.batch_size))
    # Parts next to the file mean that a run with --overwrite was stopped, perhaps at its last step.
    if target.exists() and not overwrite and not parts.begun:
        refuse_other_file(target, made_with)
        say(f"finished   {target} was there already, made with the same settings")
        return
    what = f"{inputs.source.name}: {len(inputs):,}, {describe_crop(inputs)}{inputs.images.remarks}"
    say(f"images     {what}", flush=True)
    missing = parts.open(overwrite)
    if accelerator.is_main_process and parts.done():
        say(f"goes on    {len(parts.done()):,} of {len(parts.parts):,} parts are in {parts.folder}", flush=True)
    accelerator.wait_for_everyone()  # all processes count the parts before any is written
    torch.nn.Module.to(job.model, accelerator.device)
    compute_parts(accelerator, job, parts, missing, loading_workers(settings.num_workers))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        rows = parts.num_rows()
        WRITERS[target.suffix[1:]](target, parts, {**about, "settings": made_with})
        parts.remove()
        skipped = f", {counted(len(inputs) - rows, 'unreadable image')} left out" if rows < len(inputs) else ""
        say(f"written    {target}: {counted(rows, 'row')}{skipped}", flush=True)


def compute_parts(accelerator: Accelerator, job: Job, parts: Parts, missing: list[int], num_workers: int) -> None:
    """Compute and write the `missing` parts with a single loader."""
    batches = [rows for number in missing for rows in parts.parts[number]]
    types = {**RowNames(job.inputs.source).types, **job.types}
    bar = ProgressBar(sum(map(len, batches)), accelerator.is_main_process, accelerator.num_processes)
    pieces = columns_of(accelerator, job.inputs, batches, job.compute, num_workers)
    try:
        for number in missing:
            tables = []
            for rows in parts.parts[number]:
                tables.append(table_of(job.finish(next(pieces)), types))
                bar.advance(len(rows))
            parts.write(number, pyarrow.concat_tables(tables))
    finally:
        bar.close()


def refuse_other_file(target: Path, settings: dict) -> None:
    """
    Raises:
        UserError: the finished file `target` was not made with these settings.
    """
    before = finished_settings(target)
    changes = "unknown settings" if before is None else differences(before, settings)
    if changes:
        raise UserError(f"{str(target)!r} exists, made with {changes}: give another name, or --overwrite")
