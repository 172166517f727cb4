"""What a classifier says of any images, labelled or not, as a table or as a file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import torch

from ..checkpoint import Checkpoint, open_checkpoint
from ..configuration_mae import MAEConfig
from ..data.places import Place, described, open_place
from ..errors import UserError
from ..modeling_mae import EvalNet
from ..problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL, THRESHOLD
from ..training.launch import loading_workers
from .classifier import is_classifier
from .extraction import BATCH, all_columns
from .inputs import open_inputs
from .tables import TableJob, absolute, check_batch, prepared_target, quiet_accelerator, write_rows


TOP = 5  # classes of an image that are named


@dataclass
class Answers:
    """From a classifier's output to columns for people.

    One class an image: `prediction` and `confidence` (its probability), then `prediction_2`, `confidence_2` ... of the
    next likeliest. Several classes an image: `prediction`, the list of those with a score above 0.5, and `score_NAME`
    of each class. Regression: `prediction`, or `prediction_NAME` of each target.
    """

    problem_type: str
    names: list[str]
    columns: list[str] = field(init=False)
    types: dict[str, pyarrow.DataType] = field(init=False)

    def __post_init__(self):
        top = min(TOP, len(self.names))
        ends = ["", *(f"_{place}" for place in range(2, top + 1))]
        if self.problem_type == SINGLE_LABEL:
            self.types = {f"prediction{end}": pyarrow.string() for end in ends}
            self.columns = [f"{kind}{end}" for end in ends for kind in ("prediction", "confidence")]
        elif self.problem_type == MULTI_LABEL:
            self.types = {"prediction": pyarrow.list_(pyarrow.string())}
            self.columns = ["prediction", *(f"score_{name}" for name in _distinct(self.names))]
        else:
            self.types = {}
            several = len(self.names) > 1
            self.columns = [f"prediction_{name}" for name in _distinct(self.names)] if several else ["prediction"]

    def compute(self, model: EvalNet) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        """Of ``pixel_values`` the numbers that `finish` turns into columns."""

        def answer(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = model(pixel_values).logits.float()  # (batch, classes)
            if self.problem_type == SINGLE_LABEL:
                confidence, top = logits.softmax(-1).topk(min(TOP, logits.shape[-1]))
                return {"confidence": confidence, "top": top}
            return {"values": logits.sigmoid() if self.problem_type == MULTI_LABEL else logits}

        return answer

    def finish(self, columns: dict) -> dict:
        """The columns of `columns_of` with words in place of numbers."""
        columns = dict(columns)
        if self.problem_type == SINGLE_LABEL:
            confidence, top = columns.pop("confidence"), columns.pop("top").astype(int)  # (images, at most 5)
            for place in range(top.shape[1]):
                columns[self.columns[2 * place]] = [self.names[number] for number in top[:, place]]
                columns[self.columns[2 * place + 1]] = confidence[:, place]
            return columns
        values = columns.pop("values")  # (images, classes or targets)
        named = self.columns
        if self.problem_type == MULTI_LABEL:
            columns["prediction"] = [[self.names[i] for i in np.flatnonzero(row > THRESHOLD)] for row in values]
            named = self.columns[1:]
        return columns | {name: values[:, i] for i, name in enumerate(named)}


def _distinct(names: list[str]) -> list[str]:
    """The names, with the number of the class behind those that occur twice."""
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]


def load_classifier(checkpoint: Checkpoint) -> EvalNet:
    """
    Raises:
        UserError: the checkpoint has no trained head, or as `Checkpoint.classifier`.
    """
    if not is_classifier(checkpoint.config):
        raise UserError(
            f"checkpoint {checkpoint.name!r} has no classifier, only an encoder: train one with run_eval.py, or take "
            "its features with `mae features`"
        )
    return checkpoint.classifier().eval()


def answers_of(config: MAEConfig) -> Answers:
    """What the classifier of this configuration answers."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    return Answers(config.problem_type or SINGLE_LABEL, names)


def predict(
    checkpoint: str | Path,
    images: Place,
    *,
    batch_size: int = BATCH,
    num_workers: int | None = None,
    on_bad_image: str = "error",
    progress: bool = False,
    **place_options,
) -> pandas.DataFrame:
    """What the classifier in `checkpoint` says of all `images`, labelled or not. `mae predict` writes it to a file.

    Arguments as of `extract_features`; the checkpoint is a classifier, as of run_eval.py.

    Returns:
        A row for each image: `row`, `file` (its path in the folder, or its number), `label` where the images have
        labels, and the columns that `Answers` tells: for one class an image `prediction`, `confidence`, and the next
        likeliest up to `prediction_5`, `confidence_5`.

    Raises:
        UserError: as `extract_features`, and where the checkpoint has no classifier.
    """
    source, opened = open_place(images, **place_options), open_checkpoint(checkpoint)
    print(opened.told(), end="")
    model, answers = load_classifier(opened), answers_of(opened.config)
    inputs = open_inputs(opened, source, on_bad_image=on_bad_image)
    columns = all_columns(inputs, model, answers.compute(model), batch_size, num_workers, progress)
    return pandas.DataFrame(answers.finish(columns))


def write_predictions(
    checkpoint: str,
    images: Place,
    target: str | Path,
    *,
    to: str | None = None,
    batch_size: int = BATCH,
    num_workers: int | None = None,
    on_bad_image: str = "error",
    overwrite: bool = False,
    **place_options,
) -> None:
    """`predict` into the parquet or CSV file `target`, by all processes of a launcher, part by part.

    Raises:
        UserError: as `predict`, and where the file is there already or cannot be written.
    """
    accelerator = quiet_accelerator()
    target, to = prepared_target(target, to, ("parquet", "csv"))
    opened = open_checkpoint(checkpoint)
    accelerator.print(opened.told(), end="")
    model, answers = load_classifier(opened), answers_of(opened.config)
    with accelerator.main_process_first():
        source = open_place(images, **place_options)
    inputs = open_inputs(opened, source, on_bad_image=on_bad_image, say=accelerator.print)
    kind = "targets" if answers.problem_type == REGRESSION else "classes"
    accelerator.print(f"classifier {checkpoint}, {len(answers.names)} {kind}")
    compute, settings = answers.compute(model), {"names": answers.names}
    write_rows(
        accelerator,
        TableJob(target, to, inputs, model, compute, settings, answers.finish, answers.types),
        about={"checkpoint": absolute(checkpoint), "place": described(images, **place_options)},
        batch_size=check_batch(batch_size),
        num_workers=loading_workers(num_workers),
        overwrite=overwrite,
    )
