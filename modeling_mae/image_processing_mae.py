"""The image processor of checkpoints: it gives a model the pixels that it is trained on."""

from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps
from transformers import ImagesKwargs, PilBackend
from transformers.image_utils import SizeDict
from transformers.utils import logging


logger = logging.get_logger(__name__)

EIGHT_BITS = 255
MOST_MISSING = 0.5  # share of a band; an image that lacks more is bad
HUGE = float(np.finfo(np.float32).max) / 2  # many programs write the lowest number of the type where they have none


def band_axis(shape: tuple[int, int, int], num_channels: int, bands: list[int] | None) -> int | None:
    """The axis of an array that holds the bands, 0 or 2. None if it could be both.

    It is the axis as long as `num_channels`. If neither fits, or `bands` are chosen, it is the shorter one.
    """
    first, last = shape[0], shape[2]
    fits = (first < last, last < first) if bands else (first == num_channels, last == num_channels)
    if all(fits) or (bands and first == last):
        return None
    return 0 if fits[0] or (first < last and not fits[1]) else 2


def picture_values(image: Image.Image, num_channels: int, bands: list[int] | None) -> np.ndarray:
    """``(height, width)`` or ``(height, width, bands)`` of a PIL image, as in training: upright, palettes as
    colours, and transparency on white unless its band is asked for."""
    image = image.copy()
    # They can hold an orientation, which does not count, as in browsers.
    for name in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        image.info.pop(name, None)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode in ("1", "La"):
        image = image.convert("L" if image.mode == "1" else "LA")
    elif image.mode not in ("L", "LA", "RGBA"):
        image = image.convert("RGB")
    if bands:
        return np.asarray(image.convert("RGB") if image.mode == "L" and max(bands) > 1 else image)
    if len(image.getbands()) != num_channels and num_channels in (1, 3):
        if "A" in image.getbands():
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if num_channels == 1 else "RGB")
    return np.asarray(image)


def scaled(values: np.ndarray, white: float, limited: bool) -> np.ndarray:
    """Scales values to float32 with white at 255, without rounding; NaN where nothing was measured. ValueError for
    values that training refuses, as those above white if it is `limited`."""
    if values.dtype == np.uint8 and white != EIGHT_BITS:
        raise ValueError(
            f"an image of 8 bits per channel, but white is {white:g} for this model: give an array of the full "
            "values, or white=255"
        )
    if np.isinf(values).any() or (limited and values.dtype.kind == "u" and values.max() > white):
        raise ValueError(
            f"an image with values from {values.min():g} to {values.max():g}, but 0 is black and {white:g} is white "
            "for this model: give white=..."
        )
    values = values.astype(np.float64)
    values[np.abs(values) > HUGE] = np.nan
    return (values * (EIGHT_BITS / white)).astype(np.float32)


def filled(array: np.ndarray, bands: list[int] | None = None) -> np.ndarray:
    """Replaces each NaN of ``(channels, height, width)`` by its channel's mean, as in training.

    `bands` are the channels' numbers in the file, for messages."""
    gone = np.isnan(array)
    if not gone.any():
        return array
    shares = gone.mean((1, 2))
    if shares.max() > MOST_MISSING:
        band = (bands or range(1, len(shares) + 1))[int(shares.argmax())]
        raise ValueError(f"an image with more than half of band {band} missing ({shares.max():.0%})")
    means = np.nanmean(array, (1, 2), dtype=np.float64, keepdims=True)
    return np.where(gone, means.astype(array.dtype), array)


def bands_first(array: np.ndarray, num_channels: int, bands: list[int] | None, layout: str | None) -> np.ndarray:
    """The chosen `bands` as ``(bands, height, width)``. `layout` is `channels_first`, `channels_last`, or None: then
    `band_axis` finds the axis. Gray and RGB arrays pass, because they may be converted to `num_channels` later."""
    if array.ndim == 2:
        array, layout = array[None], "channels_first"
    if layout is None and array.ndim == 3:
        axis = band_axis(array.shape, num_channels, bands)
        if not bands and num_channels not in (array.shape[0], array.shape[2]):
            axis = 2 if array.shape[2] in (1, 3) else 0
        if axis is None:
            raise ValueError(
                f"an array of shape {array.shape}, whose bands may be first or last: give "
                'input_data_format="channels_first" or "channels_last"'
            )
        layout = "channels_last" if axis == 2 else "channels_first"
    if layout == "channels_last":
        array = np.moveaxis(array, -1, 0)
    if bands and max(bands) > len(array):
        raise ValueError(f"an image of {len(array)} bands has no band {max(bands)}, but this model needs it")
    return array[[band - 1 for band in bands]] if bands else array


def with_channel(images, layout: str | None):
    """The images, where arrays and tensors ``(height, width)`` have a channel."""
    if isinstance(images, (list, tuple)):
        return [with_channel(image, layout) for image in images]
    if getattr(images, "ndim", 0) == 2:
        return images[..., None] if layout == "channels_last" else images[None]
    return images


