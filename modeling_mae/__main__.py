"""The command `mae SUBCOMMAND ...`, also `python -m modeling_mae SUBCOMMAND ...`.

A subcommand is a line in `COMMANDS` and a function `add_arguments(parser)`. The function adds the arguments to an
`argparse.ArgumentParser` and returns `run(arguments)`, which does the work. `run` imports what is slow to import:
`--help` must not wait for torch. An error that the user can fix is a UserError.
"""

import argparse
import sys
from dataclasses import dataclass
from importlib import import_module

from .errors import UserError


@dataclass(frozen=True)
class Command:
    add_arguments: str  # module:function, as text, so that it is imported only when needed
    help: str
    extra: str = "train"  # the extra of setup.cfg that it needs; empty if torch and transformers are enough


COMMANDS = {
    "features": Command(
        "modeling_mae.commands.features:add_arguments",
        "the features of any images, as parquet or npy, with the names of their files",
    ),
    "predict": Command(
        "modeling_mae.commands.predict:add_arguments",
        "predict the class of each image, as parquet or CSV",
    ),
    "neighbours": Command(
        "modeling_mae.commands.neighbours:add_arguments",
        "the nearest neighbours of given images, and near-duplicates",
    ),
    "app": Command(
        "modeling_mae.app.command:add_arguments",
        "look at a checkpoint in the browser: reconstructions, attention, features, nearest neighbours, classes",
        extra="app",
    ),
    "report": Command(
        "modeling_mae.commands.report:add_arguments",
        "the page of a run, or one page that compares several runs",
    ),
    "convert": Command(
        "modeling_mae.commands.convert:add_arguments",
        "from and to other projects' checkpoints, ONNX and torch.export",
        extra="",
    ),
}


def main() -> None:
    """Run the command with this process's arguments."""
    subcommand, words = _choose(sys.argv[1:]), sys.argv[2:]
    program = f"mae {subcommand}"
    command = COMMANDS[subcommand]
    module, _, function = command.add_arguments.partition(":")
    parser = argparse.ArgumentParser(prog=program, description=f"{command.help[0].upper()}{command.help[1:]}.")
    try:
        run = getattr(import_module(module), function)(parser)
        arguments = parser.parse_args(words)
        import_module("modeling_mae.registration")
        run(arguments)
    except UserError as error:
        sys.exit(f"{program}: error: {' '.join(str(error).split())}")
    except ModuleNotFoundError as error:
        if not command.extra or error.name is None or error.name.split(".")[0] == "modeling_mae":
            raise
        sys.exit(f"{program}: error: {error.name} is not installed: pip install 'modeling-mae[{command.extra}]'")


def _choose(words: list[str]) -> str:
    """The subcommand that the first word names. Ends the process if it does not exist."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.help}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="mae",
        usage="mae SUBCOMMAND ...",
        description="subcommands:\n" + "\n".join(lines),
        epilog="mae SUBCOMMAND --help lists the arguments of one",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subcommand", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser.parse_args(words[:1]).subcommand


if __name__ == "__main__":
    main()
