"""What is different about models that processes share among them (FSDP2) or hold a copy each of (DDP)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def local_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """This process's part of each parameter; without sharding, all of it."""
    parameters = [parameter.detach() for parameter in model.parameters()]
    return [value.to_local() if isinstance(value, DTensor) else value for value in parameters]


@contextmanager
def original_class(model: torch.nn.Module) -> Iterator[None]:
    """Give `model` the class that it had before FSDP2 put one of its own in place.

    `save_pretrained` writes the source file and the name of a model's class. Those of FSDP's load nowhere."""
    sharded_class = type(model)
    model.__class__ = next(base for base in sharded_class.__mro__ if not issubclass(base, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded_class


@torch.no_grad()
def share_buffers(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Give all processes the buffers of the first, which are the ones that are saved.

    Each process measures BatchNorm's statistics on its own images. Without this, FSDP's processes would each evaluate
    another model. DDP does the same at every forward pass."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def settle_gradient_groups(model: torch.nn.Module) -> None:
    """Have DDP group the gradients for good, before the first update.

    DDP adds up gradients in groups, and forms the groups anew after its first backward pass. With three processes or
    more, the groups decide the order of the summands. A run that goes on would have the first groups for one update
    where the run that was never stopped has the second, and end with other weights."""
    model = getattr(model, "_orig_mod", model)  # of a compiled one
    if isinstance(model, DistributedDataParallel):
        model.reducer.prepare_for_backward([])
        torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum().backward()
        model.zero_grad()
