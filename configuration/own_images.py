"""Chooses the settings that you do not give for pre-training on your own images: pure functions of a few facts.

The facts are the number of images, the median height and width of their files in pixels, and the channels. What the
user gives is never changed, and the choices fit it.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

from .checks import check_settings
from .errors import ArgumentError
from .model import PRESETS, checkpoint_of, model_config, model_settings, parse_overrides


# The options that `own_images` chooses. It chooses fields of the model too.
OPTIONS = (
    "total_batch_size",
    "per_device_train_batch_size",
    "num_train_epochs",
    "warmup_epochs",
    "base_learning_rate",
    "crop_scale",
)
PAPER_SIZE, PAPER_GRID = 224, 14  # pixels and patches per side (arXiv 2111.06377)
PATCHES = (2, 4, 8, 16)  # pixels per side
LONG = 2  # images at least this many times as long as wide keep their shape
FORM_OF_DECODER = ("decoder_type", "decoder_reads")  # not chosen
HEAD_WIDTH, DECODER_DEPTH, DECODER_WIDTH = 64, 4, 128  # of the decoder; its width is at least 128
UPDATES_PER_EPOCH = 20  # at least
BATCH_RANGE = (8, 1024)  # images per update
IMAGES_AT_ONCE, MOST_AT_ONCE = 64, 256  # per process; the second with auto_batch_size, which may lower it
EPOCHS_RANGE = (200, 2000)  # epochs: the most up to 10,000 images, the least from 100,000 on
IMAGES_SEEN = 20_000_000  # in total, within that range: 200 epochs of 100,000 images
WARMUP_SHARE = 1 / 20  # of all epochs, as the paper's 40 of 800
PAPER_RATE, PAPER_BATCH = 1.5e-4, 4096
CONTINUED_RATE = 1 / 10  # of the rate for new weights
CROP_RANGE = (0.2, 0.6)  # smallest share of the area: the paper's, and the demo's for images of 28 x 28
CROP_PIXELS = 32 * 32  # pixels that a crop should keep


class Choice(NamedTuple):
    """Settings that belong together, by name, and the reason in a few words."""

    values: dict[str, Any]
    reason: str

    def __str__(self) -> str:
        return f"{_text(self.values)}: {self.reason}"


def choose_model(height: int, width: int, channels: int, hidden_size: int, given: dict[str, Any]) -> list[Choice]:
    """Chooses image size, patch, channels and decoder for an encoder of width `hidden_size`. `given` are the model
    fields that are decided already. The choices fit them."""
    choices = []
    kind = {1: "the images are gray", 3: "the images have colours"}.get(channels, f"the images have {channels} bands")
    choices.append(Choice({"num_channels": channels}, kind))

    sides = _sides(given, "image_size") or _wanted_size(height, width)
    patch = _sides(given, "patch_size") or (_nearest_patch(*sides),) * 2
    if "image_size" not in given:
        sides = [max(2, side // length) * length for side, length in zip(sides, patch, strict=True)]
    rows, columns = (side // length for side, length in zip(sides, patch, strict=True))
    size = sides[0] if sides[0] == sides[1] else list(sides)
    files = f"the files have {width} x {height} pixels (median)"
    why = f"{rows} x {columns} = {rows * columns} tokens per image, the paper's number is 196"
    choices += [Choice({"image_size": size}, files), Choice({"patch_size": patch[0]}, why)]

    half = hidden_size // 2 // HEAD_WIDTH * HEAD_WIDTH
    decoder = (_sides(given, "decoder_hidden_size") or [max(DECODER_WIDTH, half)])[0]
    heads = max(n for n in range(1, max(1, decoder // HEAD_WIDTH) + 1) if decoder % n == 0)
    values = {"decoder_hidden_size": decoder, "decoder_num_hidden_layers": DECODER_DEPTH}
    values |= {"decoder_num_attention_heads": heads, "decoder_intermediate_size": 4 * decoder}
    rule = "" if "decoder_hidden_size" in given else f", half as wide as the encoder and at least {DECODER_WIDTH}"
    choices.append(Choice(values, f"a light decoder is enough for few images{rule}"))
    return _without(choices, given)


def choose_training(
    count: int,
    height: int,
    width: int,
    processes: int,
    given: dict[str, Any],
    max_train_steps: int | None = None,
    most_at_once: int = IMAGES_AT_ONCE,
) -> list[Choice]:
    """Chooses batch, length, rate and crop for `count` images. `given` are the options that are decided already. Each
    of the `processes` gets the same number of images per update, at most `most_at_once` at a time."""
    total = given.get("total_batch_size") or _total_batch(count, processes)
    updates = max(1, count // total)
    why = f"{updates} updates per epoch of {count:,} images; the aim is {UPDATES_PER_EPOCH} or more, of "
    why += f"{BATCH_RANGE[0]} to {BATCH_RANGE[1]} images each"
    choices = [Choice({"total_batch_size": total}, why)]

    share = max(1, total // processes)
    at_once = max(n for n in range(1, min(share, most_at_once) + 1) if share % n == 0)
    why = f"at most {most_at_once} at a time" + (", or what fits" if most_at_once > IMAGES_AT_ONCE else "")
    choices.append(Choice({"per_device_train_batch_size": at_once}, why))

    if max_train_steps:
        epochs, why = max_train_steps / updates, f"max_train_steps {max_train_steps}"
    else:
        lowest, highest = EPOCHS_RANGE
        epochs = given.get("num_train_epochs") or min(max(lowest, IMAGES_SEEN // count // 50 * 50), highest)
        why = f"few images need more epochs: {highest} up to 10,000 images, {lowest} from 100,000 on"
    choices.append(Choice({"num_train_epochs": epochs}, why))
    choices.append(Choice({"warmup_epochs": epochs * WARMUP_SHARE}, "a twentieth of the epochs, as in the paper"))

    # The paper's rate at the paper's batch, scaled by the square root of the batch: the rule for Adam (arXiv
    # 2205.10287, Section 4). The linear rule would make the rates of small batches very low.
    rate = float(f"{PAPER_RATE * math.sqrt(PAPER_BATCH / total):.1e}")
    why = f"a peak of {rate * total / 256:.1e}, the paper's, scaled by the square root of the batch"
    choices.append(Choice({"base_learning_rate": rate}, why))

    papers, largest = CROP_RANGE
    smallest = round(min(max(papers, CROP_PIXELS / (height * width)), largest), 2)
    why = "the paper's" if smallest == papers else f"smaller crops leave too little of {width} x {height} pixels"
    choices.append(Choice({"crop_scale": [smallest, 1.0]}, why))
    return _without(choices, given)


class ImageFacts(Protocol):
    """What `modeling_mae.data.find.facts` finds out about the images."""

    @property
    def count(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...


def settle(args, facts: ImageFacts, processes: int, before: dict[str, Any]) -> tuple[Any, dict[str, Any], list[str]]:
    """(`args`, a `PretrainArguments`, without open settings; the chosen settings by name; a line for each).

    `before` are the chosen settings of the checkpoint that the run goes on from. The run keeps them.

    Raises:
        ArgumentError: the given settings and the choices do not work together.
    """
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    fields = _given_fields(args)
    if args.continue_images:
        _refuse_other_bands(facts.channels, fields.get("num_channels"))
    kept = {name: value for name, value in before.items() if name not in {**options, **fields}}
    kept.pop("per_device_train_batch_size", None)  # it depends on the number of processes, which may change
    given = {**kept, **options, **fields}
    preset = model_config(dataclasses.replace(args, config_overrides=[]))
    encoder = (_sides(given, "hidden_size") or [preset.hidden_size])[0]
    choices = choose_model(facts.height, facts.width, facts.channels, encoder, given)
    most = MOST_AT_ONCE if args.auto_batch_size else IMAGES_AT_ONCE
    choices += choose_training(facts.count, facts.height, facts.width, processes, given, args.max_train_steps, most)
    if args.continue_images:
        choices = [_gentler(choice) for choice in choices]
    lines = [f"as when the run began: {_text(kept)}"] if kept else []
    chosen = dict(kept)
    for choice in choices:
        chosen |= choice.values
    lines += map(str, choices)
    new_options = {name: value for name, value in chosen.items() if name in OPTIONS}
    overrides = [f"{name}={value}" for name, value in chosen.items() if name not in OPTIONS]
    args = dataclasses.replace(args, config_overrides=overrides + args.config_overrides, **new_options)
    check_settings(args)
    return args, chosen, lines


def _given_fields(args) -> dict[str, Any]:
    """The model fields that are decided: the overrides, and the fields of a given checkpoint or JSON file. A continued
    checkpoint leaves open what it does not have, and `new_bands` the number of bands."""
    preset = args.config_name is None or (PRESETS / f"{args.config_name}.json").is_file()
    overrides = parse_overrides(args.config_overrides)
    if args.model_name_or_path is None and preset:
        return overrides
    fields = model_settings(model_config(args))
    open_fields = {"num_channels"} if args.new_bands else set()
    if args.continue_images and not checkpoint_of(args).has_decoder:
        open_fields |= {name for name in fields if name.startswith("decoder_") and name not in FORM_OF_DECODER}
    return {name: value for name, value in fields.items() if name in overrides or name not in open_fields}


def _gentler(choice: Choice) -> Choice:
    """The choice for weights that are trained already."""
    if "base_learning_rate" not in choice.values:
        return choice
    rate = float(f"{CONTINUED_RATE * choice.values['base_learning_rate']:.2g}")
    return Choice({**choice.values, "base_learning_rate": rate}, f"a tenth for trained weights, of {choice.reason}")


def _refuse_other_bands(images: int, model: int | None) -> None:
    """Raises an ArgumentError unless the images have the model's bands, or can get them: gray and colours do."""
    if model is not None and images != model and not {images, model} <= {1, 3}:
        raise ArgumentError(
            f"the images have {images} bands, and the checkpoint takes {model}: give --new_bands mean, random or "
            f"rgb:3,2,1 to fit it, or choose with --bands"
        )


