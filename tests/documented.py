"""What the documents let a reader type: blocks, the commands in them, the parsers that must take them."""

import argparse
import re
import shlex
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

from accelerate.commands.config import get_config_parser
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT

from configuration import EvalArguments, PretrainArguments, parse_arguments
from modeling_mae.__main__ import COMMANDS


SCRIPTS = {"run_pretrain.py": (PretrainArguments, "demo"), "run_eval.py": (EvalArguments, "demo_eval")}
GUIDES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))  # of users
DOCUMENTS = (*GUIDES, "CONTRIBUTING.md")
SETTINGS = ConfigParser()
SETTINGS.read(ROOT / "setup.cfg")
PYTEST = {"-n", "-x", "-m", "-q", "-k"}  # the options of pytest that are used


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)


def prose(document: str | Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The commands of a block, each in one line."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def guide_commands() -> list[str]:
    """The commands of the README and of docs/."""
    found = [block for document in GUIDES for block in blocks(document)]
    return [command for language, text in found if language == "bash" for command in commands(text)]


def python_blocks() -> list[str]:
    """The Python of the README and of docs/."""
    return [text for document in GUIDES for language, text in blocks(document) if language == "python"]


def section(title: str) -> str:
    """The text of the section `title` of the README or of docs/, up to the next title of any kind."""
    texts = "\n".join((ROOT / document).read_text() + "\n#" for document in GUIDES)
    (found,) = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#)", texts, re.DOTALL | re.MULTILINE)
    return found


def anchors(document: Path) -> set[str]:
    """What a link into the document can name."""
    titles = re.findall("^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def header_commands(file: Path) -> list[str]:
    """The commands in the comments of a recipe or a launcher's file: they are indented, with notes behind them."""
    comment = re.sub(r" \\\n# +", " ", file.read_text())
    return [re.split(r" {4}", line)[0] for line in re.findall(r"^#   (\S.*)$", comment, re.MULTILINE)]


def words_of(command: str) -> list[str]:
    """The words as the shell splits them, from the program on. What is left open has a value."""
    command = re.sub(r"<[^>]*>", "0", command.replace("$(getconf _NPROCESSORS_ONLN)", "2"))
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return words


def check(command: str) -> None:
    """The command's own parser takes its words, and the files that it names are there.

    Raises:
        SystemExit: the parser refuses a word. AssertionError, KeyError: there is no such file, program or part of it.
    """
    program, *words = words_of(command)
    CHECKS[Path(program).name if program != "." else program](words)


def script_and_words(words: list[str]) -> tuple[argparse.Namespace, str, list[str]]:
    """What the launcher makes of the words behind `accelerate`, the script, and the script's words."""
    assert words[0] == "launch"
    given = launch_command_parser().parse_args(words[1:])
    assert given.config_file is None or (ROOT / given.config_file).is_file()
    return given, given.training_script, given.training_script_args


def _accelerate(words: list[str]) -> None:
    if words[0] == "config":
        get_config_parser().parse_args(words[1:])
        return
    given, script, rest = script_and_words(words)
    _module([script, *rest]) if given.module else _script(script, rest)


def _script(script: str, words: list[str]) -> None:
    cls, default = SCRIPTS[script]
    parse_arguments(cls, words, default_recipe=default)


def _mae(words: list[str]) -> None:
    mae_parser(words[0]).parse_args(words[1:])


def mae_parser(name: str) -> argparse.ArgumentParser:
    module, _, function = COMMANDS[name].add_arguments.partition(":")
    parser = argparse.ArgumentParser()
    getattr(import_module(module), function)(parser)
    return parser


def _module(words: list[str]) -> None:
    name, *rest = words
    if name == "pytest":
        options = [word for word in rest if word.startswith("-")]
        assert set(options) <= PYTEST
        marks = [rest[i + 1] for i, word in enumerate(rest) if word == "-m"]
        assert all(f"{mark}:" in SETTINGS["tool:pytest"]["markers"] for mark in marks)
        assert all((ROOT / word).is_file() for word in rest if word.endswith(".py"))
    else:
        assert name == "modeling_mae"
        _mae(rest)


def _python(words: list[str]) -> None:
    if words[0] == "-m":
        _module(words[1:])
    elif words[0] == "-c":
        compile(words[1], "command", "exec")
    else:
        assert (ROOT / words[0]).is_file()


def _make(words: list[str]) -> None:
    rules = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", rules, re.MULTILINE) for target in words if "=" not in target)


def _pip(words: list[str]) -> None:
    assert words.pop(0) == "install"
    extras = {extra for word in words for part in re.findall(r"^\.\[(.*)\]$", word) for extra in part.split(",")}
    assert extras <= set(SETTINGS["options.extras_require"])


def _sbatch(words: list[str]) -> None:
    at = next(i for i, word in enumerate(words) if word.endswith(".sh"))
    assert (ROOT / words[at]).is_file()
    _script("run_pretrain.py", words[at + 1 :])


def _activate(words: list[str]) -> None:
    assert words == [".venv/bin/activate"] and "-m venv .venv" in (ROOT / "Makefile").read_text()


def _pre_commit(words: list[str]) -> None:
    assert words == ["install"] and (ROOT / ".pre-commit-config.yaml").is_file()


CHECKS = {
    "accelerate": _accelerate,
    "mae": _mae,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "sbatch": _sbatch,
    "pre-commit": _pre_commit,
    ".": _activate,
    **{name: lambda words, name=name: _script(name, words) for name in SCRIPTS},
}


def known_options() -> set[str]:
    """Every option of the launcher, the scripts and `mae`, without dashes."""
    parsers = [launch_command_parser(), *map(mae_parser, COMMANDS)]
    names = {name for parser in parsers for name in parser._option_string_actions}
    return {name.lstrip("-") for name in names} | {
        field for cls, _ in SCRIPTS.values() for field in cls.__dataclass_fields__
    }
