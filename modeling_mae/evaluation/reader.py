"""Runs a model once over all images of a set."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from ..data.serve.images import Images
from ..training.augment import BatchTransform
from ..training.launch import loading_workers


CPU_BATCH = 64  # images; larger activations leave the caches, and the kernel clears their memory for each operation


@dataclass(frozen=True)
class FrozenSet:
    """Frozen features of a set of images, and their labels if it has them."""

    features: np.ndarray  # (images, width), or (images, patches, width) for an attentive probe
    labels: np.ndarray | None  # (images,) class numbers, or (images, n)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def known_labels(self) -> np.ndarray:
        """The labels. Raises an error if the set has none."""
        assert self.labels is not None, "this set of images has no labels"
        return self.labels


@dataclass(frozen=True)
class ReadingSettings:
    """How images are normalised, and how many are read at a time."""

    image_mean: list[float]
    image_std: list[float]
    dataloader_num_workers: int | None = None  # of each process; None: as many as fit the machine
    per_device_eval_batch_size: int = 256  # without gradients, images take less memory than in training


@dataclass(frozen=True)
class Reader:
    """Reads images for a model on all processes, normalised by `transform`, `batch_size` at a time (on a CPU at most
    `CPU_BATCH`)."""

    accelerator: Accelerator
    transform: Callable[..., torch.Tensor]
    batch_size: int
    num_workers: int  # loading workers of each process

    @classmethod
    def of_size(cls, accelerator: Accelerator, size: tuple[int, int], settings: ReadingSettings) -> "Reader":
        """Reads images of `size` (height, width)."""
        transform = BatchTransform(settings.image_mean, settings.image_std, size).to(accelerator.device)
        workers = loading_workers(settings.dataloader_num_workers)
        return cls(accelerator, transform, settings.per_device_eval_batch_size, workers)

    @torch.no_grad()
    def map(self, images: Images, compute: Callable[[dict], dict]) -> dict:
        """`compute(batch)` for all `images`, dealt to the processes: arrays ``(images, ...)`` in order, on every
        process.

        All processes make the same number of calls, as sharded models need. The images that fill up the last calls are
        dropped.
        """
        accelerator, total = self.accelerator, len(images)
        share, rank = -(-total // accelerator.num_processes), accelerator.process_index
        indices = [min(rank * share + i, total - 1) for i in range(share)]
        size = min(self.batch_size, CPU_BATCH) if accelerator.device.type == "cpu" else self.batch_size
        batches = [(0, indices[first : first + size]) for first in range(0, share, size)]
        arrays: dict[str, torch.Tensor] = {}
        for batch, (_, batch_indices) in zip(images.loader(batches, self.num_workers), batches, strict=True):
            batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
            values = {"index": torch.tensor(batch_indices, device=accelerator.device), **compute(batch)}
            values = {key: value.cpu() for key, value in accelerator.gather(values).items()}
            places, first_of_each = np.unique(values.pop("index"), return_index=True)
            for key, value in values.items():
                if key not in arrays:
                    arrays[key] = torch.empty(total, *value.shape[1:], dtype=value.dtype)
                arrays[key][places] = value[first_of_each]
        return {key: array.numpy() for key, array in arrays.items()}

    def features(self, encode: Callable[[torch.Tensor], torch.Tensor], images: Images) -> FrozenSet:
        """The output of `encode` for ``pixel_values (batch, channels, height, width)`` of all `images`, on every
        process."""

        def compute(batch: dict) -> dict[str, torch.Tensor]:
            # The labels come from the batch, because an image that replaces an unreadable one brings its own.
            labels = {key: batch[key] for key in ("labels",) if key in batch}
            return {"features": encode(self.transform(batch)).float(), **labels}

        arrays = self.map(images, compute)
        return FrozenSet(arrays["features"], arrays.get("labels"))
