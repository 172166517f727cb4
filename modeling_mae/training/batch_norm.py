"""Makes BatchNorm's running statistics independent of the number of processes."""

import torch
from torch import nn


def share_statistics(model: nn.Module) -> None:
    """Makes each BatchNorm of `model` collect statistics over all processes.

    Each micro-batch is still normalised by its own mean and deviation. The running statistics collect the
    micro-batches of all processes in the order in which one process would see them. With one process, nothing changes.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            shared = _SharedStatistics()
            module.register_forward_pre_hook(shared.before)
            module.register_forward_hook(shared.after)


class _SharedStatistics:
    """The hooks of a BatchNorm. They change its statistics through `data`, because autograd refuses other changes."""

    earlier: torch.Tensor  # (2, width): running mean and variance before the forward pass

    @torch.compiler.disable
    def before(self, module: nn.BatchNorm1d, inputs) -> None:
        """Clear the statistics, so that after the forward pass they only hold this micro-batch's share."""
        if _processes(module) > 1:
            self.earlier = torch.stack(_running(module))
            for values in _running(module):
                values.zero_()

    @torch.compiler.disable
    def after(self, module: nn.BatchNorm1d, inputs, output) -> None:
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


def _processes(module: nn.BatchNorm1d) -> int:
    """The number of processes that run `module` now."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if module.training and distributed else 1


def _running(module: nn.BatchNorm1d) -> list[torch.Tensor]:
    assert module.running_mean is not None and module.running_var is not None
    return [module.running_mean.data, module.running_var.data]
