"""Trains probes on features in memory: a linear classifier, or one on learned attention."""

import copy
import math

import numpy as np
import torch
from torch import nn

from ..configuration_mae import MAEConfig
from ..data.serve.order import Order
from ..modeling_mae import MAEAttentionPooling, MAEHead, MAEPreTrainedModel
from ..readout import CHUNK
from ..training.optim import OptimizerSettings, Schedule, make_optimizer
from .features import JudgeSettings
from .reader import FrozenSet


EPOCHS, BATCH = 10, 256
FEWEST_UPDATES, WARMUP_UPDATES = 500, 50  # at least; so a small set gets more epochs
RATE = 3e-2  # AdamW's learning rate


class Probe(MAEPreTrainedModel):
    """BatchNorm without parameters and a linear head, as in linear probing (paper, Section A.1). With
    `pooling="attention"` learned queries first pool the features ``(batch, patches, width)``."""

    def __init__(self, config: MAEConfig, outputs: int):
        super().__init__(config)
        self.pooler = MAEAttentionPooling(config) if config.pooling == "attention" else nn.Identity()
        self.norm = nn.BatchNorm1d(config.hidden_size, affine=False, eps=1e-6)
        self.head = MAEHead(config.hidden_size, outputs)
        self.post_init()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.pooler(features)))


def make_probe(config: MAEConfig, features: np.ndarray, outputs: int) -> Probe:
    """A new probe for `features` ``(images, width)`` or ``(images, patches, width)`` of an encoder of `config`. It has
    fewer queries if theirs do not divide the width."""
    config, width = copy.deepcopy(config), features.shape[-1]
    config.hidden_size, config.head_initializer_range = width, 0.01
    config.pooling = "attention" if features.ndim == 3 else "mean"
    if width % (config.num_pooling_queries * config.num_pooling_heads):
        config.num_pooling_queries, config.num_pooling_heads = math.gcd(width, config.num_pooling_queries), 1
    return Probe(config, outputs)


def probe_metric(
    config: MAEConfig, train: FrozenSet, test: FrozenSet, settings: JudgeSettings, device: torch.device | str = "cpu"
) -> float:
    """The metric of a probe on `test`: for one class per image, the accuracy in 0..1.

    AdamW trains it on the features of `train` for `EPOCHS` epochs, but at least `FEWEST_UPDATES`. `config` is the
    encoder's. Features are ``(images, width)``, or ``(images, patches, width)`` for an attentive probe."""
    labels, task = torch.from_numpy(train.known_labels), settings.task
    outputs = int(max(labels.max(), test.known_labels.max())) + 1 if labels.ndim == 1 else labels.shape[1]
    torch.manual_seed(settings.seed)
    probe = make_probe(config, train.features, outputs)
    bias = task.first_bias(labels)
    if bias is not None:
        probe.head.bias.data.copy_(bias)
    nn.Module.to(probe, device)
    train_probe(probe, torch.from_numpy(train.features), labels, task.loss, settings.seed)
    with torch.no_grad():
        chunks = torch.from_numpy(test.features).split(CHUNK)
        logits = torch.cat([probe.eval()(chunk.to(device)).cpu() for chunk in chunks])  # (images, outputs)
    return task.score(task.predictions(logits).numpy(), test.known_labels)


def train_probe(probe: Probe, features: torch.Tensor, labels: torch.Tensor, loss_of, seed: int) -> None:
    """Train `probe` in place, on its device."""
    order = Order(len(features), min(BATCH, len(features)), seed)
    updates = max(FEWEST_UPDATES, EPOCHS * order.updates_per_epoch)
    schedule = Schedule(updates, order.updates_per_epoch, WARMUP_UPDATES, RATE)
    optimizer = make_optimizer(probe, OptimizerSettings(weight_decay=0.0, adam_beta2=0.999))
    device = probe.head.weight.device
    probe.train()
    for update in range(schedule.updates):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(update)
        _, indices = order.images_of(update)
        loss_of(probe(features[indices].to(device)), labels[indices].to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
