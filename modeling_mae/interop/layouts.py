"""The checkpoint layouts: each project's names for the tensors, and what each layout can express.

Every conversion passes through the official layout: timm's names for the encoder, `decoder_*` for the decoder. The
cross decoder has CrossMAE's names, which extend the official ones.
"""

import re
from dataclasses import dataclass

import torch
from torch import nn

from ..configuration_mae import MAEConfig
from ..errors import UserError
from ..modeling_mae import MAEModel, MAEPreTrainedModel


# Our prefix -> the official one. Inside a block only `attention` differs: `attn` in the official code, `cross_attn` in
# CrossMAE.
PREFIXES = {
    "mae.embeddings.patch_embeddings.": "patch_embed.proj.",
    "mae.embeddings.cls_token": "cls_token",
    "mae.embeddings.positions.table": "pos_embed",
    "mae.layers.": "blocks.",
    "mae.layernorm.": "norm.",
    "decoder.embed.": "decoder_embed.",
    "decoder.mask_token": "mask_token",
    "decoder.positions.table": "decoder_pos_embed",
    "decoder.weighting.": "wfm.linear.",
    "decoder.context_norms.": "dec_norms.",
    "decoder.layers.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.head.": "decoder_pred.",
}
# A regular expression for the decoder's official names.
DECODER = r"(decoder|mask_token|wfm\.|dec_norms\.)"
# transformers writes query, key and value as three tensors; the official code joins them in this order.
QUERY_KEY_VALUE = ("query", "key", "value")
# transformers' names -> official. Versions 4 and 5 of transformers use different names; both are here.
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
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]
# MAE-code's names, which are vit-pytorch's, -> official.
MAE_CODE_NAMES = [
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
# Files do not hold the number of heads. Per field of MAEConfig: published width -> heads and depth, and the width of a
# head for other widths.
PUBLISHED_HEADS = {
    "num_attention_heads": ({192: (3, 12), 384: (6, 12), 768: (12, 12), 1024: (16, 24), 1280: (16, 32)}, 64),
    "decoder_num_attention_heads": ({512: (16, 8)}, 32),
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# MAEConfig.pooling -> timm's global_pool.
TIMM_POOLINGS = {"mean": "avg", "cls": "token"}
TIMM_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by PIL's number

# MAEConfig's own fields. Inherited fields do not describe the architecture.
FIELDS = [name for name in MAEConfig.__annotations__ if not name.startswith("_")]


@dataclass(frozen=True)
class Carries:
    """The values of a field that a layout can express, and the remedy for any other value."""

    values: tuple[str | int | None, ...]
    remedy: str


# These poolings have no weights of their own.
ENCODER_POOLING = Carries(
    ("mean", "cls", "flatten"), "--set pooling=mean drops the pooling's weights, --to mae keeps them"
)
# What each written layout can express. All other values are refused, so a new decoder or pooling is refused until it
# is entered here. A layout does not check fields that it lacks here: ViTModel and timm have no decoder and drop it.
# ONNX and torch.export carry the model itself and need no entry.
LAYOUTS = {
    "transformers' ViTMAEForPreTraining": {
        "decoder_type": Carries(("self",), "--to vit writes the encoder alone"),
        "prediction_ratio": Carries((None,), "--set prediction_ratio=null, or --to vit for the encoder alone"),
        "uniformity_weight": Carries((0,), "--set uniformity_weight=0, or --to vit for the encoder alone"),
        "pooling": ENCODER_POOLING,
        "mask_type": Carries(("random",), "--set mask_type=random, or --to vit for the encoder alone"),
    },
    "transformers' ViTModel": {"pooling": ENCODER_POOLING},
    "transformers' ViTForImageClassification": {
        "pooling": Carries(("cls",), "--to timm carries 'mean' too, --to onnx and --to torch carry every pooling")
    },
    "timm's VisionTransformer": {
        "pooling": ENCODER_POOLING,
        "hidden_act": Carries(("gelu",), "--to onnx and --to torch carry every activation"),
    },
    "timm's VisionTransformer with a head": {
        "pooling": Carries(tuple(TIMM_POOLINGS), "--to onnx and --to torch carry every pooling"),
        "hidden_act": Carries(("gelu",), "--to onnx and --to torch carry every activation"),
    },
}


def check_carried(layout: str, config: MAEConfig) -> None:
    """Refuses a `config` that `layout`, a key of LAYOUTS, cannot express.

    Raises:
        UserError: the message names the layout, the field, its value and the remedy.
    """
    for field, carries in LAYOUTS[layout].items():
        value = getattr(config, field)
        if value not in carries.values:
            possible = " or ".join(map(repr, carries.values))
            raise UserError(f"{layout} cannot carry {field}={value!r}, only {possible}: {carries.remedy}")


def shared_fields(config_class: type) -> list[str]:
    """The fields that MAEConfig and a config class of transformers have in common."""
    example = config_class()
    return [field for field in FIELDS if hasattr(example, field)]


def rename(key: str, names: list[tuple[str, str]]) -> str:
    """Applies every (regular expression, replacement) of `names` to `key`, in order."""
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def to_ours(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames official tensors to the names of MAEForPreTraining and EvalNet.

    The official code embeds patches by a convolution, ours by a linear layer. The linear layer's input has the order
    of the decoder's prediction: row, column, channel.
    """
    ours = {}
    for key, value in official.items():
        if key == "patch_embed.proj.weight":  # (width, channels, patch height, patch width)
            value = value.permute(0, 2, 3, 1).flatten(1)  # (width, patch height * patch width * channels)
        for our_prefix, official_prefix in PREFIXES.items():
            if key.startswith(official_prefix):
                key = our_prefix + re.sub(r"\.(cross_)?attn\.", r".\1attention.", key.removeprefix(official_prefix))
                break
        ours[key] = value.contiguous()
    return ours


def to_official(model: MAEPreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of any of our models under official names, on the CPU. The classifier is `head` and `head_norm`."""
    prefix = "mae." if isinstance(model, MAEModel) else ""
    official = {}
    for key, value in model.state_dict().items():
        key = prefix + key
        if key == "mae.embeddings.patch_embeddings.weight":  # (width, patch height * patch width * channels)
            patch = (*model.config.patch_height_width, model.config.num_channels)
            value = value.unflatten(1, patch).permute(0, 3, 1, 2)  # (width, channels, patch height, patch width)
        for our_prefix, official_prefix in PREFIXES.items():
            if key.startswith(our_prefix):
                key = official_prefix + re.sub(r"\.(cross_)?attention\.", r".\1attn.", key.removeprefix(our_prefix))
                break
        official[key] = value.detach().cpu().contiguous()
    return official


def official_from_vit(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' ViT names of version 4 or 5 -> official. Query, key and value are joined."""
    official = {rename(key, VIT_NAMES): value for key, value in state.items()}
    for key in [key for key in official if ".attn.query." in key]:
        parts = [official.pop(key.replace("query", part)) for part in QUERY_KEY_VALUE]
        official[key.replace("query", "qkv")] = torch.cat(parts)
    return official


def fill_vit(model: nn.Module, official: dict[str, torch.Tensor]) -> None:
    """Load official weights into one of transformers' ViT classes, with the names of the installed version."""
    state = {}
    for key in model.state_dict():
        name = rename(key, VIT_NAMES)
        part = re.search(r"\.attn\.(query|key|value)\.", name)
        if part:
            joined = official[name.replace(part[1], "qkv")]
            state[key] = joined.chunk(3)[QUERY_KEY_VALUE.index(part[1])].clone()
        else:
            state[key] = official[name]
    model.load_state_dict(state)
