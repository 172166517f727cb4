"""Masked autoencoders (He et al., arXiv 2111.06377) as transformers models.

Importing the package registers its classes with transformers' Auto classes. `from_pretrained` then also reads other
projects' checkpoints.
"""

import os
import sys


__version__ = "0.2.0"


def _starts_the_command() -> bool:
    """Whether Python imports the package to run `mae`, or `python -m modeling_mae` with or without a launcher."""
    started = sys.argv[0] if sys.argv else ""
    if started == "-m":  # Python sets this until it has found the module
        words = sys.orig_argv
        return "-m" in words and words[words.index("-m") + 1] == __name__
    return os.path.basename(started) in ("mae", "mae.exe")


# Registering loads torch, which would slow `mae --help` down. The command registers after reading its arguments.
if not _starts_the_command():
    from .registration import *  # noqa: F403 (what its __all__ names)
    from .registration import __all__  # noqa: F401
