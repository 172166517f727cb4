"""Special cases of models that are sharded (FSDP2) or replicated (DDP) over processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def local_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """This process's part of each parameter, or all of it without sharding."""
    parameters = [parameter.detach() for parameter in model.parameters()]
    return [value.to_local() if isinstance(value, DTensor) else value for value in parameters]


def gradient_norm(model: torch.nn.Module) -> torch.Tensor:
    """The length of the gradient over all parameters and processes, a scalar that stays on the device.

    Without sharding, DDP has already given every process the whole mean gradient."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@contextmanager
def original_class(model: torch.nn.Module) -> Iterator[None]:
    """Gives `model` the class that it had before FSDP2 replaced it.

    `save_pretrained` writes the source file and the name of a model's class. FSDP's class could not be loaded."""
    sharded_class = type(model)
    model.__class__ = next(base for base in sharded_class.__mro__ if not issubclass(base, FSDPModule))  # type: ignore[assignment]
    try:
        yield
    finally:
        model.__class__ = sharded_class


@torch.no_grad()
def share_buffers(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Give all processes the buffers of the first, because only its buffers are saved.

    DDP does the same at every forward pass."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


@contextmanager
def whole_weights(model: torch.nn.Module) -> Iterator[None]:
    """Gathers the weights that FSDP only gathers in a call of the whole model, so that a part of it can be called.

    Blocks gather their own weights. The other weights, such as the final norm's, belong to the whole model."""
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()


def fix_gradient_buckets(model: torch.nn.Module) -> None:
    """Makes DDP choose its final groups of gradients before the first update.

    DDP adds gradients in groups (buckets), and regroups them after its first backward pass. With three or more
    processes the groups decide the order of addition. So the first update after a stop would use other groups than in
    a run without a stop, and the weights would differ in their last bits."""
    model = getattr(model, "_orig_mod", model)  # unwraps a compiled model
    if isinstance(model, DistributedDataParallel):
        model.reducer.prepare_for_backward([])
        torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum().backward()
        model.zero_grad()
