"""What may import what: the arrows between the rooms point one way, so that each can be read and changed alone."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_mae"
# With every checkpoint.
TRAVELLING = ("configuration_mae", "masking_mae", "modeling_mae", "segmentation_mae", "image_processing_mae")
SHARED = ("checked", "errors", "files", "settings", "words")  # small and without state: words that all rooms use
# For each room the others that it may import. What travels to the Hub knows no room at all.
ARROWS = {
    "data": {"data.find", "data.serve", *SHARED},  # sets with labels
    "data.serve": {"data.find", "data.stream", "data.read", *SHARED, "image_processing_mae"},
    "data.find": {"data.stream", "data.read", *SHARED},
    "data.stream": {"data.read", *SHARED},
    "data.read": {*SHARED, "image_processing_mae"},
    "training": {"data", *SHARED, "configuration_mae", "masking_mae", "modeling_mae"},
    "tasks": {"data", "training", "report", "checkpoint", *SHARED, *TRAVELLING},
    "evaluation": {"data", "training", "tasks", "report", "checkpoint", "readout", *SHARED, *TRAVELLING},
    "report": {*SHARED, "configuration_mae", "masking_mae"},
    "interop": {"checked", "errors", "words", *TRAVELLING},
    "checkpoint": {"data", "interop", "errors", *TRAVELLING},
    "hub": {"training", "report", "errors"},
    "commands": {"data", "tasks", "training", "evaluation", "report", "checkpoint", "interop", *SHARED, *TRAVELLING},
    "__main__": {"errors"},  # it finds the subcommands by name
    "registration": {"interop", *TRAVELLING},
    "app": {"commands", "data", "tasks", "report", "checkpoint", "interop", "hub", "readout", *SHARED, *TRAVELLING},
    "readout": {"errors", "configuration_mae", "modeling_mae"},
    "checked": {"errors"},
    "errors": set(),
    "files": set(),
    "settings": set(),
    "words": set(),
    **{name: set(TRAVELLING) for name in TRAVELLING},
}


def imported_modules(file: Path, nodes=None) -> set[str]:
    """The full names of the modules that a file imports; relative names are resolved."""
    package = list(file.relative_to(ROOT).parent.parts)
    modules = set()
    for node in nodes if nodes is not None else ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            # `from . import x` and `from package import x` may mean a module or a name in it.
            modules |= {f"{base}.{alias.name}" for alias in node.names}
    return modules


def path_of(room: str) -> Path:
    return PACKAGE.joinpath(*room.split("."))


def files_of(room: str) -> list[Path]:
    """The files of a room, without those of rooms inside it that have arrows of their own."""
    if not path_of(room).is_dir():
        return [PACKAGE / f"{room}.py"]
    inside = [path_of(other) for other in ARROWS if other.startswith(f"{room}.")]
    files = sorted(path_of(room).rglob("*.py"))
    return [file for file in files if not any(path in file.parents for path in inside)]


def room_of(parts: list[str]) -> str:
    """The room of a module, whose name begins with the package's."""
    inner = ".".join(parts[1:3])
    return inner if inner in ARROWS else parts[1]


def test_every_room_has_its_arrows():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    rooms |= {f"data.{path.parent.name}" for path in (PACKAGE / "data").glob("*/__init__.py")}
    assert rooms - {"__init__"} == set(ARROWS)  # the package itself exports


@pytest.mark.parametrize("room", ARROWS)
def test_rooms_import_one_way(room):
    files = files_of(room)
    assert files
    for file in files:
        modules = [module.split(".") for module in imported_modules(file)]
        rooms = {room_of(parts) for parts in modules if parts[0] == "modeling_mae"}
        # Who may import a room may import the rooms inside it.
        allowed = ARROWS[room] | {inner for inner in ARROWS if "." not in room and inner.split(".")[0] in ARROWS[room]}
        assert rooms <= allowed | {room}, file
        assert not [parts for parts in modules if parts[0] == "configuration"], file  # plain values, not arguments


def test_the_arrows_have_no_circle():
    def reachable(room, seen=()):
        for target in ARROWS[room] if room not in TRAVELLING else ():
            assert target not in seen, (*seen, target)
            reachable(target, (*seen, target))

    for room in ARROWS:
        reachable(room, (room,))


def test_configuration_knows_of_the_package_only_what_says_which_models_and_tasks_there_are():
    for file in (ROOT / "configuration").glob("*.py"):
        if file.name == "decide.py":  # the scripts import it by name, after they have read the command line
            continue
        modules = {module for module in imported_modules(file) if module.split(".")[0] == "modeling_mae"}
        names = ("checked", "configuration_mae", "checkpoint", "tasks", "errors", "training.tuning", "words")
        known = tuple(f"modeling_mae.{name}." for name in names)
        assert all(module.startswith(known) for module in modules), file
        # Never at the top of a file: importing the package loads torch, and --help would take seconds.
        at_the_top = {module.split(".")[0] for module in imported_modules(file, ast.parse(file.read_text()).body)}
        assert not at_the_top & {"modeling_mae", "torch", "accelerate", "datasets"}, file


def test_what_travels_takes_only_public_names_of_transformers():
    """A published checkpoint must load with later versions too."""
    documented = {"", ".activations", ".image_utils", ".modeling_outputs", ".utils"}
    for name in TRAVELLING:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {module.removeprefix("transformers") for module in modules if "transformers" in module} <= documented


def test_only_launch_reads_the_launchers_environment():
    files = [*PACKAGE.rglob("*.py"), *ROOT.glob("run_*.py"), *(ROOT / "configuration").glob("*.py")]
    readers = {
        str(file.relative_to(ROOT))
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.Constant) and str(node.value).startswith(("ACCELERATE_", "LOCAL_", "WORLD_SIZE")))
    }
    # The parser asks which process may speak before anything heavy is imported.
    assert readers == {"modeling_mae/training/launch.py", "configuration/parsing.py"}
    words = [
        node.value
        for node in ast.walk(ast.parse((ROOT / "configuration" / "parsing.py").read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [word for word in words if word.isupper() and "_" in word] == ["LOCAL_RANK"]
