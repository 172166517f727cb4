"""The image processor that is saved beside a model: what evaluation does to an image, for transformers' own tools."""

from transformers import AutoImageProcessor, BitImageProcessor, ViTImageProcessor

from ..image_processing_mae import MAEImageProcessor


def image_processor(
    size: tuple[int, int], mean: list[float], std: list[float], num_channels: int, crop_fraction: float = 1.0
):
    """What evaluation does: resize the shorter side to size / `crop_fraction`, bicubic, and crop the central `size`
    (256 and 224 in the paper). For a `size` (height, width) that is no square, for which transformers' processors
    cannot do this, images are resized to it as a whole. `mean`, `std`: where white is 1. One of transformers' own
    processors for RGB, which load without code of ours; `MAEImageProcessor` otherwise."""
    shared = {"resample": 3, "image_mean": mean, "image_std": std}
    height, width = size
    if num_channels == 3:
        plain, cropping = ViTImageProcessor, BitImageProcessor
        shared["do_convert_rgb"] = True
    else:
        plain = cropping = MAEImageProcessor
        shared["num_channels"] = num_channels
    if height == width:
        edge = round(height / crop_fraction)
        crop = {"height": height, "width": width}
        return cropping(size={"shortest_edge": edge}, do_center_crop=True, crop_size=crop, **shared)
    return plain(size={"height": height, "width": width}, **shared)


def checkpoint_mean_std(name_or_path: str | None) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of the checkpoint's image processor; None where it has none."""
    if name_or_path is None:
        return None
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError):
        return None
    return list(processor.image_mean), list(processor.image_std)
