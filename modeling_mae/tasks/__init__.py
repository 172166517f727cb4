"""The tasks: one class per image, several classes, or numbers. A task is a file here and a line in `TASKS`.
`protocol.py` has its interface."""

from ..configuration_mae import MAEConfig
from ..data.find.sources import Source
from ..report.problem import PROBLEMS
from .classes import CLASSES
from .numbers import NUMBERS
from .protocol import Task
from .several import SEVERAL_CLASSES


# By `--problem_type`. The first task that recognises a label column reads it.
TASKS: dict[str, Task] = {task.name: task for task in (CLASSES, SEVERAL_CLASSES, NUMBERS)}
PROBLEMS.update((name, task.problem) for name, task in TASKS.items())


def task_of_labels(source: Source) -> Task:
    """The task that recognises the label column. For a joined source, its first part decides.

    Raises:
        UserError: no label column, or several.
    """
    first = source.parts[0] if source.parts else source
    return next((task for task in TASKS.values() if task.recognises(first)), CLASSES)


def task_of_checkpoint(config: MAEConfig) -> Task | None:
    """The task that the model of this configuration was trained for, or None for an encoder."""
    trained = [task for task in TASKS.values() if task.model_class.__name__ in (config.architectures or [])]
    return next((task for task in trained if task.name == (config.problem_type or task.name)), None)
