"""Parameter groups, optimizer and learning-rate curve of pre-training (paper, Table 8)."""

import math

import torch
from torch import nn


def learning_rate(update: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """The rate of update `update` (0, 1, ...) of `total`: a line from 0 to `peak` over `warmup` updates, then half a
    cosine down to `floor`. A pure function of the update, so that nothing has to be saved or stepped."""
    if update < warmup:
        return peak * update / warmup
    progress = (update - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices with weight decay; biases, norms, tokens, positions without. Fixed ones in neither."""
    decayed, free = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Tokens and learned positions are (1, n, width): values added to activations, like biases.
            plain = parameter.ndim < 2 or (parameter.ndim == 3 and parameter.shape[0] == 1)
            (free if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def adamw(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW, in one fused kernel where the device has one. The loop sets the learning rate."""
    devices = {parameter.device.type for parameter in model.parameters()}
    fused = devices <= {"cpu", "cuda", "xpu"}
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=0.0, betas=betas, fused=fused)
