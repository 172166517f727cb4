"""`mae convert`."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    parser.add_argument("source", help="a file, a folder or a Hub id, of this or another project")
    parser.add_argument("target", type=Path, help="a folder; for onnx and torch a file")
    parser.add_argument(
        "--to",
        default="mae",
        metavar="FORMAT",
        help="mae: this project's layout (default). transformers: ViTMAEForPreTraining, ViTForImageClassification or "
        "ViTModel, depending on the source. vit: the same without the decoder. timm: a folder for "
        "timm.create_model. onnx, torch (torch.export): a graph that returns the logits of classes or masks, or "
        "features",
    )
    parser.add_argument(
        "--dynamic_size",
        choices=("true", "false"),
        default="false",
        help="true: a graph (onnx, torch) takes images of any height and width that the patch divides",
    )
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of MAEConfig that the source does not have, or to replace the source's. prefix=TEXT: read only "
        "tensors with this prefix, as prefix=teacher.backbone",
    )
    return run


def run(arguments: Namespace) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    dynamic_size = arguments.dynamic_size == "true"
    print(convert(arguments.source, arguments.target, arguments.to, dynamic_size, **parse_fields(arguments.set)))


def convert(source: str, target: str | Path, to: str = "mae", dynamic_size: bool = False, **fields) -> str:
    """Read the checkpoint at `source`, a file, a folder or a Hub id; write it to `target` by `interop.write_model`.

    `fields` of MAEConfig replace the source's. Returns lines for the user.

    Raises:
        UserError: the source cannot be read, the format cannot express it, or the target cannot be written.
    """
    from ..checkpoint import open_checkpoint
    from ..errors import UserError
    from ..interop import FORMATS, write_model

    if to not in FORMATS:
        raise UserError(f"to={to!r} is not a format; choose from {', '.join(FORMATS)}")
    checkpoint = open_checkpoint(source, fields)
    return checkpoint.notes_text() + write_model(checkpoint.model(), checkpoint.processor, target, to, dynamic_size)


def parse_fields(texts: list[str]) -> dict:
    """Parses FIELD=VALUE texts as fields of MAEConfig. A value is JSON, else a plain text, as in pooling=mean.

    Raises:
        UserError: a text has another form, or MAEConfig has no such field.
    """
    from ..configuration_mae import MAEConfig
    from ..errors import UserError

    fields = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or (key != "prefix" and key not in MAEConfig.__dataclass_fields__):
            raise UserError(f"--set {text!r}: write FIELD=VALUE, with a field of MAEConfig, as in pooling=mean")
        try:
            fields[key] = json.loads(value)
        except json.JSONDecodeError:
            fields[key] = value
    return fields
