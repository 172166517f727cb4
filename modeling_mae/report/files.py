"""Files that are either complete or absent, even if the process dies while it writes them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path. The file written there takes the place of `path` at the end.

    After an error, `path` is as it was before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")  # files of this name are never pushed to the Hub
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)


def write_json(path: Path, content) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_run(folder: Path, *, arguments: dict, updates: int, updates_per_epoch: int, log: list[dict]) -> None:
    """arguments.json and trainer_state.json of a finished run."""
    write_json(folder / "arguments.json", arguments)
    state = {"global_step": updates, "epoch": updates / updates_per_epoch, "log_history": log}
    write_json(folder / "trainer_state.json", state)
