"""Images whose frozen features are computed once, so that a probe trains without the encoder."""

from dataclasses import replace

import torch
from torch.distributed.fsdp import FSDPModule

from ..data.serve.crops import OnlyCrop, RandomResizedCrop
from ..data.serve.images import Images
from ..data.serve.masked import MaskedImages, ScaledCrop
from ..data.serve.order import UpdateOrder
from ..tasks.sets import LabelledSets
from ..training.launch import smallest_budget
from ..words import counted
from .reader import FrozenSet, Reader


class FrozenImages(Images):
    """Features of `images` that replace the images. `versions` are the features of the images and, if the crop flips,
    of their mirror images, each ``(images, ...)``. Batches have `features` and `labels`, in the images' order and with
    their flips."""

    where = "in memory"
    decodes = False

    def __init__(self, images: Images, versions: list[FrozenSet]):
        self.frozen_labels = torch.from_numpy(versions[0].known_labels)
        super().__init__(len(images), images.size, 1.0, self.frozen_labels)
        self.images, self.versions = images, [torch.from_numpy(version.features) for version in versions]

    def read(self, index: int) -> torch.Tensor:
        return self.images.read(index)

    def _crop_batch(self, epoch: int | list[int], indices: list[int]) -> dict:
        features = self.versions[0][indices]
        if len(self.versions) > 1:
            rows = indices if self.images.rows is None else self.images.rows[indices]
            _, flips = self.images.crop(epoch, rows, *self.size)  # flips do not depend on the size
            features[flips] = self.versions[1][torch.tensor(indices)[flips]]
        batch = {"features": features, "labels": self.frozen_labels[indices]}
        if isinstance(self.images, MaskedImages):
            rows = indices if self.images.rows is None else self.images.rows[indices].tolist()
            batch["masks"] = self.images.masks_of(epoch, rows)
        return batch

    def order(self, total_batch_size: int, seed: int) -> UpdateOrder:
        return self.images.order(total_batch_size, seed)


def probed_sets(
    reader: Reader, model, images: Images, sets: LabelledSets, epochs: float, memory_budget: int
) -> tuple[Images, LabelledSets]:
    """Replaces the `images` of a training and those to evaluate on by their frozen features if the prepared `model` is
    a probe, images are only flipped, and it saves time. Otherwise both are returned unchanged, also if the features do
    not fit into `memory_budget` bytes or the model is sharded.

    The probe's results are the same, up to the rounding of batches of another size.
    """
    accelerator = reader.accelerator
    net = accelerator.unwrap_model(model, keep_torch_compile=False)
    versions = versions_of(images)
    sharded = isinstance(net, FSDPModule)  # FSDP cannot call the encoder before the whole model
    if net.n_partial != 0 or sharded or not 0 < len(versions) < epochs:
        return images, sets
    count = len(versions) * len(images) + len(sets.evaluation)
    needed = count * net.frozen_size * 4  # bytes
    memory_budget = smallest_budget(accelerator, memory_budget)
    if needed > memory_budget:
        accelerator.print(
            f"note       the features of all images take {needed / 2**30:.1f} GiB, more than the "
            f"{memory_budget / 2**30:.1f} GiB for images: the encoder computes them in every epoch"
        )
        return images, sets

    @torch.no_grad()
    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        with accelerator.autocast():
            return net.frozen_features(pixel_values)

    mirrored = " and their mirror images" * (len(versions) - 1)
    accelerator.print(f"features   of {counted(len(images), 'image')}{mirrored}: computed once", flush=True)
    net.eval()
    frozen = [reader.features(encode, images.view(crop=crop)) for crop in versions]
    seen_whole = isinstance(sets.evaluation, MaskedImages) and not sets.evaluation.have_size
    evaluation = None if seen_whole else reader.features(encode, sets.evaluation)
    # The image that replaces a bad one brings its own crop, and other crops change in every epoch.
    odd = torch.cat([*(crop.had_choice for crop in versions), images.skipped]).any()
    if accelerator.reduce(odd.int().to(accelerator.device), "sum"):
        accelerator.print("note       some images are bad or have several crops: the encoder runs in every epoch")
        return images, sets
    if evaluation is not None:
        sets = replace(sets, evaluation=FrozenImages(sets.evaluation, [evaluation]))
    return FrozenImages(images, frozen), sets


def versions_of(images: Images) -> list[OnlyCrop]:
    """The crops that give every version of `images`: one, or two with flips. Empty if other changes are random."""
    crop = images.crop
    if images.augment is not None or not isinstance(crop, (RandomResizedCrop, ScaledCrop)) or not crop.only_flips:
        return []
    if isinstance(images, MaskedImages) and not images.have_size:
        return []
    return [OnlyCrop(crop, mirrored) for mirrored in (False, True)[: 1 + crop.flip]]
