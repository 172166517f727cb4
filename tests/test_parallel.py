"""Several processes: shared weights, what is saved of them, a process that dies, two machines."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import (
    RECIPE,
    ROOT,
    TWO_PROCESSES,
    Copies,
    assert_same_weights,
    processes_of,
    run,
    start,
    weights_and_history,
)
from safetensors.torch import load_file

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.training.sharded import fix_gradient_buckets


SHARDED = {
    "launcher": (
        *("--num_processes", "2", "--main_process_port", "0", "--use_fsdp", "--fsdp_version", "2"),
        *("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_transformer_layer_cls_to_wrap", "MAELayer"),
        *("--fsdp_state_dict_type", "FULL_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "false"),
        *("--fsdp_offload_params", "false", "--fsdp_reshard_after_forward", "true"),
    ),
    "ACCELERATE_USE_CPU": "true",
}
ELSEWHERE = """
import sys
sys.modules["modeling_mae"] = None
import torch
from transformers import {auto}
model = {auto}.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, model(torch.zeros(1, 1, 28, 28))[0].isfinite().all().item())
"""


NEEDS_RIGHT_NORMS = pytest.mark.skipif(torch.__version__ < "2.11", reason="FSDP is refused")


def run_sharded(script, *arguments, **options) -> str:
    return run(script, *arguments, script="tests/force_fsdp.py", **{**SHARDED, **options})


@pytest.mark.slow
@NEEDS_RIGHT_NORMS
def test_a_sharded_model_is_compiled_by_block(tmp_path, recipe):
    run(recipe, "--output_dir", tmp_path / "one")
    words = ("run_pretrain.py", recipe, "--output_dir", tmp_path / "sharded")
    launcher = (*SHARDED["launcher"], "--dynamo_backend", "eager")
    output = run_sharded(*words, launcher=launcher, code=1)
    assert "dynamo_backend eager compiles a model that FSDP shards only block by block" in output
    output = run_sharded(*words, launcher=(*launcher, "--dynamo_use_regional_compilation"))
    assert "2 processes (FSDP) x 1 thread, compiled by eager" in output
    one, sharded = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "sharded"))
    torch.testing.assert_close(sharded, one, rtol=1e-4, atol=1e-5)


def load_elsewhere(folder, auto: str) -> str:
    """The class that a process without the package loads the folder as, and whether its output is finite."""
    code = ELSEWHERE.format(auto=auto)
    environment = {**os.environ, "HF_HOME": str(folder.parent / "home"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@NEEDS_RIGHT_NORMS
def test_sharded_pre_training_leaves_what_one_process_does(tmp_path, recipe):
    looks = ("--eval_every_epochs", 2, "--picture_epochs", 2)
    run(recipe, "--output_dir", tmp_path / "one", *looks)
    output = run_sharded("run_pretrain.py", recipe, "--output_dir", tmp_path / "sharded", *looks)
    assert "parallel   2 processes (FSDP) x 1 thread" in output
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("one", "sharded")]
    assert names[0] == names[1]
    one, sharded = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "sharded"))
    assert one == sharded
    for name in ("modeling_mae.py", "masking_mae.py", "configuration_mae.py"):
        assert (tmp_path / "sharded" / name).read_bytes() == (ROOT / "modeling_mae" / name).read_bytes()
    weights, history = weights_and_history(tmp_path / "one")
    sharded_weights, sharded_history = weights_and_history(tmp_path / "sharded")
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (history, sharded_history)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for key, tolerance in (("knn", 0.01), ("rank", 0.05)):
        figures = [[entry[key] for entry in log if key in entry] for log in (history, sharded_history)]
        assert len(figures[0]) == 2
        np.testing.assert_allclose(*figures, atol=tolerance)
    assert weights.keys() == sharded_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, sharded_weights[name], atol=3e-4, rtol=1e-3, msg=name)
    # going on is exact
    words = ("--output_dir", tmp_path / "again", "--resume_from_checkpoint", tmp_path / "sharded" / "checkpoint-14")
    run_sharded("run_pretrain.py", recipe, *words, *looks)
    assert_same_weights(*(load_file(tmp_path / name / "model.safetensors") for name in ("sharded", "again")))


@pytest.fixture
def probing(tmp_path):
    """The words of a linear probe of a small encoder."""
    torch.manual_seed(0)
    fields = json.loads(re.search(r"config_overrides: (.*)", RECIPE)[1])
    MAEForPreTraining(MAEConfig(**fields)).save_pretrained(tmp_path / "encoder")
    image_processor((28, 28), [0.2], [0.3], 1).save_pretrained(tmp_path / "encoder")
    words = ("--model_name_or_path", tmp_path / "encoder", "--eval_crop_fraction", 1, "--report_to", "none")
    words += ("--max_train_samples", 320, "--max_eval_samples", 103, "--total_batch_size", 32, "--seed", 1)
    words += ("--per_device_train_batch_size", 16, "--num_train_epochs", 2, "--warmup_epochs", 0, "--n_partial", 0)
    return (*words, "--config_overrides", "pooling=mean", "--base_learning_rate", 5)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=NEEDS_RIGHT_NORMS)])
def test_a_probe_has_the_accuracy_at_the_end_that_it_had_in_training(tmp_path, probing, sharded):
    """BatchNorm's statistics differ between the processes: those that are saved must be those that are evaluated."""
    words = (*probing, "--output_dir", tmp_path / "run")
    if sharded:
        run_sharded("run_eval.py", *words)
    else:
        run(*words, script="run_eval.py", **TWO_PROCESSES)
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in log if "eval_accuracy" in entry]
    best = max(evaluations, key=lambda entry: entry["eval_accuracy"])
    assert len(evaluations) == 2 and row["accuracy"] == best["eval_accuracy"]
    assert row["loss"] == pytest.approx(best["eval_loss"], rel=1e-5)
    test = ("--do_train", "false", "--model_name_or_path", tmp_path / "run", "--output_dir", tmp_path / "test")
    run(*test, "--eval_crop_fraction", 1, "--max_eval_samples", 103, "--report_to", "none", script="run_eval.py")
    assert json.loads((tmp_path / "test" / "results.json").read_text())[0]["accuracy"] == row["accuracy"]
    if sharded:
        assert load_elsewhere(tmp_path / "run", "AutoModelForImageClassification") == "EvalNet True"


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=[NEEDS_RIGHT_NORMS, pytest.mark.slow])])
def test_a_probe_of_two_processes_remembers_what_one_does(tmp_path, probing, sharded):
    run(*probing, "--output_dir", tmp_path / "one", script="run_eval.py")
    if sharded:
        run_sharded("run_eval.py", *probing, "--output_dir", tmp_path / "two")
    else:
        run(*probing, "--output_dir", tmp_path / "two", script="run_eval.py", **TWO_PROCESSES)
    one, two = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "two"))
    assert one["head_norm.num_batches_tracked"] == two["head_norm.num_batches_tracked"] == 40  # 2 micro-batches each
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")]
    accuracies = [[entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry] for log in logs]
    assert accuracies[0] == accuracies[1] and len(accuracies[0]) == 2


