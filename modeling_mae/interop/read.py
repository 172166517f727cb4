"""Reads other projects' checkpoints from files, folders and the Hub."""

import argparse
import contextlib
import pathlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.utils import CONFIG_NAME, cached_file

from ..checked import parse
from ..configuration_mae import MAEConfig
from ..errors import UserError, not_found
from .layouts import IMAGENET_MEAN, IMAGENET_STD, TIMM_FILTERS, TIMM_POOLINGS, official_from_vit, shared_fields
from .state_dicts import (
    Foreign,
    choose_weights,
    finish,
    from_state_dict,
    image_processor,
    leave_out,
    make_config,
    one_line,
    refuse_contradictions,
)


LABEL_FIELDS = ("id2label", "label2id", "problem_type")
VIT_CLASSES = ("ViTMAEForPreTraining", "ViTMAEModel", "ViTModel", "ViTForImageClassification")


HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only", "subfolder")
MAX_JSON = 16 << 20  # bytes; the names of 100,000 classes take a quarter of it
MAX_CLASSES = 100_000
# What training scripts store next to weights, and is only data: paths, and NumPy's numbers and arrays.
HARMLESS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    (pathlib.PurePosixPath, "pathlib.WindowsPath"),
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgFDSU"),
]
for module in ("numpy._core", "numpy.core"):  # numpy 2 and 1
    HARMLESS.append((np._core.multiarray.scalar, f"{module}.multiarray.scalar"))  # type: ignore[attr-defined]
    HARMLESS.append((np._core.multiarray._reconstruct, f"{module}.multiarray._reconstruct"))  # type: ignore[attr-defined]
