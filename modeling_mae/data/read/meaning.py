"""From the numbers of a file to an image, in one order for all kinds of files: equal numbers give equal images.

Colours, then orientation, missing values, the choice of bands or transparency, and at last the scale.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ...image_processing_mae import MOST_MISSING, band_axis
from .bit_depth import WHITE, check_8_bits, scaled
from .faults import BadImage
from .header import upright
from .limits import MOST_PIXELS
from .reduced import Reduction
from .stored import Stored


EXACT = 1 << 24  # whole numbers up to this are exact in float32
HUGE = float(np.finfo(np.float32).max) / 2  # many programs write the lowest number of the type where they have none
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as PIL's "L"


@dataclass(frozen=True)
class Rules:
    """How files become tensors of `num_channels`.

    Of pictures 1 channel is luminance, 3 are RGB. Arrays have any number; see `chosen_bands` and `plain_numbers`.
    `bands`, counted from 1, chooses `num_channels` of an array's bands, or of a picture's red, green, blue and alpha.

    Values of more than 8 bits are scaled, so that `white` becomes 255, and not rounded; None takes the range of the
    file's type.

    `enough_pixels` is for statistics: a larger image is thinned out to no fewer. JPEG is decoded at reduced size then,
    several times faster. `reduction` is for crops: a JPEG file that it allows to be smaller comes as a `ReducedJpeg`.
    """

    num_channels: int
    white: float | None = None
    bands: list[int] | None = None
    enough_pixels: int | None = None
    reduction: Reduction | None = None
    max_image_pixels: int = MOST_PIXELS


@dataclass(frozen=True)
class Numbers:
    """`values (bands, height, width)` are uint8, another unsigned type, or float32; `gone`, of the same shape, is true
    where one was missing, or None if none was; `alpha (height, width)` is 1 where the picture is opaque."""

    values: np.ndarray
    gone: np.ndarray | None
    alpha: np.ndarray | None = None


def image_of(stored: Stored, rules: Rules, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``(num_channels, height, width)``: uint8 of 8 bits, else float32 where 255 is white; and bool of the same shape
    where values were missing, or None if none were. Transparency is shown on white.

    Raises:
        BadImage: the bands or the values do not fit; the message names the file.
    """
    numbers = numbers_of(stored, rules, name)
    values = numbers.values
    if values.dtype == np.uint8:
        check_8_bits(rules.white, name)
        if numbers.alpha is not None or len(values) > rules.num_channels:
            values = _converted_8_bits(numbers, stored.alpha == "premultiplied", rules.num_channels)
    else:
        white = rules.white or (stored.most if values.dtype.kind == "u" else None)
        values = scaled(values, white, name, stored.is_picture)
        if numbers.alpha is not None:
            colours = values if stored.alpha == "premultiplied" else values * numbers.alpha
            values = colours + np.float32(WHITE) * (1 - numbers.alpha)
        if len(values) > rules.num_channels:
            values = np.tensordot(LUMINANCE, values, 1)[None]
    shape = (rules.num_channels, *values.shape[1:])
    image = torch.from_numpy(np.require(np.broadcast_to(values, shape), requirements=["C", "W"]))
    if numbers.gone is None:
        return image, None
    gone = numbers.gone if len(numbers.gone) == rules.num_channels else numbers.gone.any(0, keepdims=True)
    return image, torch.from_numpy(np.array(np.broadcast_to(gone, shape)))


