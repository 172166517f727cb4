"""Writes and reads the files of a run that hold its settings, its log and its results."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checked import check, invalid_file, made_of, mapped, parse, plain, read_json, share
from ..errors import UserError
from ..files import write_json
from ..words import SEMANTIC_SEGMENTATION
from .checked import SETTINGS, SUMMARY, entry_kinds, row_kinds
from .facts import TrainingLog
from .problem import Problem, problem_named
from .worth import VERDICTS, Verdict


PRETRAINING, EVALUATION = "pre-training", "evaluation"  # kinds of runs


def write_training(folder: Path, arguments: dict[str, Any], log: TrainingLog) -> None:
    """Writes arguments.json and trainer_state.json of a finished training."""
    write_json(folder / "arguments.json", arguments)
    state = {"global_step": log.updates, "epoch": log.updates / log.updates_per_epoch, "log_history": log.log}
    write_json(folder / "trainer_state.json", state)


@dataclass(frozen=True)
class Training:
    """The settings and the log of one training. While it runs, its settings are not known yet."""

    arguments: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def losses(self) -> list[dict[str, Any]]:
        return [entry for entry in self.log if "loss" in entry]

    @property
    def growth(self) -> list[dict[str, Any]]:
        """The entries of `FeatureGrowth`. The baselines (step 0) come first."""
        entries = [entry for entry in self.log if "rank" in entry or "rank_untrained" in entry]
        return sorted(entries, key=lambda entry: entry["step"])


@dataclass(frozen=True)
class RunFiles:
    """The content of a run's folder.

    `summary` is summary.json, the facts that are not settings. Early versions did not write it. `knn` are the k-NN
    accuracies of a pre-training, `rows` the results of an evaluation. `trainings` maps names to trainings. A
    pre-training has one."""

    folder: Path
    kind: str
    summary: dict[str, Any]
    trainings: dict[str, Training]
    knn: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def training(self) -> Training:
        """The only training, or the first."""
        return next(iter(self.trainings.values()), Training({}, []))

    @property
    def problem(self) -> Problem:
        named = self.summary.get("problem")
        if named is None and any("knn_patches" in entry for entry in self.training.growth):
            named = SEMANTIC_SEGMENTATION  # of a run that has not ended
        return problem_named(named)

    def folder_of(self, training: str) -> str:
        """The folder of a training in the run's folder, empty if they are the same."""
        return training if len(self.trainings) > 1 else ""

    def holds(self, name: str) -> bool:
        """Whether the folder has the file `name`, and not as a link: a link may lead to a private file."""
        path = self.folder / name
        return path.is_file() and path.resolve() == self.folder.resolve() / name


def read_run(folder: Path) -> RunFiles:
    """The run in `folder`, which may still be running.

    Raises:
        UserError: the folder holds no run, or a file cannot be read or has invalid content.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is not a folder: give the output_dir of a run")
    summary = _summary(folder / "summary.json")
    rows = read_json(folder / "results.json")
    if rows is not None:
        problem = problem_named(summary.get("problem"))
        rows = _rows(folder / "results.json", rows, problem.metric)
        trained = [row["name"] for row in rows if "n_partial" in row]
        places = {name: folder / name if len(trained) > 1 else folder for name in trained}
        trainings = {name: _training(place) for name, place in places.items()}
        return RunFiles(folder, EVALUATION, summary, trainings, rows=rows, verdicts=_verdicts(folder / VERDICTS))
    training = _training(folder)
    if not training.log:
        raise UserError(f"{str(folder)!r} holds no run that has logged anything: give the output_dir of a run")
    is_evaluation = any(key.startswith("eval_") for entry in training.log for key in entry)
    kind = EVALUATION if is_evaluation else PRETRAINING
    knn = read_json(folder / "knn.json") or {}
    if not mapped(share)(knn):
        raise invalid_file(folder / "knn.json", "it should hold accuracies")
    return RunFiles(folder, kind, summary, {folder.resolve().name: training}, knn=knn)


def _verdicts(path: Path) -> list[Verdict]:
    content = read_json(path) or []
    if not isinstance(content, list):
        raise invalid_file(path, "it should hold a list")
    verdicts = [made_of(Verdict, path, verdict) for verdict in content]
    if not all(verdict.is_whole for verdict in verdicts):
        raise invalid_file(path, "differences, intervals and labels do not belong together")
    return verdicts


def _summary(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content is None:
        return {}
    summary = check(path, content, SUMMARY)
    for name, others in {"data": ("images",), "seconds": ("processes", "device_type")}.items():
        check(path, summary, {}, needed=others if name in summary else ())
    return summary


def _training(folder: Path) -> Training:
    path = folder / "trainer_state.json"
    state = read_json(path)
    log = check(path, state, {}, needed=("log_history",))["log_history"] if state is not None else None
    if log is None:
        path = folder / "history.jsonl"
        log = _history(path)
    if not isinstance(log, list):
        raise invalid_file(path, "log_history should be a list")
    for entry in log:
        check(path, entry, entry_kinds(), needed=("step", "epoch"))
    first, *later = Training({}, log).growth or [{}]
    if any("rank" not in entry for entry in later):
        raise invalid_file(path, "rank is missing")
    if "knn_images" not in first and any("knn" in entry for entry in (first, *later)):
        raise invalid_file(path, "knn_images is missing")
    settings = folder / "arguments.json"
    arguments = read_json(settings)
    arguments = check(settings, {} if arguments is None else arguments, SETTINGS)
    if not mapped(plain)(arguments):
        raise invalid_file(settings, "a setting is neither a value nor a list of values")
    return Training(arguments, log)


def _history(path: Path) -> list[Any]:
    if path.is_symlink() or not path.exists():
        return []
    entries = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entries.append(parse(line))
    except json.JSONDecodeError:
        pass  # the last line is being written
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): fix or remove it") from None
    return entries


def _rows(path: Path, rows: Any, metric: str) -> list[dict[str, Any]]:
    if not isinstance(rows, list):
        raise invalid_file(path, "it should hold a list")
    for row in rows:
        check(path, row, row_kinds(), needed=("name",))
        if "n_partial" in row:
            check(path, row, {metric: lambda value: value is not None}, needed=(metric,))
            if Path(row["name"]).name != row["name"]:
                raise invalid_file(path, f"{row['name'][:40]!r} cannot name a folder")
        if "confusion_matrix" in row:
            check(path, row, {metric: lambda value: value is not None}, needed=(metric,))
    return [_with_numbers(row) for row in rows]


def _with_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Turns the numbers of neighbours, which JSON stores as text, back into ints."""
    return row | {"knn": {int(k): value for k, value in row["knn"].items()}} if "knn" in row else row
