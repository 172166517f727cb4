"""The guide for own images: the folder as it is drawn, the commands as they stand, the messages quoted."""

import ast
import re
import shlex

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT, photograph, run
from documented import section

from configuration import EvalArguments, PretrainArguments, parse_arguments


NOT_OURS = {"accelerate: command not found", "CUDA out of memory"}  # the shell's and torch's
IMAGES_OF_A_CLASS = 40  # k-NN and batches need more than the six that are drawn


GUIDE = section("Your own images in five minutes")
BLOCKS = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [command for block in BLOCKS for command in block.replace("\\\n", " ").splitlines()]
TRAIN_CPU, TRAIN_GPU, _, EVALUATE = [command for command in COMMANDS if command.startswith("accelerate launch")]


def words_of(command: str) -> tuple[object, str, list[str]]:
    """What the launcher makes of a command, the script, and the script's words."""
    words = shlex.split(command.replace("$(getconf _NPROCESSORS_ONLN)", "2"))
    given = launch_command_parser().parse_args(words[2:])
    return given, given.training_script, given.training_script_args


def draw(folder):
    """The folder of the guide, with more images of each kind."""
    drawing = re.search(r"```text\n(.*?)```", GUIDE, re.DOTALL)[1]
    path, count = [], 0
    for line in drawing.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        path[depth:] = [line.strip().rstrip("/")]
        if line.endswith("/"):
            continue
        for i in range(IMAGES_OF_A_CLASS // 2):
            file = folder.joinpath(*path[:-1], f"{i:02}-{path[-1]}")
            file.parent.mkdir(parents=True, exist_ok=True)
            photograph(file, count)
            count += 1
    return folder / path[0]


@pytest.mark.parametrize("command", [TRAIN_CPU, TRAIN_GPU, EVALUATE])
def test_the_commands_are_taken_by_the_launcher_and_the_script(command, tmp_path, monkeypatch):
    given, script, words = words_of(command)
    assert given.config_file is None or (ROOT / given.config_file).is_file()
    if script == "run_eval.py":
        words += ["--model_name_or_path", "me/model"]  # the recipe names a run that is not there
        monkeypatch.chdir(tmp_path)
        assert parse_arguments(EvalArguments, words).train_dir == "my_images"
    else:
        args = parse_arguments(PretrainArguments, words)
        assert args.own_images and args.train_dir == "my_images"


@pytest.mark.slow
def test_the_folder_as_it_is_drawn_is_trained_on_and_evaluated(tmp_path):
    images = draw(tmp_path)
    for command, output_dir, more in (
        (TRAIN_CPU, "run", ["--max_hours", "0.0005"]),
        (EVALUATE, "evaluation", ["--model_name_or_path", tmp_path / "run", "--num_train_epochs", 2]),
    ):
        _, script, words = words_of(command)
        words[words.index("--train_dir") + 1] = images
        tiny = ["hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=32"]
        if script == "run_pretrain.py":
            more += ["--config_overrides", *tiny, "decoder_num_hidden_layers=1"]
        more += ["--report_to", "none", "--dataloader_num_workers", 0, "--output_dir", tmp_path / output_dir]
        output = run(*words, *more, script=script)
        if script == "run_pretrain.py":
            # Half of the files stand, half lie, with 200 x 300 pixels: 12 patches of 16 are the most within 200.
            assert "image_size=192: the files have 200 x 200 pixels" in output and "patch_size=16" in output
            # 80 / 20 = 4 is below the least batch
            assert "total_batch_size=8: 10 updates per epoch of 80 images" in output
            assert "my_images: 80 images" in output and "k-NN" in output
    assert "raw pixels" in output and "n_partial-0" in output
    assert {path.name for path in (tmp_path / "run").glob("*.png")} >= {"reconstruction.png", "features.png"}


def test_the_slurm_command_is_one_of_the_script():
    (block,) = re.findall(r"```bash\n(.*?)```", section("On a SLURM cluster"), re.DOTALL)
    name, script, *words = shlex.split(block)
    assert name == "sbatch" and (ROOT / script).is_file()
    assert parse_arguments(PretrainArguments, words).output_dir == "runs/large"


def test_every_message_of_the_troubleshooting_is_in_the_code():
    rows = [line for line in section("Troubleshooting by symptom").splitlines() if line.startswith("| `")]
    quoted = {re.match(r"\| `([^`]+)` \|", row)[1] for row in rows}
    files = [*(ROOT / "modeling_mae").rglob("*.py"), *(ROOT / "configuration").glob("*.py"), *ROOT.glob("run_*.py")]
    texts = [
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(quoted) == len(rows) > 15
    assert quoted & NOT_OURS == NOT_OURS
    assert not [phrase for phrase in quoted - NOT_OURS if not any(phrase in text for text in texts)]
