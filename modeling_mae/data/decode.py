"""From the bytes of an image file to a uint8 tensor.

torchvision decodes JPEG, twice as fast as PIL. PIL decodes everything else.
"""

import io
import re
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

from ..errors import UserError


# The decoder only reads the bytes. A writable copy of every file would cost a thirtieth of the decoding.
warnings.filterwarnings("ignore", message="The given buffer is not writable")


class BadImage(UserError):
    """A file that cannot be read as an image. The message names it."""


def decode(data: bytes | None, path: str | None, num_channels: int) -> torch.Tensor:
    """``(channels, height, width)`` uint8 of an encoded image; 1 channel is luminance, 3 are RGB.

    The EXIF orientation is applied. CMYK and palettes are converted, 16 bits a channel are scaled to 8. Transparency
    is shown on white, as a browser does. Of an animation the first frame is taken.

    Raises:
        BadImage: the data cannot be decoded; the message names the file.
        UserError: another number of channels.
    """
    if num_channels not in (1, 3):
        raise UserError(f"num_channels={num_channels}: image files are read as 1 (gray) or 3 (RGB) channels")
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
        may_be_turned = "exif" in header.info  # looking for an orientation costs a fifteenth of the decoding
    mode = ImageReadMode.GRAY if num_channels == 1 else ImageReadMode.RGB
    encoded = torch.frombuffer(data, dtype=torch.uint8)
    return decode_image(encoded, mode, apply_exif_orientation=may_be_turned)


def _decode_with_pil(data: bytes, num_channels: int) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        # PIL would clip 16 bits to 255. A float image is taken as 0..1 or 0..255, whichever it fits.
        white = 65535 if image.mode.startswith("I") else (1 if values.max(initial=0) <= 1 else 255)
        image = Image.fromarray(np.clip(np.round(values * (255 / white)), 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    image = image.convert("L" if num_channels == 1 else "RGB")
    array = torch.from_numpy(np.array(image))
    return array[None] if num_channels == 1 else array.permute(2, 0, 1).contiguous()