# The errors of transformers for a missing file or invalid JSON. RecursionError is a RuntimeError.
BROKEN: tuple[type[Exception], ...] = (
    OSError,
    ImportError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    ArithmeticError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


@contextlib.contextmanager
def reading(source) -> Iterator[None]:
    """Turns errors about a missing or broken `source`, or invalid fields, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except BROKEN as error:
        if not Path(str(source)).exists():
            raise not_found(str(source), error) from error
        reason = one_line(error).rstrip(".")[:400]
        raise UserError(
            f"{source} cannot be read: {reason}. Give a file, a folder with a config.json, or a Hub id"
        ) from error


def read_json(source, file: str, hub_options: dict) -> dict | None:
    """The content of a JSON file of the checkpoint at `source`, or None if it has no such file.

    Raises:
        UserError: the file is too large or does not hold an object, `source` is not on the Hub, or the Hub does not
            answer.
    """
    may_lack = file != CONFIG_NAME or Path(source).is_dir()
    with reading(source):
        path = cached_file(str(source), file, _raise_exceptions_for_missing_entries=not may_lack, **hub_options)
    if path is None:
        return None
    if Path(path).stat().st_size > MAX_JSON:
        raise UserError(
            f"{source}: its {file} has more than {MAX_JSON >> 20} MiB, too much for a configuration of a model"
        )
    try:
        content = parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{source}: its {file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{source}: its {file} is not JSON: {one_line(error)[:200]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: its {file} holds a {type(content).__name__}, not an object with fields")
    return content


def check_content(source, content: dict) -> None:
    """Checks what transformers takes unchecked from a config.json: class, precision and class names.

    Raises:
        UserError: the message names the first bad entry.
    """
    classes, dtype = content.get("architectures") or [], content.get("dtype", content.get("torch_dtype"))
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(
            f"{source}: architectures={str(classes)[:60]} in its config.json is not a list of names: fix it"
        )
    if not isinstance(dtype, (str, type(None))):
        raise UserError(f"{source}: dtype={str(dtype)[:60]} in its config.json is not a name of a precision: fix it")
    names = content.get("id2label")
    if names is None:
        return
    if not isinstance(names, dict):
        raise UserError(
            f"the configuration of {str(source)!r} does not work: id2label={names!r} is not a table of names"
        )
    if len(names) > MAX_CLASSES:
        raise UserError(f"{source}: id2label has {len(names):,} classes, more than {MAX_CLASSES:,}")
    expected = {str(i) for i in range(len(names))}
    for number, label in names.items():
        if number not in expected or not isinstance(label, str):
            raise UserError(
                f"{source}: id2label has the entry {str(number)[:40]!r}: {str(label)[:60]!r}, and needs a text for "
                f"each number 0 ... {len(names) - 1}: fix its config.json"
            )


def read_processor(source, hub_options: dict | None = None) -> Any | None:
    """The image processor stored with the checkpoint at `source`, a folder or a Hub id, or None.

    Raises:
        UserError: it cannot be read, or it is custom code, which is never run.
    """
    hub_options = hub_options or {}
    names = ("preprocessor_config.json", "processor_config.json")
    contents = [content for name in names if (content := read_json(source, name, hub_options)) is not None]
    if not contents:
        return None
    try:
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **hub_options)
    except BROKEN as error:
        auto_map = contents[0].get("auto_map")
        if isinstance(auto_map, dict) and "trust_remote_code" in str(error):
            raise UserError(
                f"{source}: its image processor is custom code ({next(iter(auto_map.values()), '')}), which is "
                "never run: save one of transformers' own with the weights"
            ) from error
        raise UserError(f"{source}: its image processor cannot be read: {one_line(error)[:300]}") from error


def read(source, image_size: int | list[int] | None, options: dict) -> Foreign | None:
    """The checkpoint at `source`, a file, a folder or a Hub id. None if it is ours, or does not exist.

    Settings that a file does not hold are set as in the published models. The notes list them.

    Args:
        image_size: pixels, int or [height, width]. Used only if it fits the file's number of patches.
        options: options of ``from_pretrained``. Fields of MAEConfig are removed from it, and replace the file's.
            ``prefix`` is removed too. It says where in a file the weights are (`choose_weights`).

    Raises:
        UserError: the file's layout is unknown, it holds more than tensors and plain values, or the sizes cannot be
            found from it. The message names the remedy.
    """
    path, prefix = Path(str(source)), options.pop("prefix", None)
    if path.is_file():
        fields = _take_fields(options)
        state, saved_arguments, notes = load_tensors(path, prefix)
        foreign = from_state_dict(state, saved_arguments, name=str(path), image_size=image_size, **fields)
        foreign.notes[:0] = notes
        return foreign
    hub_options = {key: options[key] for key in HUB_OPTIONS if key in options}
    try:
        content, _ = PreTrainedConfig.get_config_dict(source, **hub_options)
    except (OSError, ValueError, TypeError):
        return None  # from_pretrained looks again, and its message says what is missing
    if "architecture" in content and content.get("model_type", "timm_wrapper") == "timm_wrapper":
        return _from_timm(source, content, image_size, _take_fields(options), hub_options)
    model_type = content.get("model_type", MAEConfig.model_type)
    if model_type in ("vit_mae", "vit"):
        return _from_transformers(source, content, _take_fields(options), hub_options)
    if model_type != MAEConfig.model_type:
        raise UserError(
            f"{source} holds a {str(model_type)[:60]!r} model, which is neither an MAE nor a ViT; give a checkpoint "
            "of model_type 'mae', 'vit_mae' or 'vit', or one of timm's vision transformers"
        )
    return None


def load_tensors(path: Path, prefix: str | None = None) -> tuple[dict[str, torch.Tensor], dict, list[str]]:
    """(the tensors of one model, the saved arguments, notes for the user) of a safetensors or pickled file.

    Pickles are read with ``weights_only``: tensors, plain values and `HARMLESS`, and no code. `prefix`: see
    `choose_weights`.

    Raises:
        UserError: the file cannot be read, needs other code to load, or holds no tensors.
    """
    notes: list[str] = []
    with reading(path):
        if path.suffix == ".safetensors":
            return choose_weights({"": load_file(path)}, prefix, str(path), notes), {}, notes
        try:
            with torch.serialization.safe_globals(HARMLESS):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a file that is not a pickle raises any kind of error
            if not isinstance(error, (pickle.UnpicklingError, RuntimeError, EOFError)):
                raise UserError(
                    f"{path} is not a checkpoint: give a .safetensors, .pth, .pt, .bin or .ckpt file"
                ) from error
            raise UserError(f"{path} is refused: {why_refused(error)}") from error
    arguments = content.get("args", {}) if isinstance(content, dict) else {}
    groups = dict(_groups(content))
    if not groups:
        raise UserError(f"{path} holds no state dict: save only the state dict with torch.save")
    state = choose_weights(groups, prefix, str(path), notes)
    return state, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}, notes


def why_refused(error: Exception) -> str:
    """What a pickled file wants that ``weights_only`` forbids, with the remedy."""
    reason = one_line(error)
    blocked = re.search(r"(?:Unsupported global: GLOBAL|GLOBAL) (\S+)", reason)
    detail = f"it wants to run {blocked[1]}" if blocked else reason[:160]
    return f"{detail}. If you trust it, load it with torch and save only its state dict"


def _groups(content, place: str = "", depth: int = 3) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Each dict of the file that holds tensors, with its place in the file, as ``state_dict.``."""
    if not isinstance(content, dict) or not depth:
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        yield from _groups(value, f"{place}{key}.", depth - 1)


def _from_timm(source, content: dict, image_size, fields: dict, hub_options: dict) -> Foreign:
    """`content` is the config.json that timm writes."""
    arguments = _table(source, content, "model_args")
    pretrained = _table(source, content, "pretrained_cfg") or content  # older versions have no such table
    notes: list[str] = []
    if "num_heads" in arguments:
        fields.setdefault("num_attention_heads", arguments["num_heads"])
    global_pool = arguments.get("global_pool", content.get("global_pool"))
    poolings = {timm_name: pooling for pooling, timm_name in TIMM_POOLINGS.items()}
    if global_pool in poolings:
        fields.setdefault("pooling", poolings[global_pool])
    elif global_pool and "pooling" not in fields:
        notes.append(f"MAEConfig has no pooling like global_pool={global_pool!r}; choose one with pooling=")
    with reading(source):
        state = load_file(str(cached_file(source, "model.safetensors", **hub_options)))
        image_size = arguments.get("img_size", image_size)
        foreign = from_state_dict(state, name=str(source), image_size=image_size, **fields)
        foreign.processor = _timm_processor(foreign.config, pretrained, notes)
    names = pretrained.get("label_names")
    if isinstance(names, list) and len(names) == foreign.config.num_labels and "id2label" not in fields:
        foreign.config.id2label = {i: str(name) for i, name in enumerate(names)}
        foreign.config.label2id = {name: i for i, name in foreign.config.id2label.items()}
    foreign.notes[:0] = notes
    return foreign


def _timm_processor(config: MAEConfig, pretrained: dict, notes: list[str]):
    """The image processor that does what timm's transform for evaluation does. `pretrained` is timm's table; what it
    does not say is as timm has it."""
    mean, std = pretrained.get("mean") or IMAGENET_MEAN, pretrained.get("std") or IMAGENET_STD
    filters = {name: number for number, name in TIMM_FILTERS.items()}
    resample = filters.get(pretrained.get("interpolation") or "bicubic", 3)
    mode, crop = pretrained.get("crop_mode") or "center", float(pretrained.get("crop_pct") or 0.875)
    height, width = config.image_height_width
    if mode == "center" and height == width:
        return image_processor(config, mean, std, resample, crop)
    if mode != "squash" or crop != 1:
        notes.append(
            f"the whole image is resized: transformers' processors cannot do timm's crop_mode={mode!r} with crop_pct="
            f"{crop:g} for {height}x{width} pixels"
        )
    return image_processor(config, mean, std, resample)


def _table(source, content: dict, key: str) -> dict:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{source}: {key} in its config.json is a {type(value).__name__}, not a table of values")
    return value


def _from_transformers(source, content: dict, fields: dict, hub_options: dict) -> Foreign:
    """`content` is the config.json of a ViTMAE or ViT model."""
    check_content(source, content)
    is_mae = content["model_type"] == "vit_mae"
    named = content.get("architectures")
    names = [name for name in VIT_CLASSES if isinstance(named, list) and name in named]
    class_name = (names or ["ViTMAEForPreTraining" if is_mae else "ViTModel"])[0]
    with reading(source):
        model = getattr(transformers, class_name).from_pretrained(source, **hub_options)
    notes: list[str] = []
    state = official_from_vit(model.state_dict())
    leave_out(state, r"pooler\.", "ours has no pooler with a dense layer", notes)
    given = [field for field in (*shared_fields(type(model.config)), *LABEL_FIELDS) if field in content]
    values = {field: getattr(model.config, field) for field in given}
    values["layer_norm_eps"] = model.config.layer_norm_eps  # transformers' default differs from ours
    if is_mae:
        values |= {"decoder_type": "self", "norm_pix_loss": model.config.norm_pix_loss}
    else:
        values["position_embedding"] = "learned"
    if "head.weight" in state:
        values |= {"pooling": "cls", "head_norm": "none"}
    refuse_contradictions(str(source), values, fields)
    return finish(make_config(str(source), {**values, **fields}), state, notes, None)


def _take_fields(options: dict) -> dict:
    """Removes the fields of MAEConfig from `options` and returns them. Options of `from_pretrained` itself stay."""
    fields = set(MAEConfig.__dataclass_fields__) | {"num_labels", *LABEL_FIELDS}
    fields -= {"image_size", "dtype", "output_attentions", "output_hidden_states"}
    return {key: options.pop(key) for key in list(options) if key in fields}
