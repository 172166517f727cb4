"""The outputs of a task's model for each image."""

import numpy as np
import torch

from ..data.serve.images import Images
from ..tasks import Task
from ..tasks.protocol import Columns
from ..training.sharded import share_buffers
from .reader import Reader


def predict_with(reader: Reader, task: Task, columns: Columns, model, images: Images) -> dict[str, np.ndarray]:
    """The `columns` of all `images` from the prepared `model` of `task` in eval mode: arrays ``(images, ...)``."""

    def compute(batch: dict) -> dict[str, torch.Tensor]:
        return columns(task.outputs(model, reader.transform, batch), task.labels_of(batch, images.size))

    model.eval()
    share_buffers(reader.accelerator, model)
    return reader.map(images, compute)
