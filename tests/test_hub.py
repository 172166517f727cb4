"""What reaches the Hub and comes back from it, with the real client against a Hub in memory."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    Copies,
    assert_same_run,
    assert_same_weights,
    run,
    tiny_config,
    wait_for_update,
    without_waiting,
)
from hub_server import Repo, served_hub
from huggingface_hub import constants
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from configuration import PretrainArguments, parse_arguments
from modeling_mae import EvalNet, MAEForPreTraining, MAEForSemanticSegmentation
from modeling_mae.errors import TrainingStopped, UserError
from modeling_mae.hub.common import LOG_AND_BEST
from modeling_mae.hub.fetch import download_checkpoint, hub_source
from modeling_mae.hub.push import Hub, HubSettings


# A run of the recipe long enough to be stopped on its way.
LONG = ("--max_train_steps", 40, "--max_train_samples", 64, "--per_device_train_batch_size", 32, "--logging_steps", 1)
LONG += ("--checkpointing_steps", 10, "--picture_epochs", 10, "--dataloader_num_workers", 0)
LONG += ("--report_to", "tensorboard")


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub of the user `me`, the one that the client of this process talks to, without waits."""
    with served_hub(monkeypatch) as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        yield server


@pytest.fixture
def folder(tmp_path):
    """What a run leaves: a model, a card, two checkpoints."""
    write(tmp_path / "run", "model.safetensors", b"weights" * 1000)
    write(tmp_path / "run", "README.md", b"---\nlicense: apache-2.0\n---\n# run\n")
    write(tmp_path / "run", "tensorboard/events", b"scalars")
    write(tmp_path / "run", "history.jsonl", b'{"step": 7}\n')
    for update in (7, 14):
        checkpoint(tmp_path / "run", update)
    return tmp_path / "run"


