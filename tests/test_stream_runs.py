"""The real commands on streams and other sources: killed, gone on with by other processes and workers, evaluated."""

import json
import os
import re
import signal
import tarfile
from contextlib import nullcontext

import numpy as np
import pyarrow.parquet
import pytest
from conftest import (
    TWO_PROCESSES,
    assert_same_run,
    photograph,
    processes_of,
    run,
    run_in_turn,
    start,
    wait_for_update,
)
from shard_server import serve
from test_streams import make_shards

from modeling_mae.data.find.sources import BUNDLED


pytestmark = pytest.mark.slow
SHARDS, IMAGES = 1000, 100_000


@pytest.fixture
def stream(recipe):
    """The words that make a command of run_pretrain.py with the small recipe read a stream."""
    recipe.write_text(recipe.read_text().replace("max_train_samples: 160\n", ""))
    return [recipe, "--streaming", "true", "--cache_dir", recipe.parent / "cache"]


def kill_after(update: int, folder, *words, **options) -> str:
    """Start the command and kill all its processes once it has logged a later update. Gives what it has printed."""
    process = start(*words, "--output_dir", folder, **options)
    wait_for_update(process, folder, update + 1)
    ended = process.poll()
    for pid in processes_of(folder):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    output, _ = process.communicate()
    assert ended is None, output
    return output


def resumed_from(output: str) -> int:
    """The update that the header names."""
    return int(re.search(r", from update (\d+) of", output)[1])


def a_thousand_shards(folder):
    """The bundled images again and again, in parquet files of very different length."""
    table = pyarrow.parquet.read_table(next(BUNDLED.glob("train*.parquet")))
    weights = np.random.default_rng(0).integers(1, 200, SHARDS)
    ends = np.round(np.cumsum(weights) / weights.sum() * IMAGES).astype(int).tolist()
    folder.mkdir()
    for shard, (start_, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        rows = table.take(np.arange(start_, end) % len(table))
        pyarrow.parquet.write_table(rows, folder / f"train-{shard:04}.parquet", row_group_size=60)
    return folder


def test_two_processes_killed_three_times_in_a_thousand_shards(tmp_path, stream):
    words = [*stream, "--train_dir", a_thousand_shards(tmp_path / "shards"), "--max_train_steps", 100]
    words += ["--checkpointing_steps", 10, "--dataloader_num_workers"]
    resume = ("--resume_from_checkpoint", "auto")
    output = run(*words, 0, "--output_dir", tmp_path / "whole")
    assert f"{IMAGES:,} images" in output and "streamed" in output
    kill_after(21, tmp_path / "killed", *words, 1, **TWO_PROCESSES)
    assert "from update " in kill_after(42, tmp_path / "killed", *words, 2, *resume)
    assert "from update " in kill_after(63, tmp_path / "killed", *words, 0, *resume, **TWO_PROCESSES)
    run(*words, 3, *resume, "--output_dir", tmp_path / "killed", **TWO_PROCESSES)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, stream, kind, remote):
    folder = make_shards(tmp_path / "shards", kind, (50, 3, 90, 17))
    with serve(folder) if remote else nullcontext() as server:
        place = f"{server}/part-{{000..003}}.{kind}" if remote else folder
        # Long enough that a busy machine does not let it end before it is killed.
        words = [*stream, "--train_dir", place, "--max_train_steps", 60, "--dataloader_num_workers"]
        kill_after(8, tmp_path / "killed", *words, 1)
        goes_on = [*words, 2, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "auto"]
        (code, output), whole = run_in_turn(goes_on, [*words, 0, "--output_dir", tmp_path / "whole"])
    assert (code, whole[0]) == (0, 0), (output, whole)
    assert 7 <= resumed_from(output) < 60 and "streamed" in output
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.fixture(params=["files", "memory", "parquet", "tar"])
def source(request, tmp_path, recipe):
    """The words that make a command of run_pretrain.py with the small recipe read this kind of source."""
    words = [recipe, "--max_train_steps", 60]
    if request.param == "memory":
        return words
    recipe.write_text(recipe.read_text().replace("max_train_samples: 160\n", ""))
    if request.param == "files":
        (tmp_path / "photos").mkdir()
        for i in range(75):
            photograph(tmp_path / "photos" / f"{i}.jpg", i)
        return [*words, "--train_dir", tmp_path / "photos", "--config_overrides", "num_channels=3"]
    folder = make_shards(tmp_path / "shards", request.param, (50, 3, 90, 17))
    return [*words, "--train_dir", folder, "--streaming", "true", "--cache_dir", tmp_path / "cache"]


