"""The image processor that is saved beside a model. It does to an image what evaluation does."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...image_processing_mae import MAEImageProcessor
from ..read.bit_depth import WHITE


if TYPE_CHECKING:
    from .images import Images, ImageSettings


BICUBIC = 3  # of PIL's resampling filters


def image_processor(
    size: tuple[int, int],
    mean: list[float],
    std: list[float],
    num_channels: int,
    crop_fraction: float = 1.0,
    white: float = WHITE,
    bands: list[int] | None = None,
    at_own_size: bool = False,
) -> MAEImageProcessor:
    """The processor for images of `size` (height, width) in pixels; for `mean` and `std` white is 1.

    It resizes the shorter side to size / `crop_fraction` and crops the centre (256 and 224 in the paper). If `size` is
    not square, it resizes the whole image. The fraction is kept as well, for a later evaluation by run_eval.py.
    `white` is the value in the files that is white; `bands`, counted from 1, are those of the files that the model
    sees. `at_own_size`: images are neither resized nor cropped, and the processor makes masks of logits.
    """
    height, width = size
    whole = {"height": height, "width": width}
    sizes: dict[str, Any] = {"size": whole}
    if at_own_size:
        sizes["do_resize"] = False
    elif height == width:
        sizes = {"size": {"shortest_edge": round(height / crop_fraction)}, "do_center_crop": True, "crop_size": whole}
    return MAEImageProcessor(
        **sizes,
        resample=BICUBIC,
        image_mean=mean,
        image_std=std,
        num_channels=num_channels,
        crop_fraction=crop_fraction,
        white=white,
        bands=bands,
    )


def processor_of(images: "Images", mean: list[float], std: list[float]) -> MAEImageProcessor:
    """The processor that does to an image what evaluation does with these `images`."""
    return image_processor(
        images.size, mean, std, len(mean), images.crop_fraction, images.white, images.bands, images.at_own_size
    )


@dataclass(frozen=True)
class Processing:
    """What a checkpoint's image processor does to an image before the model sees it."""

    mean: list[float] | None = None
    std: list[float] | None = None
    crop_fraction: float | None = None  # None: it does not say
    white: float | None = None
    bands: list[int] | None = None

    @classmethod
    def given(cls, settings: "ImageSettings") -> "Processing":
        """What the settings say of it."""
        mean, std, fraction = settings.image_mean, settings.image_std, settings.eval_crop_fraction
        return cls(mean, std, fraction, settings.white_value, settings.bands)

    def applied(self, settings: "ImageSettings") -> "ImageSettings":
        """The settings with this crop, white, bands, mean and deviation."""
        return replace(
            settings,
            image_mean=self.mean,
            image_std=self.std,
            eval_crop_fraction=self.crop_fraction,
            white_value=self.white,
            bands=self.bands,
        )

    def replaced_by(self, given: "Processing", say: Callable[[str], None]) -> "Processing":
        """What `given` has, and this for the rest. `say` prints what differs.

        Mean and deviation are on the scale of their white. Those of ordinary images go with any white.
        """
        values, own_values = {}, dict(vars(self))
        if given.white is not None and self.white not in (None, WHITE, given.white):
            for name in ("mean", "std"):
                own_values[name] = [v * self.white / given.white for v in own_values[name] or ()] or None
        for name, own in own_values.items():
            new = getattr(given, name)
            if new is not None and own is not None and new != own:
                say(f"note       {name} {new} as given, in place of the checkpoint's {own}")
            values[name] = own if new is None else new
        return Processing(**values)


def processing_of(processor, name: str = "the checkpoint") -> Processing:
    """What an image processor does. `name` says whose it is.

    Raises:
        UserError: its values make no images.
    """
    mean, std = (_numbers(name, processor, key) for key in ("image_mean", "image_std"))
    if len(mean) != len(std) or min(std) <= 0:
        raise UserError(
            f"{name}: its image processor has image_mean {mean} and image_std {std}: each channel needs a number of "
            "both, and a deviation above 0"
        )
    fraction = getattr(processor, "crop_fraction", None)  # ours say it; of others it follows from the sizes
    white = getattr(processor, "white", None) or WHITE
    try:
        edge = (processor.size or {}).get("shortest_edge")
        if fraction is None and edge and getattr(processor, "do_center_crop", False):
            fraction = processor.crop_size["height"] / edge
        if (fraction is not None and not 0 < fraction <= 1) or not 0 < white < math.inf:
            raise ValueError(f"crop_fraction {fraction} or white {white}")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{name}: its image processor's size, crop or white does not work: {error}") from error
    return Processing(mean, std, fraction, white, getattr(processor, "bands", None))


def _numbers(name: str, processor, key: str) -> list[float]:
    """Mean or deviation of each channel."""
    value = getattr(processor, key, None)
    values = [value] if isinstance(value, (int, float)) else value
    if not isinstance(values, (list, tuple)) or not values:
        raise UserError(f"{name}: its image processor has {key}={value!r}, and needs a number for each channel")
    for number in values:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise UserError(f"{name}: its image processor has {number!r} in {key}, which is not a finite number")
    return list(values)


def choose_processing(
    processing: Processing,
    given: Processing,
    *,
    keeps_crop: bool,
    keeps_white: bool,
    crop_fraction: float,
    say: Callable[[str], None],
) -> Processing:
    """How images are brought to the model: as `given`, else as the checkpoint's image processor does, which is
    `processing`.

    Features mean what they meant in pre-training only under its mean and deviation. The checkpoint's crop holds where
    `keeps_crop`, as where nothing is trained; else `crop_fraction` takes its place where none is given. Without
    `keeps_white` an encoder of ordinary images may be given others.
    """
    if not keeps_crop:
        processing = replace(processing, crop_fraction=None)
    if not keeps_white and processing.white == WHITE:
        processing = replace(processing, white=None)
    processing = processing.replaced_by(given, say)
    return replace(processing, crop_fraction=processing.crop_fraction or crop_fraction)
