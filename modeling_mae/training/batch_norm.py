"""BatchNorm's running statistics, which are those of one process however many there are."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_statistics(model: nn.Module) -> None:
    """Have each BatchNorm of `model` remember the images of all processes.

    A micro-batch is normalised by its own mean and deviation, on whichever process it is. The running statistics take
    up the micro-batches of all processes in the order in which one process would see them. With one process, nothing
    changes.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            shared = _SharedStatistics()
            module.register_forward_pre_hook(shared.before)
            module.register_forward_hook(shared.after)


class _SharedStatistics:
    """The hooks of a BatchNorm. They change its statistics through `data`: autograd takes other changes for errors."""

    earlier: torch.Tensor  # (2, width): running mean and variance before the forward pass

    @torch.compiler.disable
    def before(self, module: _BatchNorm, inputs) -> None:
        """Clear the statistics: after the forward pass they hold the share of this micro-batch alone."""
        if _processes(module) > 1:
            self.earlier = torch.stack(_running(module))
            for values in _running(module):
                values.zero_()

    @torch.compiler.disable
    def after(self, module: _BatchNorm, inputs, output) -> None:
        processes = _processes(module)
        if processes == 1:
            return
        assert module.momentum is not None and module.num_batches_tracked is not None
        own = torch.stack(_running(module))  # (2, width)
        shares = [torch.empty_like(own) for _ in range(processes)]
        torch.distributed.all_gather(shares, own)
        for share in shares:
            self.earlier = (1 - module.momentum) * self.earlier + share
        for values, new in zip(_running(module), self.earlier, strict=True):
            values.copy_(new)
        module.num_batches_tracked.add_(processes - 1)


def _processes(module: _BatchNorm) -> int:
    """How many processes share what `module` sees now."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if module.training and distributed else 1


def _running(module: _BatchNorm) -> list[torch.Tensor]:
    assert module.running_mean is not None and module.running_var is not None
    return [module.running_mean.data, module.running_var.data]