def test_any_source_goes_on_with_other_processes_and_workers(tmp_path, source):
    """Mixtures have a test of their own, streams on the Hub and of many shards too."""
    workers, resume = [*source, "--dataloader_num_workers"], ("--resume_from_checkpoint", "auto")
    run(*workers, 0, "--output_dir", tmp_path / "whole")
    kill_after(8, tmp_path / "killed", *workers, 1, **TWO_PROCESSES)
    first = resumed_from(kill_after(23, tmp_path / "killed", *workers, 3, *resume))
    output = run(*workers, 0, *resume, "--output_dir", tmp_path / "killed", **TWO_PROCESSES)
    assert 7 <= first <= resumed_from(output) < 60 and resumed_from(output) >= 21
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_four_processes_go_on_to_the_same_weights(tmp_path, stream):
    folder = make_shards(tmp_path / "shards", "parquet", (50, 3, 90, 17))
    words = [*stream, "--train_dir", folder, "--per_device_train_batch_size", 8, "--dataloader_num_workers"]
    four = {**TWO_PROCESSES, "launcher": ("--multi_gpu", "--num_processes", "4", "--main_process_port", "0")}
    run(*words, 0, "--output_dir", tmp_path / "whole", **four)
    kill_after(8, tmp_path / "killed", *words, 1, **four)
    run(*words, 0, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "auto", **four)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_shard_that_is_cut_off_stops_the_run_with_a_checkpoint(tmp_path, stream, processes):
    folder = make_shards(tmp_path / "shards", "tar", (30,) * 20)  # of which four are not looked at before the training
    with tarfile.open(folder / "part-004.tar") as tar:
        images = [member for member in tar.getmembers() if member.name.endswith("png")]
    whole = (folder / "part-004.tar").read_bytes()
    (folder / "part-004.tar").write_bytes(whole[: images[-1].offset_data + 10])  # the last image of the shard
    words = [*stream, "--train_dir", folder, "--checkpointing_steps", 1000, "--output_dir", tmp_path / "run"]
    words += ["--dataloader_num_workers", 1]
    process = start(*words, **(TWO_PROCESSES if processes == 2 else {}))
    output, _ = process.communicate(timeout=300)
    (line,) = [line for line in output.splitlines() if "part-004.tar is cut off" in line]
    update = int(line.partition("stopped after update ")[2].split()[0])
    assert process.returncode == 1 and 'run_pretrain.py", line' not in output and update > 0, output
    assert line.endswith(f"goes on from {tmp_path / 'run' / f'checkpoint-{update}'}")
    assert output.count("another process has no images, and says why") == processes - 1
    output = run(*words, "--resume_from_checkpoint", "auto", "--on_bad_image", "skip")
    assert f"from update {update} of" in output


def test_evaluation_of_a_stream_is_that_of_the_same_files(tmp_path, stream):
    """Parquet files are read without streaming by another reader."""
    folder = make_shards(tmp_path / "shards", "parquet", (100, 7, 90), "train")
    make_shards(folder, "parquet", (30, 45), "test")
    output = run(*stream, "--train_dir", folder, "--output_dir", tmp_path / "mae", "--knn", "true")
    assert "k-NN" in (tmp_path / "mae" / "README.md").read_text(), output
    common = ["--model_name_or_path", tmp_path / "mae", "--train_dir", folder, "--report_to", "none"]
    probe = ["--n_partial", 0, "--max_train_steps", 12, "--total_batch_size", 32, "--warmup_epochs", 0]
    probe += ["--per_device_train_batch_size", 32, "--config_overrides", "pooling=mean"]
    streamed = ["--streaming", "true", "--cache_dir", tmp_path / "cache"]
    results = run_in_turn(
        [*common, *streamed, *probe, "--output_dir", tmp_path / "probe"],
        [*common, *streamed, "--do_train", "false", "--knn", "true", "--output_dir", tmp_path / "streamed"],
        [*common, "--do_train", "false", "--knn", "true", "--output_dir", tmp_path / "files"],
        [
            *common,
            "--do_train",
            "false",
            "--model_name_or_path",
            tmp_path / "probe",
            "--output_dir",
            tmp_path / "test",
        ],
        script="run_eval.py",
    )
    assert [code for code, _ in results] == [0] * 4, results
    rows = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("streamed", "files", "test")}
    assert rows["streamed"] == rows["files"]
    (trained,) = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert trained["accuracy"] == rows["test"][0]["accuracy"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_killed_mixture_goes_on_to_the_same_weights(tmp_path, stream, streaming):
    folders = [make_shards(tmp_path / "one", "parquet", (50, 3, 90)), make_shards(tmp_path / "two", "parquet", (40,))]
    words = [*stream, "--streaming", streaming, "--train_dir", *folders, "--mix", 0.3, 0.7, "--max_train_steps", 30]
    words += ["--dataloader_num_workers"]
    output = run(*words, 0, "--output_dir", tmp_path / "whole")
    assert "one (0.3) + two (0.7): 183 images" in output
    kill_after(8, tmp_path / "killed", *words, 1, **TWO_PROCESSES)
    run(*words, 2, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    output = run(
        *words, 0, "--mix", 1, 1, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "auto", code=1
    )
    assert "mix [0.3, 0.7] -> [1.0, 1.0]" in output
