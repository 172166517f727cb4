"""Writes report.html of a run."""

from pathlib import Path

from ..words import counted
from .page import Page, write_page
from .run import PRETRAINING, RunFiles, read_run
from .sections import evaluation_sections, pretraining_sections


def write_run_page(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of the run in `folder`: results, what to do next, curves, pictures, settings. Returns its path,
    which is `out` or report.html in the folder.

    Raises:
        UserError: as `read_run` and `write_page`.
    """
    run = read_run(folder)
    sections = pretraining_sections(run) if run.kind == PRETRAINING else evaluation_sections(run)
    path = Path(out or run.folder / "report.html")
    write_page(path, Page(run.summary.get("name") or run.name, lead(run), sections, run.folder))
    return path


def lead(run: RunFiles, paper: str = "") -> str:
    """A sentence about what the run is. `paper` is put after the name of the method."""
    data = run.summary.get("data")
    if run.kind == PRETRAINING:
        images = f" on {counted(run.summary['images'], 'image')} of {data}" if data else ""
        model = f" {run.summary['architecture']}." if "architecture" in run.summary else ""
        return f"A masked autoencoder{paper} pre-trained{images}.{model}"
    return f"An evaluation on {counted(run.summary['images'], 'image')} of {data}." if data else "An evaluation."
