"""Applies a classifier to any images, labelled or not: predictions as a table or a file."""

from pathlib import Path

import pandas
import torch

from ..checkpoint import Checkpoint, open_checkpoint
from ..data.find.places import Place
from ..errors import UserError
from ..tasks import Task, task_of_checkpoint
from ..tasks.evalnet import names_of
from ..words import SEMANTIC_SEGMENTATION
from .inputs import Inputs
from .tables import ApplySettings, Job, Output, absolute, quiet_accelerator, write_rows


def task_of(checkpoint: Checkpoint) -> Task:
    """The task that the checkpoint was trained for.

    Raises:
        UserError: it was trained for none.
    """
    task = task_of_checkpoint(checkpoint.config)
    if task is None:
        raise UserError(
            f"checkpoint {checkpoint.name!r} has no head, only an encoder: train one with run_eval.py (for masks "
            f"with --problem_type {SEMANTIC_SEGMENTATION}), or take its features with `mae features`"
        )
    return task


class Predictor:
    """The trained model of a checkpoint, applied to images. Errors as of `task_of` and `Checkpoint.trained`."""

    def __init__(self, checkpoint: Checkpoint):
        task = task_of(checkpoint)
        self.task, self.names = task, names_of(checkpoint.config)
        self.model = checkpoint.trained(task.model_class).eval()
        self.answers = task.answers(self.names)

    def __call__(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """For ``(batch, channels, height, width)``, the numbers that `answers.words` turns into columns."""
        return self.answers.numbers(self.model(pixel_values).logits.float())

    def job(self, inputs: Inputs) -> Job:
        return Job(inputs, self.model, self, {"names": self.names}, self.answers.words, self.answers.types)


def predict(checkpoint: str | Path, images: Place, *, progress: bool = False, **options) -> pandas.DataFrame:
    """The predictions of the classifier in `checkpoint` for all `images`, labelled or not. `mae predict` writes them
    to a file.

    Arguments as for `extract_features`. The checkpoint is a classifier, as run_eval.py writes it.

    Returns:
        A row for each image: `row`, `file` (its path in the folder, or its number), `label` if the images have labels,
            and the columns of the task's `answers`: for one class per image `prediction`, `confidence`, and the
        next likeliest classes up to `prediction_5`, `confidence_5`.

    Raises:
        UserError: as `extract_features`, or the checkpoint has no classifier.
    """
    opened, settings = open_checkpoint(checkpoint), ApplySettings(**options)
    print(opened.notes_text(), end="")
    predictor = Predictor(opened)
    job = predictor.job(settings.open(opened, images))
    return pandas.DataFrame(job.columns(settings, progress))


def write_predictions(checkpoint: str, images: Place, output: Output, settings: ApplySettings) -> None:
    """Writes predictions to a parquet or CSV file, part by part, by all processes of a launcher.

    Raises:
        UserError: as `predict`, or the file exists or cannot be written.
    """
    accelerator = quiet_accelerator()
    opened = open_checkpoint(checkpoint)
    task_of(opened)  # before the file's name is checked, because masks go to a folder
    target = output.prepared(("parquet", "csv"))
    accelerator.print(opened.notes_text(), end="")
    predictor = Predictor(opened)
    inputs = settings.open(opened, images, accelerator, say=accelerator.print)
    accelerator.print(f"classifier {checkpoint}, {predictor.task.problem.count(len(predictor.names))}")
    about = {"checkpoint": absolute(checkpoint), "place": settings.described(images)}
    write_rows(accelerator, predictor.job(inputs), target, output, settings, about)
