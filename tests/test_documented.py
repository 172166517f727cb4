"""The documents' blocks and commands: real parsers take every one, and what can run here is run as it stands."""

import ast
import re
import shutil

import pytest
import torch
from applied import save_checkpoint, save_classifier, write_script
from conftest import ROOT, copied, photograph
from documented import (
    DOCUMENTS,
    GUIDES,
    SCRIPTS,
    SETTINGS,
    anchors,
    blocks,
    check,
    commands,
    guide_commands,
    header_commands,
    known_options,
    prose,
    words_of,
)
from PIL import Image

import modeling_mae
from modeling_mae.__main__ import COMMANDS


CONFIGURATION = ROOT / "configuration"
WITH_HEADERS = sorted((*CONFIGURATION.glob("*/*.yaml"), *CONFIGURATION.glob("*/*.sh")))
# Blocks that are no commands, by their first line, and the test that compares them with what there is.
DRAWINGS = {
    "my_images/": "test_readme_guide.py",
    "scenes/": "test_mask_runs.py",
    "run_pretrain.py      folder and Hub": "test_every_file_of_the_drawing_exists_and_every_folder_is_drawn",
}
OF_OTHERS = {"name", "help", "signal", "nodes", "time", "shm-size"}  # any, argparse's, SLURM's, and Docker's
# Commands of the README and of docs/ that this file runs, by their beginning, in the order that they need: what they
# print, and a file that they leave.
QUICK = {
    "mae features runs/demo": ("48 rows", "features.parquet"),
    "mae predict runs/demo_eval": ("48 rows", "predictions.csv"),
    "mae neighbours features.parquet photo.png": ("class 0/04.jpg", "neighbours.png"),
    "mae neighbours features.parquet --duplicates": ("alike ", "duplicates.csv"),
}
SLOW = {
    "accelerate launch run_pretrain.py demo --train_dir path/to/images": ("32 images", "runs/mine/reconstruction.png"),
    "accelerate launch run_eval.py demo_eval --model_name_or_path runs/mine": (
        "n_partial-0.5",
        "runs/mine_eval/n_partial-4/model.safetensors",
    ),
    "accelerate launch run_pretrain.py own_images --train_dir photographs drawings": (
        "drawings",
        "runs/own_images/report.html",
    ),
    "mae convert runs/demo runs/demo.onnx": ("written", "runs/demo.onnx"),
}
RUN = QUICK | SLOW
# Why the others are only parsed: where a command like it is run, or what it needs.
NOT_RUN = {
    ". .venv/bin/activate": "an installation",
    "make ": "an installation, and minutes",
    "pip install": "the network",
    "accelerate launch --quiet --config_file configuration/accelerate/cpu.yaml": "test_readme_guide.py runs it",
    "accelerate launch --quiet --config_file configuration/accelerate/one_gpu.yaml": "a GPU",
    "accelerate launch run_pretrain.py own_images --train_dir fields": "test_many_bands.py runs it",
    "accelerate launch run_pretrain.py own_images --train_dir path/to/images --model": "the Hub; test_tuning.py tunes",
    "accelerate launch run_pretrain.py continue_images": "the Hub; test_continue.py runs it",
    "mae app": "test_app_browser.py runs one",
    "mae features facebook/vit-mae-base": "the Hub; test_interop.py reads such checkpoints",
    "accelerate launch run_eval.py demo_eval --model_name_or_path facebook": "the Hub; as above",
    "mae convert facebook/vit-mae-base": "the Hub; test_interop.py reads such checkpoints",
    "mae convert mae_pretrain_vit_base.pth": "published weights; test_interop.py reads such checkpoints",
    "accelerate launch run_pretrain.py demo --push_to_hub": "the Hub; test_hub.py has a stand-in",
    "accelerate launch run_pretrain.py demo --resume_from_checkpoint hub://": "the Hub; test_hub.py has a stand-in",
    "sbatch": "a cluster; test_slurm.py has a stand-in",
    "accelerate launch run_pretrain.py --streaming true": "a server; test_stream_runs.py has one",
    "accelerate launch run_eval.py own_images_segment": "test_mask_runs.py runs it",
    "mae predict runs/own_images_segment": "test_mask_runs.py runs it",
    "accelerate launch run_pretrain.py own_images --train_dir scenes": "test_mask_runs.py runs one",
    "accelerate launch run_pretrain.py own_images --train_dir brain": "minutes; test_mask_runs.py trains on the brain",
    "accelerate launch run_pretrain.py pretrain_scenes": "minutes",
    "accelerate launch run_eval.py segment_demo": "minutes",
}
TINY = "hidden_size=32 num_hidden_layers=4 num_attention_heads=2 intermediate_size=32 decoder_hidden_size=16 "
TINY += "decoder_num_hidden_layers=1 decoder_num_attention_heads=2 decoder_intermediate_size=32"
SMALL = "--report_to none --dataloader_num_workers 0 --total_batch_size 16 --per_device_train_batch_size 16 "
MORE = {  # options that make a run short; they win over the command's
    "run_pretrain.py": f"{SMALL} --max_train_steps 2 --warmup_epochs 0 --config_overrides {TINY}".split(),
    "run_eval.py": f"{SMALL} --num_train_epochs 1 --warmup_epochs 0 --linear_overrides total_batch_size=16 "
    "per_device_train_batch_size=16 num_train_epochs=1 warmup_epochs=0".split(),
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with what a clone has, and no runs."""
    for path in ("configuration", "data"):
        (tmp_path / path).symlink_to(ROOT / path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_none")  # pushing asks for one


def test_every_block_is_python_commands_or_a_drawing_that_a_test_knows():
    drawings = set(DRAWINGS)
    for document in DOCUMENTS:
        for language, text in blocks(document):
            assert language in ("bash", "python", "text"), text
            if language == "text":
                drawings -= {first for first in DRAWINGS if text.startswith(first)}
                assert any(text.startswith(first) for first in DRAWINGS), text
            if document not in GUIDES:  # test_readme.py counts their Python blocks
                assert language != "python", text
    assert not drawings


@pytest.mark.parametrize("document", DOCUMENTS)
def test_parsers_take_every_command(document, elsewhere):
    for language, text in blocks(document):
        for command in commands(text) if language == "bash" else ():
            check(command)
    # and in the text, where nothing is left out
    programs = "|".join(re.escape(name) for name in ("accelerate", "mae", "make", "pip", *SCRIPTS))
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(document))]
    for span in spans:
        if span.startswith("mae ") and span.count(" ") == 1:
            assert span.removeprefix("mae ") in COMMANDS
        elif re.match(rf"({programs}) ", span) and "..." not in span and span != "accelerate launch":
            check(span)


def test_the_guides_are_found_and_hold_commands():
    assert len(GUIDES) > 5 and "docs/own_images.md" in GUIDES and len(guide_commands()) > 20
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


@pytest.mark.parametrize("file", WITH_HEADERS, ids=lambda file: file.name)
def test_parsers_take_the_commands_of_every_header(file, elsewhere):
    found = header_commands(file)
    assert found or file.parent.name == "accelerate"
    for command in found:
        check(command)


def test_a_wrong_command_is_refused(elsewhere, capsys):
    for command in (
        "accelerate launch run_pretrain.py demo --trian_dir x",
        "accelerate launch run_pretrain.py no_such_recipe",
        "accelerate launch --config_file configuration/accelerate/no.yaml run_pretrain.py demo",
        "accelerate launch --multi_gup run_pretrain.py demo",
        "accelerate launch run_train.py demo",
        "mae features runs/demo images",
        "mae neighbors features.parquet",
        "make demos",
        "pip install '.[apps]'",
        ".venv/bin/python -m pytest -m quick",
        "sbatch configuration/accelerate/no.sh demo",
        "mea features a b c",
    ):
        with pytest.raises((SystemExit, AssertionError, KeyError)):
            check(command)


def test_every_option_file_and_link_named_in_the_text_exists():
    known = known_options() | OF_OTHERS
    texts = {document: prose(document) for document in DOCUMENTS}
    comments = ["\n".join(re.findall("^#(?!SBATCH).*$", file.read_text(), re.MULTILINE)) for file in WITH_HEADERS]
    named = set(re.findall(r"(?<![\w-])--([\w-]*\w)", "\n".join([*texts.values(), *comments])))
    assert len(named) > 40
    assert named <= known
    linked = 0
    for document, text in texts.items():
        paths = re.findall(r"`((?:configuration|data|docs|tests|benchmarks|modeling_mae)/[\w/.-]+)", text)
        assert not [
            path for path in paths if not any((place / path).exists() for place in (ROOT, ROOT / "modeling_mae"))
        ]
        folder = (ROOT / document).parent
        for link in (*re.findall(r"\]\(([^)]+)\)", text), *re.findall('src="([^"]+)"', text)):
            path, _, anchor = link.partition("#")
            target = folder / path if path else ROOT / document
            if "://" not in link:
                assert target.exists() and (not anchor or anchor in anchors(target)), (document, link)
                linked += 1
    assert linked > 40


def drawn_files(text: str) -> set[str]:
    """The paths that a drawing of folders names: first in a line, or Python files that are a column of their own."""
    found, folders = set(), []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        columns = [column.split(", ") for column in re.split(r" {2,}", line.strip())]
        if depth > len(folders):
            continue  # a line that goes on
        del folders[depth:]
        names = columns[0]
        others = [name for column in columns[1:] for name in column if all(part.endswith(".py") for part in column)]
        found |= {"/".join([*folders, name.rstrip("/")]) for name in (*names, *others)}
        if names[0].endswith("/"):
            folders.append(names[0].rstrip("/"))
    return found


def test_every_file_of_the_drawing_exists_and_every_folder_is_drawn():
    (drawing,) = [text for language, text in blocks("CONTRIBUTING.md") if language == "text"]
    named = drawn_files(drawing)
    assert len(named) > 20 and not [path for path in named if not (ROOT / path).exists()]
    rooms = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "modeling_mae").glob("*/__init__.py")}
    assert len(rooms) > 7 and rooms <= named


def test_every_file_begins_with_what_it_holds():
    files = [*(ROOT / "modeling_mae").rglob("*.py"), *(ROOT / "configuration").glob("*.py"), *ROOT.glob("run_*.py")]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    assert not [file for file, text in texts.items() if text and not ast.get_docstring(ast.parse(text))]


def test_all_files_name_one_version():
    version = SETTINGS["metadata"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text() and modeling_mae.__version__ == version


def test_every_command_of_the_guides_is_run_or_has_a_reason():
    left = set(NOT_RUN)
    for command in guide_commands():
        (reason,) = [begin for begin in (*RUN, *NOT_RUN) if command.startswith(begin)]
        left.discard(reason)
    assert not left
    for begin in RUN:
        assert len({command for command in guide_commands() if command.startswith(begin)}) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands name: images in two classes and two folders, the demo's checkpoints, a photograph."""
    folder = tmp_path_factory.mktemp("documented")
    torch.manual_seed(0)
    for split, count in (("train", 32), ("test", 16)):
        for i in range(count):
            path = folder / "path" / "to" / "images" / split / f"class {i % 2}" / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(path, i)
    for name in ("photographs", "drawings"):
        shutil.copytree(folder / "path" / "to" / "images" / "train", folder / name)
    shutil.copy(folder / "drawings" / "class 0" / "04.jpg", folder / "photo.jpg")
    Image.open(folder / "photo.jpg").save(folder / "photo.png")
    save_checkpoint(folder / "runs" / "demo")
    save_classifier(folder / "runs" / "demo_eval" / "n_partial-4")
    write_script(folder)
    return folder


@pytest.mark.parametrize("commands", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_commands_run_as_they_stand(folder, commands):
    for begin, (printed, left) in commands.items():
        (command,) = {command for command in guide_commands() if command.startswith(begin)}
        program, *words = words_of(command)
        if program == "mae":
            code, output = copied(folder / "mae", words, folder)
        else:
            script, words = words[1], words[2:]
            code, output = copied(script, [*words, *MORE[script]], folder)
        assert code == 0 and printed in output and (folder / left).exists(), (command, output)
