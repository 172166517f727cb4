"""What a process of `conftest.run` does: one script, from its first line, as `python SCRIPT ARGUMENTS` would."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path


def as_script(script: str, arguments: list[str], output: str, folder: Path) -> None:
    """Run `script` in `folder`; what it prints goes into the file `output`."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    multiprocessing.set_start_method(None, force=True)  # a script's loading workers start as they do by default
    os.chdir(folder)
    sys.argv = [script, *arguments]
    runpy.run_path(str(Path(__file__).parents[1] / script), run_name="__main__")
