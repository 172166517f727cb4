"""What is different about models that processes share among them (FSDP2) or hold a copy each of (DDP)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


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
