"""`[recipe.yaml] [--name value ...]` -> an arguments dataclass.

The recipe becomes command-line words in front of the user's own. So one parser checks the types of both (YAML reads
`1e-3` as text), and the user's words, which come later, win. `HfArgumentParser.parse_yaml_file` does not check types,
and does not let the command line win.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from .errors import ArgumentError
from .model import load_yaml, model_fields, parse_overrides, suggest


if TYPE_CHECKING:
    from .arguments import RunArguments

RECIPES = Path(__file__).parent / "recipes"
# If the key is on the command line, these are dropped from the recipe: they say the same thing in another way.
REPLACES = {
    "dataset_name": ("train_dir", "mix", "dataset_config_name", "validation_dir"),
    "train_dir": ("dataset_name", "mix", "dataset_config_name", "validation_dir"),
    "model_name_or_path": ("config_name",),
    "config_name": ("model_name_or_path",),
    "num_train_epochs": ("max_train_steps",),
}
# Options that name folders or files. Some may also name something on the Hub, but no Hub name begins with ~.
FOLDERS = (
    "output_dir",
    "model_name_or_path",
    "config_name",
    "resume_from_checkpoint",
    "train_dir",
    "validation_dir",
    "mask_dir",
    "exclude",
    "cache_dir",
)
# Precision, devices and processes belong to the launcher (or its --config_file).
LAUNCHER = (
    "cpu",
    "gpu_ids",
    "machine_rank",
    "main_process_ip",
    "mixed_precision",
    "multi_gpu",
    "num_machines",
    "num_processes",
    "use_fsdp",
)
LARGEST_RECIPE = 2**20  # bytes
PLAIN = (str, bool, int, float, type(None))  # the types of a recipe's values
# Options that recipe.yaml leaves out: they are about how one call starts, and must not be repeated.
OF_ONE_CALL = ("overwrite_output_dir", "resume_from_checkpoint", "allow_changes", "plan")
# Options of earlier versions, and what to do without them.
REMOVED = {"decode_device": "the loading workers decode all files: leave it out"}
T = TypeVar("T", bound="RunArguments")


class _Parser(HfArgumentParser):
    """HfArgumentParser whose errors are one line that names the recipe at fault."""

    origin = ""  # "demo.yaml: " while the recipe's words are parsed

    def add_argument(self, *names, decides: str | None = None, added: bool = False, **kwargs):
        # HfArgumentParser passes all of a field's metadata. These two are not for argparse.
        return super().add_argument(*names, **kwargs)

    def error(self, message: str) -> NoReturn:
        # Only one process of each machine prints. launch.py, which reads the launcher's environment, would load torch.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{self.prog}: error: {self.origin}{' '.join(str(message).split())}", file=sys.stderr)
        raise SystemExit(2)

    def parse(self, words: list[str]) -> Any:
        arguments, rest = self.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
        unknown = [word for word in rest if word.startswith("-")]
        if unknown:
            self.error(self.unknown(unknown[0].split("=")[0].lstrip("-").replace("-", "_")))
        if rest:
            self.error(f"unexpected {rest[0]!r}: the recipe comes first, everything else is --name value")
        return arguments

    def unknown(self, name: str) -> str:
        """The error for an option or recipe key `name` that does not exist."""
        known = [field.name for cls in self.dataclass_types for field in dataclasses.fields(cls)]
        if name in REMOVED:
            return f"option {name!r} no longer exists: {REMOVED[name]}"
        if name in LAUNCHER:
            return f"unknown option {name!r}: it is the launcher's, as in `accelerate launch --{name} ... {self.prog}`"
        if name in model_fields():
            return f"unknown option {name!r}: it is the model's, as in `--config_overrides {name}=...`"
        return f"unknown option {name!r}" + (suggest(name, known) or ": --help lists them all")


def find_recipe(name: str | os.PathLike) -> Path:
    """The recipe file for a path or a bare name (`demo`, `demo.yaml`). FileNotFoundError suggests the nearest name."""
    path = Path(name).expanduser()
    for candidate in (path, RECIPES / path.name, RECIPES / f"{path.name}.yaml"):
        # A path into another folder must not silently become one of our recipes.
        if candidate.is_file() and (candidate is path or len(path.parts) == 1):
            return candidate
    recipes = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    hint = suggest(path.stem, recipes) or f": the repository has {', '.join(recipes)}"
    raise FileNotFoundError(f"recipe {str(name)!r} not found{hint}")


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, empty for an empty file. Raises a ValueError for anything else."""
    if path.stat().st_size > LARGEST_RECIPE:
        raise ValueError(f"{path.stat().st_size:,} bytes are no recipe")
    try:
        recipe = load_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"not readable as YAML: {error}") from None
    if recipe is None:
        return {}
    if not isinstance(recipe, dict):
        raise ValueError(f"expected lines of `name: value`, got a {type(recipe).__name__}")
    for key, value in recipe.items():
        if not _plain(value):
            raise ValueError(f"{str(key)[:40]}: expected texts, numbers, true or false, or lists of them")
    return {str(key): value for key, value in recipe.items()}


