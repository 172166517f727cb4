"""A file with a row for each image: what `mae features` and `mae predict` have in common."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow
import torch
import transformers
from accelerate import Accelerator

from ..data.find.row_names import RowNames
from ..errors import UserError
from ..training.launch import make_accelerator
from .inputs import Inputs, ProgressBar, columns_of, describe_crop, names_checksum, weights_checksum
from .parts import WRITERS, Parts, batches_of_parts, different, finished_settings, table_of


@dataclass
class TableJob:
    """The file to write, and how its columns come about.

    `compute` gives tensors ``(images, ...)`` for ``pixel_values``. `finish` makes columns for people of them, whose
    types are in `types`. `settings` are those that decide the values, beside the checkpoint's and the images' own.
    """

    target: Path
    to: str  # one of WRITERS
    inputs: Inputs
    model: transformers.PreTrainedModel
    compute: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    settings: dict
    finish: Callable[[dict], dict] = lambda columns: columns
    types: dict[str, pyarrow.DataType] = field(default_factory=dict)


def quiet_accelerator() -> Accelerator:
    """The launcher's settings; the libraries report only errors from here on."""
    return make_accelerator(Path("."), [])


def absolute(checkpoint: str) -> str:
    """The folder's absolute path; an id on the Hub as it is."""
    return os.path.abspath(checkpoint) if os.path.isdir(checkpoint) else checkpoint


def check_batch(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} is not at least 1")
    return batch_size


def prepared_target(target: str | Path, to: str | None, formats: tuple[str, ...]) -> tuple[Path, str]:
    """(the file's path, its format, one of `formats`), before any long work. `to` None: as the file's name ends.

    Raises:
        UserError: the name ends in another way, or its folder cannot be written.
    """
    target = Path(target).expanduser().absolute()
    kinds = (to,) if to else formats
    if target.suffix[1:] not in kinds:
        raise UserError(f"{str(target)!r} does not end in {' or '.join(f'.{kind}' for kind in kinds)}: name it so")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {str(target.parent)!r} cannot be made ({error.strerror}): give another") from error
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise UserError(f"{str(target)!r} cannot be written: give the path of a file in a folder of yours")
    return target, target.suffix[1:]


def write_rows(
    accelerator: Accelerator, job: TableJob, *, about: dict, batch_size: int, num_workers: int, overwrite: bool
) -> None:
    """Compute what is missing of the file `job.target`, part by part over all processes, and put it together.

    Raises:
        UserError: the file, or parts of it, are there already and were made otherwise.
    """
    inputs, say = job.inputs, accelerator.print
    settings = {
        "weights": weights_checksum(job.model),
        "images": f"{len(inputs):,}, {names_checksum(inputs.source)}",
        **{key: value for key, value in asdict(inputs.processing).items() if value is not None},
        "size": list(inputs.images.size),
        "on_bad_image": inputs.images.on_bad_image,
        "batch_size": batch_size,
        "precision": f"{accelerator.mixed_precision} on {accelerator.device.type}",
        **job.settings,
    }
    parts = Parts(accelerator, job.target, settings, batches_of_parts(len(inputs), batch_size))
    # Parts beside the file: a run that may replace it was stopped, perhaps on its last step.
    if job.target.exists() and not overwrite and not parts.begun:
        refuse_other_file(job.target, settings)
        say(f"finished   {job.target} was there already, made with the same settings")
        return
    what = f"{inputs.source.name}: {len(inputs):,}, {describe_crop(inputs)}{inputs.images.remarks}"
    say(f"images     {what}", flush=True)
    missing = parts.open(overwrite)
    if accelerator.is_main_process and parts.done():
        say(f"goes on    {len(parts.done()):,} of {len(parts.parts):,} parts are in {parts.folder}", flush=True)
    accelerator.wait_for_everyone()  # the count is of before this run
    job.model.to(accelerator.device)
    compute_parts(accelerator, job, parts, missing, num_workers)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        rows = parts.num_rows()
        WRITERS[job.to](job.target, parts, {**about, "settings": settings})
        parts.remove()
        skipped = f", {len(inputs) - rows:,} unreadable images left out" if rows < len(inputs) else ""
        say(f"written    {job.target}: {rows:,} rows{skipped}", flush=True)


def compute_parts(accelerator: Accelerator, job: TableJob, parts: Parts, missing: list[int], num_workers: int) -> None:
    """Compute and write the `missing` parts, through one loader."""
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
    changes = "unknown settings" if before is None else different(before, settings)
    if changes:
        raise UserError(f"{str(target)!r} is there already, made with {changes}: give another name, or --overwrite")
