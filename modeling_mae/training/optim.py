"""Parameter groups, optimizers and learning-rate curve (paper, Tables 8, 9 and 10)."""

import math
import re

import torch
from timm.optim import Lars
from torch import nn


def learning_rate(update: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """The rate of update `update` (0, 1, ...) of `total`: a line from 0 to `peak` over `warmup` updates, then half a
    cosine down to `floor`. A pure function of the update, so that nothing has to be saved or stepped."""
    if update < warmup:
        return peak * update / warmup
    progress = (update - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Groups of what is trained: matrices with weight decay; biases, norms, tokens, positions (`plain`) without.

    With `layer_decay` (BEiT, arXiv 2106.08254; Table 9) each group has the `lr_scale` of its depth: decay^(depth + 1)
    for embeddings, decay^(depth - i) for block i, 1 for what follows the blocks."""
    depth = model.config.num_hidden_layers if layer_decay != 1 else 0
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Tokens and learned positions are (1, n, width): values added to activations, like biases.
            plain = parameter.ndim < 2 or (parameter.ndim == 3 and parameter.shape[0] == 1)
            scale = layer_decay ** (depth + 1 - _layer(name, depth)) if layer_decay != 1 else 1.0
            decay = 0.0 if plain else weight_decay
            options = {"params": [], "weight_decay": decay, "lr_scale": scale, "plain": plain}
            group = groups.setdefault((scale, plain), options)
            group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _layer(name: str, depth: int) -> int:
    """0 for the encoder's embeddings, i + 1 for its block i, depth + 1 for the rest."""
    if block := re.match(r"mae\.layers\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if name.startswith("mae.embeddings.") else depth + 1


def adamw(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW, in one fused kernel where the device has one. The loop sets the learning rate."""
    devices = {parameter.device.type for parameter in model.parameters()}
    fused = devices <= {"cpu", "cuda", "xpu"}
    return torch.optim.AdamW(parameter_groups(model, weight_decay, layer_decay), lr=0.0, betas=betas, fused=fused)


def lars(model: nn.Module, *, weight_decay: float = 0.0, momentum: float = 0.9) -> Lars:
    """LARS of linear probing (arXiv 1708.03888; Table 10): trust ratio 0.001, for matrices only."""
    groups = parameter_groups(model, weight_decay)
    for group in groups:
        # timm adapts no group without weight decay unless told, and probing has none anywhere.
        group["always_adapt"] = not group["plain"]
    return Lars(groups, lr=0.0, momentum=momentum, trust_coeff=0.001, eps=0.0)


def sgd(model: nn.Module, *, weight_decay: float = 0.0, momentum: float = 0.9) -> torch.optim.SGD:
    """Plain SGD with momentum, which probes as well as LARS at batches of 4096 (Section A.1)."""
    return torch.optim.SGD(parameter_groups(model, weight_decay), lr=0.0, momentum=momentum)
