"""Converts another project's state dict to ours: renames its tensors and finds the model's sizes from them."""

import copy
import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..configuration_mae import MAEConfig, pair
from ..errors import UserError
from ..image_processing_mae import EIGHT_BITS, MAEImageProcessor
from ..modeling_mae import EvalNet, MAEForPreTraining, MAEModel, MAEPreTrainedModel
from .layouts import (
    DECODER,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAE_CODE_NAMES,
    PUBLISHED_HEADS,
    official_from_vit,
    rename,
    to_ours,
)


# The fields that follow from the shapes of the tensors.
TENSOR_FIELDS = (
    "hidden_size num_channels patch_size num_hidden_layers intermediate_size qkv_bias decoder_hidden_size "
    "decoder_num_hidden_layers decoder_intermediate_size decoder_reads"
).split()
# A tensor that each layout has exactly once. The text before it is the prefix of all names.
PATCHES = re.compile(
    r"^(|.*?\.)(patch_embed\.proj|(?:encoder\.)?to_patch_embedding\.1|(?:vit\.)?embeddings\.patch_embeddings\.projection)"
    r"\.weight$"
)
# If a file holds several sets of weights, those with these names are taken last, in this order.
LATER = ("ema", "teacher", "student", "momentum")


@dataclass
class Foreign:
    """Another project's checkpoint, converted.

    Its tensors have the names of MAEForPreTraining and EvalNet. `config.architectures` names our class for them.
    `notes` say what was guessed and what was left out.
    """

    config: MAEConfig
    state_dict: dict[str, torch.Tensor]
    processor: Any = None
    notes: list[str] = dataclasses.field(default_factory=list)


def make_config(name: str, values: dict) -> MAEConfig:
    """The MAEConfig of `values`.

    Raises:
        UserError: they are invalid. `name` is the checkpoint's name for the message.
    """
    try:
        return MAEConfig(**values)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise UserError(f"{name}: {one_line(error)}") from error


def refuse_contradictions(name: str, shown: dict, fields: dict) -> None:
    """Refuses given `fields` of MAEConfig that contradict the fields `shown` by the tensors. A smaller depth is
    allowed.

    Raises:
        UserError: the message names the first such field.
    """
    for field in TENSOR_FIELDS:
        if field not in fields or field not in shown:
            continue
        given, own = fields[field], shown[field]
        if field == "patch_size":
            given, own = _pair(given, field), _pair(own, field)
        fewer = field.endswith("num_hidden_layers") and isinstance(given, int) and given < own
        if given != own and not fewer:
            raise UserError(
                f"{name}: {field}={fields[field]!r} contradicts its tensors, which have {field}={shown[field]!r}; "
                f"leave {field} out"
            )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def choose_weights(
    groups: dict[str, dict[str, torch.Tensor]], prefix: str | None, name: str, notes: list[str]
) -> dict[str, torch.Tensor]:
    """The tensors of one model, their names without the prefix.

    Args:
        groups: tensors by their place in the file, as ``model.``. The top of the file is the empty text.
        prefix: place and beginning of the names, as ``teacher.backbone.``; None finds it.
        name: the file's name for messages.

    Raises:
        UserError: no tensor's name begins with `prefix`.
    """
    whole = next(iter(groups.values()), {})
    if prefix is not None:
        dotted = prefix.rstrip(".") + "." if prefix else ""
        for place, group in groups.items():
            inside = dotted.removeprefix(place)
            if dotted.startswith(place) and any(key.startswith(inside) for key in group):
                return {key.removeprefix(inside): value for key, value in group.items() if key.startswith(inside)}
        raise UserError(f"{name}: no tensor's name begins with prefix={prefix!r}; the first are {_first_names(whole)}")
    found = {}
    for place, group in groups.items():
        for match in filter(None, map(PATCHES.match, group)):
            found[place + match[1]] = (group, match[1])
    if not found:
        return whole
    first, *others = sorted(found, key=_rank)
    if others:
        notes.append(
            f"several sets of weights: reading the one below {first!r}; prefix={others[0].rstrip('.')} reads another"
        )
    group, inside = found[first]
    outside = [key for key in group if not key.startswith(inside)]
    if outside and not others:
        notes.append(f"left out: {len(outside)} tensors ({outside[0]} ...), because the encoder is below {first!r}")
    return {key.removeprefix(inside): value for key, value in group.items() if key.startswith(inside)}


def _rank(prefix: str) -> tuple[int, int]:
    words = re.split(r"[._]", prefix)
    return max((LATER.index(word) + 1 for word in words if word in LATER), default=0), len(prefix)


