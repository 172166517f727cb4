"""Pages that hold all they show: written in one file, read without network. `page.html` is how they look."""

from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from ..errors import UserError
from ..files import is_full, write_text


TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Text:
    """A paragraph, and below it what to type, if there is something."""

    text: str
    command: str = ""
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its title. `numbers` stand right. `marked` are (row, column) to stand out, counted
    from 0; column 0 is the titles'."""

    rows: list[list[str]]
    head: list[str] = field(default_factory=list)
    numbers: bool = False
    marked: frozenset[tuple[int, int]] = frozenset()
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """`address` holds the picture itself (`chart_uri`, `picture_uri`). `on_paper`: its background is white. `tall`: it
    is higher than wide, and is to fit a screen."""

    address: str
    alt: str
    caption: str = ""
    on_paper: bool = False
    tall: bool = False
    kind: str = "picture"


@dataclass(frozen=True)
class Row:
    """Parts side by side, where there is room. `charts` take more of it than other pictures."""

    parts: list
    charts: bool = False
    kind: str = "row"


@dataclass(frozen=True)
class Folded:
    """Parts that a click on the title shows."""

    title: str
    parts: list
    kind: str = "folded"


@dataclass(frozen=True)
class Section:
    """Without parts it is left out."""

    title: str
    parts: list


def write_page(path: Path, title: str, lead: str, sections: list[Section]) -> None:
    """Writes the page. All texts are plain: what would be markup in them is shown as it is.

    Raises:
        UserError: `path` cannot be written.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(title=title, lead=lead, sections=sections) + "\n"
    html = html.encode("ascii", "xmlcharrefreplace").decode()  # the same in whatever encoding the system writes
    try:
        write_text(path, html)
    except OSError as error:
        if is_full(error):
            raise
        raise UserError(f"{str(path)!r} cannot be written ({error.strerror}): give another --out") from error
