"""Writes our models in the layouts of other projects."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..configuration_mae import MAEConfig
from ..errors import UserError
from ..modeling_mae import EvalNet, MAEForPreTraining, MAEPreTrainedModel, MAETunedModel
from ..segmentation_mae import MAEForSemanticSegmentation
from ..words import SEMANTIC_SEGMENTATION
from .layouts import (
    DECODER,
    IMAGENET_MEAN,
    IMAGENET_STD,
    TIMM_FILTERS,
    TIMM_POOLINGS,
    check_carried,
    fill_vit,
    shared_fields,
    to_official,
)
from .processors import own_processor, transformers_processor


FORMATS = ("mae", "transformers", "vit", "timm", "onnx", "torch")
ONNX_FILE_LIMIT = 19 * 10**8  # bytes of weights; protobuf files must stay below 2 GiB


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{target} cannot be written: {reason}; free some space or give another target") from error


def write_model(
    model: MAEPreTrainedModel, processor, target: str | Path, to: str = "mae", dynamic_size: bool = False
) -> str:
    """Write `model`, and its image `processor` if there is one, to `target`.

    Args:
        target: a folder; for ``onnx`` and ``torch`` a file.
        to: one of FORMATS. ``mae`` is ours, ``torch`` a torch.export program. ``transformers`` is
            ViTMAEForPreTraining, ViTForImageClassification or ViTModel, depending on the model. ``vit`` is the same
            without the decoder. Of a segmentation these and ``timm`` have the encoder alone.
        dynamic_size: for ``onnx`` and ``torch``, accept images of any height and width that the patch divides.

    Returns:
        Lines for the user: where the checkpoint is, how to load it, and notes.

    Raises:
        UserError: the format cannot express the model, or the target cannot be written.
    """
    if dynamic_size and to not in ("onnx", "torch"):
        raise UserError(f"--dynamic_size true is for --to onnx and --to torch; --to {to} takes any size without it")
    target = Path(target)
    if to in ("onnx", "torch"):
        return f"written    {target}{export(model, target, to, processor, dynamic_size)}"
    left_out = ""
    if to in ("transformers", "vit", "timm") and isinstance(model, MAEForSemanticSegmentation):
        model = model.mae
        left_out = f"\nnote       --to {to} has no head for masks: this is the encoder alone; --to onnx has it"
    if to == "timm":
        return f"written    {target}: {save_timm(model, target, processor)}{left_out}"
    if to == "vit" and isinstance(model, MAEForPreTraining):
        model = model.mae
    note = None
    written: transformers.PreTrainedModel = model
    if to in ("transformers", "vit"):
        processor, note = transformers_processor(processor, model.config.num_channels)
        written = to_transformers(model)
    else:
        processor = own_processor(processor)
    save(written, processor, target)
    line = f"written    {target}: {type(written).__name__}.from_pretrained({str(target)!r}){left_out}"
    return f"{line}\nnote       {note}" if note else line


def save(model: transformers.PreTrainedModel, processor, folder: Path) -> None:
    """``save_pretrained`` of `model`, and of `processor` if there is one.

    Raises:
        UserError: `folder` cannot be written.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)  # if it is a file, save_pretrained returns without an error
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)


def fold_classifier(model: EvalNet) -> dict[str, torch.Tensor]:
    """Official weights with a plain linear `head`.

    A BatchNorm's statistics are folded into the head. A LayerNorm becomes `fc_norm` after mean pooling, or the final
    `norm` before the class token.
    """
    official = to_official(model)
    if model.config.head_norm == "batch":
        mean, variance = official.pop("head_norm.running_mean"), official.pop("head_norm.running_var")  # (width,)
        official.pop("head_norm.num_batches_tracked")
        scale = (variance + float(model.head_norm.eps)).rsqrt()  # type: ignore[arg-type]
        official["head.bias"] = official["head.bias"] - official["head.weight"] @ (mean * scale)
        official["head.weight"] = official["head.weight"] * scale  # (labels, width)
    elif model.config.head_norm == "layer":
        norm = "fc_norm" if model.config.pooling == "mean" else "norm"
        for key in ("weight", "bias"):
            official[f"{norm}.{key}"] = official.pop(f"head_norm.{key}")
    return official