def _first_names(state: dict) -> str:
    return ", ".join(map(str, list(state)[:4]))


def _in_official_layout(
    state: dict[str, torch.Tensor], saved_arguments: dict, fields: dict, name: str, notes: list[str]
) -> tuple[dict[str, torch.Tensor], dict]:
    """(the tensors under the official names, the fields that follow from the layout)."""
    if any(".fn.to_qkv." in key for key in state):
        state, fields = _from_mae_code(state, saved_arguments, fields, name, notes)
    elif any("patch_embeddings.projection." in key for key in state):
        state = official_from_vit(state)
        if "layer_norm_eps" not in fields:
            fields = {**fields, "layer_norm_eps": 1e-12}
            notes.append("the layer norms' epsilon is not in the file: assuming layer_norm_eps=1e-12, as transformers")
    if any(key.endswith("embeddings.patch_embeddings.weight") for key in state):
        raise UserError(f"{name}: weights of this project without their config.json; give the folder that has it")
    if "patch_embed.proj.weight" not in state or "blocks.0.attn.qkv.weight" not in state:
        raise UserError(
            f"{name}: neither an official MAE, timm, CrossMAE, transformers nor MAE-code state dict; it begins with "
            f"{_first_names(state)}. Rename its tensors as timm's VisionTransformer does"
        )
    return state, fields


def from_state_dict(
    state: dict[str, torch.Tensor],
    saved_arguments: dict | None = None,
    *,
    name: str = "the state dict",
    image_size: int | list[int] | None = None,
    **fields,
) -> Foreign:
    """Converts a state dict in the official layout (also timm's and CrossMAE's), in transformers' or in MAE-code's.

    Args:
        saved_arguments: the training script's arguments, if the file holds them.
        name: the file's name for messages.
        image_size: pixels, int or [height, width]; used if it fits the number of patches.
        fields: fields of MAEConfig that replace what the tensors show.

    Raises:
        UserError: the layout is unknown, or the sizes cannot be found from the tensors.
    """
    notes: list[str] = []
    saved_arguments = saved_arguments or {}
    chosen = choose_weights({"": state}, None, name, notes)
    state, fields = _in_official_layout(chosen, saved_arguments, fields, name, notes)
    state = dict(state)
    unread = _unread_cross_decoder(state)
    if unread:
        leave_out(state, DECODER, f"CrossMAE's decoder {unread} cannot be read", notes)
    leave_out(state, r"attn_pool\.", "timm's attention pooling (global_pool='map') cannot be read", notes)
    values = {**_encoder_sizes(state, fields, name, image_size, notes), **_classifier(state, fields, notes)}
    if "decoder_pred.weight" in state:
        values |= _decoder_sizes(state, fields, name, notes)
    if values.get("decoder_type") == "cross" and {"kept_mask_ratio", "mask_ratio"} <= saved_arguments.keys():
        values |= {"prediction_ratio": saved_arguments["kept_mask_ratio"], "mask_ratio": saved_arguments["mask_ratio"]}
    if "wfm.linear.weight" in state and "norm.weight" not in state:
        notes.append("it has no final norm, because its decoder reads none: the encoder's norm is newly initialised")
    if saved_arguments.get("norm_pix_loss") is not None:
        values["norm_pix_loss"] = bool(saved_arguments["norm_pix_loss"])
    elif "decoder_pred.weight" in state and "norm_pix_loss" not in fields:
        notes.append("whether it predicts normalised patches is not in the file: assuming norm_pix_loss=True")
    refuse_contradictions(name, values, fields)
    config = make_config(name, {**values, **fields})
    return finish(config, state, notes, image_processor(config))


