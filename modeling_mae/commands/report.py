"""`mae report`. Heavy imports wait until the work begins, so that `--help` is quick."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the output_dir of a run, finished or not")
    parser.add_argument(
        "--out", type=Path, help="the page to write (default: compare.html; for one run, report.html in its folder)"
    )
    return run


def run(arguments: Namespace) -> None:
    """Writes a page that compares the runs, or the page of a single run.

    Raises:
        UserError: as `compare_runs` and `write_run_page`.
    """
    from .. import tasks  # noqa: F401  # it registers each task's figures with the reports
    from ..report.comparison import compare_runs
    from ..report.run_page import write_run_page

    if len(arguments.runs) == 1:
        out = write_run_page(arguments.runs[0], arguments.out)
    else:
        out = arguments.out or Path("compare.html")
        compare_runs(arguments.runs, out)
    print(f"written    {out}")
