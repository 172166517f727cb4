"""Bytes of an image file -> uint8 tensor. torchvision decodes what it can (twice as fast as PIL), PIL the rest."""

import io
import re
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image


# The decoder only reads the bytes; a writable copy of every file would cost a thirtieth of the decoding.
warnings.filterwarnings("ignore", message="The given buffer is not writable")


class BadImage(ValueError):
    """A file that is no readable image; the message names it."""


def decode(data: bytes | None, path: str | None, num_channels: int) -> torch.Tensor:
    """``(channels, height, width)`` uint8 of an encoded image; 1 channel is luminance, 3 are RGB.

    Orientation from EXIF is applied, CMYK and palettes are converted, 16 bits a channel are scaled to 8, transparency
    is put on white as a browser would show it, and of an animation the first frame is taken.

    Raises:
        BadImage: when the data cannot be decoded; names the file.
        ValueError: for another number of channels.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels={num_channels}: image files are read as 1 (gray) or 3 (RGB) channels")
    name = path or "an image without a name"
    try:
        if data is None:
            with open(path, "rb") as file:
                data = file.read()
        if data[:2] == b"\xff\xd8":
            return _decode_jpeg(data, num_channels)
        return _decode_with_pil(data, num_channels)
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = re.sub(r" ?<_io.BytesIO object at 0x\w+>", "", " ".join(str(error).split()))
        raise BadImage(f"{name} is not a readable image ({reason[:120]})") from error


def _decode_jpeg(data: bytes, num_channels: int) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as header:  # reads the header only
        if header.mode == "CMYK":
            return _decode_with_pil(data, num_channels)
        turned = "exif" in header.info  # looking for an orientation costs a fifteenth of the decoding
    mode = ImageReadMode.GRAY if num_channels == 1 else ImageReadMode.RGB
    return decode_image(torch.frombuffer(data, dtype=torch.uint8), mode, apply_exif_orientation=turned)


def _decode_with_pil(data: bytes, num_channels: int) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        # PIL would clip 16 bits to 255; a float image is taken as 0..1 or 0..255, whichever it fits.
        top = 65535 if image.mode.startswith("I") else (1 if values.max(initial=0) <= 1 else 255)
        image = Image.fromarray(np.clip(np.round(values * (255 / top)), 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("L" if num_channels == 1 else "RGB")
    array = torch.from_numpy(np.array(image))
    return array[None] if num_channels == 1 else array.permute(2, 0, 1).contiguous()
