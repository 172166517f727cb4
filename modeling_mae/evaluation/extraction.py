"""Features of any images from a checkpoint's encoder, as arrays or as a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import Checkpoint, open_checkpoint
from ..data.find.places import Place
from ..errors import UserError
from ..modeling_mae import MAEModel
from ..readout import ATTENTION, PATCHES, POOLINGS, Readout, check_choice
from .features import frozen_encoder
from .inputs import Inputs
from .parts import means_of, middles, volumes_among
from .tables import ApplySettings, Job, Output, absolute, quiet_accelerator, write_rows


@dataclass
class Features:
    """Features of images, with the images' names.

    `values` ``(images, width)`` float32, or ``(images, rows, columns, width)`` of patches. `files`: the path of each
    image in its folder, or its row number if it has no file. `rows`: its number in the source, counted from 0.
    `labels`: the images' labels, or None. `about`: checkpoint, blocks, pooling, and the place of the images.
    """

    values: np.ndarray
    files: list[str]
    rows: list[int]
    labels: list | None
    about: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def per_volume(self) -> "Features":
        """The mean over the slices of each volume, as one row with the row and the label of its middle slice."""
        names, first = volumes_among(self.files)
        rows = middles(first, len(self))
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return replace(
            self, values=means_of(self.values, first), files=names, rows=[self.rows[i] for i in rows], labels=labels
        )


@dataclass(frozen=True)
class Extractor:
    """The encoder of a checkpoint, and the readout that is applied to it."""

    checkpoint: Checkpoint
    encoder: MAEModel
    readout: Readout

    @classmethod
    def of(cls, checkpoint: str, blocks: Sequence[int] | None, pooling: str | None) -> "Extractor":
        """
        Raises:
            UserError: the checkpoint does not exist, or its encoder has no such block or pooling.
        """
        opened = open_checkpoint(checkpoint)
        encoder = frozen_encoder(opened)
        return cls(opened, encoder, choose_readout(encoder, blocks, pooling))

    @property
    def read(self) -> dict[str, Any]:
        """Blocks and pooling, as files record them. Of patches also the `map`: rows, columns and width."""
        read = {"blocks": list(self.readout.blocks), "pooling": self.readout.pooling}
        config = self.encoder.config
        width = len(self.readout.blocks) * config.hidden_size
        return {**read, "map": [*config.grid, width]} if self.readout.pooling == PATCHES else read

    def job(self, inputs: Inputs) -> Job:
        def compute(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": self.readout(self.encoder, pixel_values)}

        return Job(inputs, self.encoder, compute, self.read)

    def features(self, inputs: Inputs, settings: ApplySettings, progress: bool, about: dict) -> Features:
        columns = self.job(inputs).columns(settings, progress)
        return Features(columns["features"], columns["file"], columns["row"], columns.get("label"), about)


def choose_readout(encoder: MAEModel, blocks: Sequence[int] | None, pooling: str | None) -> Readout:
    """The readout as given. By default the last block with the checkpoint's own pooling, or with the mean of the
    patches if that pooling is an untrained attention.

    Raises:
        UserError: the encoder has no such block or pooling.
    """
    depth = encoder.config.num_hidden_layers
    chosen = tuple(blocks or (depth,))
    check_choice("block", chosen, range(1, depth + 1))
    is_last = chosen == (depth,)
    if pooling is None:
        pooling = encoder.config.pooling if is_last or encoder.config.pooling != ATTENTION else "mean"
    check_choice("pooling", [pooling], POOLINGS)
    if pooling == ATTENTION and encoder.pooler is None:
        raise UserError("pooling 'attention': the checkpoint has no trained one; give mean or cls")
    if pooling == ATTENTION and not is_last:
        raise UserError(f"pooling 'attention' was trained on block {depth}: give no other block with it")
    return Readout(chosen, pooling)


def extract_features(
    checkpoint: str | Path,
    images: Place,
    *,
    blocks: Sequence[int] | None = None,
    pooling: str | None = None,
    progress: bool = False,
    **options,
) -> Features:
    """The features of all `images`, in memory. `mae features` writes them to a file and survives a kill.

    Each image is resized, cropped and normalised as the checkpoint's image processor does. The model runs on the GPU
    if there is one, in the precision of Accelerate's settings.

    Args:
        checkpoint: a file, a folder or a Hub id of a pre-trained model or a classifier, of this or another project.
        images: a folder, a file, a URL pattern of shards, a data set's name, a `datasets.Dataset`, or a list of PIL
            images and paths; see `open_place`.
        blocks: encoder blocks, counted from 1, by default the last. The features of several are concatenated.
        pooling: one of `POOLINGS`: ``mean`` of the patch tokens, ``mean_deviation`` (mean and standard deviation),
            ``cls``, ``flatten``, ``patches`` (a map of all patch tokens), or ``attention`` if the checkpoint has it.
            By default the checkpoint's own, mostly the mean.
        progress: show a bar, or a line every 10 seconds.
        options: fields of `ApplySettings`: ``batch_size``, ``num_workers``, ``on_bad_image``, ``split``, ...

    Returns:
        `Features`: values ``(images, width)`` float32, of ``patches`` ``(images, rows, columns, width)``; files, rows
            and labels.

    Raises:
        UserError: the checkpoint or the images do not exist or do not fit, or an image cannot be read.
    """
    checkpoint, settings = str(checkpoint), ApplySettings(**options)
    extractor = Extractor.of(checkpoint, blocks, pooling)
    print(extractor.checkpoint.notes_text(), end="")
    inputs = settings.open(extractor.checkpoint, images)
    about = {"checkpoint": checkpoint, **extractor.read, "place": settings.described(images)}
    return extractor.features(inputs, settings, progress, about)


def write_features(
    checkpoint: str,
    images: Place,
    output: Output,
    settings: ApplySettings,
    blocks: Sequence[int] | None = None,
    pooling: str | None = None,
) -> None:
    """Writes the features to a file, part by part, by all processes of a launcher.

    A parquet file has the columns `row`, `file`, `features`, and `label` if the images have labels. The features of
    patches are flat there, and the metadata's `map` has their rows, columns and width. A .npy file has the array, and
    a CSV file of the same name the other columns.

    Raises:
        UserError: as `extract_features`, or the file exists or cannot be written.
    """
    accelerator = quiet_accelerator()
    target = output.prepared(("parquet", "npy"))
    extractor = Extractor.of(checkpoint, blocks, pooling)
    accelerator.print(extractor.checkpoint.notes_text(), end="")
    inputs = settings.open(extractor.checkpoint, images, accelerator, say=accelerator.print)
    readout = extractor.readout
    accelerator.print(
        f"features   {checkpoint}, block {', '.join(map(str, readout.blocks))} of "
        f"{extractor.checkpoint.config.num_hidden_layers}, pooling {readout.pooling}"
    )
    about = {"checkpoint": absolute(checkpoint), **extractor.read, "place": settings.described(images)}
    write_rows(accelerator, extractor.job(inputs), target, output, settings, about)
