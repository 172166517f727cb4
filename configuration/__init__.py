"""Every number a run depends on: arguments, recipes, model presets, launcher files. Clone only, never installed.

`arguments.py` and `evaluation.py` declare the arguments, `parsing.py` reads recipe and command line into them,
`model.py` turns the model's part into an `MAEConfig`. `models/`, `recipes/` and `accelerate/` hold data.
"""

from .arguments import (
    DataArguments,
    ModelArguments,
    OptimizerArguments,
    PretrainArguments,
    RunArguments,
    split_batch,
)
from .evaluation import EvalArguments
from .model import model_config
from .parsing import parse_arguments


__all__ = [
    "DataArguments",
    "EvalArguments",
    "ModelArguments",
    "OptimizerArguments",
    "PretrainArguments",
    "RunArguments",
    "model_config",
    "parse_arguments",
    "split_batch",
]