def write(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def checkpoint(folder, update):
    write(folder, f"checkpoint-{update}/model.safetensors", b"weights" * update)
    write(folder, f"checkpoint-{update}/random_states_0.pkl", b"state" * update)
    return folder / f"checkpoint-{update}"


def on_disk(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_checkpoints(files):
    return {name: content for name, content in files.items() if "checkpoint-" not in name and name[0] != "."}


def make_hub(folder, repo_id="me/small", strategy="end", private=False, active=True):
    return Hub(folder, HubSettings(strategy, repo_id, private), active)


def environment(server):
    """Of a command that talks to the server."""
    client = {"HF_ENDPOINT": server.url, "HF_TOKEN": server.token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return {**client, "HF_HUB_CACHE": constants.HF_HUB_CACHE}


# --- before the training ---


@pytest.mark.parametrize(
    "repo_id, token, fault",
    [
        ("me/small", "hf_old", None),
        ("others/small", "hf_good", None),
        ("others/theirs", "hf_good", None),  # it is there and readable, which is enough for `create_repo`
        ("me/small", "hf_good", 404),
    ],
)
def test_what_the_hub_refuses_ends_the_run_before_it_begins(server, folder, monkeypatch, repo_id, token, fault):
    server.repos["others/theirs"] = Repo(private=False)
    monkeypatch.setenv("HF_TOKEN", token)
    if fault:
        server.fail("POST /api/repos/create", fault)
    with pytest.raises(ValueError) as error:
        make_hub(folder, repo_id).start()
    line = str(error.value)
    assert repo_id in line and "hf auth login" in line and "--hub_model_id" in line and "\n" not in line
    assert list(server.repos) == ["others/theirs"] and not server.count("commit|PUT")


@pytest.mark.parametrize("fault", [500, 503, "cut"])
def test_a_hub_that_does_not_answer_stops_no_run(server, folder, capfd, fault):
    server.fail("POST /api/repos/create", fault)
    hub = make_hub(folder, "small")
    hub.start()
    said = capfd.readouterr().err
    assert "does not answer" in said and said.count("\n") == 1 and not server.repos
    assert hub.push()
    assert server.files("me/small")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_only_the_active_process_talks(server, folder):
    hub = make_hub(folder, strategy="checkpoint", active=False)
    hub.start()
    hub.checkpoint(folder / "checkpoint-14")
    assert hub.push() and not server.requests


# --- at the end ---


@pytest.mark.parametrize("private", [False, True])
def test_everything_but_checkpoints_is_pushed(server, folder, capfd, private):
    hub = make_hub(folder, private=private)
    hub.start()
    hub.checkpoint(folder / "checkpoint-14")
    assert server.repos["me/small"].private == private and hub.push()
    files = server.files("me/small")
    assert without_checkpoints(files) == without_checkpoints(on_disk(folder)) and len(files) == 5
    assert f"{server.url}/me/small" in capfd.readouterr().out


@pytest.mark.parametrize(
    "request_, fault, times",
    [
        ("/commit/", 500, 1),
        ("/commit/", 409, 1),
        ("/commit/", 412, 2),
        ("/preupload/", 500, 1),
        ("validate-yaml", "cut", 1),
        ("PUT /lfs/", "cut", 1),
        ("PUT /lfs/", "cut", 7),  # one more than the client itself tries
        ("PUT /lfs/", 500, 7),
    ],
)
def test_what_fails_for_a_while_is_pushed_in_the_end(server, folder, capfd, request_, fault, times):
    server.fail(request_, fault, times)
    hub = make_hub(folder)
    hub.start()
    assert hub.push()
    assert without_checkpoints(server.files("me/small")) == without_checkpoints(on_disk(folder))
    assert server.count(request_) > times and len(server.repos["me/small"].commits) == 2
    assert "not pushed" not in capfd.readouterr().err


@pytest.mark.parametrize("fault, attempts", [(500, 3), (404, 1), (403, 1)])
def test_what_cannot_be_pushed_is_told_with_the_command_that_does_it_later(server, folder, capfd, fault, attempts):
    before = on_disk(folder)
    hub = make_hub(folder, private=True)
    hub.start()
    server.fail("/commit/", fault, 100)
    assert not hub.push()
    said = capfd.readouterr().err
    assert "not pushed" in said and str(fault) in said and said.count("\n") == 1
    assert server.count("/commit/") == attempts and on_disk(folder) == before
    if fault == 500:
        server.faults.clear()
        server.repos.clear()
        command = shlex.split(said.split("`")[1])
        command[0] = str(Path(sys.executable).parent / "hf")
        subprocess.run(command, env={**os.environ, **environment(server)}, check=True, capture_output=True)
        assert without_checkpoints(server.files("me/small")) == without_checkpoints(before)
        assert not any("checkpoint" in name for name in server.files("me/small")) and server.repos["me/small"].private


# --- on the way ---


def checkpoints_in(commit):
    return {name: content for name, content in commit.files.items() if name.startswith("checkpoint-")}


@pytest.mark.parametrize("stopped", [False, True])
def test_the_newest_checkpoint_arrives_in_the_background(server, folder, stopped):
    """... and before the run ends, at its end as by a signal."""
    whole = {update: on_disk(folder / f"checkpoint-{update}") for update in (7, 14)}
    hub = make_hub(folder, strategy="checkpoint")
    hub.start()
    with server.lock:  # the Hub takes its time
        hub.checkpoint(folder / "checkpoint-7")
        write(folder, "history.jsonl", b'{"step": 7}\n{"step": 14}\n')
        shutil.rmtree(folder / "checkpoint-7")  # as the loop does with old ones
        hub.checkpoint(folder / "checkpoint-14")
        assert not server.count("commit") and (folder / ".partial-push" / "checkpoint-7").is_dir()
    if stopped:
        waited = []
        accelerator = SimpleNamespace(wait_for_everyone=lambda: waited.append(True))
        with pytest.raises(TrainingStopped), hub.finishing_uploads(accelerator):
            raise TrainingStopped("stopped by SIGTERM", code=143)
        assert waited
    else:
        assert hub.push()
    first, second = server.repos["me/small"].commits[1:3]
    for commit, update in ((first, 7), (second, 14)):
        names = {f"checkpoint-{update}/{name}": content for name, content in whole[update].items()}
        assert checkpoints_in(commit) == names
    assert first.files["history.jsonl"] == b'{"step": 7}\n'
    assert second.files["history.jsonl"] == b'{"step": 7}\n{"step": 14}\n'
    assert not (folder / ".partial-push").exists()
    assert checkpoints_in(server.repos["me/small"].commits[-1]) == checkpoints_in(second)


def test_the_checkpoints_of_several_runs_stand_side_by_side(server, folder):
    hub = make_hub(folder, strategy="checkpoint")
    hub.start()
    with server.lock:  # all of it while the first is still under way
        for update, name in ((3, "n_partial-0"), (6, "n_partial-0"), (2, "n_partial-1")):
            hub.checkpoint(checkpoint(folder / name, update))
    hub.finish()
    kept = {name.rsplit("/", 1)[0] for name in server.files("me/small") if "checkpoint" in name}
    assert kept == {"n_partial-0/checkpoint-6", "n_partial-1/checkpoint-2"}


def test_a_checkpoint_that_cannot_be_uploaded_is_told_once(server, folder, capfd):
    hub = make_hub(folder, strategy="checkpoint")
    hub.start()
    server.fail("/commit/", 500, 3)
    for update in (7, 14):
        hub.checkpoint(folder / f"checkpoint-{update}")
        hub.finish()
    said = capfd.readouterr().err
    assert "checkpoint-7 was not uploaded" in said and "500" in said and said.count("\n") == 1
    assert {name.split("/")[0] for name in checkpoints_in(server.repos["me/small"].commits[-1])} == {"checkpoint-14"}
    assert not (folder / ".partial-push").exists()


# --- going on from the Hub ---


@pytest.mark.parametrize("fault", [None, "cut", 500])
def test_the_newest_checkpoint_is_downloaded(server, tmp_path, fault):
    names = [f"checkpoint-{update}/{name}" for update in (9, 14, 7) for name in ("model.safetensors", "rng.pkl")]
    server.repos["me/small"] = Repo(private=False)
    files = server.repos["me/small"].commits[0].files
    files |= {name: name.encode() * 99 for name in [*names, "model.safetensors", "history.jsonl", "checkpoint-best/a"]}
    if fault:
        server.fail("GET /me/small/resolve", fault)
    found = download_checkpoint("hub://me/small", tmp_path)
    assert found == tmp_path / "checkpoint-14"
    expected = {name: files[name] for name in files if name.startswith("checkpoint-14") or name == "history.jsonl"}
    assert on_disk(tmp_path) == expected
    write(tmp_path / "other", "history.jsonl", b"its own")
    download_checkpoint("hub://me/small@" + "0" * 40, tmp_path / "other")
    assert on_disk(tmp_path / "other") == {**expected, "history.jsonl": b"its own"}


def test_the_best_epoch_so_far_goes_with_a_classifiers_checkpoint(server, folder, tmp_path):
    write(folder, "config.json", b"{}")
    write(folder, "last/model.safetensors", b"of another epoch")
    hub = Hub(folder, HubSettings("checkpoint", "me/small"), True, LOG_AND_BEST)
    hub.start()
    hub.checkpoint(folder / "checkpoint-14")
    hub.finish()
    download_checkpoint("hub://me/small", tmp_path / "other", LOG_AND_BEST)
    beside = {"model.safetensors", "config.json", "history.jsonl"}
    there = on_disk(folder)
    expected = {name: there[name] for name in there if name in beside or name.startswith("checkpoint-14")}
    assert on_disk(tmp_path / "other") == expected


@pytest.mark.parametrize(
    "source, token, message",
    [
        ("hub://me/nothing", "hf_good", "this repository does not exist"),
        ("hub://me/small@" + "1" * 40, "hf_good", "does not exist: give another, or none"),
        ("hub://me/small", "hf_good", "--push_to_hub checkpoint"),
        ("hub://me/small", "unreachable", "does not answer"),
    ],
)
def test_what_cannot_be_gone_on_from_is_one_line(server, tmp_path, monkeypatch, source, token, message):
    server.repos["me/small"] = Repo(private=False)
    if token == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError) as error:
        download_checkpoint(source, tmp_path)
    assert source in str(error.value) and message in str(error.value) and "\n" not in str(error.value)
    assert not on_disk(tmp_path)


def test_arguments_of_the_hub_are_checked(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("there/checkpoint-7").mkdir(parents=True)
    assert parse_arguments(PretrainArguments, ["--resume_from_checkpoint", "hub://me/small@main"])
    for words, part in (
        ("--resume_from_checkpoint hub://me/small --output_dir there", "resume_from_checkpoint auto"),
        ("--hub_private_repo true", "push_to_hub"),
        ("--push_to_hub always", "push_to_hub 'always' does not work: give no, end or checkpoint"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(PretrainArguments, words.split())
        assert part in capsys.readouterr().err
    with pytest.raises(UserError, match="hub://owner/name"):
        hub_source("hub://me/sm/all")


# --- models ---


@pytest.mark.parametrize(
    "cls, auto",
    [
        (MAEForPreTraining, MAEForPreTraining),
        (EvalNet, AutoModelForImageClassification),
        (MAEForSemanticSegmentation, AutoModelForSemanticSegmentation),
    ],
)
def test_models_come_back_from_the_hub(server, cls, auto):
    torch.manual_seed(0)
    first, second = (cls(tiny_config(num_labels=3)) for _ in range(2))
    commits = [model.push_to_hub("small").oid for model in (first, second)]
    assert commits == [commit.sha for commit in server.repos["me/small"].commits[1:]]
    assert_same_weights(auto.from_pretrained("me/small").state_dict(), second.state_dict())
    assert_same_weights(auto.from_pretrained("me/small", revision=commits[0]).state_dict(), first.state_dict())
    encoder = AutoModel.from_pretrained("me/small", revision=commits[0]).state_dict()
    assert_same_weights(encoder, first.mae.state_dict())


# --- the command ---


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_from_what_it_pushed(server, tmp_path, recipe):
    """A whole run that pushes; a run from its first checkpoint, stopped on the way; a third goes on from that."""
    command, client = (recipe, *LONG, "--output_dir"), environment(server)
    push = ("--push_to_hub", "checkpoint", "--hub_model_id")
    output = run(*command, tmp_path / "whole", *push, "me/whole", **client)
    assert f"pushed     {server.url}/me/whole" in output
    first = server.repos["me/whole"].commits[1]
    assert {name.split("/")[0] for name in first.files} == {"checkpoint-10", "history.jsonl", ".gitattributes"}
    last, there = server.files("me/whole"), on_disk(tmp_path / "whole")
    assert {name.split("/")[0] for name in last if "checkpoint-" in name} == {"checkpoint-40"}
    assert without_checkpoints(last) == without_checkpoints(there)
    assert all(there[name] == content for name, content in last.items() if "checkpoint-" in name)

    source = ("--resume_from_checkpoint", f"hub://me/whole@{first.sha}")
    words = (*command, tmp_path / "stopped", *source, *push, "me/stopped")
    stopped = Copies("run_pretrain.py", words, **client)
    wait_for_update(stopped, tmp_path / "stopped", 12)
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM, output
    (update,) = {int(name.split("/")[0][11:]) for name in server.files("me/stopped") if "checkpoint-" in name}
    assert 12 <= update < 40 and (tmp_path / "stopped" / f"checkpoint-{update}").is_dir()

    output = run(*command, tmp_path / "other", "--resume_from_checkpoint", "hub://me/stopped", **client)
    assert f"from update {update} of {tmp_path / 'other' / f'checkpoint-{update}'}" in output
    assert_same_run(tmp_path / "whole", tmp_path / "other")
    whole, other = (json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("whole", "other"))
    assert len(whole["log_history"]) == 40
    whole["log_history"], other["log_history"] = (without_waiting(state["log_history"]) for state in (whole, other))
    assert whole == other


def test_a_refused_token_ends_the_command_before_the_training(server, tmp_path, recipe):
    words = ("--output_dir", tmp_path / "run", "--push_to_hub", "true", "--hub_model_id", "me/small")
    output = run(recipe, *words, code=1, **{**environment(server), "HF_TOKEN": "hf_old"})
    assert "hf auth login" in output and "'me/small'" in output and "update" not in output
    assert on_disk(tmp_path / "run").keys() == {".mae_run.json", ".mae_run.lock"}
