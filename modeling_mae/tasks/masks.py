"""Masks: a class for each pixel of an image."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from ..checkpoint import Checkpoint
from ..configuration_mae import MAEConfig
from ..data.find.masks import NoMasks
from ..data.find.sources import Source
from ..data.read.faults import BadImage
from ..data.read.header import read_header
from ..data.read.masks import COLOUR, KeptMask, decode_mask
from ..data.serve.images import Images, Opening, open_images
from ..data.serve.masked import IGNORED, MaskedImages, ScaledCrop
from ..errors import UserError
from ..modeling_mae import MAEPreTrainedModel
from ..report.problem import Problem
from ..segmentation_mae import MAEForSemanticSegmentation
from ..words import SEMANTIC_SEGMENTATION, counted
from .evalnet import names_of
from .mask_pictures import compared_masks
from .protocol import Answers, Task, ViewSettings
from .windows import logits_of, model_device


THREADS = 8  # that read masks before the training
KEPT_LIMIT = 1 << 30  # bytes of masks that are kept in memory
SMALL_NUMBER = 1 << 16  # in a mask; a table of so many entries is quicker than sorting
EXAMPLES = 8  # images of the worst ones
SHOWN_CLASSES = 24  # in the line about the data
MANY_INSTANCES = 8  # numbers in an ordinary image of masks that count things
WEIGHT_BOUNDS = (0.1, 10.0)  # of the class weights, so that a class of a few pixels does not rule the training


@dataclass(frozen=True)
class MaskSettings:
    """What the numbers in masks mean, and how a model learns them. The fields are named like the options."""

    mask_values: str | None = None  # binary: all numbers above 0 are one class; classes: each number is a class
    ignore_index: int | None = None  # the number of pixels without a class; None: 255, where no class has it
    class_weights: str = "none"  # auto: by the pixels of each class
    dice_weight: float = 0.0
    segmentation_head: str = "linear"
    zoom: list[float] = field(default_factory=lambda: [0.5, 2.0])
    quarter_turns: bool = False
    eval_windows: bool = True


@dataclass(frozen=True)
class Numbering:
    """How the numbers in masks become class numbers. `named` are the names of the numbers that a file of classes
    gives."""

    names: list[str]
    settings: MaskSettings
    named: dict[int, str]
    # Class numbers that were found before, by the number in a mask.
    table: np.ndarray = field(default_factory=lambda: np.full(SMALL_NUMBER, -1, np.int16))

    def name_of(self, value: int) -> str | None:
        """The name of the class that a number in a mask means; None for pixels without a class."""
        if value == self.settings.ignore_index:
            return None
        if self.settings.mask_values == "binary":
            return "thing" if value else "ground"
        return self.named.get(value) or (f"#{value - COLOUR:06x}" if value >= COLOUR else str(value))

    def number_of(self, value: int) -> int | None:
        """The class number of a number in a mask. None if no class has it."""
        name = self.name_of(value)
        if name is None:
            return IGNORED
        for each in (name, str(value)):  # the classes may have no names where the model learned them
            if each in self.names:
                return self.names.index(each)
        if value == IGNORED and self.settings.ignore_index is None:
            return IGNORED
        numbered = not self.named and not any(known.isdecimal() for known in self.names)
        return value if numbered and value < len(self.names) else None  # the classes have names elsewhere, here not

    def applied(self, mask: np.ndarray) -> np.ndarray:
        """Class numbers uint8 of the numbers in a mask.

        Raises:
            KeyError: a number that no class has.
        """
        is_small = 0 <= mask.min() <= mask.max() < SMALL_NUMBER
        if is_small and (known := self.table[mask]).min() >= 0:
            return known.astype(np.uint8)
        values = [*pixels_by_number(mask)]
        found = [self.number_of(value) for value in values]
        if None in found:
            raise KeyError(values[found.index(None)])
        numbers = np.array(found, np.uint8)
        if is_small:
            self.table[values] = numbers
        return numbers[np.searchsorted(values, mask)]


class MaskFiles:
    """The masks of a source by the number of the image. Masks that `read` has kept are not read again."""

    def __init__(self, source: Source, names: list[str], settings: MaskSettings):
        self.source = source
        # Folders that are joined may name their classes in another order.
        self.numberings = [Numbering(names, settings, part.mask_names) for part in source.parts or [source]]
        self.kept: list[KeptMask] | None = None
        parts = [part.take_masks() for part in source.parts or [source]]
        if all(masks is not None for masks in parts):
            self.kept = [
                replace(mask, values=numbering.applied(mask.values))
                for numbering, masks in zip(self.numberings, parts, strict=True)
                for mask in masks or ()
            ]

    def __call__(self, index: int) -> np.ndarray:
        """Class numbers ``(height, width)`` uint8."""
        if self.kept is not None:
            return self.kept[index].whole()
        cell, (part, _) = self.source.mask_cell(index), self.source.located(index)
        try:
            mask = decode_mask(cell["bytes"], cell["path"], self.source.max_image_pixels)
            return self.numberings[part].applied(mask)
        except KeyError as error:
            raise UserError(f"{cell['path']} has the number {error}, which no class has: fix it") from None


class Masks(Task):
    """Labels are the pixels of each class in each image ``(images, classes)`` int64. The masks themselves are read
    beside the images."""

    model_class = MAEForSemanticSegmentation
    problem = Problem(
        SEMANTIC_SEGMENTATION,
        label="class",
        labels="classes",
        metric="mean_iou",
        metric_title="mean IoU",
        lower_is_better=False,
        is_share=True,
        unit="IoU, Dice and accuracy are in %.",
        titles={
            "mean_iou": "mean IoU",
            "mean_dice": "mean Dice",
            "pixel_accuracy": "pixel accuracy",
            "loss": "loss",
        },
        shares=("mean_iou", "mean_dice", "pixel_accuracy"),
        columns={
            "mean_iou": "mean IoU",
            "mean_dice": "mean Dice",
            "pixel_accuracy": "pixels",
        },
        each=("per_class_iou", "class", "IoU"),
        model="A semantic segmentation",
        usage="outputs = model(**inputs)\n"
        "mask = processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])[0]  # (height, width)",
        confused="pixels",
        auto_class="AutoModelForSemanticSegmentation",
        hub_task="image-segmentation",
    )

    def __init__(self, settings: MaskSettings | None = None):
        self.settings = settings or MaskSettings()

    # --- labels ---

    def recognises(self, source: Source) -> bool:
        return False  # masks are asked for by --problem_type

    def read_one(self, source: Source, known_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
        """Reads every mask once. Raises also for masks of another size than their image, for JPEG masks, and for
        numbers that look like those of things."""
        counts = self._counts(source)
        names = known_names if known_names is not None else self._names_of(counts, source.mask_names)
        return self._pixels(source, counts, names), names

    def read_both(self, train: Source, evaluation: Source) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """As `read` of both, where `train` are a few of the images: classes are those that either has.

        Raises:
            UserError: also if joined folders name their classes differently.
        """
        both = [source.parts or [source] for source in (train, evaluation)]
        counts = [[self._counts(part) for part in parts] for parts in both]
        named: dict[int, str] = {}
        for part in (*both[0], *both[1]):
            if named and part.mask_names and part.mask_names != named:
                raise UserError(f"{part.name} and {train.name} name the classes of masks differently: name them alike")
            named = named or part.mask_names
        names = self._names_of([each for parts in counts for part in parts for each in part], named)
        labels = [
            np.concatenate([self._pixels(part, each, names) for part, each in zip(parts, read, strict=True)])
            for parts, read in zip(both, counts, strict=True)
        ]
        return labels[0], labels[1], names

    def _counts(self, source: Source) -> list[dict[int, int]]:
        """{number: pixels} of each mask."""
        if source.mask_column is None:
            raise NoMasks(
                f"{source.name} has no masks: put them into a folder masks beside the folder images, or give "
                "--mask_dir or --mask_column_name"
            )
        counts = _read_masks(source)
        lowest = min((value for each in counts for value in each if value != self.settings.ignore_index), default=0)
        if lowest < 0:
            raise UserError(
                f"the masks of {source.name} have the number {lowest}: if its pixels have no class, give "
                f"--ignore_index {lowest}"
            )
        if self.settings.mask_values is None:
            _refuse_instances(source, counts, source.mask_names)
        return counts

    def _pixels(self, source: Source, counts: list[dict[int, int]], names: list[str]) -> np.ndarray:
        """The pixels of each class ``(images, classes)`` int64."""
        numbering = Numbering(names, self.settings, source.mask_names)
        numbers = {value: numbering.number_of(value) for each in counts for value in each}
        strange = sorted(value for value, number in numbers.items() if number is None)
        if strange:
            wrong, having = strange[0], sum(strange[0] in each for each in counts)
            raise UserError(
                f"{source.name}: {having} of {len(counts)} masks have the number {wrong}, which no training mask "
                f"has; the classes are {', '.join(names[:8])}: fix the masks, or leave it out with "
                f"--ignore_index {wrong}"
            )
        labels = np.zeros((len(counts), len(names)), np.int64)
        for row, each in enumerate(counts):
            for value, count in each.items():
                number = numbers[value]
                if number is not None and number != IGNORED:
                    labels[row, number] += count
        return labels

    def _names_of(self, counts: list[dict[int, int]], named: dict[int, str]) -> list[str]:
        """The names of all classes, by their numbers in the masks."""
        settings, present = self.settings, {value for each in counts for value in each}
        if settings.mask_values == "binary":
            return ["ground", "thing"]
        only_black_and_white = {*present} <= {0, IGNORED}
        naming = Numbering([], settings, named)
        taken = {*present, *named} - {settings.ignore_index}
        if settings.ignore_index is None and IGNORED not in named and not only_black_and_white:
            taken -= {IGNORED}
        names = [str(naming.name_of(value)) for value in sorted(taken)]
        if len(names) > IGNORED:
            raise UserError(
                f"masks have {len(names)} different numbers, and at most {IGNORED} classes fit: if they count things, "
                "give --mask_values binary"
            )
        if len(names) < 2:
            raise UserError(f"all pixels of the masks are {', '.join(names) or 'ignored'}: a model needs two classes")
        return names

    def absent(self, labels: np.ndarray, names: list[str]) -> list[str]:
        return [name for name, count in zip(names, labels.sum(0), strict=True) if not count]

    def open_images(self, source: Source, labels: np.ndarray, names: list[str], opening: Opening) -> MaskedImages:
        # The numbers of the rows: an image that stands in for a bad one brings its own.
        images = open_images(source, opening, np.arange(len(source)))
        masked = MaskedImages(images, MaskFiles(source, names, self.settings), torch.from_numpy(labels))
        shares = labels.sum(0) / max(1, labels.sum())
        described = [f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True)]
        described[SHOWN_CLASSES:] = [f"{len(names) - SHOWN_CLASSES} more"] * (len(names) > SHOWN_CLASSES)
        masked.remarks += f"; pixels of {counted(len(masked), 'image')}: {', '.join(described)}"
        return masked

    def labels_of(self, batch: dict, size: tuple[int, int]) -> torch.Tensor:
        """Class numbers ``(batch, height, width)``."""
        return batch["masks"].long()

    # --- training ---

    def crop_of(self, view: ViewSettings, mean: list[float], size: tuple[int, int]) -> ScaledCrop:
        settings = self.settings
        if settings.quarter_turns and size[0] != size[1]:
            raise UserError(f"quarter_turns: images of {size[0]}x{size[1]} pixels are not square: leave it out")
        return ScaledCrop(view.seed, size, settings.zoom, view.horizontal_flip, settings.quarter_turns, mean)

    def new_model(
        self,
        config: MAEConfig,
        checkpoint: Checkpoint | None,
        names: list[str],
        n_partial: float | None,
        labels: torch.Tensor,
        say: Callable[[str], None],
    ) -> MAEPreTrainedModel:
        """The head starts anew if the classes or the kind of head differ."""
        from ..training.batch_norm import share_statistics  # late: the app has no libraries of the training

        settings = self.settings
        trained = MAEForSemanticSegmentation.__name__ in (config.architectures or [])
        head, wanted = config.segmentation_head, settings.segmentation_head
        changed = "has other classes" if names_of(config) != names else f"is {head}, not {wanted}"
        same = trained and names_of(config) == names and head == wanted
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in config.id2label.items()}
        config.problem_type, config.semantic_loss_ignore_index = None, IGNORED
        config.class_weights = class_weights(labels) if settings.class_weights == "auto" else None
        config.segmentation_head, config.dice_weight = wanted, settings.dice_weight  # type: ignore
        model: MAEForSemanticSegmentation
        if checkpoint is None:
            model = MAEForSemanticSegmentation(config)
        else:
            model = checkpoint.trained(MAEForSemanticSegmentation, config, new_head=trained and not same)
        if trained and not same:
            say(f"note       the checkpoint's head {changed}: it starts anew")
            model.reset_head()
        share_statistics(model)
        return model.freeze(config.num_hidden_layers if n_partial is None else n_partial)

    def reads(self, config: MAEConfig) -> str:
        return config.segmentation_head

    # --- evaluation ---

    def outputs(self, model, transform: Callable[..., torch.Tensor], batch: dict) -> torch.Tensor:
        """``(batch, classes, height, width)`` at the size of the largest image of the batch."""
        if "features" in batch:
            return model(features=batch["features"]).logits.float()
        images = batch["images"]
        pixel_values = transform(batch, tuple(images.shape[2:]))
        return logits_of(model, pixel_values, batch["sizes"].tolist(), self.settings.eval_windows)

    def columns(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of ``logits (batch, classes, height, width)`` and class numbers ``(batch, height, width)``: `confusion`
        ``(batch, classes, classes)``, the pixels of each true class (rows) by the class that was said, and `loss`
        ``(batch,)``, the mean cross-entropy of the pixels that have a class."""
        known = labels != IGNORED  # (batch, height, width)
        classes = logits.shape[1]
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").sum((1, 2))
        pairs = labels.where(known, 0) * classes + logits.argmax(1)  # (batch, height, width)
        first = torch.arange(len(labels), device=labels.device)[:, None, None] * classes**2
        counts = torch.bincount((pairs + first)[known], minlength=len(labels) * classes**2)
        confusion = counts.view(len(labels), classes, classes).int()
        return {"confusion": confusion, "loss": loss / known.sum((1, 2)).clamp(min=1)}

    def results(self, columns: dict[str, np.ndarray], names: int) -> dict:
        """What `SegmentationMetric` computes of all images, and the mean `loss`."""
        from .metrics import SegmentationMetric

        confusion = columns["confusion"].astype(np.int64)  # (images, classes, classes)
        metric = SegmentationMetric(keep_in_memory=True)
        results = metric.compute(predictions=confusion.reshape(len(confusion), -1), references=confusion.sum((1, 2)))
        return {"loss": float(columns["loss"].mean()), **results}

    def examples(
        self, model, transform: Callable[..., torch.Tensor], images: Images, columns: dict, names: list[str]
    ) -> Figure:
        from .metrics import iou_of

        iou = iou_of(columns["confusion"].astype(np.int64))  # (images, classes)
        known = np.flatnonzero(~np.isnan(iou).all(1))  # other images have no pixel with a class
        scores = dict(zip(known.tolist(), np.nanmean(iou[known], 1).tolist(), strict=True))
        rows = sorted(scores, key=scores.__getitem__)[:EXAMPLES]
        shown: list[tuple[torch.Tensor, np.ndarray, np.ndarray, str]] = []
        for row in rows:
            batch = images.batch(0, [row])
            on_device = {key: value.to(model_device(model)) for key, value in batch.items()}
            predicted = self.outputs(model, transform, on_device).argmax(1)[0].cpu().numpy()
            title = f"image {row}, mean IoU {100 * scores[row]:.1f}"
            whole = row if images.rows is None else int(images.rows[row])
            shown.append((images.read(whole), batch["masks"][0].numpy(), predicted, title))
        return compared_masks(shown, names)

    def each_image(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """The pixels of each class that are right, then those that are said or true."""
        from .metrics import right_and_either

        return np.concatenate(right_and_either(columns["confusion"].astype(np.int64)), 1).astype(np.float64)

    def resampled(self, values: np.ndarray, times: np.ndarray) -> np.ndarray:
        from .metrics import resampled_iou

        right, either = np.split(values, 2, axis=1)  # (images, classes)
        return resampled_iou(right, either, times)

    def written(self, columns: dict[str, np.ndarray]) -> dict:
        """The IoU of each class in each image, NaN where neither mask nor prediction has it."""
        from .metrics import iou_of

        confusion = columns["confusion"].astype(np.int64)
        return {"iou": list(iou_of(confusion)), "loss": columns["loss"]}

    # --- predictions for people ---

    def answers(self, names: list[str]) -> Answers:
        raise UserError("masks are pictures, not rows of a table: give a folder in place of a file")

    def shown(self, logits: torch.Tensor, names: list[str], count: int = 5) -> dict[str, float] | str:
        """The shares of the pixels of ``logits (classes, height, width)``."""
        shares = torch.bincount(logits.argmax(0).flatten(), minlength=len(names)) / logits[0].numel()
        values, places = shares.topk(min(count, len(names)))
        return {names[i]: value for i, value in zip(places.tolist(), values.tolist(), strict=True) if value}


def class_weights(labels: torch.Tensor) -> list[float]:
    """A weight for each class of ``labels (images, classes)``: the median share of the pixels over its own, within
    `WEIGHT_BOUNDS`. A class without a pixel has 1."""
    shares = labels.sum(0).double() / max(1, int(labels.sum()))  # (classes,)
    median = shares[shares > 0].median()
    weights = torch.where(shares > 0, (median / shares).clamp(*WEIGHT_BOUNDS), 1.0)
    return weights.tolist()


def pixels_by_number(mask: np.ndarray) -> dict[int, int]:
    """{number: pixels} of a decoded mask, by rising numbers."""
    if 0 <= mask.min() <= mask.max() < SMALL_NUMBER:
        counts = np.bincount(mask.ravel())
        values = np.flatnonzero(counts)
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(mask, return_counts=True)  # slower
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _read_masks(source: Source) -> list[dict[int, int]]:
    """{number: pixels} of each mask. All masks are kept in the source if they fit `KEPT_LIMIT`.

    Raises:
        UserError: a mask cannot be read, or has another size than its image, if that can be read.
    """

    def read(index: int) -> tuple[dict[int, int], KeptMask]:
        cell, image = source.mask_cell(index), source.cell(index)
        mask = decode_mask(cell["bytes"], cell["path"], source.max_image_pixels)
        with suppress(BadImage):  # whether bad images end a run is decided where they are opened
            header = read_header(image["bytes"], image["path"])
            if mask.shape != (header.height, header.width):
                raise UserError(
                    f"{cell['path'] or f'mask {index}'} has {mask.shape[0]}x{mask.shape[1]} pixels, and its image "
                    f"{header.height}x{header.width}: give them one size"
                )
        return pixels_by_number(mask), KeptMask.of(mask)

    counted: list[dict[int, int]] = []
    kept: list[KeptMask] | None = []
    room = KEPT_LIMIT
    with ThreadPoolExecutor(1 if source.is_stream else THREADS) as pool:
        for counts, mask in pool.map(read, range(len(source))):
            counted.append(counts)
            room -= mask.nbytes
            if room < 0:
                kept = None
            if kept is not None:
                kept.append(mask)
    source.masks = kept
    return counted


def _refuse_instances(source: Source, counts: list[dict[int, int]], named: dict[int, str]) -> None:
    """Raises a UserError if most masks number the things in their image: 1, 2, 3, ..."""
    present = {value for each in counts for value in each}
    if named or not present or max(present) >= COLOUR or max(present) <= MANY_INSTANCES:
        return
    highest = [max(each) for each in counts]
    in_a_row = [len({*each} - {0}) == max(each) for each in counts]
    often = Counter(value for each in counts for value in each)
    if np.mean(in_a_row) > 0.9 and len({*highest}) > 2 and often[max(present)] < len(counts) / 2:
        raise UserError(
            f"the masks of {source.name} hold 1, 2, 3, ... up to {min(highest)} to {max(highest)}, which look like "
            "numbers of things: give --mask_values binary for one class of all things, or --mask_values classes"
        )


MASKS = Masks()
