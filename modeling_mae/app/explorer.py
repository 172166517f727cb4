"""Computes everything that the page shows about an image, from the bytes of its file."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..checkpoint import Checkpoint, open_checkpoint
from ..data.read.bit_depth import WHITE
from ..data.read.decode import decode
from ..data.read.endings import NIFTI, ending_of
from ..data.read.limits import MOST_PIXELS
from ..data.read.volumes import STACKED
from ..data.serve.crops import CenterCrop, crop_and_resize
from ..data.serve.processor import Processing, image_processor
from ..errors import UserError
from ..interop.layouts import IMAGENET_MEAN, IMAGENET_STD
from ..modeling_mae import EvalNet, MAEForPreTraining, MAELayer, MAEModel
from ..readout import block_tokens, nearest, pooled_output
from ..report.reconstruction import visible_colours
from ..segmentation_mae import MAEForSemanticSegmentation
from ..tasks import task_of_checkpoint
from ..tasks.evalnet import names_of
from ..tasks.mask_pictures import one_class, overlay, palette
from ..tasks.windows import classes_of
from . import views


if TYPE_CHECKING:
    from ..data.find.row_names import RowNames
    from ..data.find.slices import SliceSettings
    from ..data.serve.images import Images

LONGEST_MASK = 1024  # pixels of the longer side of a mask on the page


@dataclass
class Segmented:
    """The class of each pixel of an image. Large images are thinned out by a whole factor."""

    image: torch.Tensor  # (channels, height, width), 255 is white
    mask: np.ndarray  # (height, width) uint8
    shares: dict[int, float]  # {class: share of all pixels}, the largest first, without those that have none

    def picture(self, colours: np.ndarray, strength: float, alone: int | None) -> np.ndarray:
        """``(height, width, 3)`` uint8: the image under the `colours` ``(classes, 3)`` of all classes, or of one."""
        if alone is None:
            return overlay(self.image, self.mask, colours, strength)
        return one_class(self.image, self.mask, colours, strength, alone)


@dataclass
class Look:
    """An image as the model sees it, and what the encoder computes from it."""

    name: str
    pixel_values: torch.Tensor  # (1, channels, height, width), normalised
    picture: torch.Tensor  # (height, width, 3) uint8
    stages: list[torch.Tensor]  # the input of each block, then the last one's output; each (1, 1 + patches, width)
    feature: torch.Tensor  # (width,), the pooled features
    scores: dict[str, float] | str | None  # of a classifier, as `Task.shown` returns them
    segmented: Segmented | None  # of a segmentation


class Explorer:
    """A checkpoint: pre-trained, trained for a task, or an encoder alone, of this or another project. With `slices`,
    stacks and volumes are seen as their slices.

    Raises:
        UserError: the checkpoint does not exist, or it cannot be read.
    """

    def __init__(self, checkpoint: str, max_image_pixels: int = MOST_PIXELS, slices: "SliceSettings | None" = None):
        self.checkpoint, self.max_image_pixels, self.slices = checkpoint, max_image_pixels, slices
        opened = open_checkpoint(checkpoint)
        print(opened.notes_text(), end="")
        self.model = opened.model().float()
        self.processing, self.guessed = _processing(opened)
        self.mean, self.std = self.processing.mean or [], self.processing.std or []
        self.encoder: MAEModel = self.model if isinstance(self.model, MAEModel) else self.model.mae
        self.config, self.task = self.model.config, task_of_checkpoint(opened.config)
        self.grid, self.size = self.config.grid, self.config.image_height_width

    @property
    def reconstructs(self) -> bool:
        return isinstance(self.model, MAEForPreTraining)

    @property
    def classifies(self) -> bool:
        return isinstance(self.model, EvalNet)

    @property
    def segments(self) -> bool:
        return isinstance(self.model, MAEForSemanticSegmentation)

    @property
    def names(self) -> list[str]:
        """The names of the classes or targets."""
        return names_of(self.config)

    @property
    def colours(self) -> np.ndarray:
        """The colour of each class, ``(classes, 3)`` uint8."""
        return palette(len(self.names))

    @property
    def depth(self) -> int:
        return self.config.num_hidden_layers

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises images ``(batch, channels, height, width)`` in which 255 is white."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images.float() / WHITE - mean) / std

    @torch.inference_mode()
    def open(self, data: bytes, name: str) -> Look:
        """Decodes an image, crops it as the checkpoint's image processor does, and looks at it.

        Raises:
            UserError: the file is not an image, or it does not have the model's channels.
        """
        white, bands = self.processing.white, self.processing.bands
        return self.look(decode(data, name, self.config.num_channels, white, bands, self.max_image_pixels), name)

    def open_file(self, path: Path) -> Look:
        """Looks at the only file of a folder. With `slices`, at the middle slice of a volume.

        Raises:
            UserError: the file is not an image or volume, or it does not have the model's channels.
        """
        ending = ending_of(str(path))
        if self.slices is None and ending in NIFTI:
            raise UserError(f"{path.name} is a volume: start the app with --slices all")
        if self.slices is None or ending not in STACKED:
            return self.open(path.read_bytes(), path.name)
        names, images = self.images_of(str(path.parent), replace(self.slices, slices="middle:1"))
        return self.look(images.read(0), name_of_row(names, 0))

    def images_of(self, folder: str, slices: "SliceSettings | None") -> "tuple[RowNames, Images]":
        """(names, images) of a folder, prepared for the model. The next one replaces one that cannot be read.

        Raises:
            UserError: the folder does not exist, or it has no images.
        """
        from ..data.find.row_names import RowNames  # late: a page without a folder needs no data sets
        from ..data.find.sources import SourceSettings, load_source
        from ..data.serve.images import ImageSettings, Opening, open_images

        place = SourceSettings(train_dir=folder, max_image_pixels=self.max_image_pixels)
        if slices is not None:
            place = replace(place, slices=slices.slices, neighbour_slices=slices.neighbour_slices)
        source = load_source(place)
        reading = ImageSettings(on_bad_image="skip", max_image_pixels=self.max_image_pixels)
        opening = Opening(self.size, self.config.num_channels, self.processing.applied(reading))
        return RowNames(source), open_images(source, opening)

    @torch.inference_mode()
    def look(self, image: torch.Tensor, name: str) -> Look:
        """Looks at an image ``(channels, height, width)`` of any size, in which 255 is white."""
        crop = CenterCrop(self.size, self.processing.crop_fraction or 1.0)
        boxes, _ = crop(0, [0], *image.shape[1:])
        pixel_values = self.normalised(crop_and_resize(image[None], boxes, None, self.size))
        encoded = self.encoder(pixel_values, output_hidden_states=True)
        scores = None
        if self.classifies and self.task is not None:
            logits = self.model.head(self.model.head_norm(encoded.pooler_output))[0]
            scores = self.task.shown(logits, self.names)
        return Look(
            name,
            pixel_values,
            self.pictures(pixel_values)[0],
            list(encoded.hidden_states),
            pooled_output(encoded)[0],
            scores,
            self.segmented(image) if self.segments else None,
        )

    def segmented(self, image: torch.Tensor) -> Segmented:
        """The classes of an image ``(channels, height, width)``, in windows where it is larger than the model's."""
        mask = classes_of(self.model, image, self.normalised).numpy()
        counts = np.bincount(mask.ravel(), minlength=len(self.names))
        shares = {int(i): float(counts[i] / mask.size) for i in np.argsort(-counts, kind="stable") if counts[i]}
        step = -(-max(mask.shape) // LONGEST_MASK)
        return Segmented(image[:, ::step, ::step].clone(), mask[::step, ::step].copy(), shares)

    def pictures(self, original: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
        """Normalised images ``(1, channels, height, width)`` as ``(height, width, 3)`` uint8, in the same colours."""
        shown = visible_colours(original, *others, mean=self.mean, std=self.std)
        return [images[0].permute(1, 2, 0) for images in shown]

    @torch.inference_mode()
    def reconstruct(self, look: Look, mask: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The decoder's picture from the patches that ``mask (patches,)`` leaves visible, and the loss.

        Raises:
            UserError: the mask hides nothing or everything, or the checkpoint has no decoder.
        """
        if not self.reconstructs:
            raise UserError("this checkpoint has no decoder: reconstruction needs one of run_pretrain.py")
        hidden = int(mask.sum())
        if hidden in (0, len(mask)):
            remedy = "click a patch to hide it" if hidden == 0 else "click a patch to show it"
            raise UserError(f"{hidden} of {len(mask)} patches are hidden, but not all or none may be: {remedy}")
        outputs = self.model(look.pixel_values, bool_masked_pos=mask[None])
        reconstruction = self.model.reconstruct(look.pixel_values, outputs)
        return self.pictures(look.pixel_values, reconstruction)[1], float(outputs.loss)

    def attention(self, look: Look, token: int, block: int) -> torch.Tensor:
        """How much a token attends to each token in block 1 ... depth, ``(1 + patches,)``. Token 0: class token."""
        return views.attention_of(cast(MAELayer, self.encoder.layers[block - 1]), look.stages[block - 1], token)

    @torch.inference_mode()
    def patch_features(self, look: Look, block: int) -> torch.Tensor:
        """The patch tokens ``(patches, width)`` after block 1 ... depth and the encoder's final norm."""
        return block_tokens(self.encoder, look.stages[block])[0, 1:]

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The features ``(batch, width)`` of images of the model's size, in which 255 is white."""
        return pooled_output(self.encoder(self.normalised(images)))

    def processor(self):
        """An image processor that prepares images as this class does."""
        processing, channels = self.processing, self.config.num_channels
        return image_processor(
            self.size,
            self.mean,
            self.std,
            channels,
            processing.crop_fraction or 1.0,
            processing.white or WHITE,
            processing.bands,
        )


def _processing(checkpoint: Checkpoint) -> tuple[Processing, bool]:
    """(how images are prepared, whether mean and deviation are guessed)."""
    processing, channels = checkpoint.processing, checkpoint.config.num_channels
    if processing.mean is not None:
        return processing, False
    if channels != 3:
        raise UserError(
            f"checkpoint {checkpoint.name!r} has no image processor, and ImageNet's mean and deviation do not fit "
            f"{channels} channels: save one with it (modeling_mae.data.serve.processor.image_processor)"
        )
    return Processing(list(IMAGENET_MEAN), list(IMAGENET_STD), 1.0, WHITE), True


def name_of_row(names: "RowNames", row: int) -> str:
    """The file name of an image, or its number."""
    (name,) = names.files(row, row + 1)
    return f"image {row}" if name == str(row) else Path(name).name


class Folder:
    """The images of a folder with their features, for nearest neighbours. `pictures` are thumbnails.

    Uses at most `most` images, evenly spaced. Files that cannot be read are left out.

    Raises:
        UserError: the folder does not exist, or it has no image that can be read.
    """

    def __init__(
        self,
        explorer: Explorer,
        folder: str,
        most: int,
        progress: Callable[[list], Iterable] = iter,
        batch_size: int = 16,
    ):
        self.explorer = explorer
        self.names, self.images = explorer.images_of(folder, explorer.slices)
        self.total = len(self.names.source)
        rows = self.images.spread(most)
        features, pictures = [], []
        for batch in progress([rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]):
            images = self.images.batch(0, batch)["images"]
            features.append(explorer.features(images))
            # Kept, because opening eight large files for every answer would take seconds.
            pictures += [views.small(explorer.pictures(image[None])[0]) for image in explorer.normalised(images)]
        # The next image has replaced one that cannot be read.
        readable = (~self.images.skipped[rows]).nonzero()[:, 0].tolist()
        self.rows, self.pictures = [rows[i] for i in readable], [pictures[i] for i in readable]
        self.bank = torch.cat(features)[readable]  # (images, width)

    def __len__(self) -> int:
        return len(self.rows)

    def look(self, place: int) -> Look:
        """Look at one of the images."""
        return self.explorer.look(self.images.read(self.rows[place]), self.name(place))

    def name(self, place: int) -> str:
        """The file name of one of the images, or its number in the folder."""
        return name_of_row(self.names, self.rows[place])

    def neighbours(self, look: Look, count: int) -> list[tuple[int, float]]:
        """(index, cosine similarity) of the images nearest to `look`, the nearest first."""
        similarities, places = nearest(look.feature[None], self.bank, count)
        return list(zip(places[0].tolist(), similarities[0].tolist(), strict=True))
