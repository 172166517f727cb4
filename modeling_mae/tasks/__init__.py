"""What is learnt from labels: one class an image, several classes, numbers, or a class for each pixel.

A task is a file here and a line in `TASKS`; `protocol.py` says what it answers."""

from ..configuration_mae import MAEConfig
from ..data.find.sources import Source
from ..report.problem import PROBLEMS
from .classes import CLASSES
from .masks import MASKS
from .numbers import NUMBERS
from .protocol import Task
from .several import SEVERAL_CLASSES


# By `--problem_type`. The first that recognises a column of labels reads it.
TASKS: dict[str, Task] = {task.name: task for task in (CLASSES, SEVERAL_CLASSES, NUMBERS, MASKS)}
PROBLEMS.update((name, task.problem) for name, task in TASKS.items())


def task_of_labels(source: Source) -> Task:
    """The task that the label column tells; of a joined source that of its first part.

    Raises:
        UserError: there is no column of labels, or there are several.
    """
    first = source.parts[0] if source.parts else source
    return next((task for task in TASKS.values() if task.recognises(first)), CLASSES)


def task_of_checkpoint(config: MAEConfig) -> Task | None:
    """The task that the model of this configuration was trained for; None for a mere encoder."""
    trained = [task for task in TASKS.values() if task.model_class.__name__ in (config.architectures or [])]
    return next((task for task in trained if task.name == (config.problem_type or task.name)), None)
