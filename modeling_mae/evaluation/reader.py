"""How images are brought to a model to be looked at once each."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from ..data.images import Images
from .metrics import compute_over


@dataclass(frozen=True)
class FrozenSet:
    """Frozen features of a set of images, and their labels where the set has them."""

    features: np.ndarray  # (images, width), or (images, patches, width) for an attentive probe
    labels: np.ndarray | None  # (images,) class numbers, or (images, n)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def known_labels(self) -> np.ndarray:
        """The labels of a set that must have them."""
        assert self.labels is not None, "this set of images has no labels"
        return self.labels


@dataclass(frozen=True)
class Reader:
    """Reads images for a model: on all processes of `accelerator`, normalised by `transform`, so many at a time."""

    accelerator: Accelerator
    transform: Callable[[dict], torch.Tensor]
    batch_size: int
    num_workers: int  # loading workers of each process

    def over(self, images: Images, compute: Callable[[dict], dict]) -> dict:
        """`compute(batch)` for all `images`: arrays ``(images, ...)`` in order, on every process."""
        return compute_over(self.accelerator, images, self.batch_size, self.num_workers, compute)

    def features(self, encode: Callable[[torch.Tensor], torch.Tensor], images: Images) -> FrozenSet:
        """What `encode` gives for ``pixel_values (batch, channels, height, width)`` of all `images`, on every
        process."""

        def compute(batch: dict) -> dict[str, torch.Tensor]:
            # The labels come from the batch: an image that stands in for an unreadable one brings its own.
            labels = {key: batch[key] for key in ("labels",) if key in batch}
            return {"features": encode(self.transform(batch)).float(), **labels}

        arrays = self.over(images, compute)
        return FrozenSet(arrays["features"], arrays.get("labels"))