class MAEImageProcessorKwargs(ImagesKwargs, total=False):
    """`num_channels`: how many channels the model takes. `white`: the pixel value of white, None for the largest value
    of the file's type. `bands`: which bands of an array the model sees, counted from 1. `crop_fraction`: the share of
    the shorter side that the evaluation kept; this class does not use it."""

    num_channels: int
    white: float | int | None
    bands: list[int] | None
    crop_fraction: float | int | None


class MAEImageProcessor(PilBackend):
    """Bicubic resize, centre crop on request, scaling to [0, 1], normalisation, for any number of channels.
    transformers' processors and pipelines make every image RGB. This one converts it to the model's `num_channels`:
    luminance for 1, RGB for 3. Arrays with more channels stay as they are. If the model's images do not have 8 bits,
    images and arrays are scaled by `white` and not rounded. NaN becomes its channel's mean.

    Raises:
        ValueError: an image's channels are neither `num_channels` nor convertible to them, or it has 8 bits and the
            model's images do not, or the values of a picture are above `white`.
    """

    valid_kwargs = MAEImageProcessorKwargs
    resample = Image.Resampling.BICUBIC
    size: ClassVar[dict[str, int]] = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    num_channels = 1
    image_mean = 0.5
    image_std = 0.5
    white = None
    bands = None
    crop_fraction = None

    def __init__(self, **kwargs: Any):  # the types of the base class lack MAEImageProcessorKwargs
        super().__init__(**kwargs)

    def process_image(
        self, image, *args, num_channels=1, white: float | None = None, bands=None, input_data_format=None, **kwargs
    ) -> np.ndarray:
        is_picture = isinstance(image, Image.Image)
        array = picture_values(image, num_channels, bands) if is_picture else np.asarray(image)
        if is_picture and array.dtype != np.uint8:
            white = white or (65535 if image.mode.startswith("I") else 1)
        elif white == EIGHT_BITS:
            white = None
        if white is not None:
            array = scaled(array, white, is_picture and image.format != "TIFF")
        array = bands_first(array, num_channels, bands, "channels_last" if is_picture else input_data_format)
        if array.dtype.kind == "f":
            array = filled(array, bands)
        if len(array) == 3 and num_channels == 1:
            luminance = np.tensordot([0.299, 0.587, 0.114], array, 1)[None]  # ITU-R 601, as PIL's "L"
            array = luminance.round().astype(np.uint8) if array.dtype == np.uint8 else luminance.astype(array.dtype)
        elif len(array) == 1 and num_channels == 3:
            array = array.repeat(3, axis=0)
        if len(array) != num_channels:
            raise ValueError(f"an image of shape {np.shape(image)} does not have the model's {num_channels} channels")
        return array

    def preprocess(self, images, *args, **kwargs):
        return super().preprocess(with_channel(images, kwargs.get("input_data_format")), *args, **kwargs)

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        resample: Image.Resampling | None = None,
        reducing_gap: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        if image.dtype == np.uint8 and len(image) in (1, 3):
            return super().resize(image, size, resample, reducing_gap, **kwargs)
        # PIL resizes floats, and more than four channels, one channel at a time only.
        sample = super().resize(np.zeros_like(image[:1], np.uint8), size, resample, reducing_gap, **kwargs)
        height, width = sample.shape[-2:]
        planes = [Image.fromarray(plane.astype(np.float32)).resize((width, height), resample) for plane in image]
        return np.stack([np.asarray(plane) for plane in planes])  # (channels, height, width)

    def rescale(self, image: np.ndarray, scale: float, *args, **kwargs) -> np.ndarray:
        if image.dtype.kind == "f" and 0 < image.max() <= 1:
            # Not an error: an almost black image has such values too. transformers' processors warn as well.
            logger.warning_once("An image's values lie between 0 and 1, but white is 255: give do_rescale=False.")
        return super().rescale(image, scale, *args, **kwargs)

    def post_process_semantic_segmentation(self, outputs, target_sizes=None) -> list:
        """Class numbers ``(height, width)`` of each image, of the outputs of MAEForSemanticSegmentation. Their logits
        are brought to the `target_sizes` (height, width) bilinearly first, where these are given.

        Raises:
            ValueError: there are not as many sizes as images.
        """
        import torch.nn.functional as F

        logits = outputs.logits  # (batch, labels, height, width)
        if target_sizes is None:
            return list(logits.argmax(1))
        if len(target_sizes) != len(logits):
            raise ValueError(f"{len(target_sizes)} target_sizes for {len(logits)} images: give one for each")
        return [
            F.interpolate(one[None], size=tuple(map(int, size)), mode="bilinear", align_corners=False)[0].argmax(0)
            for one, size in zip(logits, target_sizes, strict=True)
        ]


__all__ = ["MAEImageProcessor"]
