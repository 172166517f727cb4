"""`Task`, the interface of all tasks: how labels are read, which model learns them, how it is evaluated."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow
import torch
from matplotlib.figure import Figure

from ..checkpoint import Checkpoint
from ..configuration_mae import MAEConfig
from ..data.find.sources import Source
from ..data.serve.crops import Crop, training_crop
from ..data.serve.images import Images, Opening, open_images
from ..errors import UserError
from ..modeling_mae import MAEPreTrainedModel
from ..report.problem import Problem


Columns = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]  # (outputs, labels) -> columns


@dataclass(frozen=True)
class Answers:
    """Turns a trained model's outputs into readable columns.

    `numbers` turns the model's logits into tensors ``(batch, ...)``. `words` gets these as arrays, in a dict with
    other columns, and replaces them by readable columns. `types` are the types of columns whose values do not show it.
    """

    types: dict[str, pyarrow.DataType]
    numbers: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    words: Callable[[dict], dict]


@dataclass(frozen=True)
class ViewSettings:
    """Which of the images a training sees, and how it changes them. The fields are named like the options."""

    seed: int
    crop_scale: list[float]
    horizontal_flip: bool
    label_fraction: float
    auto_augment: str


class Task(ABC):
    """A task learnt from labels. Each is a file of this folder with a line in `TASKS`, and has no state.

    `read` returns the labels of all images, with the names of classes or targets. `open_images` joins them to the
    images, and `labels_of` takes them from a batch. There, labels that are images themselves follow crop and flip.
    """

    problem: Problem
    model_class: type[MAEPreTrainedModel]  # learns the task and travels with the checkpoint
    absent_note = ""  # end of the note about classes without evaluation images

    @property
    def name(self) -> str:
        return self.problem.problem_type

    # --- labels ---

    @abstractmethod
    def recognises(self, source: Source) -> bool:
        """Whether the labels of `source`, which is not joined, look like this task's. False if the task is only chosen
        by --problem_type.

        Raises:
            UserError: no label column, or several.
        """

    @abstractmethod
    def read_one(self, source: Source, known_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
        """As `read`, for a source that is not joined."""

    def reordered(self, labels: np.ndarray, order: list[int]) -> np.ndarray:
        """The labels renumbered: number ``order[i]`` becomes number ``i``. By default each number has a column."""
        return labels[:, order]

    def read(self, source: Source, known_names: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
        """(labels ``(images, ...)``, names of their classes or targets).

        With `known_names` the numbers are positions in that list. Classes are matched by name, because folders that
        lack different classes number the others differently. In a joined source, the first part decides a class's
        number.

        Raises:
            UserError: no label column or several, a column without such labels, images without a label, a class that
                is not in `known_names`, or joined sources with different classes.
        """
        if not source.parts:
            return self.read_one(source, known_names)
        read = [self.read_one(part, known_names) for part in source.parts]
        names, labels = read[0][1], []
        for part, (own_labels, own_names) in zip(source.parts, read, strict=True):
            alone = sorted({*names} ^ {*own_names})
            if alone:
                raise UserError(
                    f"{source.parts[0].name} and {part.name} have different classes: {', '.join(alone[:5])} "
                    f"{'are' if len(alone) > 1 else 'is'} in one only; labels need the same classes in all folders"
                )
            number = {name: i for i, name in enumerate(own_names)}
            labels.append(self.reordered(own_labels, [number[name] for name in names]))
        return np.concatenate(labels), names

    def absent(self, labels: np.ndarray, names: list[str]) -> list[str]:
        """The names that no image has."""
        return []

    def open_images(self, source: Source, labels: np.ndarray, names: list[str], opening: Opening) -> Images:
        """The images of `source` with the `labels` and `names` that `read` returned for it. Labels that follow from
        the pixels are computed here from `Images.read`, and set by `Images.with_labels`."""
        return open_images(source, opening, labels)

    def labels_of(self, batch: dict, size: tuple[int, int]) -> torch.Tensor:
        """The labels ``(batch, ...)`` of a batch of such images, which are cropped to `size` (height, width)."""
        return batch["labels"]

    # --- training ---

    def crop_of(self, view: ViewSettings, mean: list[float], size: tuple[int, int]) -> Crop:
        """The crop of a training whose model takes `size` (height, width). `mean` is that of each channel."""
        return training_crop(view.seed, view.crop_scale, view.horizontal_flip, size)

    def part(self, labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        """Sorted positions of a random `fraction` of all images, at least one."""
        count = max(1, round(fraction * len(labels)))
        return np.sort(np.random.default_rng(seed).permutation(len(labels))[:count])

    def notes(self, labels: torch.Tensor, label_fraction: float, mixes: bool, label_smoothing: float) -> list[str]:
        """Notes for the user on what these settings do with training `labels`. `mixes`: mixup or cutmix is on."""
        return []

    @abstractmethod
    def new_model(
        self,
        config: MAEConfig,
        checkpoint: Checkpoint | None,
        names: list[str],
        n_partial: float | None,
        labels: torch.Tensor,
        say: Callable[[str], None],
    ) -> MAEPreTrainedModel:
        """A model for labels with these `names` that trains `n_partial` blocks (None: all). It has the encoder of
        `checkpoint`, or starts from scratch if that is None. `labels` ``(images, ...)`` are the training labels.

        The model's `forward` takes `pixel_values` and `labels` and returns `loss` and `logits`.
        """

    def reads(self, config: MAEConfig) -> str:
        """How the model's head reads the encoder: a pooling, or the name of a head for pixels."""
        return config.pooling

    # --- evaluation ---

    @abstractmethod
    def outputs(self, model, transform: Callable[..., torch.Tensor], batch: dict) -> torch.Tensor:
        """The prepared `model`'s outputs for a batch: logits ``(batch, ...)`` in float32."""

    @abstractmethod
    def columns(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is kept for each image, all ``(batch, ...)``: `label`, `loss`, and the inputs of `results`."""

    def tested_columns(self, images: int, names: int, say: Callable[[str], None]) -> Columns:
        """As `columns`, for the final test of `images` images, which may take more memory and time."""
        return self.columns

    @abstractmethod
    def results(self, columns: dict[str, np.ndarray], names: int) -> dict:
        """The metrics of `problem` from the columns of all images. `names` is the number of classes or targets."""

    @abstractmethod
    def each_image(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """What `resampled` needs of each image, ``(images, n)`` float64, from the columns of all images."""

    def resampled(self, values: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The metric of `problem` on sets of images drawn from these, ``(draws,)``.

        `values` ``(images, n)`` are those of `each_image`, `times` ``(draws, images)`` says how often a set has an
        image. By default the metric is the mean over the images of its single value.
        """
        return times @ values[:, 0] / times.sum(1)

    def examples(
        self, model, transform: Callable[..., torch.Tensor], images: Images, columns: dict, names: list[str]
    ) -> Figure | None:
        """A picture of the images that the prepared `model` does worst on, by the `columns` of all; None without one.
        Every process calls this."""
        return None

    @abstractmethod
    def written(self, columns: dict[str, np.ndarray]) -> dict:
        """The columns of predictions.parquet, one row for each image."""

    # --- readable predictions ---

    @abstractmethod
    def answers(self, names: list[str]) -> Answers:
        """The columns that `mae predict` writes."""

    @abstractmethod
    def shown(self, logits: torch.Tensor, names: list[str], count: int = 5) -> dict[str, float] | str:
        """What the app shows for an image's ``logits (n,)``: the `count` largest scores by name, or a text."""


def distinct(names: list[str]) -> list[str]:
    """The names. Those that occur twice get the number of the class appended."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name}_{i}" for i, name in enumerate(names)]
