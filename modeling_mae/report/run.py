"""The files of a run that hold its settings, its log and its results: written, and read again."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..files import write_json
from .problem import Problem


PRETRAINING, EVALUATION = "pre-training", "evaluation"  # kinds of runs


def write_run(folder: Path, *, arguments: dict, updates: int, updates_per_epoch: int, log: list[dict]) -> None:
    """arguments.json and trainer_state.json of a finished run."""
    write_json(folder / "arguments.json", arguments)
    state = {"global_step": updates, "epoch": updates / updates_per_epoch, "log_history": log}
    write_json(folder / "trainer_state.json", state)


@dataclass(frozen=True)
class Training:
    """The settings and the log of one training. Of one that has not ended the settings are not known yet."""

    arguments: dict
    log: list[dict]

    @property
    def losses(self) -> list[dict]:
        return [entry for entry in self.log if "loss" in entry]

    @property
    def growth(self) -> list[dict]:
        """What `FeatureGrowth` has measured. The baselines, of step 0, come first."""
        entries = [entry for entry in self.log if "rank" in entry or "rank_untrained" in entry]
        return sorted(entries, key=lambda entry: entry["step"])


@dataclass(frozen=True)
class RunFiles:
    """What the folder of a run holds.

    `summary` is summary.json: what the report knew beside the settings. Runs of before it was written have none.
    `knn` are the k-NN accuracies of a pre-training, `rows` the results of an evaluation. `trainings` are by name; a
    pre-training has one."""

    folder: Path
    kind: str
    summary: dict
    trainings: dict[str, Training]
    knn: dict[str, float] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)

    def problem_among(self, problems: Iterable[Problem]) -> Problem:
        """What this run, an evaluation, has learnt.

        Raises:
            UserError: it is none of the `problems`.
        """
        known = {problem.problem_type: problem for problem in problems}
        name = self.summary.get("problem") or "single_label_classification"
        if name not in known:
            raise UserError(f"{str(self.folder)!r} is of the task {name!r}, and known are {', '.join(known)}")
        return known[name]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def training(self) -> Training:
        """The only training, or the first."""
        return next(iter(self.trainings.values()), Training({}, []))


def read_run(folder: Path) -> RunFiles:
    """The run in `folder`, also of one that has not ended.

    Raises:
        UserError: there is no run in it, or a file of it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder: give the output_dir of a run")
    summary = _read(folder / "summary.json", {})
    if (folder / "results.json").exists():
        rows = [_with_numbers(row) for row in _read(folder / "results.json", [])]
        trained = [row["name"] for row in rows if "n_partial" in row]
        places = {name: folder / name if len(trained) > 1 else folder for name in trained}
        trainings = {name: _read_training(place) for name, place in places.items()}
        return RunFiles(folder, EVALUATION, summary, trainings, rows=rows)
    training = _read_training(folder)
    if not training.log:
        raise UserError(f"{str(folder)!r} holds no run that has logged anything: give the output_dir of a run")
    is_evaluation = any(key.startswith("eval_") for entry in training.log for key in entry)
    kind = EVALUATION if is_evaluation else PRETRAINING
    return RunFiles(folder, kind, summary, {folder.resolve().name: training}, knn=_read(folder / "knn.json", {}))


def _read_training(folder: Path) -> Training:
    state = _read(folder / "trainer_state.json", None)
    log = state["log_history"] if state else _read_history(folder / "history.jsonl")
    return Training(_read(folder / "arguments.json", {}), log)


def _read(path: Path, default):
    try:
        content = json.loads(path.read_text()) if path.exists() else default
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): mend or remove it") from None
    if default is not None and not isinstance(content, type(default)):
        raise UserError(f"{str(path)!r} is not a file of a run: mend or remove it")
    return content


def _read_history(path: Path) -> list[dict]:
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break  # it is being written
    return entries


def _with_numbers(row: dict) -> dict:
    """JSON has text for the numbers of neighbours."""
    return row | {"knn": {int(k): value for k, value in row["knn"].items()}} if "knn" in row else row
