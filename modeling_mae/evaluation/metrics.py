"""Every image once over all processes, and what a model says of each."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator

from ..data.serve.images import Images
from ..tasks import Task
from ..tasks.protocol import Columns
from ..training.sharded import share_buffers


@torch.no_grad()
def compute_over(
    accelerator: Accelerator,
    images: Images,
    batch_size: int,
    num_workers: int,
    compute: Callable[[dict], dict[str, torch.Tensor]],
) -> dict[str, np.ndarray]:
    """`compute(batch)` for all `images`, dealt to the processes: arrays ``(images, ...)`` in order, on every process.

    All processes make the same number of calls, as sharded models need. What fills up the last ones is dropped.
    """
    total, rank = len(images), accelerator.process_index
    share = -(-total // accelerator.num_processes)
    indices = [min(rank * share + i, total - 1) for i in range(share)]
    batches = [(0, indices[first : first + batch_size]) for first in range(0, share, batch_size)]
    arrays: dict[str, torch.Tensor] = {}
    for batch, (_, batch_indices) in zip(images.loader(batches, num_workers), batches, strict=True):
        batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
        values = {"index": torch.tensor(batch_indices, device=accelerator.device), **compute(batch)}
        values = {key: value.cpu() for key, value in accelerator.gather(values).items()}
        places, first_of_each = np.unique(values.pop("index"), return_index=True)
        for key, value in values.items():
            if key not in arrays:
                arrays[key] = torch.empty(total, *value.shape[1:], dtype=value.dtype)
            arrays[key][places] = value[first_of_each]
    return {key: array.numpy() for key, array in arrays.items()}


def predict_with(
    task: Task,
    columns: Columns,
    accelerator: Accelerator,
    model,
    images: Images,
    transform: Callable[[dict], torch.Tensor],
    batch_size: int,
    num_workers: int,
) -> dict[str, np.ndarray]:
    """The `columns` of all `images`, by the prepared `model` of `task` in eval mode: arrays ``(images, ...)``."""

    def compute(batch: dict) -> dict[str, torch.Tensor]:
        return columns(task.outputs(model, transform, batch), task.labels_of(batch, images.size))

    model.eval()
    share_buffers(accelerator, model)
    return compute_over(accelerator, images, batch_size, num_workers, compute)
