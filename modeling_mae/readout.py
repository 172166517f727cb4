"""Reads features from an encoder, and finds the images with the nearest features.

"The features of block b" means the same in `--readouts`, `--feature_layers`, `mae features --block`, the app and the
Python functions: the tokens after block b, then the encoder's final norm, then pooled.

Every block's tokens pass the encoder's final norm. So the last block gives the encoder's output, the other blocks have
the same scale, and `MAEBackbone` returns the same for each stage. `mae features` writes exactly the features that a
table of readouts has compared.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .configuration_mae import MAEConfig
from .errors import UserError
from .modeling_mae import MAEModel, MAEModelOutput


ATTENTION = "attention"
PATCHES = "patches"  # not pooled: the tokens as a map, for `mae features` alone
# How the tokens of a block, ``(batch, 1 + patches, width)``, become features. Attention needs learned queries, from
# the checkpoint or from a probe. Until then its features are the patch tokens.
POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda tokens: tokens[:, 1:].mean(1),
    "cls": lambda tokens: tokens[:, 0],
    "mean_deviation": lambda tokens: torch.cat([tokens[:, 1:].mean(1), tokens[:, 1:].std(1, correction=0)], 1),
    ATTENTION: lambda tokens: tokens[:, 1:],
    "flatten": lambda tokens: tokens[:, 1:].flatten(1),
    PATCHES: lambda tokens: tokens[:, 1:],
}
CHUNK = 1024  # images compared with all others at a time


@dataclass(frozen=True)
class Readout:
    """The concatenated features of `blocks`, counted from 1, all with the same `pooling`."""

    blocks: tuple[int, ...]
    pooling: str

    @property
    def keys(self) -> list[tuple[int, str]]:
        """The (block, pooling) pairs that `read` must compute."""
        return [(block, self.pooling) for block in self.blocks]

    def size(self, config: MAEConfig) -> int:
        """Bytes of an image's features in float32."""
        parts = {"mean_deviation": 2, ATTENTION: config.num_patches, "flatten": config.num_patches}
        return 4 * len(self.blocks) * parts.get(self.pooling, 1) * config.hidden_size

    def of(self, features: dict[tuple[int, str], np.ndarray]) -> np.ndarray:
        """``(images, width)``, or ``(images, patches, width)`` for attention, from the features of `read`."""
        parts = [features[key] for key in self.keys]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def __call__(self, encoder: MAEModel, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, height, width) -> (batch, width)``, or ``(batch, rows, columns, width)`` of patches.
        Attention uses the encoder's queries."""
        parts = list(read(encoder, pixel_values, self.keys)[1].values())
        if self.pooling == ATTENTION:
            assert encoder.pooler is not None
            parts = [encoder.pooler(patches) for patches in parts]
        features = torch.cat(parts, -1)
        return features.unflatten(1, encoder.config.grid) if self.pooling == PATCHES else features

    def __str__(self) -> str:
        return f"{self.pooling}, block{'s' * (len(self.blocks) > 1)} {' '.join(map(str, self.blocks))}"


def block_tokens(encoder: MAEModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """Applies the encoder's final norm to the tokens ``(batch, 1 + patches, width)`` of a block. For the last block,
    the result is the encoder's output."""
    return encoder.layernorm(hidden_states)


def read(
    encoder: MAEModel, pixel_values: torch.Tensor, keys: Iterable[tuple[int, str]]
) -> tuple[MAEModelOutput, dict[tuple[int, str], torch.Tensor]]:
    """For ``pixel_values (batch, channels, height, width)``: the encoder's output, and the features of each (block,
    pooling) of `keys`."""
    keys, depth = list(keys), encoder.config.num_hidden_layers
    encoded = encoder(pixel_values, output_hidden_states=any(block < depth for block, _ in keys))
    features = {}
    for block, pooling in keys:
        is_last = block == depth
        tokens = encoded.last_hidden_state if is_last else block_tokens(encoder, encoded.hidden_states[block])
        features[block, pooling] = POOLINGS[pooling](tokens)
    return encoded, features


def pooled_output(outputs: MAEModelOutput) -> torch.Tensor:
    """The encoder's pooled features ``(batch, width)``; the mean of the patches if its attention pooling is
    untrained."""
    if outputs.pooler_output is not None:
        return outputs.pooler_output
    assert outputs.last_hidden_state is not None
    return POOLINGS["mean"](outputs.last_hidden_state)


def check_choice(option: str, values: Iterable[Any], known: range | Iterable[str]) -> None:
    """
    Raises:
        UserError: a value of `option` is unknown, or is given twice.
    """
    values, known = list(values), known if isinstance(known, range) else list(known)
    for value in values:
        if value not in known or values.count(value) > 1:
            choice = f"{known[0]} ... {known[-1]}" if isinstance(known, range) else ", ".join(known)
            raise UserError(f"{option} {value!r} does not work: give one of {choice}, each once")


def nearest(
    queries: torch.Tensor, bank: torch.Tensor, k: int, only_earlier: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosines, positions in `bank`), each ``(queries, k)``, the nearest first, on the device of `bank`.

    Both are features ``(images, width)``. Fewer than `k` if the bank is smaller. With `only_earlier` the queries are
    the bank's own images, and each is compared with those before it. A cosine of -2 means no such image.
    """
    queries, bank = F.normalize(queries, dim=1), F.normalize(bank, dim=1)
    found, first = [], 0
    for chunk in queries.split(CHUNK):
        others = bank[: first + len(chunk)] if only_earlier else bank
        cosines = chunk.to(bank.device) @ others.T  # (chunk, others)
        if only_earlier:
            positions = torch.arange(len(others), device=bank.device)
            cosines = cosines.masked_fill(positions >= positions[first:, None], -2.0)
        found.append(cosines.topk(min(k, len(bank)), dim=1))
        first += len(chunk)
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])
