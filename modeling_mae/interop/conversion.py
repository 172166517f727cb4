"""From one checkpoint to another: reads a source, writes a target."""

from pathlib import Path

from transformers import AutoImageProcessor

from ..configuration_mae import MAEConfig
from ..errors import UserError, refuse_missing
from ..modeling_mae import EvalNet, MAEForPreTraining, MAEModel, MAEPreTrainedModel
from .processors import transformers_processor
from .read import read, reading
from .state_dicts import make_config, refuse_contradictions
from .write import export, save, save_timm, to_transformers


FORMATS = ("mae", "transformers", "vit", "timm", "onnx", "torch")
WEIGHT_FILES = {".pth", ".pt", ".bin", ".ckpt", ".safetensors"}


def convert(source: str, target: str | Path, to: str = "mae", dynamic_size: bool = False, **fields) -> str:
    """Read the checkpoint at `source` and write it to `target`.

    Args:
        source: a file, a folder or a Hub id; ours or another project's.
        target: a folder; for ``onnx`` and ``torch`` a file.
        to: one of FORMATS. ``mae`` is ours, ``torch`` a torch.export program. ``transformers`` is
            ViTMAEForPreTraining, ViTForImageClassification or ViTModel, after what the source holds. ``vit`` is the
            same without the decoder.
        dynamic_size: for ``onnx`` and ``torch``, images of any height and width that the patch divides.
        fields: of MAEConfig; they win over what the source says.

    Returns:
        Lines for the user: where the checkpoint is, how to load it, and what is worth a note.

    Raises:
        UserError: when the source cannot be read, the format cannot express it, or the target cannot be written.
    """
    if to not in FORMATS:
        raise UserError(f"to={to!r} is not a format; choose from {', '.join(FORMATS)}")
    if dynamic_size and to not in ("onnx", "torch"):
        raise UserError(f"--dynamic_size true is for --to onnx and --to torch; --to {to} takes any size as it is")
    target = Path(target)
    model, processor = _load(source, fields)
    if to in ("onnx", "torch"):
        return f"written    {target}{export(model, target, to, processor, dynamic_size)}"
    if to == "timm":
        return f"written    {target}: {save_timm(model, target, processor)}"
    if to == "vit" and isinstance(model, MAEForPreTraining):
        model = model.mae
    note = None
    if to in ("transformers", "vit"):
        processor, note = transformers_processor(processor, model.config.num_channels)
        model = to_transformers(model)
    save(model, processor, target)
    line = f"written    {target}: {type(model).__name__}.from_pretrained({str(target)!r})"
    return f"{line}\nnote       {note}" if note else line


def _load(source: str, fields: dict) -> tuple[MAEPreTrainedModel, object | None]:
    """The model and, if there is one, the image processor."""
    path = Path(source)
    # No Hub id looks like this. Asking the Hub for it would take long, and its answer would mislead.
    if path.suffix in WEIGHT_FILES and not path.exists():
        raise UserError(f"{source} does not exist; give a file, a folder with a config.json, or a Hub id")
    refuse_missing(source)
    foreign = read(source, fields.get("image_size"), dict(fields))
    if foreign is not None:
        names = set(foreign.state_dict)
        kind = MAEForPreTraining if "decoder.head.weight" in names else EvalNet if "head.weight" in names else MAEModel
        with reading(source):
            model = kind.from_pretrained(
                None, config=foreign.config, state_dict=foreign.state_dict, image_size=fields.get("image_size")
            )
        return model.eval(), foreign.processor
    with reading(source):
        checkpoint_config = MAEConfig.from_pretrained(source)
        refuse_contradictions(source, checkpoint_config.to_dict(), fields)
        make_config(source, {**checkpoint_config.to_dict(), **fields})  # from_pretrained does not check the fields
        model = _class_of(checkpoint_config).from_pretrained(source, **fields)
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):  # a checkpoint need not have one
        processor = None
    return model.eval(), processor


def _class_of(config: MAEConfig) -> type[MAEPreTrainedModel]:
    """The class that saved a checkpoint of ours."""
    classes = {model.__name__: model for model in (MAEForPreTraining, EvalNet, MAEModel)}
    return classes.get((config.architectures or ["MAEModel"])[0], MAEModel)
