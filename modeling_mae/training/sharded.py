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


def gradient_norm(model: torch.nn.Module) -> torch.Tensor:
    """The length of the gradient over all parameters and processes, a scalar that stays on the device.

    Without sharding every process has the whole gradient already; its mean over the processes, as DDP makes it."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@contextmanager
def original_class(model: torch.nn.Module) -> Iterator[None]:
    """Give `model` the class that it had before FSDP2 put one of its own in place.

    `save_pretrained` writes the source file and the name of a model's class. Those of FSDP's load nowhere."""
    sharded_class = type(model)
    model.__class__ = next(base for base in sharded_class.__mro__ if not issubclass(base, FSDPModule))  # type: ignore[assignment]
    try:
        yield
    finally:
        model.__class__ = sharded_class


@torch.no_grad()
def share_buffers(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Give all processes the buffers of the first, which are the ones that are saved.

    DDP does the same at every forward pass."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


@contextmanager
def whole_weights(model: torch.nn.Module) -> Iterator[None]:
    """Gathers what FSDP would gather only when the whole model is called. Within, a part of it can be called.

    Blocks gather their own weights; those of the rest, such as the final norm, belong to the whole model."""
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()


def settle_gradient_groups(model: torch.nn.Module) -> None:
    """Have DDP group the gradients for good, before the first update.

    DDP adds up gradients in groups. It forms other groups after its first backward pass. With three processes or more
    the groups decide in which order values are added. So a run that goes on would do its first update with other
    groups than a run that was never stopped, and its weights would differ in their last bits."""
    model = getattr(model, "_orig_mod", model)  # of a compiled one
    if isinstance(model, DistributedDataParallel):
        model.reducer.prepare_for_backward([])
        torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum().backward()
        model.zero_grad()
