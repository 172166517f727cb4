"""The name and manifest of a checkpoint, and checks that it is complete, safe and fits the run."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.other import load
from safetensors import SafetensorError, safe_open

from ..checked import Kind, anything, check, count, listed, mapped, number, optional, read_json, text
from ..errors import UserError
from ..files import write_json


MANIFEST = "manifest.json"
PROGRESS = "progress.json"
WEIGHTS = "model.safetensors"
CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,15})")
# Accelerate reads these with `weights_only`: tensors and plain values, no code.
PICKLES = re.compile(r"optimizer\.bin|random_states_[0-9]+\.pkl|scaler\.pt|pytorch_model_fsdp\.bin")
FILES = re.compile(rf"model[\w.-]*\.safetensors|model\.safetensors\.index\.json|{PROGRESS}|{MANIFEST}")


# Settings that may change when a run goes on. They do not change the weights, except for the length: then `open_run`
# prints what changes. `chosen` repeats other settings.
MAY_CHANGE = {"processes", "versions", "schedule", "chosen"}
MADE_WITH: dict[str, Kind] = {
    "mean": optional(listed(number)),
    "std": optional(listed(number)),
    "white": optional(number),
    "chosen": mapped(anything),
    "schedule": mapped(anything),
}


def checkpoint_name(update: int) -> str:
    return f"checkpoint-{update}"


def checkpoint_update(path: Path | str) -> int | None:
    """The update after which the checkpoint of this name was written, or None for other names."""
    match = CHECKPOINT.fullmatch(Path(path).name)
    return int(match[1]) if match else None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest last."""
    paths = [path for path in folder.glob("checkpoint-*") if path.is_dir() and checkpoint_update(path) is not None]
    return sorted(paths, key=lambda path: checkpoint_update(path) or 0)


def write_manifest(folder: Path, made_with: dict) -> None:
    """Write the manifest of the checkpoint in `folder`: size and checksum of every file, and what it was made with."""
    files = {path.name: _size_and_checksum(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    write_json(folder / MANIFEST, {"files": files, "made_with": made_with})


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        UserError: there is none, or it does not hold what `write_manifest` writes.
    """
    path = checkpoint / MANIFEST
    manifest = check(path, read_json(path), {}, needed=("files", "made_with"))
    for name, entry in check(path, manifest["files"], {}).items():
        check(f"{path}: {name[:40]}", entry, {"bytes": count, "sha256": text}, needed=("bytes", "sha256"))
    check(path, manifest["made_with"], MADE_WITH)
    return manifest


def made_with_before(folders: list[Path], resume: str | None) -> dict:
    """The settings of the checkpoint to go on from: the folder `resume`, or for auto the newest in `folders` with a
    readable manifest. Empty if there is none."""
    paths = [Path(resume)] if resume not in (None, "auto") else []
    if resume == "auto":
        paths = [path for folder in folders for path in reversed(checkpoints_in(folder))]
    for path in paths:
        try:
            return read_manifest(path)["made_with"]
        except UserError:
            continue  # choose_checkpoint says what is wrong with it
    return {}


def _size_and_checksum(path: Path) -> dict:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum.update(block)
    return {"bytes": path.stat().st_size, "sha256": checksum.hexdigest()}


def find_fault(checkpoint: Path) -> str | None:
    """Why training cannot go on from `checkpoint`, or None if it is complete, safe and finite."""
    if not (checkpoint / MANIFEST).is_file():
        return f"it has no {MANIFEST}: it is not complete, or an older version wrote it"
    try:
        files = read_manifest(checkpoint)["files"]
    except UserError as error:
        return f"its {MANIFEST} cannot be read: {error}"
    expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    present = {path.name: path for path in checkpoint.iterdir()}
    for name in sorted(present):
        # The manifest may come from a stranger too, so no other files are loaded, even if it lists them.
        if not PICKLES.fullmatch(name) and not FILES.fullmatch(name):
            return f"it holds {name}, which no run writes and which might run code"
    for name, (size, checksum) in expected.items():
        if name not in present:
            return f"{name} is missing"
        actual = _size_and_checksum(present[name])
        if actual["bytes"] != size:
            return f"{name} has {actual['bytes']:,} bytes, not {size:,}"
        if actual["sha256"] != checksum:
            return f"{name} is damaged: its checksum has changed"
    if PROGRESS not in expected:
        return f"{PROGRESS} is missing"
    return _fault_of_pickles(present) or _fault_of_weights(present)


def _fault_of_pickles(present: dict[str, Path]) -> str | None:
    for name, path in present.items():
        # Not the optimizer's, which is large. Accelerate loads it in the same safe way and reports errors.
        if PICKLES.fullmatch(name) and name.startswith(("random_states", "scaler")):
            try:
                load(path, map_location="cpu")
            except Exception as error:  # a crafted file can make the unpickler raise anything
                return f"{name} is refused ({type(error).__name__}): it holds more than tensors and plain values"
    return None


def _fault_of_weights(present: dict[str, Path]) -> str | None:
    for name, path in present.items():
        if name.endswith(".safetensors"):
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118  # not a dict
                        tensor = file.get_tensor(key)
                        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                            return f"its weights are not finite ({key} in {name})"
            except (SafetensorError, OSError) as error:
                return f"{name} cannot be read ({error})"
    return None


def check_architecture(checkpoint: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise a UserError if the checkpoint's weights do not have these `shapes`."""
    path = checkpoint / WEIGHTS
    if not path.exists():
        return  # written in shards: loading finds the fault
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  # not a dict
            shape = tuple(file.get_slice(key).get_shape())
            if shape != shapes.get(key):
                here = f"{shapes[key]} here" if key in shapes else "not in this model"
                raise UserError(
                    f"checkpoint {str(checkpoint)!r} has another architecture ({key} is {shape} there, {here}): "
                    "give the recipe, config_overrides and tune that it was trained with"
                )


def check_changes(checkpoint: Path, made_with: dict, allow_changes: bool) -> list[str]:
    """The settings in which this run differs from the checkpoint's, a line for each.

    Raises:
        UserError: there are some, without `allow_changes`.
    """
    before, changes = read_manifest(checkpoint)["made_with"], []
    made_with = json.loads(json.dumps(made_with))
    for key in sorted({*before, *made_with} - MAY_CHANGE):
        if before.get(key) != made_with.get(key):
            changes.append(f"{key} {_short(before.get(key))} -> {_short(made_with.get(key))}")
    if changes and not allow_changes:
        raise UserError(
            f"checkpoint {str(checkpoint)!r} was made with other settings ({'; '.join(changes)}), so the run cannot "
            "go on exactly. Give the old ones, or --allow_changes true to accept the new ones"
        )
    return changes


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
