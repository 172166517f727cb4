"""The image processor that is saved beside a model. It does to an image what evaluation does."""

from transformers import AutoImageProcessor, BitImageProcessor, ViTImageProcessor

from ..image_processing_mae import MAEImageProcessor


BICUBIC = 3  # of PIL's resampling filters


def image_processor(
    size: tuple[int, int], mean: list[float], std: list[float], num_channels: int, crop_fraction: float = 1.0
):
    """The processor for images of `size` (height, width) in pixels; for `mean` and `std` white is 1.

    It resizes the shorter side to size / `crop_fraction` and crops the centre (256 and 224 in the paper).
    transformers' processors cannot do this for a `size` that is not square: then the whole image is resized.
    RGB images get one of transformers' own processors, which load without our code.
    """
    shared = {"resample": BICUBIC, "image_mean": mean, "image_std": std}
    height, width = size
    if num_channels == 3:
        resizing, cropping = ViTImageProcessor, BitImageProcessor
        shared["do_convert_rgb"] = True
    else:
        resizing = cropping = MAEImageProcessor
        shared["num_channels"] = num_channels
    if height == width:
        edge = round(height / crop_fraction)
        crop = {"height": height, "width": width}
        return cropping(size={"shortest_edge": edge}, do_center_crop=True, crop_size=crop, **shared)
    return resizing(size={"height": height, "width": width}, **shared)


def checkpoint_mean_std(name_or_path: str | None) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of the checkpoint's image processor; None where it has no processor."""
    if name_or_path is None:
        return None
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError):
        return None
    return list(processor.image_mean), list(processor.image_std)