def _sides(given: dict[str, Any], name: str) -> list[int] | None:
    """(height, width) of a field that is one number or two. None if it is not given.

    Raises:
        ArgumentError: it is not a whole number above 0.
    """
    value = given.get(name)
    if value is None:
        return None
    sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ArgumentError(f"config_overrides {name}={value} does not work: give a whole number above 0")
    return sides


def _wanted_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels: as the files, but at most 224 x 224 pixels. Square unless the files are long."""
    shorter = min(height, width)
    if max(height, width) < LONG * shorter:
        return (min(shorter, PAPER_SIZE),) * 2
    scale = min(1, PAPER_SIZE / math.sqrt(height * width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def _nearest_patch(height: int, width: int) -> int:
    """The patch size whose number of tokens is nearest to 14 x 14, with at least two patches per side if possible."""
    fitting = [patch for patch in PATCHES if 2 * patch <= min(height, width)] or PATCHES[:1]
    side = math.sqrt(height * width)
    return min(fitting, key=lambda patch: abs(math.log(side / patch / PAPER_GRID)))


def _total_batch(count: int, processes: int) -> int:
    """Images per update: a power of two for each process, small enough for UPDATES_PER_EPOCH."""
    smallest, largest = BATCH_RANGE
    wanted = min(max(smallest, count // UPDATES_PER_EPOCH), largest, count)
    each = max(1, wanted // processes)
    return processes * 2 ** (each.bit_length() - 1)


def _without(choices: list[Choice], given: dict[str, Any]) -> list[Choice]:
    """The choices without the settings that are given."""
    left = [Choice({name: v for name, v in values.items() if name not in given}, why) for values, why in choices]
    return [choice for choice in left if choice.values]


def _text(values: dict[str, Any]) -> str:
    """The values for a reader. The recipe has all digits."""
    shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())
