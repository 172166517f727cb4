"""Makes an `MAEConfig` from `--config_name`, `--config_overrides` and `--model_name_or_path`.

The presets in `models/` are published encoders. Base, large and huge are ViT's (arXiv 2010.11929, Table 1), huge with
patches of 14. Tiny and small are DeiT-Ti and DeiT-S (arXiv 2012.12877, Table 1). All have the MAE paper's decoder: 512
wide, 8 blocks, 16 heads (arXiv 2111.06377, Section 4.1 and Appendix A.1). The paper does not train tiny and small.
"""

import dataclasses
import difflib
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from .errors import ArgumentError
from .memory import check_weights_fit


# Fields that do not affect the weights, or follow from options.
FORM_OF_OUTPUTS = ("reshape_hidden_states",)
SEGMENTATION = ("segmentation_head", "semantic_loss_ignore_index", "class_weights", "dice_weight")
PATCH_FIELDS = ("num_channels", "patch_size", "image_size")
DEEPEST = 10  # lists and mappings inside of each other in a recipe
PRESETS = Path(__file__).parent / "models"


def model_settings(config) -> dict[str, Any]:
    """The fields of an `MAEConfig` that decide the weights, by name."""
    others = (*FORM_OF_OUTPUTS, *SEGMENTATION)
    names = [name for name in model_fields() if not name.startswith("_") and name not in others]
    if config.pooling != "attention":
        names = [name for name in names if not name.startswith("num_pooling_")]
    if not config.uniformity_weight:  # older checkpoints do not have it
        names.remove("uniformity_weight")
    return {name: getattr(config, name) for name in names}


def join(values: list | None) -> str:
    """The values of an option as they are typed on the command line."""
    return "(not given)" if values is None else " ".join(map(str, values))


def suggest(name: str, known) -> str:
    """`: did you mean 'x'?` for the known name nearest to `name`, or an empty text if none is near."""
    near = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def model_fields() -> list[str]:
    """The names of the fields that `MAEConfig` adds to transformers' configurations: the architecture."""
    from transformers import PreTrainedConfig

    from modeling_mae.configuration_mae import MAEConfig

    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return [field.name for field in dataclasses.fields(MAEConfig) if field.name not in common]


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """`["image_size=32", "norm_pix_loss=false"]` -> `{"image_size": 32, "norm_pix_loss": False}`; later ones win.

    Raises:
        ArgumentError: no `=`, or a key that is not a field of the model.
    """
    return parse_pairs(overrides, "config_overrides", model_fields, "the model's fields", "mask_ratio=0.75")


def load_yaml(text: str) -> Any:
    """What YAML says. ValueError: nobody can read it, or it holds *aliases, which may lead in a circle."""
    depth = 0
    try:
        for event in yaml.parse(text):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("*aliases are not read: write the value itself")
            if depth > DEEPEST:
                raise ValueError("nested too deeply")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def parse_pairs(pairs: list[str], option: str, known_keys, kind: str, example: str) -> dict[str, Any]:
    """`key=value` texts as a dict. Values are read as YAML, or as a number if YAML would read text, as in 1e-6.

    `known_keys()` returns the valid keys. `option`, `kind` and `example` are for the error message.
    """
    values = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise ArgumentError(f"{option} {text!r} is not of the form key=value, as in {example}")
        keys = known_keys()
        if key not in keys:
            hint = suggest(key, keys) or f", which are: {', '.join(keys)}"
            raise ArgumentError(f"{option} {text!r}: {key!r} is not one of {kind}{hint}")
        try:
            values[key] = load_yaml(value)
        except ValueError:
            raise ArgumentError(f"{option} {text[:99]!r}: cannot read the value {value[:99]!r}") from None
        if isinstance(values[key], str):
            with suppress(ValueError):  # not a number but a name, as in mask_type=block
                values[key] = float(value)
    return values


def _config_file(name: str) -> Path:
    """The JSON file of a preset's name, of a file, or of a folder with a config.json."""
    path = Path(name).expanduser()
    for candidate in (PRESETS / f"{name}.json", path / "config.json", path):
        if candidate.is_file():
            return candidate
    presets = sorted(file.stem for file in PRESETS.glob("*.json"))
    hint = suggest(name, presets) or f", nor a preset: {', '.join(presets)}"
    raise ArgumentError(f"config_name {name!r} is not a JSON file or a folder with a config.json{hint}")