def _from_mae_code(state, saved_arguments: dict, fields: dict, name: str, notes: list[str]) -> tuple[dict, dict]:
    """(MAE-code's encoder under official names, `fields` with settings that the official layout does not hold)."""
    # The decoder's names begin like the encoder's, without "encoder.". A bare ViT's names have no such prefix.
    encoder = {key: value for key, value in state.items() if key.startswith("encoder.")} or state
    official = {rename(key, MAE_CODE_NAMES): value for key, value in encoder.items()}
    width = official["cls_token"].shape[-1]
    attention_width = official["blocks.0.attn.qkv.weight"].shape[0] // 3
    heads = fields.get("num_attention_heads") or saved_arguments.get("vit_heads") or attention_width // 64
    if attention_width != width:
        raise UserError(
            f"{name}: its attention is {attention_width} wide in a model of width {width}, but ours has one width; "
            "give a checkpoint with vit_heads x 64 = width"
        )
    if heads * 64 != width:
        raise UserError(
            f"{name}: {heads} heads in a width of {width}, but MAE-code's heads are 64 wide; give "
            f"num_attention_heads={width // 64}"
        )
    weight = official["patch_embed.proj.weight"]  # (width, patch height * patch width * channels)
    channels = fields.get("num_channels", 3)
    patch = fields.get("patch_size") or saved_arguments.get("patch_size") or math.isqrt(weight.shape[1] // channels)
    rows, columns = _pair(patch, "patch_size")
    if rows * columns * channels != weight.shape[1]:
        raise UserError(
            f"{name}: patch_size={patch} and num_channels={channels} do not fit its {weight.shape[1]} values per "
            "patch; give both"
        )
    # (width, channels, patch height, patch width)
    official["patch_embed.proj.weight"] = weight.unflatten(1, (rows, columns, channels)).permute(0, 3, 1, 2)
    carried = {
        key: value for key, value in official.items() if re.match("patch_embed|cls_token|pos_embed|blocks", key)
    }
    notes.append(
        f"left out: MAE-code's decoder and head ({len(state) - len(carried)} tensors), which differ from ours. "
        "MAE-code trains neither class token nor final norm. Both are newly initialised, so features differ from "
        "MAE-code's until they are trained"
    )
    tensor_fields = {
        "num_attention_heads": heads,
        "num_channels": channels,
        "patch_size": patch,
        "layer_norm_eps": 1e-5,
    }
    return carried, {**tensor_fields, **fields, "position_embedding": "learned"}


def _encoder_sizes(state: dict, fields: dict, name: str, image_size, notes: list[str]) -> dict:
    width, channels, patch_height, patch_width = state["patch_embed.proj.weight"].shape
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch_height if patch_height == patch_width else [patch_height, patch_width],
        "num_hidden_layers": _depth(state, "blocks."),
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "image_size": _image_size(state["pos_embed"].shape[1] - 1, (patch_height, patch_width), image_size, name),
        "num_attention_heads": _heads("num_attention_heads", width, _depth(state, "blocks."), fields, name, notes),
    }


def _is_cross(state: dict) -> bool:
    return any(".cross_attn." in key for key in state)


def _unread_cross_decoder(state: dict) -> str | None:
    """Names a feature of CrossMAE's decoder that ours does not have, or None."""
    if not _is_cross(state):
        return None
    if any(re.match(r"decoder_blocks\.\d+\.(self_attn|norm0)\.", key) for key in state):
        return "with self-attention"
    if "wfm.linear.weight" in state:
        maps, depth = state["wfm.linear.weight"].shape[1], _depth(state, "blocks.")
        if maps not in (depth, depth + 1):
            return f"over {maps} of {depth} encoder blocks"
    return None


def _decoder_sizes(state: dict, fields: dict, name: str, notes: list[str]) -> dict:
    width, depth = state["mask_token"].shape[-1], _depth(state, "decoder_blocks.")
    reads = {}
    if _is_cross(state):
        reads["decoder_reads"] = "last"
        if "wfm.linear.weight" in state:
            with_patches = state["wfm.linear.weight"].shape[1] > _depth(state, "blocks.")
            reads["decoder_reads"] = "stages" if with_patches else "blocks"
    return {
        **reads,
        "decoder_type": "cross" if reads else "self",
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": depth,
        "decoder_intermediate_size": state["decoder_blocks.0.mlp.fc1.weight"].shape[0],
        "decoder_num_attention_heads": _heads("decoder_num_attention_heads", width, depth, fields, name, notes),
    }


def _depth(state: dict, prefix: str) -> int:
    return 1 + max(int(key.split(".")[1]) for key in state if key.startswith(prefix))


