"""An EvalNet to train or to test, and its results on a labelled set."""

from collections.abc import Callable

import numpy as np
from accelerate import Accelerator

from ..configuration_mae import MAEConfig
from ..data.crops import training_crop
from ..data.images import Images
from ..data.labelled import LabelledSets
from ..data.labels import balanced_part
from ..modeling_mae import EvalNet
from ..training.augment import RandAugment
from ..training.state import load_model
from .metrics import classification_results, predict


def is_classifier(config: MAEConfig) -> bool:
    """Whether the checkpoint of this configuration has a trained head."""
    return "EvalNet" in (config.architectures or [])


def training_view(
    images: Images,
    *,
    mean: list[float],
    seed: int,
    crop_scale: list[float],
    horizontal_flip: bool,
    label_fraction: float,
    auto_augment: str,
) -> Images:
    """The part of the images that a training sees, under its random crops and augmentation.

    Raises:
        UserError: as `RandAugment`.
    """
    rows = augment = None
    if label_fraction < 1:
        rows = balanced_part(images.labels.numpy(), label_fraction, seed)
    if auto_augment != "none":
        augment = RandAugment(auto_augment, images.size, mean, seed)
    return images.view(training_crop(seed, crop_scale, horizontal_flip, images.size), rows, augment)


def make_classifier(
    config: MAEConfig,
    checkpoint: str | None,
    class_names: list[str],
    n_partial: float | None,
    say: Callable[[str], None],
) -> EvalNet:
    """An EvalNet for `class_names` that trains `n_partial` blocks: with the encoder of `checkpoint`, or from scratch
    where that is None. `n_partial` None: all blocks.

    The head starts anew where the checkpoint's classifier has other classes, also where it has as many of them.
    """
    checkpoint_names = [config.id2label[i] for i in range(config.num_labels)]
    config.id2label = dict(enumerate(class_names))
    config.label2id = {label: i for i, label in config.id2label.items()}
    if checkpoint is None:
        model = EvalNet(config)
    else:
        other_classes = is_classifier(config) and checkpoint_names != class_names
        model = load_model(EvalNet, checkpoint, config=config, ignore_mismatched_sizes=other_classes)
        if other_classes:
            say("note       the checkpoint's classifier has other classes: its head starts anew")
            model.reset_head()
    return model.freeze(config.num_hidden_layers if n_partial is None else n_partial)


def evaluate_classifier(
    accelerator: Accelerator, model, sets: LabelledSets, transform, batch_size: int, num_workers: int
) -> tuple[dict, dict[str, np.ndarray]]:
    """(results, predictions) of the prepared `model` on the evaluation images, as `classification_results` and
    `predict` give them."""
    predictions = predict(accelerator, model, sets.evaluation, transform, batch_size, num_workers)
    return classification_results(predictions, len(sets.class_names)), predictions
