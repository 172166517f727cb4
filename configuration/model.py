"""From `--config_name`, `--config_overrides` and `--model_name_or_path` to an `MAEConfig`.

The presets in `models/` are the published encoders. Base, large and huge: ViT (arXiv 2010.11929, Table 1), huge with
patches of 14; tiny and small: DeiT-Ti and DeiT-S (arXiv 2012.12877, Table 1). The decoder is the MAE paper's for all
of them, 512 wide, 8 blocks, 16 heads (arXiv 2111.06377, section 4.1 and appendix A.1): for tiny and small the
paper has none of its own.
"""

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any

import yaml


PRESETS = Path(__file__).parent / "models"


def suggest(name: str, known) -> str:
    """`: did you mean 'x'?` for the known name nearest to `name`, or nothing when none is near."""
    near = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def model_fields() -> list[str]:
    """The names of what `MAEConfig` adds to any transformers configuration: its architecture."""
    from transformers import PreTrainedConfig

    from modeling_mae.configuration_mae import MAEConfig

    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return [field.name for field in dataclasses.fields(MAEConfig) if field.name not in common]


def parse_overrides(
    overrides: list[str], option: str = "config_overrides", known: list[str] | None = None
) -> dict[str, Any]:
    """`["image_size=32", "norm_pix_loss=false"]` -> `{"image_size": 32, "norm_pix_loss": False}`; later ones win.

    Values are read as YAML; so are numbers that YAML takes for text, as 1e-6. `known`: the keys there are, the model's
    fields by default. ValueError, which names the `option`: no `=`, an unknown key.
    """
    result = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"{option} {text!r} is not of the form key=value, as in mask_ratio=0.75")
        fields = known or model_fields()
        if key not in fields:
            hint = suggest(key, fields) or f", which are: {', '.join(fields)}"
            whose = "the model's fields" if known is None else "the arguments and the model's fields"
            raise ValueError(f"{option} {text!r}: {key!r} is not one of {whose}{hint}")
        try:
            result[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{option} {text!r}: cannot read the value {value!r}") from None
        if isinstance(result[key], str):
            try:
                result[key] = float(value)
            except ValueError:
                pass  # a name, as in mask_type=block
    return result


def _config_file(name: str) -> Path:
    """The JSON file of a preset's name, of a file, or of a folder with a config.json."""
    path = Path(name).expanduser()
    for candidate in (PRESETS / f"{name}.json", path / "config.json", path):
        if candidate.is_file():
            return candidate
    presets = sorted(file.stem for file in PRESETS.glob("*.json"))
    hint = suggest(name, presets) or f", neither is it a preset: {', '.join(presets)}"
    raise ValueError(f"config_name {name!r} is not a JSON file or a folder with a config.json{hint}")


def _require_own(name: str, cache_dir: str | None) -> None:
    """ValueError for another project's checkpoint, which the scripts do not guess sizes and heads from."""
    from transformers import PreTrainedConfig

    from modeling_mae.configuration_mae import MAEConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(name, cache_dir=cache_dir)
    except OSError:
        return  # nothing there: from_pretrained says so
    kind = values.get("model_type", values.get("architecture"))
    if kind != MAEConfig.model_type:
        raise ValueError(
            f"model_name_or_path {name!r} is another project's checkpoint ({kind}): convert it with "
            f"`python -m modeling_mae.interop {name} FOLDER` and give FOLDER"
        )


def model_config(args):
    """The `MAEConfig` that `args` (a `ModelArguments`) describes.

    The configuration of `model_name_or_path` when that is given (a folder or a Hub id: may download), else that of
    `config_name`, else `MAEConfig`'s defaults; `config_overrides` over it. ValueError, in one line, when a name is
    unknown or the values do not make a model.
    """
    from modeling_mae.configuration_mae import MAEConfig

    overrides = parse_overrides(args.config_overrides)
    values = {}
    if args.config_name is not None:
        file = _config_file(args.config_name)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"config_name {args.config_name!r}: {file} is not JSON: {error}") from None
        kind = values.pop("model_type", MAEConfig.model_type)
        if kind != MAEConfig.model_type:
            raise ValueError(f"config_name {args.config_name!r}: {file} describes a {kind!r} model, not an MAE")
    if args.model_name_or_path is not None:
        _require_own(args.model_name_or_path, args.cache_dir)
    try:
        if args.model_name_or_path is not None:
            return MAEConfig.from_pretrained(args.model_name_or_path, cache_dir=args.cache_dir, **overrides)
        return MAEConfig(**{**values, **overrides})
    except Exception as error:  # strict dataclasses wrap a validator's error in several lines of their own class
        raise ValueError(" ".join(str(error.__cause__ or error).split())) from error