def _image_size(patches: int, patch: tuple[int, int], image_size, name: str) -> int | list[int]:
    """`image_size` if it gives this number of patches, else that of a square grid."""
    height, width = _pair(image_size, "image_size") if image_size is not None else (0, 0)
    if (height // patch[0]) * (width // patch[1]) != patches:
        edge = math.isqrt(patches)
        if edge * edge != patches:
            raise UserError(
                f"{name}: {patches} patches do not make a square; give image_size=[height, width] in pixels"
            )
        height, width = edge * patch[0], edge * patch[1]
    return height if height == width else [height, width]


def _pair(size, field: str) -> tuple[int, int]:
    try:
        return pair(size, field)
    except (ValueError, TypeError) as error:
        raise UserError(f"{field}={size!r} is neither a number nor a [height, width] pair in pixels") from error


def _heads(field: str, width: int, depth: int, fields: dict, name: str, notes: list[str]) -> int:
    if field in fields:
        return fields[field]
    published, head_width = PUBLISHED_HEADS[field]
    part = "decoder" if field.startswith("decoder") else "encoder"
    heads, published_depth = published.get(width, (width // head_width, None))
    if heads == 0 or width % heads:
        raise UserError(f"{name}: the number of heads of a {width} wide {part} is not published; {_give(field)}")
    if depth != published_depth:
        notes.append(
            f"the {part}'s heads are not in the file: assuming {field}={heads}, each {width // heads} wide. A wrong "
            f"number silently changes what the model computes. If it is another, {_give(field)}"
        )
    return heads


def _give(field: str) -> str:
    return (
        f"give {field}= to from_pretrained, `--config_overrides {field}=...` to the scripts, or `--set {field}=...` "
        "to mae convert"
    )


def _classifier(state: dict, fields: dict, notes: list[str]) -> dict:
    """Renames the heads of the official code and of timm in `state`. Returns the fields that follow from them."""
    if "head.1.weight" in state:  # the official probe: BatchNorm without affine parameters, then the linear layer
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            state[f"head_norm.{key}"] = state.pop(f"head.0.{key}")
        state["head.weight"], state["head.bias"] = state.pop("head.1.weight"), state.pop("head.1.bias")
        values = {"head_norm": "batch", "pooling": "cls", "head_initializer_range": 0.01}
    elif "fc_norm.weight" in state:
        for key in ("weight", "bias"):
            state[f"head_norm.{key}"] = state.pop(f"fc_norm.{key}")
        values = {"head_norm": "layer", "pooling": "mean"}
    elif "head.weight" in state:
        values = {"head_norm": "none", "pooling": "cls"}
    else:
        return {}
    if "head.weight" in state:
        values["num_labels"] = len(state["head.weight"])
    if values["pooling"] == "cls" and "pooling" not in fields:
        notes.append("the head's input is not in the file: assuming the class token (pooling='cls')")
    return values


def finish(config: MAEConfig, state: dict, notes: list[str], processor) -> Foreign:
    """Keeps the tensors that our models have. `notes` say what was assumed and left out."""
    decoder_type = "cross" if _is_cross(state) else "self"
    if config.decoder_type != decoder_type:
        leave_out(state, DECODER, f"the decoder is decoder_type={decoder_type!r}, not {config.decoder_type!r}", notes)
    ours = to_ours(state)
    known = {key for model_class in (MAEForPreTraining, EvalNet) for key in _tensor_names(model_class, config)}
    unknown = sorted(set(ours) - known)
    if unknown:
        more = " ..." if len(unknown) > 6 else ""
        notes.append(f"left out, because our models lack them: {', '.join(unknown[:6])}{more}")
    tensors = {key: value for key, value in ours.items() if key in known}
    kind = MAEForPreTraining if "decoder.head.weight" in tensors else EvalNet if "head.weight" in tensors else MAEModel
    config.architectures = [kind.__name__]
    return Foreign(config, tensors, processor, notes)


def _tensor_names(model_class: type[MAEPreTrainedModel], config: MAEConfig) -> list[str]:
    with torch.device("meta"):
        return list(model_class(copy.deepcopy(config)).state_dict())


def leave_out(state: dict, pattern: str, why: str, notes: list[str]) -> None:
    keys = [key for key in state if re.match(pattern, key)]
    for key in keys:
        del state[key]
    if keys:
        notes.append(f"left out: {len(keys)} tensors ({keys[0]} ...), because {why}")


def image_processor(
    config: MAEConfig, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample: int = 3, crop_fraction: float | None = None
) -> MAEImageProcessor | None:
    """An image processor, by default with ImageNet's mean and deviation, as in all these projects. None unless images
    have three channels. With `crop_fraction` the shorter side becomes size / `crop_fraction` and the centre is taken,
    else the whole image is resized. `resample` is PIL's number of a filter."""
    if config.num_channels != 3:
        return None
    height, width = config.image_height_width
    size = {"height": height, "width": width}
    shared: dict[str, Any] = {"resample": resample, "image_mean": list(mean), "image_std": list(std)}
    shared |= {"num_channels": 3, "white": EIGHT_BITS}
    if crop_fraction is None:
        return MAEImageProcessor(size=size, **shared)
    edge = math.floor(height / crop_fraction)
    return MAEImageProcessor(size={"shortest_edge": edge}, do_center_crop=True, crop_size=size, **shared)
