"""Writes model cards: sections as Markdown, below the metadata that the Hub reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import replacing
from .facts import DataFacts, Identity
from .parts import Part, Picture, Row, Section, Table, Text


PAPER = "[arXiv 2111.06377](https://arxiv.org/abs/2111.06377)"
Metric = tuple[str, str, float]  # type, title, value


@dataclass(frozen=True)
class Card:
    """`lead` is the first paragraph. `data` are the images that the `metrics` were measured on."""

    identity: Identity
    lead: str
    sections: list[Section]
    tags: list[str]
    pipeline_tag: str | None = None
    data: DataFacts | None = None
    metrics: list[Metric] = field(default_factory=list)


def write_card(folder: Path, card: Card) -> None:
    """Writes README.md into the folder of the run."""
    base = card.identity.base
    metadata = ModelCardData(
        library_name="transformers",
        license=card.identity.license,
        pipeline_tag=card.pipeline_tag,
        tags=card.tags,
        # The Hub can link to a data set only by owner/name. Other names are folders.
        datasets=[card.data.dataset_id] if card.data and "/" in card.data.dataset_id else None,
        model_name=card.identity.name,
        base_model=base.source if base and base.on_hub else None,
        eval_results=_hub_results(card.metrics, card.data) if card.data else None,
    )
    sections = [section for section in card.sections if section.parts and section.only != "page"]
    texts = [text for section in sections for text in _markdown(section)]
    content = [f"---\n{metadata.to_yaml()}\n---", f"# {card.identity.name}", card.lead]
    content += [str(base)] if base else []
    content += texts
    with replacing(Path(folder) / "README.md") as partial:
        ModelCard("\n\n".join(content) + "\n").save(partial)


def _hub_results(metrics: list[Metric], data: DataFacts) -> list[EvalResult] | None:
    """The model-index, from which the Hub reads results."""
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=data.dataset_id,
            dataset_name=data.name,
            dataset_split=data.split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(value, 5),
        )
        for metric, title, value in metrics
    ] or None


def _markdown(section: Section) -> list[str]:
    return [f"## {section.title}", *(text for part in section.parts for text in _paragraphs(part))]


def _paragraphs(part: Part) -> list[str]:
    """A part as paragraphs of Markdown. Folded parts are left out."""
    if isinstance(part, Text):
        code = f"```{part.language}\n{part.command}\n```" if part.command else ""
        return [paragraph for paragraph in (part.text, code) if paragraph]
    if isinstance(part, Table):
        rows = [[row[0], *(f"`{cell}`" if cell else "" for cell in row[1:])] for row in part.rows]
        return [_table(part.head or [""] * len(part.rows[0]), rows if part.typed else part.rows)]
    if isinstance(part, Picture):
        return [f"![{part.alt}]({part.file})", *([part.caption] if part.caption else [])]
    if isinstance(part, Row):
        return [text for picture in part.parts for text in _paragraphs(picture)]
    return []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. If there are several columns after the first, they are aligned right."""
    rule = "|--|" + ("--:|" if len(head) > 2 else "--|") * (len(head) - 1)
    lines = [f"| {' | '.join(map(_cell, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
