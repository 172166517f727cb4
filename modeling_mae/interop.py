"""Weights from and to other projects' layouts: `python -m modeling_mae.interop SOURCE TARGET [--to FORMAT]`.

What is read, by `from_pretrained` too: the official `.pth` files (encoder only, with decoder, fine-tuned, probed),
transformers' `ViTMAE*` and `ViT*` checkpoints, timm's vision transformers, CrossMAE's and MAE-code's files. Written:
transformers' ViTMAEForPreTraining, ViTModel and ViTForImageClassification, timm, ONNX, torch.export.

Everything passes through one layout, the official one: timm's names for the encoder, `decoder_*` for the decoder.
"""

import argparse
import json
import math
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor, PreTrainedConfig, ViTImageProcessor
from transformers.utils import cached_file, logging

from .configuration_mae import MAEConfig, pair
from .modeling_mae import EvalNet, MAEForPreTraining, MAEModel, MAEPreTrainedModel


logger = logging.get_logger(__name__)

# Ours -> official, by prefix; blocks below.
PREFIXES = {
    "mae.embeddings.patch_embeddings.": "patch_embed.proj.",
    "mae.embeddings.cls_token": "cls_token",
    "mae.embeddings.positions.table": "pos_embed",
    "mae.layers.": "blocks.",
    "mae.layernorm.": "norm.",
    "decoder.embed.": "decoder_embed.",
    "decoder.mask_token": "mask_token",
    "decoder.positions.table": "decoder_pos_embed",
    "decoder.layers.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.head.": "decoder_pred.",
}
QKV = {"q": "query", "k": "key", "v": "value"}
# transformers' names, of version 4 and 5, -> official.
VIT_NAMES = [
    (r"^vit\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^(?:encoder\.)?layers?\.", "blocks."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.mask_token$", "mask_token"),
    (r"^decoder\.decoder_(embed|pos_embed|norm|pred)", r"decoder_\1"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", lambda m: f".attn.{QKV[m[1]]}."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]
# The published widths' heads; elsewhere a head is 64 wide in these projects, and 32 in their decoders.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass
class Foreign:
    """Another project's checkpoint in our terms: names as in MAEForPreTraining and EvalNet."""

    config: MAEConfig
    state_dict: dict[str, torch.Tensor]
    processor: object | None = None


# --- in ---


def read(source, image_size: int | list[int] | None, options: dict) -> Foreign | None:
    """The checkpoint at `source`, a file, a folder or a Hub id; None when it is one of ours. Fields of MAEConfig are
    taken out of `options` and win over what the file says; what the file does not say is taken from the published
    models and told. `image_size` is asked only where the number of patches does not tell it.

    Raises:
        ValueError: for a file of no known layout, one that holds more than tensors and plain values, and one whose
            sizes cannot be told; the message names the remedy.
    """
    path = Path(str(source))
    if path.is_file():
        given = _take_fields(options)
        state, saved_arguments = load_tensors(path)
        return from_state_dict(state, saved_arguments, name=str(path), image_size=image_size, **given)
    where = {
        key: options[key]
        for key in ("cache_dir", "revision", "token", "local_files_only", "subfolder")
        if key in options
    }
    try:
        found, _ = PreTrainedConfig.get_config_dict(source, **where)
    except (OSError, ValueError, TypeError):
        return None  # transformers has the better words for what is missing
    if "architecture" in found and found.get("model_type", "timm_wrapper") == "timm_wrapper":  # timm's config.json
        given = _take_fields(options)
        weights = load_file(cached_file(source, "model.safetensors", **where))
        arguments = found.get("model_args", {})
        pretrained = found.get("pretrained_cfg", {})
        if "num_heads" in arguments:
            given.setdefault("num_attention_heads", arguments["num_heads"])
        if pool := {"avg": "mean", "token": "cls"}.get(arguments.get("global_pool", found.get("global_pool"))):
            given.setdefault("pooling", pool)
        image_size = arguments.get("img_size", image_size)
        foreign = from_state_dict(weights, name=str(source), image_size=image_size, **given)
        if "mean" in pretrained:
            foreign.processor = _processor(foreign.config, pretrained["mean"], pretrained["std"])
        return foreign
    if found.get("model_type") in ("vit_mae", "vit"):
        return _from_transformers(source, found, _take_fields(options), where)
    if "model_type" in found and found["model_type"] != MAEConfig.model_type:
        raise ValueError(
            f"{source} holds a {found['model_type']!r} model: neither an MAE nor a ViT that can be read as one"
        )
    return None


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """State dict and saved arguments of a safetensors or pickled file. Pickles are read with `weights_only`: tensors,
    plain values and the argparse.Namespace that training scripts save; no other code is run.

    Raises:
        ValueError: for a file that needs other code to be loaded, or holds no state dict.
    """
    if path.suffix == ".safetensors":
        return load_file(path), {}
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        blocked = re.search(r"(?:Unsupported global: GLOBAL|GLOBAL) (\S+)", reason)
        detail = f"it wants to run {blocked[1]}" if blocked else reason[:160]
        raise ValueError(
            f"{path} is refused: {detail}. Where you trust it, load it with torch and save its state dict alone"
        ) from error
    arguments = content.get("args", {}) if isinstance(content, dict) else {}
    for key in ("model", "state_dict", "model_state"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict, neither itself nor under 'model' or 'state_dict'")
    state = {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return state, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def from_state_dict(
    state: dict[str, torch.Tensor],
    saved_arguments: dict | None = None,
    *,
    name: str = "the state dict",
    image_size: int | list[int] | None = None,
    **fields,
) -> Foreign:
    """A state dict in the official layout (also timm's and CrossMAE's) or MAE-code's. `fields` of MAEConfig win;
    `image_size` counts where it fits the number of patches.

    Raises:
        ValueError: for an unknown layout, and for sizes that cannot be told from the tensors.
    """
    saved_arguments = saved_arguments or {}
    told: list[str] = []
    if any(".fn.to_qkv." in key for key in state):
        state = _from_mae_code(state, saved_arguments, fields, told)
    if "patch_embed.proj.weight" not in state or "blocks.0.attn.qkv.weight" not in state:
        raise ValueError(
            f"{name}: neither an official MAE, timm, CrossMAE nor MAE-code state dict; it begins with "
            f"{', '.join(list(state)[:4])}"
        )
    state = dict(state)
    if any(".cross_attn." in key for key in state):
        _leave_out(
            state, r"(decoder|mask_token|dec_norms|wfm)", "CrossMAE's decoder attends otherwise than ours", told
        )
    config = {**_sizes(state, told, fields, name, image_size), **_classifier(state, told, fields)}
    norm_pix_loss = saved_arguments.get("norm_pix_loss")
    if norm_pix_loss is not None:
        config["norm_pix_loss"] = bool(norm_pix_loss)
    elif "decoder_pred.weight" in state and "norm_pix_loss" not in fields:
        told.append("whether it predicts normalised patches is not in the file: taken as norm_pix_loss=True")
    config = MAEConfig(**{**config, **fields})
    return _finish(config, state, told, name, _processor(config))


def _from_mae_code(state: dict, saved_arguments: dict, fields: dict, told: list[str]) -> dict:
    """MAE-code's (and vit-pytorch's) names -> official; the encoder alone."""
    names = [
        (r"^encoder\.", ""),
        (r"^to_patch_embedding\.1\.", "patch_embed.proj."),
        (r"^pos_embedding$", "pos_embed"),
        (r"^transformer\.layers\.(\d+)\.0\.norm\.", r"blocks.\1.norm1."),
        (r"^transformer\.layers\.(\d+)\.1\.norm\.", r"blocks.\1.norm2."),
        (r"^transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"blocks.\1.attn.qkv."),
        (r"^transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"blocks.\1.attn.proj."),
        (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r"blocks.\1.mlp.fc1."),
        (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.3\.", r"blocks.\1.mlp.fc2."),
    ]
    # Encoder and decoder share names without the prefix: only `encoder.*` is one, in a bare ViT everything is.
    whole = {key: value for key, value in state.items() if key.startswith("encoder.")} or state
    official = {_rename(key, names): value for key, value in whole.items()}
    width = official["cls_token"].shape[-1]
    inner = official["blocks.0.attn.qkv.weight"].shape[0] // 3
    heads = fields.get("num_attention_heads") or saved_arguments.get("vit_heads") or inner // 64
    if inner != width:
        raise ValueError(
            f"its attention is {inner} wide in a model of width {width}: only equal widths can be carried"
        )
    if width // heads != 64:
        raise ValueError(
            f"{heads} heads in a width of {width}: MAE-code's heads are 64 wide, give num_attention_heads"
        )
    weight = official["patch_embed.proj.weight"]  # (width, patch height * patch width * channels), as ours
    channels = fields.get("num_channels", 3)
    patch = fields.get("patch_size") or saved_arguments.get("patch_size") or math.isqrt(weight.shape[1] // channels)
    official["patch_embed.proj.weight"] = weight.unflatten(1, (patch, patch, channels)).permute(0, 3, 1, 2)
    fields.update(
        {
            "num_attention_heads": heads,
            "num_channels": channels,
            "patch_size": patch,
            "position_embedding": "learned",
            "layer_norm_eps": fields.get("layer_norm_eps", 1e-5),
        }
    )
    left = [key for key in official if not re.match(r"(patch_embed|cls_token|pos_embed|blocks)", key)]
    left += [key for key in state if key not in whole]
    for key in left:
        official.pop(key, None)
    told.append(
        f"not carried: the decoder and head ({len(left)} tensors), which work otherwise than ours. MAE-code trains "
        "neither class token nor final norm: here they are its initial values, and features differ from its own until "
        "they are trained"
    )
    return official


def _sizes(state: dict, told: list[str], fields: dict, name: str, image_size) -> dict:
    width, channels, patch_height, patch_width = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    config = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch_height if patch_height == patch_width else [patch_height, patch_width],
        "num_hidden_layers": depth,
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }
    patches = state["pos_embed"].shape[1] - 1
    edge = math.isqrt(patches)
    height, width_pixels = pair(image_size, "image_size") if image_size is not None else (0, 0)
    if (height // patch_height) * (width_pixels // patch_width) == patches:
        config["image_size"] = [height, width_pixels] if height != width_pixels else height
    elif edge * edge == patches:
        square = patch_height == patch_width
        config["image_size"] = edge * patch_height if square else [edge * patch_height, edge * patch_width]
    else:
        raise ValueError(f"{name}: {patches} patches are no square; give image_size=[height, width] in pixels")
    if "num_attention_heads" not in fields:
        heads = HEADS.get(width, width // 64)
        if heads == 0 or width % heads:
            raise ValueError(
                f"{name}: the number of heads of a {width} wide encoder is not published; give num_attention_heads"
            )
        config["num_attention_heads"] = heads
        if width not in HEADS:
            told.append(f"the number of heads is not in the file: taken as {heads} (64 wide each)")
    if "decoder_pred.weight" in state:
        decoder_width = state["decoder_embed.weight"].shape[0]
        config["decoder_hidden_size"] = decoder_width
        config["decoder_num_hidden_layers"] = 1 + max(
            int(key.split(".")[1]) for key in state if key.startswith("decoder_blocks.")
        )
        config["decoder_intermediate_size"] = state["decoder_blocks.0.mlp.fc1.weight"].shape[0]
        if "decoder_num_attention_heads" not in fields:
            heads = decoder_width // 32
            if heads == 0 or decoder_width % heads:
                raise ValueError(
                    f"{name}: the number of heads of a {decoder_width} wide decoder is not published; "
                    "give decoder_num_attention_heads"
                )
            config["decoder_num_attention_heads"] = heads
            if decoder_width != 512:
                told.append(f"the decoder's heads are not in the file: taken as {heads} (32 wide each)")
    return config


def _classifier(state: dict, told: list[str], fields: dict) -> dict:
    """Head layouts of the official code and timm -> ours, in `state`; what the config must say."""
    if "head.1.weight" in state:  # the official probe: BatchNorm without affine parameters, then the linear layer
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            state[f"head_norm.{key}"] = state.pop(f"head.0.{key}")
        state["head.weight"], state["head.bias"] = state.pop("head.1.weight"), state.pop("head.1.bias")
        config = {"head_norm": "batch", "pooling": "cls", "head_initializer_range": 0.01}
    elif "fc_norm.weight" in state:
        for key in ("weight", "bias"):
            state[f"head_norm.{key}"] = state.pop(f"fc_norm.{key}")
        config = {"head_norm": "layer", "pooling": "mean"}
    elif "head.weight" in state:
        config = {"head_norm": "none", "pooling": "cls"}
    else:
        return {}
    if "head.weight" in state:
        config["num_labels"] = len(state["head.weight"])
    if config["pooling"] == "cls" and "pooling" not in fields:
        told.append("what its head reads is not in the file: taken as the class token (pooling='cls')")
    return config


def _from_transformers(source, found: dict, fields: dict, where: dict) -> Foreign:
    names = [name for name in found.get("architectures") or [] if hasattr(transformers, name)]
    default = "ViTMAEForPreTraining" if found["model_type"] == "vit_mae" else "ViTModel"
    model = getattr(transformers, (names or [default])[0]).from_pretrained(source, **where)
    theirs, told = model.config, []
    state = official_from_vit(model.state_dict())
    own = {field for field in MAEConfig.__dataclass_fields__ if hasattr(theirs, field)}
    own -= {"architectures", "auto_map", "transformers_version", "dtype"}
    config = {field: getattr(theirs, field) for field in own if field in found}
    config["layer_norm_eps"] = theirs.layer_norm_eps
    config["norm_pix_loss"] = getattr(theirs, "norm_pix_loss", True)
    _leave_out(state, r"pooler\.", "ours has no pooler with a dense layer", told)
    if "head.weight" in state:
        config |= {"pooling": "cls", "head_norm": "none", "id2label": theirs.id2label, "label2id": theirs.label2id}
    if found["model_type"] == "vit":
        config["position_embedding"] = "learned"
    config = MAEConfig(**{**config, **fields})
    try:
        processor = AutoImageProcessor.from_pretrained(source, **where)
    except (OSError, ValueError):
        processor = None
    return _finish(config, state, told, str(source), processor)


def _finish(config: MAEConfig, state: dict, told: list[str], name: str, processor) -> Foreign:
    ours = to_ours(state)
    known = {key for model in (MAEForPreTraining, EvalNet) for key in _names(model, config)}
    extra = sorted(set(ours) - known)
    if extra:
        told.append(f"not carried, unknown here: {', '.join(extra[:6])}{' ...' if len(extra) > 6 else ''}")
    for line in told:
        logger.warning("%s: %s", name, line)
    return Foreign(config, {key: value for key, value in ours.items() if key in known}, processor)


def _names(model_class: type[MAEPreTrainedModel], config: MAEConfig) -> list[str]:
    with torch.device("meta"):
        return list(model_class(MAEConfig(**config.to_dict())).state_dict())


def _take_fields(options: dict) -> dict:
    own = set(MAEConfig.__dataclass_fields__) | {"num_labels", "id2label", "label2id"}
    own -= {"image_size", "dtype", "output_attentions", "output_hidden_states"}
    return {key: options.pop(key) for key in list(options) if key in own}


def _leave_out(state: dict, pattern: str, why: str, told: list[str]) -> None:
    left = [key for key in state if re.match(pattern, key)]
    for key in left:
        del state[key]
    if left:
        told.append(f"not carried, {why}: {len(left)} tensors ({left[0]} ...)")


def _processor(config: MAEConfig, mean=None, std=None):
    """With ImageNet's mean and deviation, as all these projects train on; None for other than three channels."""
    if config.num_channels != 3:
        return None
    height, width = config.image_height_width
    mean, std = mean or IMAGENET["image_mean"], std or IMAGENET["image_std"]
    size = {"height": height, "width": width}
    return ViTImageProcessor(size=size, resample=3, image_mean=list(mean), image_std=list(std), do_convert_rgb=True)


# --- between the layouts ---


def _rename(key: str, names) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def to_ours(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official names -> those of MAEForPreTraining and EvalNet; the convolution that embeds patches -> our linear
    layer, whose input is ordered as the prediction is: row, column, channel."""
    ours = {}
    for key, value in official.items():
        if key == "patch_embed.proj.weight":
            value = value.permute(0, 2, 3, 1).flatten(1)  # (width, patch height * patch width * channels)
        for own, other in PREFIXES.items():
            if key.startswith(other):
                key = own + key.removeprefix(other).replace(".attn.", ".attention.")
                break
        ours[key] = value.contiguous()
    return ours


def to_official(model: MAEPreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of any of our models under official names; the classifier's as `head` and `head_norm`."""
    prefix = "mae." if isinstance(model, MAEModel) else ""
    official = {}
    for key, value in model.state_dict().items():
        key = prefix + key
        if key == "mae.embeddings.patch_embeddings.weight":
            patch = (*model.config.patch_height_width, model.config.num_channels)
            value = value.unflatten(1, patch).permute(0, 3, 1, 2)  # (width, channels, patch height, patch width)
        for own, other in PREFIXES.items():
            if key.startswith(own):
                key = other + key.removeprefix(own).replace(".attention.", ".attn.")
                break
        official[key] = value.detach().cpu().contiguous()
    return official


def official_from_vit(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' ViT names of version 4 or 5 -> official; query, key and value joined."""
    official = {_rename(key, VIT_NAMES): value for key, value in state.items()}
    for key in [key for key in official if ".attn.query." in key]:
        parts = [official.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        official[key.replace("query", "qkv")] = torch.cat(parts)
    return official


def fill_vit(model: nn.Module, official: dict[str, torch.Tensor]) -> None:
    """Load official weights into one of transformers' ViT classes, by whatever names its version has."""
    wanted = {}
    for key in model.state_dict():
        name = _rename(key, VIT_NAMES)
        part = re.search(r"\.attn\.(query|key|value)\.", name)
        if part:
            joined = official[name.replace(part[1], "qkv")]
            wanted[key] = joined.chunk(3)[("query", "key", "value").index(part[1])].clone()
        else:
            wanted[key] = official[name]
    model.load_state_dict(wanted)


# --- out ---


def fold_classifier(model: EvalNet) -> dict[str, torch.Tensor]:
    """Official weights with a plain linear `head`: BatchNorm's statistics go into it, a LayerNorm becomes `fc_norm`
    (after mean pooling) or the final `norm` (of the class token)."""
    official = to_official(model)
    if model.config.head_norm == "batch":
        mean, variance = official.pop("head_norm.running_mean"), official.pop("head_norm.running_var")
        official.pop("head_norm.num_batches_tracked")
        scale = (variance + model.head_norm.eps).rsqrt()
        official["head.bias"] = official["head.bias"] - official["head.weight"] @ (mean * scale)
        official["head.weight"] = official["head.weight"] * scale
    elif model.config.head_norm == "layer":
        norm = "fc_norm" if model.config.pooling == "mean" else "norm"
        for key in ("weight", "bias"):
            official[f"{norm}.{key}"] = official.pop(f"head_norm.{key}")
    return official


def to_transformers(model: MAEPreTrainedModel) -> transformers.PreTrainedModel:
    """The same weights in transformers' own class: ViTMAEForPreTraining, ViTForImageClassification or, of the bare
    encoder, ViTModel without its pooler.

    Raises:
        ValueError: for what those classes cannot express: pooling other than the class token before a classifier, and
            for ViTMAE images or patches that are not square, or another mask than random.
    """
    config = model.config
    shared = {
        field: getattr(config, field)
        for field in (
            "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act image_size patch_size "
            "num_channels qkv_bias layer_norm_eps initializer_range"
        ).split()
    }
    if isinstance(model, MAEForPreTraining):
        (height, width), (patch_height, patch_width) = config.image_height_width, config.patch_height_width
        if height != width or patch_height != patch_width:
            raise ValueError(
                f"image_size={config.image_size}, patch_size={config.patch_size}: ViTMAE takes squares only"
            )
        if config.mask_type != "random":
            raise ValueError(f"mask_type={config.mask_type!r}: ViTMAE masks at random only")
        decoder = {
            field: getattr(config, field) for field in MAEConfig.__dataclass_fields__ if field.startswith("decoder_")
        }
        decoder.pop("decoder_type")
        masking = {"mask_ratio": config.mask_ratio, "norm_pix_loss": config.norm_pix_loss}
        theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**shared, **decoder, **masking))
        fill_vit(theirs, to_official(model))
        return theirs.eval()
    if isinstance(model, EvalNet):
        if config.pooling != "cls":
            raise ValueError(
                f"pooling={config.pooling!r}: ViTForImageClassification reads the class token only; timm's layout "
                "takes 'mean' too (--to timm)"
            )
        labels = {"id2label": config.id2label, "label2id": config.label2id}
        theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**shared, **labels))
        fill_vit(theirs, fold_classifier(model))
        return theirs.eval()
    theirs = transformers.ViTModel(transformers.ViTConfig(**shared), add_pooling_layer=False)
    fill_vit(theirs, to_official(model))
    return theirs.eval()


def save_timm(model: MAEPreTrainedModel, folder: Path, mean=None, std=None) -> str:
    """Weights and config.json of timm's VisionTransformer in `folder`, for `timm.create_model("local-dir:FOLDER")` or
    with `checkpoint_path=`; the decoder stays behind. Gives the call that loads them.

    Raises:
        ValueError: for pooling='flatten', which timm does not have.
    """
    config = model.config
    if config.pooling == "flatten" and isinstance(model, EvalNet):
        raise ValueError("pooling='flatten': timm's VisionTransformer pools by class token or mean")
    classifier = isinstance(model, EvalNet)
    official = fold_classifier(model) if classifier else to_official(model)
    official = {key: value for key, value in official.items() if not re.match(r"(decoder|mask_token)", key)}
    (height, width), (patch_height, patch_width) = config.image_height_width, config.patch_height_width
    arguments = {
        "img_size": [height, width],
        "patch_size": [patch_height, patch_width],
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "num_classes": config.num_labels if classifier else 0,
        "global_pool": {"mean": "avg", "cls": "token", "flatten": ""}[config.pooling],
        "fc_norm": "fc_norm.weight" in official,
    }
    if config.layer_norm_eps > 1e-6 or config.hidden_act != "gelu":  # below 1e-6 makes no difference that shows
        own = f"layer_norm_eps={config.layer_norm_eps}, hidden_act={config.hidden_act!r}"
        raise ValueError(f"{own}: timm's VisionTransformer has 1e-6 and 'gelu'")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(official, folder / "model.safetensors", metadata={"format": "pt"})
    pretrained = {
        "input_size": [config.num_channels, height, width],
        "num_classes": arguments["num_classes"],
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "mean": list(mean or IMAGENET["image_mean"]),
        "std": list(std or IMAGENET["image_std"]),
    }
    if classifier:
        pretrained["label_names"] = [config.id2label[i] for i in range(config.num_labels)]
    content = {
        "architecture": "vit_base_patch16_224",  # the sizes are model_args'
        "num_classes": arguments["num_classes"],
        "num_features": config.hidden_size,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return f'timm.create_model("local-dir:{folder}", pretrained=True)'


class _Outputs(nn.Module):
    """A model with tensors in place of an output object, as exported graphs have them."""

    def __init__(self, model: MAEPreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor):
        outputs = self.model(pixel_values)
        if isinstance(self.model, EvalNet):
            return outputs.logits
        return outputs.last_hidden_state, outputs.pooler_output


def export(model: MAEPreTrainedModel, path: Path, to: str) -> None:
    """`model` as an ``onnx`` graph or a ``torch`` exported program (.pt2), for any batch size: logits of an EvalNet,
    otherwise `last_hidden_state` and `pooler_output` of the encoder.

    Raises:
        ValueError: when the packages for ONNX are not installed.
    """
    model = model.mae if isinstance(model, MAEForPreTraining) else model
    wrapped = _Outputs(model).eval()
    example = torch.zeros(2, model.config.num_channels, *model.config.image_height_width, dtype=model.dtype)
    dynamic = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=65536)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        program = torch.export.export(wrapped, (example,), dynamic_shapes=dynamic)
        if to == "torch":
            torch.export.save(program, path)
            return
        try:
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ValueError("ONNX export needs `pip install onnx onnxscript`") from error
        names = ["logits"] if isinstance(model, EvalNet) else ["last_hidden_state", "pooler_output"]
        torch.onnx.export(
            program, (example,), path, dynamo=True, input_names=["pixel_values"], output_names=names, verbose=False
        )


def own_class(source) -> type[MAEPreTrainedModel]:
    """MAEForPreTraining, EvalNet or MAEModel, whichever saved the checkpoint of ours at `source`."""
    names = MAEConfig.from_pretrained(source).architectures or ["MAEModel"]
    classes = {model.__name__: model for model in (MAEForPreTraining, EvalNet, MAEModel)}
    return classes.get(names[0], MAEModel)


def convert(source: str, target: Path, to: str, **fields) -> str:
    """Read `source`, write `target` in the format `to`; gives a line that says how to load it."""
    foreign = read(source, fields.get("image_size"), dict(fields))
    if foreign is None:
        model = own_class(source).from_pretrained(source, **fields).eval()
        try:
            processor = AutoImageProcessor.from_pretrained(source)
        except (OSError, ValueError):
            processor = None
    else:
        held = set(foreign.state_dict)
        kind = MAEForPreTraining if "decoder.head.weight" in held else EvalNet if "head.weight" in held else MAEModel
        model = kind.from_pretrained(None, config=foreign.config, state_dict=foreign.state_dict).eval()
        processor = foreign.processor
    if to in ("onnx", "torch"):
        export(model, target, to)
        return f"written    {target}"
    if to == "timm":
        statistics = (list(processor.image_mean), list(processor.image_std)) if processor else ()
        return f"written    {target}: {save_timm(model, target, *statistics)}"
    if to == "vit" and not isinstance(model, EvalNet):
        model = model.mae if isinstance(model, MAEForPreTraining) else model
    if to in ("transformers", "vit"):
        model = to_transformers(model)
    model.save_pretrained(target)
    if processor is not None:
        processor.save_pretrained(target)
    return f"written    {target}: {type(model).__name__}.from_pretrained({str(target)!r})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modeling_mae.interop", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a file, a folder or a Hub id; ours or another project's")
    parser.add_argument("target", type=Path, help="a folder; for onnx and torch a file")
    parser.add_argument(
        "--to",
        default="mae",
        choices=["mae", "transformers", "vit", "timm", "onnx", "torch"],
        help="mae: ours. transformers: ViTMAEForPreTraining, ViTForImageClassification or ViTModel. vit: the encoder "
        "alone. onnx, torch (torch.export): features, or logits of a classifier",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of MAEConfig that the file does not tell"
    )
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    try:
        fields = {}
        for text in arguments.set:
            key, equals, value = text.partition("=")
            if not equals or key not in MAEConfig.__dataclass_fields__:
                raise ValueError(f"--set {text!r} is not FIELD=VALUE with a field of MAEConfig")
            try:
                fields[key] = json.loads(value)
            except json.JSONDecodeError:
                fields[key] = value  # a name, as in pooling=mean
        print(convert(arguments.source, arguments.target, arguments.to, **fields))
    except (ValueError, OSError) as error:
        sys.exit(f"modeling_mae.interop: error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