def _plain(value: Any) -> bool:
    items = value if isinstance(value, list) else value.values() if isinstance(value, dict) else None
    return isinstance(value, PLAIN) if items is None else all(map(_plain, items))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _words(recipe: dict[str, Any]) -> list[str]:
    """Command-line words for a recipe: `{"knn": True, "config_overrides": {"patch_size": 4}}` ->
    `["--knn=true", "--config_overrides", "patch_size=4"]`. Null and an empty list leave the default."""
    words = []
    for key, value in recipe.items():
        if isinstance(value, dict):
            value = [f"{name}={_text(item)}" for name, item in value.items()]
        if value is None or value == []:
            continue
        words += [f"--{key}", *map(_text, value)] if isinstance(value, list) else [f"--{key}={_text(value)}"]
    return words


def recipe_text(recipe: Any) -> str:
    """The recipe (an instance of an arguments dataclass) as YAML. Reading it gives an equal instance."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        by_default = value == default and field.metadata["decides"] == "nothing"
        if value is not None and value != [] and not by_default and field.name not in OF_ONE_CALL:
            values[field.name] = value
    if overrides := values.get("config_overrides"):
        values["config_overrides"] = parse_overrides(overrides)
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=119, allow_unicode=True)


def parse_mapping(cls: type[T], values: dict[str, Any]) -> T:
    """A recipe's mapping as a `cls`. Only the types are checked."""
    return _Parser(cls, allow_abbrev=False).parse(_words(values))  # type: ignore[arg-type]  # it is a dataclass


def expand_home(arguments: T) -> T:
    """Expands `~` in names of folders, because shells do not expand it in recipes and after an equals sign. A list of
    one folder becomes that folder, as in recorded settings."""
    changed: dict[str, Any] = {}
    for name in FOLDERS:
        value = getattr(arguments, name, None)
        if isinstance(value, list):
            folders = [os.path.expanduser(folder) for folder in value]
            changed[name] = folders[0] if len(folders) == 1 else folders
        elif isinstance(value, str):
            changed[name] = os.path.expanduser(value)
    return dataclasses.replace(arguments, **changed)


def parse_arguments(cls: type[T], argv: list[str] | None = None, default_recipe: str | Path | None = None) -> T:
    """Reads `[recipe.yaml] [--name value ...]` into an instance of the dataclass `cls` and checks it.

    The command line wins over the recipe, and the recipe over the defaults of `cls`. `config_overrides` are merged key
    by key. An option that replaces another (`REPLACES`: `--train_dir` replaces `dataset_name`) drops the other from
    the recipe.

    argv: the words after the script's name, by default this process's own. default_recipe: used if there are none.
    An error ends the process with status 2 and one line: an unknown option or key (with the nearest known one), a
    value of the wrong type, a recipe that does not exist, and every ArgumentError of `cls.check`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    usage = "%(prog)s [recipe.yaml] [--name value ...]"
    parser = _Parser(cls, allow_abbrev=False, usage=usage)  # type: ignore[arg-type]  # it is a dataclass
    name = words.pop(0) if words and not words[0].startswith("-") else None if words else default_recipe
    recipe_words = []
    if name is not None:
        try:
            path = find_recipe(name)
            parser.origin = f"{path.name}: "
            recipe = read_recipe(path)
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))
        known = {field.name for field in dataclasses.fields(cls)}
        for key in recipe:
            if key not in known:
                parser.error(parser.unknown(key))
        parser.parse(_words(recipe))
        given = {word.split("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
        replaced = {old for new in given for old in REPLACES.get(new, ())}
        recipe_words = _words({key: value for key, value in recipe.items() if key not in replaced})
        parser.origin = ""
    arguments = expand_home(parser.parse(recipe_words + words))
    try:
        arguments.check()
    except ArgumentError as error:
        parser.error(str(error))
    return arguments
