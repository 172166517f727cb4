"""Features of any images from a checkpoint's encoder, as arrays or as a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ..configuration_mae import MAEConfig
from ..data.places import Place, described, open_place
from ..errors import UserError
from ..modeling_mae import EvalNet, MAEModel
from ..training.launch import loading_workers
from ..training.state import load_model
from .classifier import is_classifier
from .inputs import Inputs, ProgressBar, checkpoint_config, columns_of, open_inputs
from .parts import batches_of_parts
from .tables import TableJob, absolute, check_batch, prepared_target, quiet_accelerator, write_rows


POOLINGS = ("mean", "cls", "flatten", "attention")
BATCH = 64  # images at once; what a ViT-L takes without gradients fits into 8 GiB


@dataclass
class Features:
    """Features of images, and what the images are called.

    `values` ``(images, width)`` float32. `files`: the path of each image relative to its folder, or its row's number
    where it has no file. `rows`: its number in the source, counted from 0. `labels`: of each image, where the source
    has them, else None. `about`: checkpoint, blocks and pooling.
    """

    values: np.ndarray
    files: list[str]
    rows: list[int]
    labels: list | None
    about: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Readout:
    """What of the encoder becomes the features: `blocks`, counted from 1 as MAEBackbone's stages, each after the
    encoder's final norm, and the `pooling` of its tokens. Several blocks stand side by side."""

    blocks: tuple[int, ...]
    pooling: str

    def __call__(self, encoder: MAEModel, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, height, width) -> (batch, blocks * width)``."""
        depth = encoder.config.num_hidden_layers
        outputs = encoder(pixel_values, output_hidden_states=self.blocks != (depth,))
        pooled = []
        for block in self.blocks:
            last = block == depth
            tokens = outputs.last_hidden_state if last else encoder.layernorm(outputs.hidden_states[block])
            pooled.append(_pool(encoder, tokens, self.pooling))  # (batch, width)
        return torch.cat(pooled, 1)


def _pool(encoder: MAEModel, tokens: torch.Tensor, pooling: str) -> torch.Tensor:
    """``(batch, 1 + patches, width) -> (batch, width)``, or patches x width values for `flatten`."""
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "attention":
        return encoder.pooler(tokens[:, 1:])
    return tokens[:, 1:].flatten(1) if pooling == "flatten" else tokens[:, 1:].mean(1)


def load_encoder(checkpoint: str, config: MAEConfig) -> MAEModel:
    """The encoder of a checkpoint as it was trained: of a classifier the one that its head reads.

    Raises:
        UserError: as `load_model`.
    """
    if is_classifier(config):
        return load_model(EvalNet, checkpoint).mae.eval()
    encoder, info = load_model(MAEModel, checkpoint, output_loading_info=True)
    if any(name.startswith("pooler.") for name in info["missing_keys"]):
        encoder.pooler = None  # nothing has trained it yet
    return encoder.eval()


def choose_readout(encoder: MAEModel, blocks: Sequence[int] | None, pooling: str | None) -> Readout:
    """The readout as given, else the last block under the checkpoint's own pooling; the mean of the patches, where
    that is an attention that was never trained.

    Raises:
        UserError: the encoder has no such block or pooling.
    """
    depth = encoder.config.num_hidden_layers
    blocks = tuple(blocks or (depth,))
    for block in blocks:
        if not 1 <= block <= depth:
            raise UserError(f"block {block} is none of the encoder's 1 ... {depth}: give one of these")
    if len(set(blocks)) < len(blocks):
        raise UserError(f"blocks {', '.join(map(str, blocks))}: name each once")
    if pooling is None:
        pooling = encoder.config.pooling
        if pooling == "attention" and (encoder.pooler is None or blocks != (depth,)):
            pooling = "mean"
    if pooling not in POOLINGS:
        raise UserError(f"pooling {pooling!r} is not known: give {', '.join(POOLINGS)}")
    if pooling == "attention":
        if encoder.pooler is None:
            raise UserError("pooling 'attention': the checkpoint has no trained one; give mean or cls")
        if blocks != (depth,):
            raise UserError(f"pooling 'attention' was trained on block {depth}: give no other block with it")
    return Readout(blocks, pooling)


def feature_computer(encoder: MAEModel, readout: Readout) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    return lambda pixel_values: {"features": readout(encoder, pixel_values)}


def extract_features(
    checkpoint: str | Path,
    images: Place,
    *,
    blocks: Sequence[int] | None = None,
    pooling: str | None = None,
    batch_size: int = BATCH,
    num_workers: int | None = None,
    on_bad_image: str = "error",
    progress: bool = False,
    **place_options,
) -> Features:
    """The features of all `images`, in memory. `mae features` writes them to a file, and goes on after a kill.

    Each image is resized, cropped and normalised as by the checkpoint's image processor. The model runs on the GPU
    where there is one, in the precision of Accelerate's settings.

    Args:
        checkpoint: a folder or a Hub id, of a pre-trained model or a classifier of this project.
        images: a folder, a file, a URL pattern of shards, a data set's name, a `datasets.Dataset`, or a list of PIL
            images and paths; see `open_place`.
        blocks: encoder blocks, counted from 1; by default the last. Several stand side by side.
        pooling: ``mean`` of the patch tokens, ``cls``, ``flatten``, or ``attention`` where the checkpoint has it. By
            default the checkpoint's own, mostly the mean.
        batch_size: images at once.
        num_workers: processes that read images; by default one for each core, 0 for none.
        on_bad_image: ``error``, or ``skip``: unreadable images are printed and left out.
        progress: show a bar, or a line every 10 seconds.
        place_options: of `open_place`: ``split``, ``image_column_name``, ``label_column_name``, ``streaming``, ...

    Returns:
        `Features`: values ``(images, width)`` float32, files, rows and labels.

    Raises:
        UserError: the checkpoint or the images do not exist or do not fit, or an image cannot be read.
    """
    checkpoint, source = str(checkpoint), open_place(images, **place_options)
    config = checkpoint_config(checkpoint)
    encoder = load_encoder(checkpoint, config)
    readout = choose_readout(encoder, blocks, pooling)
    inputs = open_inputs(checkpoint, config, source, on_bad_image=on_bad_image)
    columns = all_columns(inputs, encoder, feature_computer(encoder, readout), batch_size, num_workers, progress)
    about = {"checkpoint": checkpoint, "blocks": list(readout.blocks), "pooling": readout.pooling}
    return Features(columns["features"], columns["file"], columns["row"], columns.get("label"), about)


def all_columns(
    inputs: Inputs,
    model: torch.nn.Module,
    compute: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    batch_size: int,
    num_workers: int | None,
    progress: bool,
) -> dict[str, list | np.ndarray]:
    """The columns of `columns_of` for all images, computed by this process alone."""
    accelerator = Accelerator()
    model.to(accelerator.device)
    batches = [rows for part in batches_of_parts(len(inputs), check_batch(batch_size)) for rows in part]
    bar, pieces = ProgressBar(len(inputs), progress), []
    for rows, piece in zip(
        batches, columns_of(accelerator, inputs, batches, compute, loading_workers(num_workers)), strict=True
    ):
        pieces.append(piece)
        bar.advance(len(rows))
    bar.close()
    joined = {}
    for name, first in pieces[0].items():
        is_array = isinstance(first, np.ndarray)
        parts = [piece[name] for piece in pieces]
        joined[name] = np.concatenate(parts) if is_array else [value for part in parts for value in part]
    return joined


def write_features(
    checkpoint: str,
    images: Place,
    target: str | Path,
    *,
    blocks: Sequence[int] | None = None,
    pooling: str | None = None,
    to: str | None = None,
    batch_size: int = BATCH,
    num_workers: int | None = None,
    on_bad_image: str = "error",
    overwrite: bool = False,
    **place_options,
) -> None:
    """`extract_features` into the file `target`, by all processes of a launcher, part by part.

    A parquet file has the columns `row`, `file`, `label` where the images have labels, and `features`. `to` npy writes
    an array and, beside it, the other columns as CSV. `to` None: as the file's name ends.

    Raises:
        UserError: as `extract_features`, and where the file is there already or cannot be written.
    """
    accelerator = quiet_accelerator()
    target, to = prepared_target(target, to, ("parquet", "npy"))
    with accelerator.main_process_first():
        source = open_place(images, **place_options)
    config = checkpoint_config(checkpoint)
    encoder = load_encoder(checkpoint, config)
    readout = choose_readout(encoder, blocks, pooling)
    inputs = open_inputs(checkpoint, config, source, on_bad_image=on_bad_image, say=accelerator.print)
    read = {"blocks": list(readout.blocks), "pooling": readout.pooling}
    accelerator.print(
        f"features   {checkpoint}, block {', '.join(map(str, readout.blocks))} of {config.num_hidden_layers}, pooling "
        f"{readout.pooling}"
    )
    write_rows(
        accelerator,
        TableJob(target, to, inputs, encoder, feature_computer(encoder, readout), settings=read),
        about={"checkpoint": absolute(checkpoint), **read, "place": described(images, **place_options)},
        batch_size=check_batch(batch_size),
        num_workers=loading_workers(num_workers),
        overwrite=overwrite,
    )