def test_processes_that_each_believe_to_be_alone_end_at_once(tmp_path, recipe):
    output = run(recipe, "--output_dir", tmp_path / "run", code=1, WORLD_SIZE="2")
    assert "the launcher has started 2 processes" in output and "ACCELERATE_USE_CPU=true" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.__version__ >= "2.11", reason="FSDP is right")
def test_fsdp_of_an_older_torch_is_refused(tmp_path, recipe):
    output = run_sharded("run_pretrain.py", recipe, "--output_dir", tmp_path / "run", code=1)
    assert "install torch 2.11 or later" in output and not (tmp_path / "run").exists()


def test_the_first_version_of_fsdp_is_one_line(tmp_path, recipe):
    launcher = list(SHARDED["launcher"])
    launcher[launcher.index("--fsdp_version") + 1] = "1"
    output = run_sharded("run_pretrain.py", recipe, "--output_dir", tmp_path / "run", code=1, launcher=launcher)
    assert "error: FSDP1 is not supported" in output and "--fsdp_version 2" in output
    assert not (tmp_path / "run").exists()


@NEEDS_RIGHT_NORMS
def test_sharded_checkpoints_that_are_not_safe_to_read_are_refused(tmp_path, recipe):
    launcher = ["SHARDED_STATE_DICT" if word == "FULL_STATE_DICT" else word for word in SHARDED["launcher"]]
    output = run_sharded("run_pretrain.py", recipe, "--output_dir", tmp_path / "run", code=1, launcher=launcher)
    assert "set it to FULL_STATE_DICT" in output and not (tmp_path / "run").exists()


