"""What a process of `conftest.Copies` does: one script, from its first line, as `python SCRIPT ARGUMENTS` would."""

import gc
import importlib
import multiprocessing
import os
import runpy
import sys
from pathlib import Path


def as_script(script: str, arguments: list[str], output: str, folder: Path, environment: dict[str, str]) -> None:
    """Run `script` in `folder`; what it prints goes to the end of the file `output`."""
    gc.freeze()  # else each collection goes through all that the libraries hold, which takes 0.3 s
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    if any(name.startswith("HF_") for name in environment):
        importlib.reload(sys.modules["huggingface_hub.constants"])  # they are read from the environment at the import
    multiprocessing.set_start_method(None, force=True)  # a script's loading workers start as they do by default
    os.chdir(folder)
    sys.argv = [script, *arguments]
    runpy.run_path(str(Path(__file__).parents[1] / script), run_name="__main__")
