"""`mae convert`, which is `python -m modeling_mae.interop` too."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    parser.add_argument("source", help="a file, a folder or a Hub id; ours or another project's")
    parser.add_argument("target", type=Path, help="a folder; for onnx and torch a file")
    parser.add_argument(
        "--to",
        default="mae",
        metavar="FORMAT",
        help="mae: this project's layout (default). transformers: ViTMAEForPreTraining, ViTForImageClassification or "
        "ViTModel, after what the source holds. vit: the same without the decoder. timm: a folder for "
        "timm.create_model. onnx, torch (torch.export): a graph that gives a classifier's logits, or else features",
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
        help="fields of MAEConfig, for what the source does not say; they win over what it says",
    )
    return run


def run(arguments: Namespace) -> None:
    from transformers.utils import logging

    from ..interop.conversion import convert

    logging.disable_progress_bar()
    dynamic_size = arguments.dynamic_size == "true"
    print(convert(arguments.source, arguments.target, arguments.to, dynamic_size, **parse_fields(arguments.set)))


def parse_fields(texts: list[str]) -> dict:
    """FIELD=VALUE texts as fields of MAEConfig. A value is JSON; anything else is a name, as in pooling=mean.

    Raises:
        UserError: for another form, and for a field that MAEConfig does not have.
    """
    from ..configuration_mae import MAEConfig
    from ..errors import UserError

    fields = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in MAEConfig.__dataclass_fields__:
            raise UserError(f"--set {text!r}: write FIELD=VALUE, with a field of MAEConfig, as in pooling=mean")
        try:
            fields[key] = json.loads(value)
        except json.JSONDecodeError:
            fields[key] = value
    return fields
