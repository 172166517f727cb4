"""Tests a classifier, and writes its card."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..data.serve.processor import processor_of
from ..report.evaluation import WORST, report_training
from ..report.facts import Identity, TrainingLog
from ..report.figures import save_figure
from ..tasks.sets import LabelledSets
from .classifier import evaluate_classifier
from .reader import Reader
from .worth import save_each_image


@dataclass(frozen=True)
class Tested:
    """A classifier to test: its name in the results, the folder and identity of its card, and how it was trained.

    `recipe` is a dataclass of all settings, with `image_mean`, `image_std` and `save_predictions`. `training` is from
    `describe_training`. `training` and `log` belong to a classifier that this run has trained.
    """

    name: str
    folder: Path
    identity: Identity
    recipe: Any
    training: str = ""
    log: TrainingLog | None = None


def test_classifier(reader: Reader, checkpoint: Checkpoint, tested: Tested, sets: LabelledSets) -> dict:
    """Tests the classifier in `checkpoint`, and writes its card and pictures. Returns its row of results."""
    model = reader.accelerator.prepare_model(checkpoint.trained(sets.task.model_class), evaluation_mode=True)
    results, columns = evaluate_classifier(reader, model, sets, final=True)
    recipe, folder = tested.recipe, tested.folder
    examples = sets.task.examples(model, reader.transform, sets.evaluation, columns, sets.class_names)
    if reader.accelerator.is_main_process:
        processor_of(sets.evaluation, recipe.image_mean, recipe.image_std).save_pretrained(folder)
        save_each_image(folder, sets.task.each_image(columns))
        if examples is not None:
            save_figure(examples, folder / WORST)
        written, shown = sets.task.written(columns) if recipe.save_predictions else None, asdict(recipe)
        report_training(folder, tested.identity, shown, sets.facts(), results, written, tested.log, tested.training)
    return {"name": tested.name, **results}
