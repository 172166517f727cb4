"""The settings and the log of a finished run, as files."""

from pathlib import Path

from ..files import write_json


def write_run(folder: Path, *, arguments: dict, updates: int, updates_per_epoch: int, log: list[dict]) -> None:
    """arguments.json and trainer_state.json of a finished run."""
    write_json(folder / "arguments.json", arguments)
    state = {"global_step": updates, "epoch": updates / updates_per_epoch, "log_history": log}
    write_json(folder / "trainer_state.json", state)
