"""Convert a checkpoint between this project's layout and other projects'."""

import argparse
import json
import sys
from pathlib import Path

from transformers.utils import logging

from ..configuration_mae import MAEConfig
from ..errors import UserError
from .conversion import FORMATS, convert


def parse_fields(texts: list[str]) -> dict:
    """FIELD=VALUE texts as fields of MAEConfig. A value is JSON; anything else is a name, as in pooling=mean.

    Raises:
        UserError: for another form, and for a field that MAEConfig does not have.
    """
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modeling_mae.interop", description=__doc__)
    parser.add_argument("source", help="a file, a folder or a Hub id; ours or another project's")
    parser.add_argument("target", type=Path, help="a folder; for onnx and torch a file")
    parser.add_argument(
        "--to",
        default="mae",
        choices=FORMATS,
        help="mae: this project's layout (default). transformers: ViTMAEForPreTraining, ViTForImageClassification or "
        "ViTModel, after what the source holds. vit: the same without the decoder. timm: a folder for "
        "timm.create_model. onnx, torch (torch.export): a graph that gives a classifier's logits, or else features",
    )
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of MAEConfig, for what the source does not say; they win over what it says",
    )
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    try:
        print(convert(arguments.source, arguments.target, arguments.to, **parse_fields(arguments.set)))
    except UserError as error:
        sys.exit(f"modeling_mae.interop: error: {error}")


if __name__ == "__main__":
    main()