def to_transformers(model: MAEPreTrainedModel) -> transformers.PreTrainedModel:
    """The same weights in transformers' own class.

    MAEForPreTraining becomes ViTMAEForPreTraining, EvalNet becomes ViTForImageClassification, and an encoder becomes
    ViTModel without its pooler.

    Raises:
        UserError: the class cannot express the model (see `layouts.LAYOUTS`), or images or patches are not square for
            ViTMAEForPreTraining.
    """
    config = model.config
    filled: transformers.PreTrainedModel
    if isinstance(model, MAEForPreTraining):
        check_carried("transformers' ViTMAEForPreTraining", config)
        (height, width), (patch_height, patch_width) = config.image_height_width, config.patch_height_width
        if height != width or patch_height != patch_width:
            raise UserError(
                f"image_size={config.image_size}, patch_size={config.patch_size}: transformers' ViTMAEForPreTraining "
                "only carries squares; --to vit writes the encoder alone, which need not be square"
            )
        filled = transformers.ViTMAEForPreTraining(_vit_config(transformers.ViTMAEConfig, config))
        fill_vit(filled, to_official(model))
    elif isinstance(model, EvalNet):
        check_carried("transformers' ViTForImageClassification", config)
        labels = {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
        filled = transformers.ViTForImageClassification(_vit_config(transformers.ViTConfig, config, **labels))
        fill_vit(filled, fold_classifier(model))
    else:
        check_carried("transformers' ViTModel", config)
        filled = transformers.ViTModel(_vit_config(transformers.ViTConfig, config), add_pooling_layer=False)
        fill_vit(filled, to_official(model))
    return filled.eval()


def _vit_config(config_class: type, config: MAEConfig, **more) -> Any:
    return config_class(**{field: getattr(config, field) for field in shared_fields(config_class)}, **more)


def save_timm(model: MAEPreTrainedModel, folder: Path, processor=None) -> str:
    """Write the weights and config.json of timm's VisionTransformer, without the decoder.

    Args:
        folder: loads as ``timm.create_model("local-dir:FOLDER")``, its model.safetensors also as ``checkpoint_path=``.
        processor: the image processor to describe as timm's transform. Without one, timm resizes the whole image and
            uses ImageNet's mean and deviation.

    Returns:
        The call that loads them.

    Raises:
        UserError: timm cannot express the model (see `layouts.LAYOUTS`), layer_norm_eps is above 1e-6, or `folder`
            cannot be written.
    """
    config, classifier = model.config, model if isinstance(model, EvalNet) else None
    check_carried("timm's VisionTransformer with a head" if classifier else "timm's VisionTransformer", config)
    if config.layer_norm_eps > 1e-6:  # a smaller one makes no visible difference
        raise UserError(
            f"layer_norm_eps={config.layer_norm_eps}: timm's VisionTransformer has 1e-6; --to onnx and --to torch "
            "carry every value"
        )
    official = fold_classifier(classifier) if classifier else to_official(model)
    official = {key: value for key, value in official.items() if not re.match(DECODER, key)}
    content = _timm_config(config, classifier is not None, "fc_norm.weight" in official, processor)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(official, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return f'timm.create_model("local-dir:{folder}", pretrained=True)'


def _timm_transform(processor) -> dict:
    """timm's description of what `processor` does to an image."""
    if processor is None:
        mean, std, resample = IMAGENET_MEAN, IMAGENET_STD, 3
    else:
        mean, std, resample = processor.image_mean, processor.image_std, processor.resample
    edge: Any = dict(getattr(processor, "size", None) or {}).get("shortest_edge")
    crops = edge and getattr(processor, "do_center_crop", False)
    return {
        "interpolation": TIMM_FILTERS.get(int(resample), "bicubic"),
        # timm resizes to size / crop_pct, rounded down, so this aims a little above the edge.
        "crop_pct": processor.crop_size["height"] / (edge + 0.01) if crops else 1.0,
        "crop_mode": "center" if crops else "squash",  # squash: the whole image, of any shape
        "mean": list(mean),
        "std": list(std),
    }


def _timm_config(config: MAEConfig, classifier: bool, fc_norm: bool, processor) -> dict:
    height, width = config.image_height_width
    classes = config.num_labels if classifier else 0
    global_pool = TIMM_POOLINGS.get(config.pooling, "")
    arguments = {
        "img_size": [height, width],
        "patch_size": list(config.patch_height_width),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "global_pool": global_pool,
        "fc_norm": fc_norm,
    }  # no num_classes: transformers' TimmWrapper passes it separately
    pretrained = {
        "input_size": [config.num_channels, height, width],
        "num_classes": classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **_timm_transform(processor),
    }
    if classifier:
        pretrained["label_names"] = _class_names(config)
    return {
        "architecture": "vit_base_patch16_224",  # timm wants a known name; model_args override its sizes
        "num_classes": classes,
        "num_features": config.hidden_size,
        "global_pool": global_pool,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }


class _Outputs(nn.Module):
    """Returns the tensors of the model's output object, because an exported graph has no such objects."""

    def __init__(self, model: MAEPreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor):
        outputs = self.model(pixel_values)
        if isinstance(self.model, MAETunedModel):
            return outputs.logits  # (batch, labels), or (batch, labels, height, width)
        # (batch, 1 + patches, width), (batch, width)
        return outputs.last_hidden_state, outputs.pooler_output


def _class_names(config: MAEConfig) -> list[str]:
    names = {int(number): name for number, name in (config.id2label or {}).items()}
    return [names[number] for number in sorted(names)]


def graph_metadata(model: MAEPreTrainedModel, processor=None) -> dict[str, str]:
    """What a user of the graph must know, as JSON: `image_size` [height, width] and `num_channels`; with a
    `processor`, `image_mean` and `image_std` of each channel (white is 1); with a head, `class_names` and
    `problem_type`."""
    config = model.config
    values = {"image_size": list(config.image_height_width), "num_channels": config.num_channels}
    if processor is not None:
        for name in ("image_mean", "image_std"):
            value = getattr(processor, name)
            values[name] = [value] * config.num_channels if isinstance(value, float) else list(value)
    if isinstance(model, MAETunedModel):
        usual = "single_label_classification" if isinstance(model, EvalNet) else SEMANTIC_SEGMENTATION
        values["class_names"] = _class_names(config)
        values["problem_type"] = config.problem_type or usual
    return {key: json.dumps(value) for key, value in values.items()}


def _example(model: MAEPreTrainedModel, dynamic_size: bool, to: str) -> tuple[torch.Tensor, dict, dict[int, str]]:
    """(images ``(2, channels, height, width)`` to trace the graph with, their free axes, the axes' names)."""
    config, axes = model.config, {0: "batch"}
    free = {0: torch.export.Dim("batch", min=1, max=65536)}
    rows, columns = config.grid
    if dynamic_size:
        if config.pooling == "flatten" and not isinstance(model, MAEForSemanticSegmentation):
            raise UserError("--dynamic_size true: pooling='flatten' only works for one size; leave the option out")
        if to == "onnx" and isinstance(model, MAEForSemanticSegmentation) and config.segmentation_head == "upernet":
            raise UserError(  # an ONNX graph has no pooling to a fixed grid from any size
                "--dynamic_size true: in ONNX, segmentation_head='upernet' only works for one size; leave the option "
                "out, or give --to torch"
            )
        axes |= {2: "height", 3: "width"}
        for axis, patch in zip((2, 3), config.patch_height_width, strict=True):
            free[axis] = patch * torch.export.Dim(f"patches_of_{axes[axis]}", min=2, max=1024)
        rows, columns = rows + 1, columns + 2  # sizes that the graph cannot confuse with fixed ones
    patch_height, patch_width = config.patch_height_width
    example = torch.zeros(2, config.num_channels, rows * patch_height, columns * patch_width, dtype=model.dtype)
    return example, free, axes


def export(model: MAEPreTrainedModel, path: Path, to: str, processor=None, dynamic_size: bool = False) -> str:
    """Write `model` as one file for any batch size. With `dynamic_size`, height and width may be any multiple of the
    patch. An ONNX graph of 2 GB or more has its weights in a second file.

    The graph's input is `pixel_values` (batch, channels, height, width). It returns `logits` of a model with a head,
    otherwise `last_hidden_state` and `pooler_output` of the encoder. An ONNX graph has the `graph_metadata` of the
    model and the image `processor` in its metadata_props.

    Args:
        to: ``onnx``, or ``torch`` for a torch.export program (.pt2).

    Returns:
        More lines for the user: the metadata, or an empty text.

    Raises:
        UserError: the packages for ONNX are not installed, `path` cannot be written, or the head only works for
            one size and `dynamic_size` is set.
    """
    if to == "onnx":
        try:
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError("--to onnx needs `pip install onnx onnxscript`") from error
    if isinstance(model, MAEForPreTraining):
        if model.config.pooling == "attention":
            raise UserError(
                f"--to {to} cannot carry pooling='attention' of a pre-training checkpoint, which has no queries: "
                "--set pooling=mean, or give a classifier"
            )
        model = model.mae
    example, free, axes = _example(model, dynamic_size, to)
    with torch.no_grad():
        # strict=False, because the positions check whether height and width are free.
        program = torch.export.export(
            _Outputs(model).eval(), (example,), dynamic_shapes={"pixel_values": free}, strict=False
        )
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if to == "torch":
                # Written to memory first, because on a full disk torch's own writer calls abort().
                buffer = io.BytesIO()
                torch.export.save(program, buffer)
                path.write_bytes(buffer.getbuffer())
                return ""
            names = ["logits"] if isinstance(model, MAETunedModel) else ["last_hidden_state", "pooler_output"]
            graph = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=names,
                dynamic_shapes=(axes,),  # the axes' names in the graph
                verbose=False,
            )
            assert graph is not None  # None only without `dynamo`
            metadata = graph_metadata(model, processor)
            graph.model.metadata_props.update(metadata)
            size = sum(value.nbytes for value in model.state_dict().values())
            graph.save(path, external_data=size >= ONNX_FILE_LIMIT)
    shown = {**metadata, "image_mean": metadata.get("image_mean", "not known: the source has no image processor")}
    return "".join(
        f"\n{key:<12} {value if len(value) < 200 else value[:200] + ' ...'}" for key, value in shown.items()
    )
