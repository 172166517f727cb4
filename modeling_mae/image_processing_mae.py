"""The image processor of checkpoints whose images are not RGB; those of RGB images carry one of transformers' own."""

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs


class MAEImageProcessorKwargs(ImagesKwargs, total=False):
    """`num_channels`: how many channels the model takes. `white`: the pixel value that is white, None for the range of
    the file's type."""

    num_channels: int
    white: float | None


class MAEImageProcessor(PilBackend):
    """Bicubic resize, centre crop on request, scaling to [0, 1], normalisation, for any number of channels.
    transformers' processors and pipelines make every image RGB; this one brings it to the model's `num_channels`:
    luminance for 1, RGB for 3. Arrays with more channels are taken as they are.

    Raises:
        ValueError: for an image whose channels are neither `num_channels` nor convertible to them.
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

    def process_image(self, image, *args, num_channels: int = 1, white: float | None = None, **kwargs) -> np.ndarray:
        if hasattr(image, "getbands") and num_channels in (1, 3):
            if image.mode.startswith(("I", "F")):  # PIL would clip them to 255
                scale = 255 / (white or (65535 if image.mode.startswith("I") else 1))
                image = np.clip(np.round(np.asarray(image, np.float64) * scale), 0, 255).astype(np.uint8)
            else:
                image = np.asarray(image.convert("L" if num_channels == 1 else "RGB"))
        array = np.asarray(image)
        if array.ndim == 2:
            array = array[None]
        elif array.shape[0] != num_channels and array.shape[-1] in (1, 3, num_channels):
            array = np.moveaxis(array, -1, 0)  # (channels, height, width)
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
        height, width = super().resize(image[:1].astype(np.uint8), size, resample=resample, **kwargs).shape[-2:]
        planes = [Image.fromarray(plane.astype(np.float32)).resize((width, height), resample) for plane in image]
        return np.stack(planes)  # (channels, height, width)


__all__ = ["MAEImageProcessor"]
