"""What a page and a card are made of. `page.py` shows it as HTML, `card.py` as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph, and below it what to type, if there is something, in a `language`."""

    text: str
    command: str = ""
    language: str = "bash"


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its title. `numbers` stand right. `marked` are (row, column) to stand out, counted
    from 0; column 0 is the titles'. `typed`: the other cells are values as one types them."""

    rows: list[list[str]]
    head: list[str] = field(default_factory=list)
    numbers: bool = False
    marked: frozenset[tuple[int, int]] = frozenset()
    typed: bool = False


@dataclass(frozen=True)
class Picture:
    """`file` is its PNG in the folder of the run, `chart` what is drawn in it: a page draws it anew, to its colours.
    `tall`: it is higher than wide, and is to fit a screen."""

    file: str
    alt: str
    caption: str = ""
    chart: Figure | None = None
    tall: bool = False


@dataclass(frozen=True)
class Row:
    """Pictures side by side, where there is room. `charts` take more of it than others."""

    parts: list[Picture]
    charts: bool = False


@dataclass(frozen=True)
class Folded:
    """Parts that a click on the title shows. A card leaves them out."""

    title: str
    parts: "Sequence[Part]"


Part = Text | Table | Picture | Row | Folded


@dataclass(frozen=True)
class Section:
    """Without parts it is left out. `only` is "page" or "card" where one of them alone has it."""

    title: str
    parts: Sequence[Part]
    only: str = ""
