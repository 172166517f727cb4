"""BatchNorm's running statistics, which are those of one process however many there are."""

import torch
from torch import nn


def share_statistics(model: nn.Module) -> None:
    """Have each BatchNorm of `model` remember the images of all processes.

    A micro-batch is normalised by its own mean and deviation, on whichever process it is. The running statistics take
    up the micro-batches of all processes in the order in which one process would see them. With one process, nothing
    changes.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.register_forward_pre_hook(_before)
            module.register_forward_hook(_after)


def _is_shared(module: nn.BatchNorm1d) -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return module.training and distributed and torch.distributed.get_world_size() > 1


def _running(module: nn.BatchNorm1d) -> list[torch.Tensor]:
    """Its running mean and variance. Through `data`, because autograd would take a change of them for an error."""
    assert module.running_mean is not None and module.running_var is not None
    return [module.running_mean.data, module.running_var.data]


@torch.compiler.disable
def _before(module: nn.BatchNorm1d, inputs) -> None:
    """Clear the running statistics: after the forward pass they hold the share of its images alone."""
    if _is_shared(module):
        module.remembered = torch.stack(_running(module))  # (2, width)
        for values in _running(module):
            values.zero_()


@torch.compiler.disable
def _after(module: nn.BatchNorm1d, inputs, output) -> None:
    if not _is_shared(module):
        return
    own, processes = torch.stack(_running(module)), torch.distributed.get_world_size()
    shares = [torch.empty_like(own) for _ in range(processes)]
    torch.distributed.all_gather(shares, own)
    statistics = module.remembered
    for share in shares:
        statistics = (1 - module.momentum) * statistics + share
    for values, new in zip(_running(module), statistics, strict=True):
        values.copy_(new)
    module.num_batches_tracked += processes - 1
