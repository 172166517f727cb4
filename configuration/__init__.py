"""All settings of a run: arguments, recipes, model presets, launcher files. Only in a clone, not installed.

`arguments.py` and `evaluation.py` declare the arguments. `checks.py` says which values work. `parsing.py` reads recipe
and command line. `model.py` makes an `MAEConfig`. `models/`, `recipes/` and `accelerate/` hold data.
"""

from .arguments import PretrainArguments
from .errors import ArgumentError
from .evaluation import EvalArguments, EvalTraining
from .model import checkpoint_of, model_config, model_settings
from .parsing import parse_arguments


__all__ = [
    "ArgumentError",
    "EvalArguments",
    "EvalTraining",
    "PretrainArguments",
    "checkpoint_of",
    "model_config",
    "model_settings",
    "parse_arguments",
]
