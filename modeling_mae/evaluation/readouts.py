"""Readouts of frozen features: which blocks, pooled how, and what k-NN, a linear model and a probe make of them."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ..configuration_mae import MAEConfig
from ..data.images import Images
from ..errors import UserError
from ..modeling_mae import MAEModel
from ..problems import PROBLEMS, SINGLE_LABEL
from ..training.launch import smallest_budget
from .features import KS, K, array_accuracies
from .metrics import compute_over
from .probes import probe_metric


# How the tokens of a block, ``(batch, 1 + patches, width)``, become one vector. A probe learns the attention.
POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda tokens: tokens[:, 1:].mean(1),
    "cls": lambda tokens: tokens[:, 0],
    "mean_deviation": lambda tokens: torch.cat([tokens[:, 1:].mean(1), tokens[:, 1:].std(1, correction=0)], 1),
    "attention": lambda tokens: tokens[:, 1:],
}
ATTENTION = "attention"


@dataclass(frozen=True)
class Readout:
    """The features of `layers` (blocks, counted from 1) side by side, each pooled by the same of `POOLINGS`."""

    layers: tuple[int, ...]
    pooling: str

    @property
    def keys(self) -> list[tuple[int, str]]:
        """What `block_features` must compute for it."""
        return [(layer, self.pooling) for layer in self.layers]

    def size(self, config: MAEConfig) -> int:
        """Float32 bytes of the features of an image."""
        parts = {"mean_deviation": 2, ATTENTION: config.num_patches}.get(self.pooling, 1)
        return 4 * len(self.layers) * parts * config.hidden_size

    def of(self, features: dict[tuple[int, str], np.ndarray]) -> np.ndarray:
        """``(images, width)``, or ``(images, patches, width)`` for attention."""
        parts = [features[key] for key in self.keys]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def __str__(self) -> str:
        return f"{self.pooling}, block{'s' * (len(self.layers) > 1)} {' '.join(map(str, self.layers))}"


def chosen_readouts(
    depth: int, names: str | None, layers: list[int] | None, poolings: list[str] | None
) -> list[Readout]:
    """The readouts of an encoder of `depth` blocks that the options ask for.

    `names` "all": every pooling of the blocks at half and at three quarters of the depth, of the last block, and of
    all blocks side by side (attention: of the single blocks). And, where either is given, each of the `poolings` (by
    default the mean), of `layers` side by side (by default the last block).

    Raises:
        UserError: a name, block or pooling that there is not, or one given twice.
    """
    for option, values, known in (
        ("readouts", [names] if names is not None else [], ["all"]),
        ("feature_layers", layers or [], range(1, depth + 1)),
        ("feature_pooling", poolings or [], list(POOLINGS)),
    ):
        for value in values:
            if value not in known or values.count(value) > 1:
                choice = f"of 1 ... {depth}" if isinstance(known, range) else f"of {', '.join(known)}"
                raise UserError(f"{option} {value!r} does not work: give one {choice}, each once")
    given = layers is not None or poolings is not None
    chosen = [Readout(tuple(layers or [depth]), pooling) for pooling in poolings or ["mean"]] if given else []
    if names is None:
        return chosen
    single = [(layer,) for layer in sorted({max(1, depth // 2), max(1, 3 * depth // 4), depth})]
    everything = [tuple(range(1, depth + 1))] if depth > 1 else []
    pairs = itertools.product(POOLINGS, single + everything)
    every = [Readout(layers, pooling) for pooling, layers in pairs if pooling != ATTENTION or layers in single]
    return list(dict.fromkeys(every + chosen))


def block_features(
    encoder: torch.nn.Module, depth: int, keys: Iterable[tuple[int, str]]
) -> Callable[[torch.Tensor], dict[tuple[int, str], torch.Tensor]]:
    """``pixel_values -> {(block, pooling): features}``. The last block's tokens pass the encoder's final norm. Those
    of the others pass a norm without weights, so that blocks side by side have the same scale."""

    def compute(pixel_values: torch.Tensor) -> dict[tuple[int, str], torch.Tensor]:
        encoded = encoder(pixel_values, output_hidden_states=True)
        features = {}
        for layer, pooling in keys:
            tokens = encoded.last_hidden_state.float()
            if layer < depth:
                tokens = F.layer_norm(encoded.hidden_states[layer].float(), tokens.shape[-1:])
            features[layer, pooling] = POOLINGS[pooling](tokens)
        return features

    return compute


def readout_table(
    accelerator: Accelerator,
    encoder: MAEModel,
    train: Images,
    evaluation: Images,
    transform: Callable[[dict], torch.Tensor],
    readouts: list[Readout],
    *,
    seed: int,
    memory_budget: int,
    ks: tuple[int, ...] = KS,
    problem_type: str = SINGLE_LABEL,
    batch_size: int,
    num_workers: int,
) -> list[dict]:
    """A row for each of the `readouts`: `name`, `feature_layers` and `feature_pooling`; as in `frozen_table` `knn` and
    `logistic_regression`; and `probe`, as `probe_metric` gives it from `seed`. Attention has the probe alone.

    The encoder sees each image once. Readouts whose features do not fit into `memory_budget` bytes are left out.
    Metrics are on the main process only.
    """
    config, problem = encoder.config, PROBLEMS[problem_type]
    memory_budget = smallest_budget(accelerator, memory_budget)
    kept = _fitting(readouts, config, len(train) + len(evaluation), memory_budget, accelerator.print)
    keys = list(dict.fromkeys(key for readout in kept for key in readout.keys))
    if not keys:
        return []
    model = accelerator.prepare_model(encoder, evaluation_mode=True).eval()
    encode = block_features(model, config.num_hidden_layers, keys)

    def compute(batch: dict) -> dict:
        return {**encode(transform(batch)), "labels": batch["labels"]}

    sets = [compute_over(accelerator, images, batch_size, num_workers, compute) for images in (train, evaluation)]
    rows = []
    for readout in kept:
        row: dict = {"name": str(readout), "feature_layers": list(readout.layers), "feature_pooling": readout.pooling}
        if accelerator.is_main_process:
            arrays = []  # features and labels of the training images, then of those to evaluate on
            for features in sets:
                arrays += [readout.of(features), features["labels"]]
            if readout.pooling != ATTENTION:
                row |= array_accuracies(accelerator, arrays, ks=ks, logistic=True, problem_type=problem_type)
            options = {"problem_type": problem_type, "seed": seed, "device": accelerator.device}
            row["probe"] = probe_metric(config, *arrays, **options)
        rows.append(row)
        figures = {
            "k-NN": row.get("knn", {}).get(K),
            **{problem.columns[key]: row.get(key) for key in problem.columns},
        }
        text = "  ".join(f"{key} {problem.shown(value)}" for key, value in figures.items() if value is not None)
        accelerator.print(f"readout    {readout}: {text}", flush=True)
    accelerator.wait_for_everyone()
    return rows


def _fitting(
    readouts: list[Readout], config: MAEConfig, images: int, budget: int, say: Callable[[str], None]
) -> list[Readout]:
    """Those of the `readouts` whose features fit into `budget` bytes all together; `say` names the others. What is
    computed from features takes as much again."""
    sizes: dict[tuple[int, str], int] = {}
    kept = []
    for readout in readouts:
        size_of_one = 2 * images * readout.size(config) // len(readout.layers)
        needed = {**sizes, **dict.fromkeys(readout.keys, size_of_one)}
        if sum(needed.values()) > budget:
            say(f"note       no readout {readout}: its features would take {size_of_one / 2**30:.1f} GiB for a block")
            continue
        kept.append(readout)
        sizes = needed
    return kept
