"""The SLURM script, with SLURM's commands played by small scripts that write down what they are told."""

import os
import signal
import subprocess
import time

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT

from configuration import PretrainArguments, parse_arguments


SCRIPT = ROOT / "configuration" / "accelerate" / "slurm.sh"
# srun starts what it is given as machine 1 would. accelerate trains until it gets a signal, or ends at once.
COMMANDS = {
    "scontrol": 'echo "scontrol $*" >> log; if [ "$1" = show ]; then printf "alpha\\nbeta\\n"; fi',
    "srun": 'export SLURM_NODEID=1; exec "$@"',
    "accelerate": """trap 'echo "checkpoint written" >> log; exit 143' TERM
        printf "%s\\n" "$@" > words
        [ -e trains ] || exit 3
        while true; do sleep 0.05; done""",
}


@pytest.fixture
def job(tmp_path):
    """Submits the script with some words: the process, in a folder with SLURM's commands."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, code in COMMANDS.items():
        file = tmp_path / (".venv/bin" if name == "accelerate" else ".") / name
        file.write_text(f"#!/bin/bash\n{code}\n")
        file.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "[alpha,beta]", "SLURM_GPUS_ON_NODE": "4"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return lambda *words: subprocess.Popen(["bash", str(SCRIPT), *words], cwd=tmp_path, env=environment)


def test_every_machine_is_started_with_its_number_and_goes_on(job, tmp_path):
    process = job("own_images", "--train_dir", "two words", "--output_dir", "runs/x")
    assert process.wait(timeout=30) == 3  # the training's own
    words = (tmp_path / "words").read_text().splitlines()
    assert words.pop(0) == "launch"
    given = launch_command_parser().parse_args(words)
    assert (given.num_machines, given.num_processes, given.machine_rank) == (2, 8, 1)
    assert given.main_process_ip == "alpha" and (ROOT / given.config_file).is_file()
    assert given.training_script == "run_pretrain.py"
    args = parse_arguments(PretrainArguments, given.training_script_args)
    assert args.train_dir == "two words" and args.own_images and args.resume_from_checkpoint == "auto"
    assert (tmp_path / "log").read_text() == "scontrol show hostnames [alpha,beta]\n"  # nothing is queued again


def test_the_warning_before_the_time_limit_puts_the_job_back_into_the_queue(job, tmp_path):
    (tmp_path / "trains").touch()
    process = job("demo")
    while not (tmp_path / "words").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.wait(timeout=30)
    lines = (tmp_path / "log").read_text().splitlines()[1:]
    assert lines == ["checkpoint written", "scontrol requeue 7"]


def test_slurm_is_asked_for_what_the_script_needs():
    wanted = [line.split(" ", 1)[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    # one launcher a machine; the signal for this shell alone; the log of all sittings in one file
    for option in ("--ntasks-per-node=1", "--signal=B:USR1@60", "--requeue", "--open-mode=append"):
        assert option in wanted