def checkpoint_of(args):
    """The `Checkpoint` named by `model_name_or_path`, with `config_overrides` applied. None for a new model.

    It is fitted to another patch size, and with `new_bands` to another number of bands.

    Raises:
        ArgumentError: the checkpoint does not exist, or the overrides do not fit it.
    """
    from modeling_mae.checkpoint import open_checkpoint
    from modeling_mae.errors import UserError

    if args.model_name_or_path is None:
        return None
    try:
        overrides = parse_overrides(args.config_overrides)
        fitted = _fields_to_fit(args, overrides)
        others = {name: value for name, value in overrides.items() if name not in fitted}
        checkpoint = open_checkpoint(args.model_name_or_path, others, cache_dir=args.cache_dir)
        new_bands = args.new_bands if "num_channels" in fitted else None  # own_images has not chosen the bands yet
        return checkpoint.fitted(fitted, new_bands) if fitted else checkpoint
    except UserError as error:
        raise ArgumentError(f"model_name_or_path: {error}") from error


def _fields_to_fit(args, overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides that a checkpoint's patches are fitted to. Empty if they stay as they are."""
    if args.new_bands is None and "patch_size" not in overrides:
        return {}
    return {name: overrides[name] for name in PATCH_FIELDS if name in overrides}


def starting_weights(name: str) -> tuple[str, str | None]:
    """(the checkpoint that the pre-training in the folder `name` began with, its `new_bands`), as its recipe.yaml
    names them, or arguments.json, or its card.

    Raises:
        ArgumentError: none is named, or it is not there.
    """
    from modeling_mae.checkpoint import open_checkpoint
    from modeling_mae.errors import UserError

    folder = Path(name)
    try:
        recipes = [
            load_yaml(path.read_text())
            for file in ("recipe.yaml", "arguments.json")
            if (path := folder / file).is_file()
        ]
        named = [
            (recipe["model_name_or_path"], recipe.get("new_bands"))
            for recipe in recipes
            if recipe.get("model_name_or_path")
        ]
        if not named and folder.is_dir():
            named = [(base, None) for base in [open_checkpoint(name).card.get("base_model")] if base]
    except (OSError, ValueError, AttributeError, TypeError, UserError) as error:
        raise ArgumentError(
            f"compare start: what {name!r} began with cannot be read ({error}): leave start out"
        ) from None
    if not named:
        raise ArgumentError(
            f"compare start: {name!r} names no weights that its pre-training began with: leave start out"
        )
    start, new_bands = named[0]
    start = start if isinstance(start, str) else str(start[0])
    if not Path(start).exists() and start.count("/") != 1:
        raise ArgumentError(f"compare start: {name!r} began with {start!r}, which is not here: leave start out")
    return start, new_bands


def model_config(args):
    """The `MAEConfig` that `args` (a `ModelArguments`) describes.

    It starts from the configuration of `model_name_or_path` (a Hub id may be downloaded), else from `config_name`,
    else from `MAEConfig`'s defaults. `config_overrides` change its fields.

    Raises:
        ArgumentError: a name is unknown, the values do not make a model, or it does not fit into this machine.
    """
    from huggingface_hub.errors import StrictDataclassError

    from modeling_mae.checked import check, read_json, text
    from modeling_mae.configuration_mae import MAEConfig
    from modeling_mae.errors import UserError

    checkpoint = checkpoint_of(args)
    if checkpoint is not None:
        check_weights_fit(checkpoint.config)
        return checkpoint.config
    overrides = parse_overrides(args.config_overrides)
    values = {}
    if args.config_name is not None:
        file = _config_file(args.config_name)
        try:
            values = check(file, read_json(file.resolve()), {"model_type": text})
        except UserError as error:
            raise ArgumentError(f"config_name {args.config_name!r}: {error}") from None
        kind = values.pop("model_type", MAEConfig.model_type)
        if kind != MAEConfig.model_type:
            raise ArgumentError(f"config_name {args.config_name!r}: {file} describes a {kind!r} model, not an MAE")
    try:
        config = MAEConfig(**{**values, **overrides})
    # Strict dataclasses wrap a validator's error into several lines. transformers does not check the types in a
    # config.json, so a wrong one raises any kind of error.
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        if not isinstance(error, (ValueError, StrictDataclassError)):
            reason = f"the configuration of {args.config_name!r} does not work: {reason}"
        raise ArgumentError(reason) from error
    check_weights_fit(config)
    return config