def numbers_of(stored: Stored, rules: Rules, name: str) -> Numbers:
    """The bands of a file that a model sees, not yet scaled: those that are chosen, or as many as its channels; else
    the gray or RGB colours, and their transparency."""
    values = _bands_first(stored, rules, name)
    values = upright(values, stored.orientation)  # (bands, height, width)
    step = max(1, math.isqrt(values[0].size // rules.enough_pixels)) if rules.enough_pixels else 1
    values, gone = values[:, ::step, ::step], None
    if isinstance(stored.missing, np.ndarray):
        gone = np.broadcast_to(upright(stored.missing[None], stored.orientation)[:, ::step, ::step], values.shape)
    elif stored.missing is not None:
        gone = values == (values.dtype.type(stored.missing) if values.dtype.kind == "f" else stored.missing)
    values, gone = _colours(stored, values, gone)
    is_gray, alpha = stored.colour == "gray", None
    is_bands = stored.colour == "bands" or bool(rules.bands) or len(values) == rules.num_channels
    if is_bands and is_gray and rules.bands and len(values) < max(rules.bands) <= 3:
        values, gone = values[:1].repeat(3, 0), None if gone is None else gone[:1].repeat(3, 0)  # red, green and blue
    elif not is_bands and rules.num_channels not in (1, 3):
        raise not_a_picture_of(rules.num_channels, name)
    elif not is_bands and stored.alpha is not None:
        alpha, values, gone = _opacity(values[-1], stored), values[:-1], None if gone is None else gone[:-1]
    if is_bands:
        chosen = chosen_bands(values, rules, name, stored.values.shape)
        gone = None if gone is None else chosen_bands(gone, rules, name, stored.values.shape)
        values = chosen
    most = MOST_MISSING if step == 1 else 1  # what is left of a good image may have more missing
    plain = plain_numbers(values, name, gone, most, rules.bands)
    return Numbers(plain.values, plain.gone, alpha)


def not_a_picture_of(num_channels: int, name: str) -> BadImage:
    return BadImage(
        f"{name} is a picture of 1 (gray) or 3 (RGB) channels, and the model takes {num_channels}: set num_channels"
    )


def _bands_first(stored: Stored, rules: Rules, name: str) -> np.ndarray:
    """``(bands, height, width)`` of a file's numbers, whose bands are in the axis that `band_axis` finds where the
    file does not say it.

    Raises:
        BadImage: the axes do not fit; the message says what to do.
    """
    values, axis = stored.values, stored.axis
    shape = "x".join(map(str, values.shape))
    if values.ndim == 2:
        values, axis = values[None], 0
    if values.ndim != 3:
        raise BadImage(f"{name} has the shape {shape}: save height x width, with bands first or last")
    if not values.size:
        raise BadImage(f"{name} has the shape {shape}, no pixels: remove it")
    if axis is None:
        axis = band_axis(values.shape, rules.num_channels, rules.bands)
        if axis is None:
            raise BadImage(f"{name} has the shape {shape}, whose bands may be first or last: save it in another shape")
    return np.moveaxis(values, axis, 0)


def chosen_bands(values: np.ndarray, rules: Rules, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """``(num_channels, height, width)`` of all bands; a model of three channels gets a single one three times.

    Raises:
        BadImage: the number of bands does not fit. `shape` is that of the file, for the message.
    """
    if rules.bands:
        lacking = [band for band in rules.bands if band > len(values)]
        if lacking:
            raise BadImage(f"{name} has {len(values)} bands, no band {lacking[0]}: give others with --bands")
        return values[[band - 1 for band in rules.bands]]
    if len(values) == 1 and rules.num_channels == 3:
        return values.repeat(3, 0)
    if len(values) != rules.num_channels:
        raise BadImage(
            f"{name} has the shape {'x'.join(map(str, shape))}, {len(values)} bands, and the model takes "
            f"{rules.num_channels} channels: choose with --bands, set num_channels, or fit a checkpoint by --new_bands"
        )
    return values


def _colours(stored: Stored, values: np.ndarray, gone: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Bands where the highest value is white: palettes and inks become RGB, and fewer than 8 bits 8. And where they
    were missing."""
    count, highest = len(values) - (stored.alpha is not None), stored.highest
    colours, rest = values[:count], values[count:]
    if stored.inverted and stored.palette is None:
        colours = _inverted(colours, highest)
    if stored.palette is not None:
        colours = np.moveaxis(stored.palette[np.minimum(colours[0], len(stored.palette) - 1)], -1, 0)
    elif stored.colour == "cmyk":
        colours = _rgb_of_inks(colours, highest)
    if stored.most is not None and highest < WHITE:
        rest = np.round(rest * (WHITE / highest)).astype(np.uint8)
        if stored.palette is None:
            colours = np.round(colours * (WHITE / highest)).astype(np.uint8)
    if gone is not None and len(colours) != count:
        gone = np.concatenate([gone[:count].any(0, keepdims=True).repeat(3, 0), gone[count:]])
    return np.concatenate([colours, rest]) if len(rest) else colours, gone


def _inverted(values: np.ndarray, highest: int) -> np.ndarray:
    if values.dtype.kind == "b":
        return ~values
    if values.dtype.kind == "u":
        return (highest - values).astype(values.dtype)
    return 1 - values if values.dtype.kind == "f" else -1 - values


def _rgb_of_inks(inks: np.ndarray, highest: int) -> np.ndarray:
    """RGB of cyan, magenta, yellow and black, as Pillow makes it of 8 bits."""
    if inks.dtype == np.uint8:
        return np.moveaxis(np.asarray(_image("CMYK", inks).convert("RGB")), -1, 0)
    if inks.dtype.kind == "f":
        return (1 - inks[:3]) * (1 - inks[3:])
    light = (highest - inks.astype(np.float64)) / highest
    return np.round(light[:3] * light[3:] * highest).astype(inks.dtype)


def _image(mode: str, values: np.ndarray) -> Image.Image:
    """A picture of ``(bands, height, width)`` uint8."""
    return Image.frombytes(mode, values.shape[:0:-1], np.moveaxis(values, 0, -1).tobytes())


def on_white(picture: Image.Image) -> Image.Image:
    """A picture with transparency as a browser shows it."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _converted_8_bits(numbers: Numbers, premultiplied: bool, num_channels: int) -> np.ndarray:
    """uint8 gray or RGB of gray or RGB, which may be transparent, as Pillow makes it."""
    colours = np.broadcast_to(numbers.values, (3, *numbers.values.shape[1:]))
    picture = _image("RGB", colours)
    if numbers.alpha is not None:
        opacity = np.round(numbers.alpha[None] * WHITE).astype(np.uint8)
        picture = on_white(_image("RGBa" if premultiplied else "RGBA", np.concatenate([colours, opacity])))
    converted = np.asarray(picture.convert("L" if num_channels == 1 else "RGB"))
    return converted[None] if num_channels == 1 else np.moveaxis(converted, -1, 0)


def _opacity(band: np.ndarray, stored: Stored) -> np.ndarray:
    """``(height, width)`` from 0 to 1."""
    highest = WHITE if band.dtype == np.uint8 else stored.highest
    return np.clip(band.astype(np.float32) / (1 if band.dtype.kind == "f" else highest), 0, 1)


def plain_numbers(
    values: np.ndarray,
    name: str,
    gone: np.ndarray | None = None,
    most_missing: float = MOST_MISSING,
    bands: list[int] | None = None,
) -> Numbers:
    """``(bands, height, width)`` as uint8, as an unsigned type (scaled by its range), or as float32 (taken as it is).

    Yes and no become 255 and 0. Values with a sign are float32. What is `gone`, NaN or beyond half of float32's
    range gets the mean of its band in this image. `bands` are the bands' numbers in the file, for messages.

    Raises:
        BadImage: other kinds of values, infinite ones, or a band with more than `most_missing` of it missing, or all.
    """
    kind = values.dtype
    if kind.kind not in "buif":
        raise BadImage(f"{name} has values of the type {kind}: save whole numbers or decimals")
    if kind.kind == "f":
        none = np.isnan(values)
        if kind.itemsize > 2:
            none |= np.isfinite(values) & (np.abs(values) > HUGE)
        gone = none if gone is None else gone | none
    gone = gone if gone is not None and gone.any() else None
    if kind.kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    elif kind.kind in "ui" and kind.itemsize > 2:
        present = values if gone is None else values[~gone]
        if present.size and max(int(present.max()), -int(present.min())) > EXACT:
            raise BadImage(f"{name} has whole numbers above {EXACT:,}, which float32 does not keep: scale them")
    with np.errstate(over="ignore", invalid="ignore"):
        kind = values.dtype.newbyteorder("=") if values.dtype.kind == "u" else np.dtype(np.float32)
        numbers = values.astype(kind, copy=gone is not None)  # a copy is only filled
    if gone is not None:
        _fill(numbers, gone, name, most_missing, bands or range(1, len(numbers) + 1))
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise BadImage(f"{name} has values that are infinite")
    return Numbers(numbers, gone)


def _fill(numbers: np.ndarray, gone: np.ndarray, name: str, most_missing: float, bands) -> None:
    """Put each band's mean in place of its missing values."""
    for number, band, absent in zip(bands, numbers, gone, strict=True):
        share = absent.mean()
        if share > most_missing or share == 1:
            raise BadImage(f"{name} has more than half of band {number} missing ({share:.0%})")
        if share:
            mean = band[~absent].mean(dtype=np.float64)
            band[absent] = mean if band.dtype.kind == "f" else round(mean)
