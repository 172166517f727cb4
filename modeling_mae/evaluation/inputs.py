"""Prepares images for a checkpoint as its image processor would."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedModel

from ..checkpoint import Checkpoint
from ..data.find.fingerprint import fingerprint
from ..data.find.row_names import RowNames
from ..data.find.sources import Source
from ..data.serve.images import FileImages, Images, ImageSettings, Opening, open_images
from ..data.serve.processor import Processing, choose_processing
from ..data.stream.shards import ShardedRows
from ..errors import UserError
from ..training.augment import BatchTransform
from .classifier import is_classifier


LINE_SECONDS = 10  # between two progress lines outside a terminal


@dataclass
class Inputs:
    """Images in the crop of a checkpoint's image processor, and their normalisation."""

    source: Source
    images: Images
    transform: BatchTransform
    processing: Processing  # with the white that was found

    def __len__(self) -> int:
        return len(self.images)

    @property
    def files(self) -> FileImages:
        """The images, which are read from files: `open_inputs` keeps none in memory."""
        assert isinstance(self.images, FileImages)
        return self.images

    @property
    def skipped(self) -> int:
        """How many images so far were unreadable."""
        return int(self.images.skipped.sum())


def open_inputs(
    checkpoint: Checkpoint,
    source: Source,
    *,
    settings: ImageSettings | None = None,
    white: float | None = None,
    say: Callable[[str], None] = print,
) -> Inputs:
    """The images of `source`, prepared for `checkpoint` as in run_eval.py: crop, mean, deviation, white and bands.

    `settings` say what is done about bad and large files. `white` is the value of white in the files; None takes the
    processor's. If the encoder is for 8-bit images and the images are deeper, their white is found from a sample.

    Raises:
        UserError: the checkpoint has no image processor, or the images do not fit it.
        BadImage: an image of the sample cannot be read, and bad images are errors.
    """
    config = checkpoint.config
    processing = choose_processing(
        checkpoint.processing,
        Processing(white=white),
        keeps_crop=True,
        keeps_white=is_classifier(config),
        crop_fraction=1.0,  # for a processor without a crop
        say=say,
    )
    if processing.mean is None or processing.std is None:
        raise UserError(
            f"checkpoint {checkpoint.name!r} has no image processor, which says how images are normalised: save the "
            "one of its training with it (save_pretrained)"
        )
    if len(processing.mean) != config.num_channels:
        raise UserError(
            f"checkpoint {checkpoint.name!r} has an image processor for {len(processing.mean)} channels and a model "
            f"for {config.num_channels}: save the one of its training with it"
        )
    size = config.image_height_width
    images = open_images(source, Opening(size, config.num_channels, processing.applied(settings or ImageSettings())))
    transform = BatchTransform(processing.mean, processing.std, size)
    return Inputs(source, images, transform, replace(processing, white=images.white))


def weights_checksum(model: PreTrainedModel) -> str:
    """A checksum over the weights, independent of the checkpoint's name."""
    checksum = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        checksum.update(name.encode())
        checksum.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return checksum.hexdigest()[:16]


def names_checksum(source: Source) -> str:
    """A checksum over the number of images, a sample of their bytes, and their files' names."""
    checksum = hashlib.sha256(fingerprint(source).encode())
    if isinstance(source.dataset, ShardedRows):
        return checksum.hexdigest()[:16]  # names inside shards would take a request each
    names = RowNames(source)
    for start in range(0, len(source), 100_000):
        checksum.update("\n".join(names.files(start, min(start + 100_000, len(source)))).encode("utf-8", "replace"))
    return checksum.hexdigest()[:16]


def columns_of(
    accelerator: Accelerator,
    inputs: Inputs,
    batches: list[range],
    compute: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    num_workers: int,
) -> Iterator[dict[str, list | np.ndarray]]:
    """For each of the `batches` of rows: `row`, `file`, `label` if there are labels, and the float arrays ``(images,
    ...)`` that `compute` returns for ``pixel_values (images, channels, height, width)``. Skipped images are left
    out."""
    inputs.transform.to(accelerator.device)
    names = RowNames(inputs.source)
    loader = inputs.images.loader([(0, list(rows)) for rows in batches], num_workers)
    for batch, rows in zip(loader, batches, strict=True):
        batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
        with torch.inference_mode(), accelerator.autocast():
            values = compute(inputs.transform(batch))
        # The worker has marked the skipped images. Others replace them in the batch.
        good = np.flatnonzero(~inputs.images.skipped[rows.start : rows.stop].numpy())
        columns: dict[str, Any] = {"row": list(rows), "file": names.files(rows.start, rows.stop)}
        labels = names.labels(rows.start, rows.stop)
        if labels is not None:
            columns["label"] = labels
        columns = {key: [column[i] for i in good] for key, column in columns.items()}
        yield {**columns, **{key: value.float().cpu().numpy()[good] for key, value in values.items()}}


class ProgressBar:
    """Shows how many of this process's images are done: in a terminal a bar, elsewhere a line now and then."""

    def __init__(self, total: int, show: bool, processes: int = 1):
        self.total, self.show, self.of_all = total, show, f" (one of {processes} processes)" * (processes > 1)
        self.done, self.began = 0, time.monotonic()
        self.last_line = self.began
        is_bar = show and sys.stderr.isatty()
        self.bar = tqdm(total=total, unit="image", dynamic_ncols=True) if is_bar else None

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(count)
        elif self.show and now - self.last_line >= LINE_SECONDS and self.done < self.total:
            self.last_line, speed = now, self.done / (now - self.began)
            left = tqdm.format_interval((self.total - self.done) / speed)
            print(
                f"images     {self.done:,} of {self.total:,}{self.of_all}  {speed:.0f} images/s  {left} left",
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def describe_crop(inputs: Inputs) -> str:
    """Describes size and crop of the images that the model sees."""
    height, width = inputs.images.size
    fraction = inputs.processing.crop_fraction
    crop = f", the central {100 * fraction:.3g}% of the shorter side" if fraction not in (None, 1) else ""
    return f"{height} x {width} pixels{crop}"
