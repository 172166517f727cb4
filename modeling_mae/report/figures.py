"""How every picture and chart is saved."""

import gc
from pathlib import Path

from matplotlib.figure import Figure

from ..files import replacing


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `figure` to `path` as PNG."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
    # A figure refers to itself in a cycle, so only the garbage collector frees it. Python runs the collector too
    # rarely for objects this large: without this call, memory grows by 2 MB a figure.
    gc.collect()
