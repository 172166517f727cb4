"""Anybody may have changed what is read from JSON or YAML on disk: each fault is one line that names the file."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from configuration import PretrainArguments
from configuration.evaluation import EvalArguments, EvalTraining
from configuration.model import model_config
from configuration.parsing import read_recipe
from modeling_mae.checked import MAX_BYTES, made_of
from modeling_mae.data.stream.formats import Shard
from modeling_mae.errors import UserError
from modeling_mae.report.run import read_run
from modeling_mae.tasks import TASKS
from modeling_mae.training.checkpoints import Progress
from modeling_mae.training.manifest import find_fault, made_with_before, read_manifest
from modeling_mae.training.run_folder import LOCK, MARK, lock_folder
from modeling_mae.training.state import History


assert TASKS  # importing them tells the report what figures there are
DEEP = "[" * 10**5 + "]" * 10**5
HUGE = object()  # a file of more bytes than any run writes
ENTRY = {"step": 1, "epoch": 0.5, "loss": 1.0, "learning_rate": 0.1}
MANIFEST = {
    "files": {"progress.json": {"bytes": 2, "sha256": "ab"}},
    "made_with": {"mean": [0.5], "white": 255, "chosen": {"crop_scale": [[0.2, 1.0], "the paper's"]}},
}
PROGRESS = {"update": 1, "epoch": 0, "best": None, "losses": [0.5]}


def changed(content: dict, **values) -> str:
    """The content with other values; `...` removes one."""
    return json.dumps({key: value for key, value in (content | values).items() if value is not ...})


def config_of(path: Path):
    return model_config(PretrainArguments(config_name=str(path), model_name_or_path=None))


READERS = {
    "manifest.json": lambda path: read_manifest(path.parent),
    "progress.json": lambda path: Progress().load(path.parent),
    "history.jsonl": lambda path: History(path, main=True).read(),
    "summary.json": lambda path: read_run(path.parent),
    "trainer_state.json": lambda path: read_run(path.parent),
    "arguments.json": lambda path: read_run(path.parent),
    "results.json": lambda path: read_run(path.parent),
    "knn.json": lambda path: read_run(path.parent),
    "config.json": config_of,
    "recipe.yaml": read_recipe,
}
TAMPERED = [
    ("manifest.json", DEEP),
    ("manifest.json", HUGE),
    ("manifest.json", "[]"),
    ("manifest.json", changed(MANIFEST, files=...)),
    ("manifest.json", changed(MANIFEST, files=[])),
    ("manifest.json", changed(MANIFEST, files={"a": 3})),
    ("manifest.json", changed(MANIFEST, files={"a": {"bytes": "٣", "sha256": "ab"}})),
    ("manifest.json", changed(MANIFEST, made_with=...)),
    ("manifest.json", changed(MANIFEST, made_with=7)),
    ("manifest.json", changed(MANIFEST, made_with={"mean": "٣"})),
    ("manifest.json", changed(MANIFEST, made_with={"std": [[1]]})),
    ("manifest.json", changed(MANIFEST, made_with={"white": {}})),
    ("manifest.json", changed(MANIFEST, made_with={"chosen": [1]})),
    ("progress.json", DEEP),
    ("progress.json", HUGE),
    ("progress.json", "3"),
    ("progress.json", changed(PROGRESS, update="١٢")),
    ("progress.json", changed(PROGRESS, update=-1)),
    ("progress.json", changed(PROGRESS, update=10**400)),
    ("progress.json", changed(PROGRESS, losses=["a"])),
    ("progress.json", changed(PROGRESS, best={})),
    ("progress.json", changed(PROGRESS, more=1)),
    ("history.jsonl", DEEP),
    ("history.jsonl", "7\n"),
    ("history.jsonl", changed(ENTRY, step=...)),
    ("history.jsonl", changed(ENTRY, step="٣")),
    ("history.jsonl", changed(ENTRY, epoch=[])),
    ("summary.json", DEEP),
    ("summary.json", changed({}, images="٣", data="x")),
    ("trainer_state.json", DEEP),
    ("trainer_state.json", "{}"),
    ("trainer_state.json", '{"log_history": [[]]}'),
    ("arguments.json", HUGE),
    ("arguments.json", '{"seed": {"a": 1}}'),
    ("results.json", '{"name": "x"}'),
    ("results.json", DEEP),
    ("knn.json", '{"a": "٣"}'),
    ("config.json", DEEP),
    ("config.json", "[3]"),
    ("config.json", '{"hidden_size": "٦٤"}'),
    ("config.json", "9" * 5000),
    ("recipe.yaml", DEEP),
    ("recipe.yaml", HUGE),
    ("recipe.yaml", "- 1"),
    ("recipe.yaml", "seed: 2020-01-01"),
    ("recipe.yaml", "train_dir: &a [*a]"),
    ("recipe.yaml", "a: &a {<<: *a}"),
    ("recipe.yaml", "a: &a [1, 1]\nb: [*a, *a]"),
    ("recipe.yaml", "seed: " + "9" * 5000),
    ("recipe.yaml", "config_overrides: {patch_size: [2020-01-01]}"),
    ("recipe.yaml", "seed: !!python/object/apply:os.getcwd []"),
]


def write(path: Path, content) -> None:
    if content is HUGE:
        with path.open("w") as file:
            file.truncate(MAX_BYTES + 1)
    else:
        path.write_text(content, encoding="utf-8")


@pytest.mark.parametrize(("name", "content"), TAMPERED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(TAMPERED)])
def test_a_tampered_file_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / "history.jsonl").write_text(json.dumps(ENTRY) + "\n")
    write(tmp_path / name, content)
    with pytest.raises(ValueError) as refused:
        READERS[name](tmp_path / name)
    message = str(refused.value)
    assert len(message) < 600 and "Traceback" not in message
    if name != "recipe.yaml":  # the parser puts the file's name before it, and makes one line
        assert (name in message or "hidden_size" in message) and "\n" not in message
    if name == "manifest.json":
        assert "cannot be read" in (find_fault(tmp_path) or "") and made_with_before([], str(tmp_path)) == {}


def test_what_runs_write_is_read(tmp_path):
    for name, content in (("manifest.json", MANIFEST), ("progress.json", PROGRESS), ("history.jsonl", ENTRY)):
        (tmp_path / name).write_text(json.dumps(content) + "\n")
        READERS[name](tmp_path / name)
    shard = {"url": "a", "size": None, "stamp": "b", "counts": [3], "members": [["a.png", 0, 9, None]]}
    assert made_of(Shard, "index", shard) == Shard(**shard)
    for wrong in (
        {"members": [["a.png", 0, "9", None]]},
        {"members": [["a.png", 0]]},
        {"size": "1"},
        {"counts": [-1]},
    ):
        with pytest.raises(UserError):
            made_of(Shard, "index", shard | wrong)


@pytest.mark.parametrize("content", [DEEP, "[]", "{", '{"name": ["x"]}', '{"host": "x"}'])
def test_finished_results(tmp_path, content):
    training = EvalTraining("x", tmp_path, 0, EvalArguments())
    training.results_file.write_text(content)
    with pytest.raises(UserError, match=training.results_file.name):
        training.finished_results(EvalArguments(), print)
    training.results_file.write_text('{"name": "x"}')
    (tmp_path / "arguments.json").write_text(content if "name" not in content else '{"seed": {}}')
    if "host" not in content:
        with pytest.raises(UserError, match=r"arguments.json"):
            training.finished_results(EvalArguments(), print)


@pytest.mark.parametrize("content", [DEEP, "[1]", "{", '"x"'])
def test_the_mark_of_a_run_that_is_still_there(tmp_path, content):
    (tmp_path / MARK).write_text(content)
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match=MARK):
        lock_folder(tmp_path)