def test_where_sharding_was_asked_for_and_does_not_run_the_header_says_so(tmp_path, recipe):
    output = run(recipe, "--output_dir", tmp_path / "run", "--max_train_steps", 1, **SHARDED)
    assert "parallel   2 processes (MULTI_CPU) x 1 thread" in output
    assert "note       FSDP was requested, but Accelerate runs MULTI_CPU" in output


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_process_that_dies_costs_nothing(tmp_path, recipe):
    """One of two is killed; one process goes on and is stopped; two go on to the end."""
    words = (recipe, "--output_dir", tmp_path / "run", "--checkpointing_steps", 5, "--max_train_steps", 3000)
    words += ("--num_train_epochs", 700)
    process = start(*words, **TWO_PROCESSES)
    while not (tmp_path / "run" / "checkpoint-10").exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(max(processes_of(tmp_path / "run")), signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode
    ours = output.split("torch.distributed.elastic")[0]
    assert "run_pretrain.py: error: another process of this run has ended" in output or "stopped by SIGTERM" in ours
    assert 'run_pretrain.py", line' not in output  # no traceback of ours; the launcher's own report remains
    one = Copies("run_pretrain.py", (*words, "--resume_from_checkpoint", "auto"))
    one.wait_for_line("update")
    one.send_signal(signal.SIGTERM)
    output, _ = one.communicate()
    assert one.returncode == 128 + signal.SIGTERM and "from update" in output
    (update,) = map(int, re.findall(r"stopped by SIGTERM after update (\d+)", output))
    last = (*words[:-4], "--max_train_steps", update + 10, "--allow_changes", "true")
    output = run(*last, "--resume_from_checkpoint", "auto", **TWO_PROCESSES)
    assert f"from update {update} of" in output
    log = weights_and_history(tmp_path / "run")[1]
    steps = [entry["step"] for entry in log]
    assert steps == sorted(set(steps)) and steps[-1] == update + 10 and set(range(3, update, 3)) <= set(steps)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("settled", [True, False])
def test_gradients_are_grouped_for_good_before_the_first_update(settled):
    """The layers are used in another order than they are defined in, which DDP only sees in a backward pass."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    groups = []

    def note(_, bucket):
        groups.append([id(parameter) for parameter in bucket.parameters()])
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    class Crossed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = (torch.nn.Linear(2, 2) for _ in range(3))

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    try:
        model = torch.nn.parallel.DistributedDataParallel(Crossed())
        if settled:
            fix_gradient_buckets(model)
            assert all(parameter.grad is None for parameter in model.parameters())
        model.register_comm_hook(None, note)
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(groups) == 3 and groups[1] == groups[2]
    assert (groups[0] == groups[1]) == settled  # else they change once


@pytest.mark.slow
def test_two_machines(tmp_path, recipe):
    """Two launchers of two processes each: trained, killed, gone on with, and equal to one process."""

    def machines(folder, *words):
        port = free_port()
        options = ("--multi_gpu", "--num_machines", 2, "--num_processes", 4, "--main_process_ip", "127.0.0.1")
        options += ("--main_process_port", port, "--rdzv_backend", "static", "--same_network")
        return [
            start(recipe, "--output_dir", folder, "--per_device_train_batch_size", 8, *words,
                  launcher=tuple(map(str, (*options, "--machine_rank", rank))), ACCELERATE_USE_CPU="true")
            for rank in (0, 1)
        ]  # fmt: skip

    run(recipe, "--output_dir", tmp_path / "one")
    outputs = [process.communicate(timeout=300)[0] for process in machines(tmp_path / "whole")]
    assert "32 = 4 processes x 8 images x 1 accumulation step" in outputs[0], outputs
    (weights, _), (others, _) = weights_and_history(tmp_path / "one"), weights_and_history(tmp_path / "whole")
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=3e-4, rtol=1e-3, msg=name)
    processes = machines(tmp_path / "killed", "--max_train_steps", 20)
    while not (tmp_path / "killed" / "checkpoint-7").exists() and processes[0].poll() is None:
        time.sleep(0.01)
    for pid in processes_of(tmp_path / "killed"):
        os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=300)
    for process in machines(tmp_path / "killed", "--resume_from_checkpoint", "auto"):
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert_same_weights(load_file(tmp_path / "killed" / "model.safetensors"), others)
