"""The parts of pages and cards. `page.py` shows them as HTML, `card.py` as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph, with optional code or commands in a `language` below it."""

    text: str
    command: str = ""
    language: str = "bash"


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its title. `numbers` are aligned right. `marked` are the cells (row, column) to
    highlight, counted from 0; column 0 has the titles. `typed`: the other cells are values as a user types them."""

    rows: list[list[str]]
    head: list[str] = field(default_factory=list)
    numbers: bool = False
    marked: frozenset[tuple[int, int]] = frozenset()
    typed: bool = False


@dataclass(frozen=True)
class Picture:
    """`file` is its PNG in the run's folder. `chart` is its figure, which a page draws again in its own colours.
    `tall`: it is higher than wide, and must fit a screen."""

    file: str
    alt: str
    caption: str = ""
    chart: Figure | None = None
    tall: bool = False


@dataclass(frozen=True)
class Row:
    """Pictures side by side, if there is room. `charts` get more room than other pictures."""

    parts: list[Picture]
    charts: bool = False


@dataclass(frozen=True)
class Folded:
    """Parts that open by a click on the title. A card leaves them out."""

    title: str
    parts: "Sequence[Part]"


Part = Text | Table | Picture | Row | Folded


@dataclass(frozen=True)
class Section:
    """A section without parts is left out. `only` is "page" or "card" if only one of them shows it."""

    title: str
    parts: Sequence[Part]
    only: str = ""
