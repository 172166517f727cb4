"""`Task`, the one interface to what is learnt from labels: how they are read, what learns them, how it is judged."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow
import torch

from ..checkpoint import Checkpoint
from ..configuration_mae import MAEConfig
from ..data.find.sources import Source
from ..data.serve.images import Images, Opening, open_images
from ..errors import UserError
from ..modeling_mae import MAEPreTrainedModel
from ..report.problem import Problem


Columns = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]  # of outputs and labels: (batch, ...) each


@dataclass(frozen=True)
class Answers:
    """What a trained model says of an image, in columns for people.

    `numbers` makes tensors ``(batch, ...)`` of the model's logits. `words` replaces these, as arrays in a dict with
    other columns, by what people read. `types` are those of columns whose values do not tell.
    """

    types: dict[str, pyarrow.DataType]
    numbers: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    words: Callable[[dict], dict]


class Task(ABC):
    """What can be learnt from labels. A task is a file of this folder with a line in `TASKS`, and has no state.

    The labels of all images are read at once, by name of the class or target. `open_images` brings them to the images,
    and `labels_of` finds them in a batch again: labels that are images themselves follow crop and flip there.
    """

    problem: Problem
    model_class: type[MAEPreTrainedModel]  # that learns it and travels with the checkpoint
    absent_note = ""  # ends the note on classes without an image to evaluate on

    @property
    def name(self) -> str:
        return self.problem.problem_type

    # --- labels ---

    @abstractmethod
    def recognises(self, source: Source) -> bool:
        """Whether the labels of `source`, which is not joined, look like this task's. False where only its name,
        given as --problem_type, asks for it.

        Raises:
            UserError: there is no column of labels, or there are several.
        """

    @abstractmethod
    def read_one(self, source: Source, known_names: list[str] | None) -> tuple[np.ndarray, list[str]]:
        """As `read`, of a source that is not joined."""

    @abstractmethod
    def reordered(self, labels: np.ndarray, order: list[int]) -> np.ndarray:
        """The same labels under other numbers: what was number ``order[i]`` becomes number ``i``."""

    def read(self, source: Source, known_names: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
        """(labels ``(images, ...)``, names of their classes or targets).

        With `known_names` the numbers are positions in them. Two folders that lack different classes number the rest
        differently, so only the names tell which classes are the same. In a joined source a class has the number that
        it has in the first part.

        Raises:
            UserError: no label column or several, a column that does not hold such labels, images without a label, a
                class that is not among the `known_names`, or joined sources of different classes.
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
                    f"{'are' if len(alone) > 1 else 'is'} in one alone; labels need the same classes in all folders"
                )
            number = {name: i for i, name in enumerate(own_names)}
            labels.append(self.reordered(own_labels, [number[name] for name in names]))
        return np.concatenate(labels), names

    def absent(self, labels: np.ndarray, names: list[str]) -> list[str]:
        """The names that no image has."""
        return []

    def open_images(self, source: Source, labels: np.ndarray, opening: Opening) -> Images:
        """The images of `source` with what `read` has given for it. Labels that follow from the pixels are computed
        here, as `Images.read` gives them, and set by `Images.with_labels`."""
        return open_images(source, opening, labels)

    def labels_of(self, batch: dict, size: tuple[int, int]) -> torch.Tensor:
        """The labels ``(batch, ...)`` of a batch of such images, which are cropped to `size` (height, width)."""
        return batch["labels"]

    # --- training ---

    def part(self, labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        """Sorted positions of a random `fraction` of all images, at least one."""
        count = max(1, round(fraction * len(labels)))
        return np.sort(np.random.default_rng(seed).permutation(len(labels))[:count])

    @abstractmethod
    def notes(self, labels: torch.Tensor, label_fraction: float, mixes: bool, label_smoothing: float) -> list[str]:
        """Notes for the user: what these settings do, or do not, for training `labels` of this task. `mixes`: by mixup
        or cutmix."""

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
        """A model for labels of these `names` that trains `n_partial` blocks (None: all): with the encoder of
        `checkpoint`, or from scratch where that is None. `labels` ``(images, ...)`` are those of the training.

        The model's `forward` takes `pixel_values` and `labels` and gives `loss` and `logits`.
        """

    # --- evaluation ---

    @abstractmethod
    def outputs(self, model, transform: Callable[[dict], torch.Tensor], batch: dict) -> torch.Tensor:
        """What the prepared `model` says of a batch: logits ``(batch, ...)`` in float32."""

    @abstractmethod
    def columns(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is kept of each image, ``(batch, ...)`` each: `label`, `loss`, and what `results` takes."""

    def tested_columns(self, images: int, names: int, say: Callable[[str], None]) -> Columns:
        """As `columns`, for the final test of so many images, which may take more memory and time."""
        return self.columns

    @abstractmethod
    def results(self, columns: dict[str, np.ndarray], names: int) -> dict:
        """The figures of `problem`, from the columns of all images; `names` is their number."""

    @abstractmethod
    def written(self, columns: dict[str, np.ndarray]) -> dict:
        """The columns of predictions.parquet, one row for each image."""

    # --- predictions for people ---

    @abstractmethod
    def answers(self, names: list[str]) -> Answers:
        """What `mae predict` writes."""

    @abstractmethod
    def shown(self, logits: torch.Tensor, names: list[str], count: int = 5) -> dict[str, float] | str:
        """What the app shows for an image's ``logits (n,)``: the `count` largest shares by name, or a text."""


def distinct(names: list[str]) -> list[str]:
    """The names, with the number of the class behind those that occur twice."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name}_{i}" for i, name in enumerate(names)]
