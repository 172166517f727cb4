"""The command `mae`: help without torch, unknown words, errors in one line, bugs with their traceback."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from modeling_mae import __main__ as command
from modeling_mae.errors import UserError


# As pip writes it for the entry point of setup.cfg.
SCRIPT = """#!{python}
import sys
from modeling_mae.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Runs the command where importing torch or transformers fails."""
    folder = tmp_path_factory.mktemp("command")
    for name in ("torch", "transformers"):
        (folder / f"{name}.py").write_text("raise RuntimeError('imported')\n")
    script = folder / "mae"
    script.write_text(SCRIPT.format(python=sys.executable))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT)))}

    def run(*words, as_module=False):
        start = ["-m", "modeling_mae"] if as_module else [script]
        return subprocess.run(
            [sys.executable, *start, *words], cwd=folder, env=environment, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize("as_module", [True, False])
def test_help_needs_no_torch(without_torch, as_module):
    done = without_torch("--help", as_module=as_module)
    assert done.returncode == 0, done.stderr
    for name, entry in command.COMMANDS.items():
        assert name in done.stdout and entry.help in done.stdout
    done = without_torch("convert", "source", "target", as_module=as_module)
    assert done.returncode == 1 and "RuntimeError: imported" in done.stderr  # the stand-in fails where it is needed


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_subcommand_helps_without_torch(without_torch, name):
    done = without_torch(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: mae {name}"), done.stderr


def test_unknown_words(without_torch):
    for words in ((), ("nonsense",), ("convert", "a", "b", "--nonsense")):
        done = without_torch(*words)
        assert done.returncode == 2 and "error: " in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def with_run(monkeypatch, run):
    monkeypatch.setitem(command.COMMANDS, "wish", command.Command("test_command:add_arguments", "a wish", "dicom"))
    monkeypatch.setattr(sys.modules[__name__], "add_arguments", lambda parser: run, raising=False)
    monkeypatch.setitem(sys.modules, "test_command", sys.modules[__name__])
    monkeypatch.setattr(sys, "argv", ["mae", "wish"])


def test_a_users_error_is_one_line_and_a_fault_is_not(monkeypatch):
    def wish(arguments):
        raise UserError("this\nis wrong: fix it")

    def lacking(arguments):
        import a_module_that_nobody_has  # noqa: F401

    def faulty(arguments):
        raise KeyError("fault")

    with_run(monkeypatch, wish)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == "mae wish: error: this is wrong: fix it"  # Python prints it and exits with 1
    with_run(monkeypatch, lacking)
    with pytest.raises(SystemExit, match=r"nobody_has is not installed: pip install 'modeling-mae\[dicom"):
        command.main()
    with_run(monkeypatch, faulty)
    with pytest.raises(KeyError, match="fault"):
        command.main()
