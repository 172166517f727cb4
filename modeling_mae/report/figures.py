"""Saves pictures and charts, as files or as part of a page."""

import base64
import gc
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from ..files import replacing
from .parts import Part, Picture


MATPLOTLIB_INK = "#000000"  # colour of text and axes
# A page is dark or light as the reader's system is. With this style, an SVG in an <img> follows it too.
INK_STYLE = "<style>:root{--ink:#222}@media(prefers-color-scheme:dark){:root{--ink:#ddd}}</style>"
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `figure` to `path` as PNG."""
    with _plain_text(figure), replacing(path) as partial:
        figure.savefig(partial, format="png")
    # A figure has reference cycles, so only the garbage collector frees it. Python runs the collector too rarely for
    # objects this large: without this call, memory grows by 2 MB per figure.
    gc.collect()


def save_charts(folder: Path, parts: Sequence[Part]) -> None:
    """Writes the pictures among `parts` that are charts."""
    for part in parts:
        if isinstance(part, Picture) and part.chart:
            save_figure(part.chart, folder / part.file)


def chart_uri(figure: Figure) -> str:
    """`figure` as a data URI of an SVG, readable on dark and on light pages."""
    file = io.StringIO()
    with _plain_text(figure):
        figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    gc.collect()
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(MATPLOTLIB_INK, "var(--ink)")
    svg = re.sub("<svg[^>]*>", lambda match: match[0] + INK_STYLE, svg, count=1)
    # Elements without a colour, such as glyphs, are black by default.
    svg = svg.replace("<g ", '<g style="fill: var(--ink)" ', 1)
    return _uri("image/svg+xml", svg.encode())


def picture_uri(path: Path) -> str:
    """The PNG file `path` as a data URI."""
    return _uri("image/png", path.read_bytes())


@contextmanager
def _plain_text(figure: Figure) -> Iterator[None]:
    """The names of classes and runs may hold anything: $ and _{ are no formulas, and letters that no font here has
    become boxes without a warning."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
