"""Writes self-contained HTML pages. `page.html` is their template."""

from dataclasses import dataclass
from pathlib import Path

import jinja2

from ..errors import UserError
from ..files import is_full, write_text
from .figures import chart_uri, picture_uri
from .parts import Picture, Section


TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Page:
    """`lead` is the sentence below the title. Pictures' files are in `folder`."""

    title: str
    lead: str
    sections: list[Section]
    folder: Path = Path()


def write_page(path: Path, page: Page) -> None:
    """Writes the page. All texts are plain: markup in them is shown as text.

    Raises:
        UserError: `path` cannot be written.
    """

    def address(picture: Picture) -> str:
        return chart_uri(picture.chart) if picture.chart else picture_uri(page.folder / picture.file)

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    sections = [section for section in page.sections if section.only != "card"]
    kinds = {"kind": lambda part: type(part).__name__, "address": address}
    html = template.render(title=page.title, lead=page.lead, sections=sections, **kinds) + "\n"
    html = html.encode("ascii", "xmlcharrefreplace").decode()  # ASCII is the same in every encoding
    try:
        write_text(path, html)
    except OSError as error:
        if is_full(error):
            raise
        raise UserError(f"{str(path)!r} cannot be written ({error.strerror}): give another --out") from error
