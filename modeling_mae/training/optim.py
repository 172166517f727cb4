"""Length and rates of a run, parameter groups, optimizers (paper, Tables 8, 9 and 10)."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from timm.optim import Lars
from torch import nn

from ..configuration_mae import MAEConfig
from ..words import counted


LARS_TRUST = 0.001  # the paper's LARS (Table 10; arXiv 1708.03888)
# LARS does not adapt the rate of biases, so at a rate of 6.4 the bias of a regression diverges. It starts at the mean
# of the targets, so a small rate is enough.
REGRESSION_BIAS_SCALE = 0.05
MOMENTUM = 0.9  # for LARS and SGD (Table 10)
RATE_BATCH = 256  # base learning rates are for 256 images per update (Section A.1)


@dataclass(frozen=True)
class LengthSettings:
    """The length of a run and its learning rate, as in a recipe."""

    total_batch_size: int  # images per update
    num_train_epochs: float
    warmup_epochs: float
    base_learning_rate: float  # for 256 images per update
    max_train_steps: int | None = None  # instead of num_train_epochs
    min_learning_rate: float = 0.0
    train_new_first: float = 0.0  # share of the updates that train only new parameters

    def for_fewer(self, images: int, whole: int) -> "LengthSettings":
        """As many updates on `images` images as on `whole`, in batches that these fill: halved until they do."""
        schedule, batch = Schedule.from_epochs(whole, self), self.total_batch_size
        while batch > images and batch % 2 == 0:
            batch //= 2
        warmup_epochs = schedule.warmup / max(1, images // batch)
        return replace(self, total_batch_size=batch, max_train_steps=schedule.updates, warmup_epochs=warmup_epochs)


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its settings, except the learning rate."""

    weight_decay: float
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    layer_decay: float = 1.0
    optimizer: str = "adamw"  # or lars, sgd
    train_new_first: float = 0.0  # above 0, loaded parameters have groups of their own


@dataclass(frozen=True)
class Schedule:
    """The length of a run in updates, computed once from the recipe's epochs, and the learning rate of each update."""

    updates: int
    updates_per_epoch: int
    warmup: int  # updates
    peak: float
    floor: float = 0.0
    new_first: int = 0  # updates that train only new parameters

    @classmethod
    def from_epochs(cls, num_images: int, length: LengthSettings) -> "Schedule":
        """The base learning rate is for 256 images per update and scales linearly (Section A.1)."""
        updates_per_epoch = max(1, num_images // length.total_batch_size)
        updates = length.max_train_steps or math.ceil(length.num_train_epochs * updates_per_epoch)
        return cls(
            updates=updates,
            updates_per_epoch=updates_per_epoch,
            warmup=round(length.warmup_epochs * updates_per_epoch),
            peak=length.base_learning_rate * length.total_batch_size / RATE_BATCH,
            floor=length.min_learning_rate,
            new_first=math.ceil(length.train_new_first * updates),
        )

    def rate(self, update: int) -> float:
        """The learning rate of update `update` (0, 1, ...): a line from 0 to `peak` over the warm-up, then half a
        cosine down to `floor`. A pure function of the update, so no state has to be saved or stepped."""
        if update < self.warmup:
            return self.peak * update / self.warmup
        progress = (update - self.warmup) / max(1, self.updates - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def rate_of(self, group: dict[str, Any], update: int) -> float:
        """The learning rate of one of `parameter_groups`. Loaded parameters wait for the new ones."""
        waits = group.get("waits", False) and update < self.new_first
        return 0.0 if waits else self.rate(update) * group.get("lr_scale", 1.0)

    def describe_rate(self) -> str:
        return f"{self.peak:.3e} after {counted(self.warmup, 'update')} of warm-up, cosine to {self.floor:g}"

    def epoch(self, update: int) -> float:
        """Epochs done after `update` updates."""
        return update / self.updates_per_epoch

    def __str__(self) -> str:
        epochs = counted(self.epoch(self.updates), "epoch")
        return f"{counted(self.updates, 'update')}, {epochs} of {self.updates_per_epoch}"


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, new: frozenset[str] = frozenset()
) -> list[dict]:
    """Groups of the trained parameters. Only matrices get weight decay, not biases, norms, tokens and positions
    (`plain`).

    With `layer_decay` (BEiT, arXiv 2106.08254; Table 9) each group has the `lr_scale` of its depth: decay^(depth + 1)
    for embeddings, decay^(depth - i) for block i, 1 for everything after the blocks. Parameters with the names `new`
    have 1 too. If there are any, the groups of all others have `waits`, which `Schedule.rate_of` reads.
    """
    depth = cast(MAEConfig, model.config).num_hidden_layers if layer_decay != 1 else 0
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Tokens and learned positions (1, n, width) are added to activations, like biases.
            plain = parameter.ndim < 2 or (parameter.ndim == 3 and parameter.shape[0] == 1)
            decays = layer_decay != 1 and name not in new
            scale = layer_decay ** (depth + 1 - _layer(name, depth)) if decays else 1.0
            decay = 0.0 if plain else weight_decay
            options: dict[str, Any] = {"params": [], "weight_decay": decay, "lr_scale": scale, "plain": plain}
            options |= {"waits": name not in new} if new else {}
            group = groups.setdefault((scale, plain, name in new), options)
            group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _layer(name: str, depth: int) -> int:
    """0 for the encoder's embeddings, i + 1 for block i, depth + 1 for the rest."""
    if block := re.match(r"mae\.layers\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if name.startswith("mae.embeddings.") else depth + 1


def make_optimizer(
    model: nn.Module, settings: OptimizerSettings, new: frozenset[str] = frozenset()
) -> torch.optim.Optimizer:
    """The optimizer for the trained parameters of `model`. The loop sets the learning rate. `new` are the names of the
    parameters that were not loaded."""
    # Without these settings nothing depends on `new`, and runs of earlier versions have fewer groups.
    new = new if settings.train_new_first or settings.layer_decay != 1 else frozenset()
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay, new)
    if settings.optimizer == "adamw":
        # One fused kernel, if the device has it.
        fused = {parameter.device.type for parameter in model.parameters()} <= {"cpu", "cuda", "mps", "xpu"}
        return torch.optim.AdamW(groups, lr=0.0, betas=(settings.adam_beta1, settings.adam_beta2), fused=fused)
    if settings.optimizer == "lars":
        for group in groups:
            # Without this, timm does not adapt groups without weight decay, and probing has none.
            group["always_adapt"] = not group["plain"]
            if group["plain"] and getattr(model.config, "problem_type", None) == "regression":
                group["lr_scale"] *= REGRESSION_BIAS_SCALE
        return Lars(groups, lr=0.0, momentum=MOMENTUM, trust_coeff=LARS_TRUST, eps=0.0)
    if settings.optimizer == "sgd":  # as good as LARS for probing at batches of 4096 (Section A.1)
        return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM)
    raise ValueError(f"optimizer {settings.optimizer!r} is not one of adamw, lars, sgd")
