"""An EvalNet to train or to test, and its results on a labelled set."""

from collections.abc import Callable

import numpy as np
from accelerate import Accelerator

from ..configuration_mae import MAEConfig
from ..data.labelled import LabelledSets
from ..modeling_mae import EvalNet
from .metrics import classification_results, predict


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
        has_head = "EvalNet" in (config.architectures or [])
        other_classes = has_head and checkpoint_names != class_names
        model = EvalNet.from_pretrained(checkpoint, config=config, ignore_mismatched_sizes=other_classes)
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
