"""Image processors of transformers for ours, and ours for those of transformers."""

from typing import Any

from transformers import BitImageProcessor, ViTImageProcessor

from ..image_processing_mae import EIGHT_BITS, MAEImageProcessor


GRAY_NOTE = (
    "transformers' own image processor does not make images gray: give it gray images (Image.convert('L')), and "
    "use no pipeline, because pipelines make every image RGB"
)


def transformers_processor(processor, num_channels: int) -> tuple[Any, str | None]:
    """(transformers' own processor equivalent to `processor`, a note for the user). Either may be None.

    transformers' processors take gray images unchanged. None of them reliably takes another number of channels, bands
    of an image, or values of more than 8 bits.
    """
    if processor is None:
        return None, "no image processor: the source has none"
    if not isinstance(processor, MAEImageProcessor):
        return processor, None
    if num_channels not in (1, 3):
        return None, f"no image processor: transformers has none for images of {num_channels} channels"
    if processor.bands or processor.white not in (None, EIGHT_BITS):
        return None, "no image processor: transformers has none for chosen bands or for more than 8 bits"
    options, is_rgb = _options(processor), num_channels == 3
    kind = BitImageProcessor if "crop_size" in options else ViTImageProcessor
    return kind(**options, do_convert_rgb=is_rgb), None if is_rgb else GRAY_NOTE


def own_processor(processor):
    """Our processor equivalent to one of transformers' for RGB images. Others, and None, stay."""
    if not isinstance(processor, (BitImageProcessor, ViTImageProcessor)):
        return processor
    fraction = getattr(processor, "crop_fraction", None)  # our runs saved it with transformers' processors once
    return MAEImageProcessor(**_options(processor), num_channels=3, crop_fraction=fraction, white=EIGHT_BITS)


def _options(processor) -> dict[str, Any]:
    """What both kinds of processors know."""
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
    return options
