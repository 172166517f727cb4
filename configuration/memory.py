"""Estimates whether a model and its batches fit into this machine's memory, before anything is allocated."""

import os
from pathlib import Path

from .errors import ArgumentError


MAX_CACHE = 1 << 20  # GiB; more is a typo
WEIGHT_BYTES = 4  # per float32 parameter
TRAINING_BYTES = 16  # per trained parameter: weight, gradient and AdamW's two moments
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def encoder_parameters(config) -> int:
    """The number of parameters of an `MAEModel` of this configuration."""
    width = config.hidden_size
    blocks = config.num_hidden_layers * _block_parameters(width, config.intermediate_size, config.qkv_bias)
    tokens = width * (2 + config.num_patches)  # class token, and a position for it and for each patch
    pooling = width * (config.num_pooling_queries + width + 1) if config.pooling == "attention" else 0
    return width * (config.patch_dim + 1) + tokens + blocks + 2 * width + pooling


def decoder_parameters(config) -> int:
    """The number of parameters of the decoder of `MAEForPreTraining`."""
    width, encoder_width, depth = config.decoder_hidden_size, config.hidden_size, config.decoder_num_hidden_layers
    blocks = depth * _block_parameters(width, config.decoder_intermediate_size, config.qkv_bias)
    first = width * (encoder_width + 1)  # from the encoder's width to the decoder's
    if config.decoder_type == "cross":
        first = depth * 2 * width * (encoder_width - width)  # the same in each block: keys and values
        if config.decoder_reads != "last":
            stages = config.num_hidden_layers + (config.decoder_reads == "stages")
            first += depth * (stages + 2 * encoder_width)  # the weights, and a norm
    last = config.patch_dim * (width + 1)
    return first + last + width * (2 + config.num_patches) + blocks + 2 * width


def _block_parameters(width: int, intermediate: int, qkv_bias: bool) -> int:
    attention = 4 * width * width + width + 3 * width * qkv_bias
    return attention + 2 * width * intermediate + intermediate + width + 4 * width


def machine_memory() -> int | None:
    """Bytes of memory of this machine, or the container's limit if smaller. None if the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(memory, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or the word "max"
        return memory


def check_weights_fit(config) -> None:
    """Raises an ArgumentError if not even the encoder's weights fit. A machine with a GPU must hold them too."""
    _check(config, encoder_parameters(config), WEIGHT_BYTES, "weights")


def check_training_fits(config, decoder: bool) -> None:
    """Raises an ArgumentError if a fully trained model does not fit. Only checks machines that train on the CPU."""
    parameters = encoder_parameters(config) + (decoder_parameters(config) if decoder else 0)
    _check(config, parameters, WEIGHT_BYTES, "weights")
    memory = machine_memory()
    if memory is not None and parameters * TRAINING_BYTES > memory:
        import torch  # imported late: nearly all runs return before this

        if not torch.accelerator.is_available():
            _check(config, parameters, TRAINING_BYTES, "weights, gradients and AdamW's moments")


def check_batch(config, batch_size: int, option: str) -> None:
    """Raises an ArgumentError if not even the pixels of a batch fit, as float32."""
    height, width = config.image_height_width
    needed, memory = batch_size * config.num_channels * height * width * 4, machine_memory()
    if memory is not None and needed > memory:
        raise ArgumentError(
            f"{option} {batch_size} images of {height}x{width} pixels need {_gib(needed)}, this machine has "
            f"{_gib(memory)}: give fewer or smaller images"
        )


def check_repeats(args) -> None:
    """All crops of an image must be in one micro-batch, so that it is decoded once."""
    repeats = args.repeated_augmentation
    for name in ("total_batch_size", "per_device_train_batch_size"):
        value = getattr(args, name)
        if value % repeats:
            raise ArgumentError(
                f"{name} {value} is not a multiple of repeated_augmentation {repeats}: give "
                f"--{name} {max(1, round(value / repeats)) * repeats}"
            )


def check_image_cache(args) -> None:
    try:
        works = args.image_cache in ("auto", "off") or 0 < float(args.image_cache) <= MAX_CACHE
    except ValueError:
        works = False
    if not works:
        raise ArgumentError(
            f"image_cache {args.image_cache!r} does not work: give auto, off, or a number of GiB, as 16"
        )


def _check(config, parameters: int, bytes_each: int, what: str) -> None:
    memory = machine_memory()
    if memory is not None and parameters * bytes_each > memory:
        raise ArgumentError(
            f"a model of hidden_size={config.hidden_size}, num_hidden_layers={config.num_hidden_layers}, intermediate_"
            f"size={config.intermediate_size}, image_size={config.image_size}, patch_size={config.patch_size} has "
            f"{parameters:,} parameters: {what} need {_gib(parameters * bytes_each)}, this machine has "
            f"{_gib(memory)}: give a smaller model"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
