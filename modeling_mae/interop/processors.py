"""Image processors for folders that must load with transformers alone."""

from typing import Any

from transformers import BitImageProcessor, ViTImageProcessor

from ..image_processing_mae import MAEImageProcessor


GRAY_NOTE = (
    "transformers' own image processor does not make images gray: give it gray images (Image.convert('L')), and "
    "use no pipeline, because pipelines make every image RGB"
)


def transformers_processor(processor, num_channels: int) -> tuple[Any, str | None]:
    """(transformers' own processor equivalent to `processor`, a note for the user). Either may be None.

    Ours is for images that are not RGB. transformers' processors take gray images unchanged. None of them reliably
    takes another number of channels.
    """
    if processor is None:
        return None, "no image processor: the source has none"
    if not isinstance(processor, MAEImageProcessor):
        return processor, None
    if num_channels != 1:
        return None, f"no image processor: transformers has none for images of {num_channels} channels"
    names = "size resample do_resize do_rescale do_normalize do_center_crop crop_size".split()
    names += ["rescale_factor", "image_mean", "image_std"]
    options: dict[str, Any] = {name: getattr(processor, name, None) for name in names}
    for name in ("size", "crop_size"):
        if options[name] is not None:
            options[name] = {edge: value for edge, value in dict(options[name]).items() if value is not None}
    crops = bool(options["do_center_crop"])
    options = {name: value for name, value in options.items() if value is not None and (crops or "crop" not in name)}
    for name in ("image_mean", "image_std"):
        value = options[name]
        options[name] = [value] if isinstance(value, float) else list(value)
    return (BitImageProcessor if crops else ViTImageProcessor)(**options, do_convert_rgb=False), GRAY_NOTE
