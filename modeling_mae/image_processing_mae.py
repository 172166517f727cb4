"""The image processor of checkpoints whose images are not RGB; those of RGB images carry one of transformers' own."""

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs


EIGHT_BITS = 255
MOST_MISSING = 0.5  # of a channel


def scaled(values: np.ndarray, white: float) -> np.ndarray:
    """float32 where `white` is 255, not rounded. ValueError for values that training on such images refuses."""
    if values.dtype == np.uint8 and white != EIGHT_BITS:
        raise ValueError(
            f"an image of 8 bits a channel, while white is {white:g} for this model: give an array of the full "
            "values, or white=255"
        )
    is_whole = values.dtype.kind in "iu" and white != 1  # where white is 1, values are taken as they are
    if np.isinf(values).any() or (is_whole and (values.min() < 0 or values.max() > white)):
        raise ValueError(
            f"an image with values from {values.min():g} to {values.max():g}, while 0 is black and {white:g} is white "
            "for this model: give white=..."
        )
    return (values.astype(np.float64) * (EIGHT_BITS / white)).astype(np.float32)


def filled(array: np.ndarray) -> np.ndarray:
    """Every NaN of ``(channels, height, width)`` becomes its channel's mean, as in the training."""
    gone = np.isnan(array)
    if not gone.any():
        return array
    if gone.mean((1, 2)).max() > MOST_MISSING:
        raise ValueError("an image with a channel of which more than half is missing (NaN)")
    means = np.nanmean(array, (1, 2), dtype=np.float64, keepdims=True)
    return np.where(gone, means.astype(array.dtype), array)


class MAEImageProcessorKwargs(ImagesKwargs, total=False):
    """`num_channels`: how many channels the model takes. `white`: the pixel value that is white, None for the range of
    the file's type. `bands`: which bands of an array the model sees, counted from 1. `crop_fraction`: part of the
    shorter side that the evaluation kept; it changes nothing here."""

    num_channels: int
    white: float | None
    bands: list[int] | None
    crop_fraction: float | None


class MAEImageProcessor(PilBackend):
    """Bicubic resize, centre crop on request, scaling to [0, 1], normalisation, for any number of channels.
    transformers' processors and pipelines make every image RGB; this one brings it to the model's `num_channels`:
    luminance for 1, RGB for 3. Arrays with more channels are taken as they are. A model of images with other than 8
    bits has its own `white`: images and arrays are scaled by it and not rounded. NaN becomes its channel's mean.

    Raises:
        ValueError: for an image whose channels are neither `num_channels` nor convertible to them, or whose values are
            not between 0 and `white`.
    """

    valid_kwargs = MAEImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    num_channels = 1
    image_mean = 0.5
    image_std = 0.5
    white = None
    bands = None
    crop_fraction = None

    def process_image(
        self, image, *args, num_channels: int = 1, white: float | None = None, bands=None, **kwargs
    ) -> np.ndarray:
        deep = white not in (None, EIGHT_BITS)
        if hasattr(image, "getbands") and (num_channels in (1, 3) or bands):
            if image.mode.startswith(("I", "F")):  # PIL would clip them to 255
                image = scaled(np.asarray(image), white or (65535 if image.mode.startswith("I") else 1))
                deep = False
            else:
                image = np.asarray(image.convert("L" if num_channels == 1 and not bands else "RGB"))
        array = np.asarray(image)
        if deep:
            array = scaled(array, white)
        if array.ndim == 2:
            array = array[None]
        elif bands:
            array = np.moveaxis(array, -1, 0) if array.shape[-1] < array.shape[0] else array
        elif array.shape[0] != num_channels and array.shape[-1] in (1, 3, num_channels):
            array = np.moveaxis(array, -1, 0)  # (channels, height, width)
        if bands:
            if max(bands) > len(array):
                raise ValueError(f"an image of {len(array)} bands has no band {max(bands)}, which this model sees")
            array = array[[band - 1 for band in bands]]
        if array.dtype.kind == "f":
            array = filled(array)
        if len(array) == 3 and num_channels == 1:
            luminance = np.tensordot([0.299, 0.587, 0.114], array, 1)[None]  # ITU-R 601, as PIL's "L"
            array = luminance.round().astype(np.uint8) if array.dtype == np.uint8 else luminance.astype(array.dtype)
        elif len(array) == 1 and num_channels == 3:
            array = array.repeat(3, axis=0)
        if len(array) != num_channels:
            raise ValueError(f"an image of shape {np.shape(image)} does not have the model's {num_channels} channels")
        return array

    def resize(self, image: np.ndarray, size, resample=None, **kwargs) -> np.ndarray:
        if image.dtype == np.uint8 and len(image) in (1, 3):
            return super().resize(image, size, resample=resample, **kwargs)
        # PIL resizes floats, and more than four channels, one channel at a time only.
        height, width = (
            super().resize(np.zeros_like(image[:1], np.uint8), size, resample=resample, **kwargs).shape[-2:]
        )
        planes = [Image.fromarray(plane.astype(np.float32)).resize((width, height), resample) for plane in image]
        return np.stack(planes)  # (channels, height, width)


__all__ = ["MAEImageProcessor"]
