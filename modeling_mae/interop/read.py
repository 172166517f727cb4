"""Checkpoints of other projects, from files, folders and the Hub."""

import argparse
import contextlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.utils import cached_file, logging

from ..configuration_mae import MAEConfig
from ..errors import UserError, not_found
from .layouts import TIMM_POOLINGS, official_from_vit, shared_fields
from .state_dicts import (
    Foreign,
    finish,
    from_state_dict,
    image_processor,
    leave_out,
    make_config,
    one_line,
    refuse_contradictions,
)


logger = logging.get_logger(__name__)

LABEL_FIELDS = ("id2label", "label2id", "problem_type")


@contextlib.contextmanager
def reading(source) -> Iterator[None]:
    """Turn the errors of a missing or broken `source`, and of fields that make no model, into UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if not Path(str(source)).exists():
            raise not_found(str(source), error) from error
        reason = one_line(error).rstrip(".")[:400]
        raise UserError(
            f"{source} cannot be read: {reason}. Give a file, a folder with a config.json, or a Hub id"
        ) from error


def read(source, image_size: int | list[int] | None, options: dict) -> Foreign | None:
    """The checkpoint at `source`, a file, a folder or a Hub id. None when it is ours, or when nothing is there.

    What a file does not say is set as in the published models, and a warning tells it.

    Args:
        image_size: pixels, int or [height, width]. It matters only where it fits the file's number of patches.
        options: of ``from_pretrained``. Fields of MAEConfig are taken out of it; they win over what the file says.

    Raises:
        UserError: for a file of no known layout, for one that holds more than tensors and plain values, and for one
            whose sizes it does not tell. The message names the remedy.
    """
    path = Path(str(source))
    if path.is_file():
        fields = _take_fields(options)
        state, saved_arguments = load_tensors(path)
        return from_state_dict(state, saved_arguments, name=str(path), image_size=image_size, **fields)
    hub_options = {
        key: options[key]
        for key in ("cache_dir", "revision", "token", "local_files_only", "subfolder")
        if key in options
    }
    try:
        content, _ = PreTrainedConfig.get_config_dict(source, **hub_options)
    except (OSError, ValueError, TypeError):
        return None  # from_pretrained asks again, and its message says what is missing
    if "architecture" in content and content.get("model_type", "timm_wrapper") == "timm_wrapper":
        return _from_timm(source, content, image_size, _take_fields(options), hub_options)
    model_type = content.get("model_type", MAEConfig.model_type)
    if model_type in ("vit_mae", "vit"):
        return _from_transformers(source, content, _take_fields(options), hub_options)
    if model_type != MAEConfig.model_type:
        raise UserError(
            f"{source} holds a {model_type!r} model, which is neither an MAE nor a ViT; give a checkpoint of "
            "model_type 'mae', 'vit_mae' or 'vit', or one of timm's vision transformers"
        )
    return None


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The state dict and the saved arguments of a safetensors or pickled file.

    Pickles are read with ``weights_only``: tensors, plain values and the argparse.Namespace that training scripts
    save. Nothing else in them is run.

    Raises:
        UserError: for a file that cannot be read, that needs other code to be loaded, or that holds no state dict.
    """
    with reading(path):
        if path.suffix == ".safetensors":
            return load_file(path), {}
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what is no pickle ends in errors of any kind
            if not isinstance(error, (pickle.UnpicklingError, RuntimeError, EOFError)):
                raise UserError(
                    f"{path} is no checkpoint: give a .safetensors, .pth, .pt, .bin or .ckpt file"
                ) from error
            reason = one_line(error)
            blocked = re.search(r"(?:Unsupported global: GLOBAL|GLOBAL) (\S+)", reason)
            detail = f"it wants to run {blocked[1]}" if blocked else reason[:160]
            raise UserError(
                f"{path} is refused: {detail}. If you trust it, load it with torch and save its state dict alone"
            ) from error
    arguments = content.get("args", {}) if isinstance(content, dict) else {}
    for key in ("model", "state_dict", "model_state"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(
            f"{path} holds no state dict, neither itself nor under 'model', 'state_dict' or 'model_state'; save the "
            "state dict alone with torch.save"
        )
    state = {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return state, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def _from_timm(source, content: dict, image_size, fields: dict, hub_options: dict) -> Foreign:
    """`content` is the config.json that timm writes."""
    arguments, pretrained = content.get("model_args", {}), content.get("pretrained_cfg", {})
    if "num_heads" in arguments:
        fields.setdefault("num_attention_heads", arguments["num_heads"])
    global_pool = arguments.get("global_pool", content.get("global_pool"))
    poolings = {timm_name: pooling for pooling, timm_name in TIMM_POOLINGS.items()}
    if global_pool in poolings:
        fields.setdefault("pooling", poolings[global_pool])
    elif global_pool and "pooling" not in fields:
        logger.warning(
            "%s: MAEConfig has no pooling like global_pool=%r; give pooling to choose one of ours", source, global_pool
        )
    with reading(source):
        state = load_file(cached_file(source, "model.safetensors", **hub_options))
    image_size = arguments.get("img_size", image_size)
    foreign = from_state_dict(state, name=str(source), image_size=image_size, **fields)
    if "mean" in pretrained:
        foreign.processor = image_processor(foreign.config, pretrained["mean"], pretrained["std"])
    return foreign


def _from_transformers(source, content: dict, fields: dict, hub_options: dict) -> Foreign:
    """`content` is the config.json of a ViTMAE or ViT model."""
    is_mae = content["model_type"] == "vit_mae"
    names = [name for name in content.get("architectures") or [] if hasattr(transformers, name)]
    class_name = (names or ["ViTMAEForPreTraining" if is_mae else "ViTModel"])[0]
    with reading(source):
        model = getattr(transformers, class_name).from_pretrained(source, **hub_options)
    state, notes = official_from_vit(model.state_dict()), []
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
    try:
        processor = AutoImageProcessor.from_pretrained(source, **hub_options)
    except (OSError, ValueError):  # a checkpoint need not have one
        processor = None
    refuse_contradictions(str(source), values, fields)
    return finish(make_config(str(source), {**values, **fields}), state, notes, str(source), processor)


def _take_fields(options: dict) -> dict:
    """Fields of MAEConfig, taken out of `options`. What `from_pretrained` itself reads stays there."""
    fields = set(MAEConfig.__dataclass_fields__) | {"num_labels", *LABEL_FIELDS}
    fields -= {"image_size", "dtype", "output_attentions", "output_hidden_states"}
    return {key: options.pop(key) for key in list(options) if key in fields}
