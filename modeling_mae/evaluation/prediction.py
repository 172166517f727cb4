"""What a classifier says of any images, labelled or not, as a table or as a file."""

from pathlib import Path

import pandas
import torch

from ..checkpoint import Checkpoint, open_checkpoint
from ..data.find.places import Place, described, open_place
from ..errors import UserError
from ..tasks import task_of_checkpoint
from ..tasks.evalnet import names_of
from ..training.launch import loading_workers
from .extraction import BATCH, all_columns
from .inputs import open_inputs
from .tables import TableJob, absolute, check_batch, prepared_target, quiet_accelerator, write_rows


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
        labels, and the columns that the task's `answers` tells: for one class an image `prediction`, `confidence`, and
        the next likeliest up to `prediction_5`, `confidence_5`.

    Raises:
        UserError: as `extract_features`, and where the checkpoint has no classifier.
    """
    source, opened = open_place(images, **place_options), open_checkpoint(checkpoint)
    print(opened.told(), end="")
    predictor = Predictor(opened)
    inputs = open_inputs(opened, source, on_bad_image=on_bad_image)
    columns = all_columns(inputs, predictor.model, predictor, batch_size, num_workers, progress)
    return pandas.DataFrame(predictor.answers.words(columns))


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
    predictor = Predictor(opened)
    with accelerator.main_process_first():
        source = open_place(images, **place_options)
    inputs = open_inputs(opened, source, on_bad_image=on_bad_image, say=accelerator.print)
    accelerator.print(f"classifier {checkpoint}, {predictor.task.problem.count(len(predictor.names))}")
    answers, settings = predictor.answers, {"names": predictor.names}
    write_rows(
        accelerator,
        TableJob(target, to, inputs, predictor.model, predictor, settings, answers.words, answers.types),
        about={"checkpoint": absolute(checkpoint), "place": described(images, **place_options)},
        batch_size=check_batch(batch_size),
        num_workers=loading_workers(num_workers),
        overwrite=overwrite,
    )
