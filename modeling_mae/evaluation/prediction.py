"""What a classifier says of any images, labelled or not, as a table or as a file."""

from pathlib import Path

import pandas
import torch

from ..checkpoint import Checkpoint, open_checkpoint
from ..data.find.places import Place
from ..errors import UserError
from ..tasks import task_of_checkpoint
from ..tasks.evalnet import names_of
from .inputs import Inputs
from .tables import ApplySettings, Job, Output, absolute, quiet_accelerator, write_rows


class Predictor:
    """The trained model of a checkpoint, and what it says of images.

    Raises:
        UserError: the checkpoint was trained for no task, or as `Checkpoint.trained`.
    """

    def __init__(self, checkpoint: Checkpoint):
        task = task_of_checkpoint(checkpoint.config)
        if task is None:
            raise UserError(
                f"checkpoint {checkpoint.name!r} has no classifier, only an encoder: train one with run_eval.py, or "
                "take its features with `mae features`"
            )
        self.task, self.names = task, names_of(checkpoint.config)
        self.model = checkpoint.trained(task.model_class).eval()
        self.answers = task.answers(self.names)

    def __call__(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of ``(batch, channels, height, width)`` the numbers that `answers.words` turns into columns."""
        return self.answers.numbers(self.model(pixel_values).logits.float())

    def job(self, inputs: Inputs) -> Job:
        return Job(inputs, self.model, self, {"names": self.names}, self.answers.words, self.answers.types)


def predict(checkpoint: str | Path, images: Place, *, progress: bool = False, **options) -> pandas.DataFrame:
    """What the classifier in `checkpoint` says of all `images`, labelled or not. `mae predict` writes it to a file.

    Arguments as of `extract_features`; the checkpoint is a classifier, as of run_eval.py.

    Returns:
        A row for each image: `row`, `file` (its path in the folder, or its number), `label` where the images have
        labels, and the columns that the task's `answers` tells: for one class an image `prediction`, `confidence`, and
        the next likeliest up to `prediction_5`, `confidence_5`.

    Raises:
        UserError: as `extract_features`, and where the checkpoint has no classifier.
    """
    opened, settings = open_checkpoint(checkpoint), ApplySettings(**options)
    print(opened.told(), end="")
    predictor = Predictor(opened)
    job = predictor.job(settings.open(opened, images))
    return pandas.DataFrame(job.columns(settings, progress))


def write_predictions(checkpoint: str, images: Place, output: Output, settings: ApplySettings) -> None:
    """`predict` into a parquet or CSV file, by all processes of a launcher, part by part.

    Raises:
        UserError: as `predict`, and where the file is there already or cannot be written.
    """
    accelerator = quiet_accelerator()
    target = output.prepared(("parquet", "csv"))
    opened = open_checkpoint(checkpoint)
    accelerator.print(opened.told(), end="")
    predictor = Predictor(opened)
    inputs = settings.open(opened, images, accelerator, say=accelerator.print)
    accelerator.print(f"classifier {checkpoint}, {predictor.task.problem.count(len(predictor.names))}")
    about = {"checkpoint": absolute(checkpoint), "place": settings.described(images)}
    write_rows(accelerator, predictor.job(inputs), target, output.overwrite, settings, about)
