"""JPEG files decoded and cropped on a GPU by nvjpeg, through torchvision. Loading workers only read them.

A worker leaves a file to the GPU if it is an ordinary JPEG: gray or YCbCr, not turned by EXIF, not cut off. It decodes
and crops all others itself, as without a GPU. What nvjpeg refuses is decoded by the CPU of the training process. So
bad files meet the rules that they always meet.
"""

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg

from ..errors import UserError
from .crops import crop_and_resize
from .reduced import orientation_of


AT_ONCE = 1 << 27  # bytes of padded crops on the device; resizing them takes about seven times as much
MOST_TIMES = 32  # a side that is longer than this many final sizes is left to the CPU: its resize needs many weights
END_OF_IMAGE = b"\xff\xd9"


@dataclass
class EncodedJpeg:
    """A file that is left to the device. `shape` (channels, height, width) is what it will be decoded to."""

    data: bytes
    shape: tuple[int, int, int]


def leave_to_device(data: bytes, num_channels: int, size: tuple[int, int]) -> EncodedJpeg | None:
    """The JPEG file `data` for a model that takes `size` (height, width); None where the CPU has to decode it."""
    if not data.rstrip(b"\0").endswith(END_OF_IMAGE):
        return None
    try:
        with Image.open(io.BytesIO(data)) as header:
            usual = header.mode == "L" or (header.mode == "RGB" and header.info.get("adobe_transform", 1) == 1)
            if not usual or orientation_of(header) != 1:
                return None
            width, height = header.size
    except Exception:  # whatever PIL raises: the usual way of decoding says what is wrong
        return None
    if height > MOST_TIMES * size[0] or width > MOST_TIMES * size[1]:
        return None
    return EncodedJpeg(data, (num_channels, height, width))


def check_pictures(ranges: list[tuple[str, str, float]], bands: list[int] | None, num_channels: int) -> None:
    """UserError for images that no GPU decodes. `ranges` are those of `common_white`."""
    reasons = [f"{name} has {kind}" for name, kind, _ in ranges if kind != "8 bits"]
    if bands:
        reasons.append(f"bands {bands} are chosen")
    if num_channels not in (1, 3):
        reasons.append(f"the model takes {num_channels} channels")
    if reasons:
        raise UserError(
            f"decode_device cuda is for pictures of 8 bits, gray or RGB, and {reasons[0]}: give --decode_device cpu"
        )


def pack(images: list, boxes: torch.Tensor, flips: torch.Tensor, asked: list[int]) -> dict:
    """Those of a batch's `images` that are left to the device, in few tensors: each one that a worker hands over takes
    a descriptor of the system. Images asked for by the same index are one file."""
    rows: dict[int, list[int]] = {}
    for row, (image, index) in enumerate(zip(images, asked, strict=True)):
        if isinstance(image, EncodedJpeg):
            rows.setdefault(index, []).append(row)
    files = [images[first] for first, *_ in rows.values()]
    return {
        "data": torch.frombuffer(bytearray(b"".join(file.data for file in files)), dtype=torch.uint8),  # (bytes,)
        "lengths": [len(file.data) for file in files],
        "shapes": [file.shape for file in files],
        "rows": list(rows.values()),
        "boxes": boxes.tolist(),
        "flips": flips.tolist(),
    }


class DeviceLoader:
    """The batches of `loader`, with the files that its workers left encoded decoded and cropped to `size` (height,
    width) on `device`.

    `crop_batch(epochs, indices)` gives the batch of files that nvjpeg refuses.
    """

    def __init__(self, loader: DataLoader, device: torch.device, size: tuple[int, int], crop_batch: Callable):
        self.loader, self.device, self.size, self.crop_batch = loader, device, size, crop_batch
        self.num_workers = loader.num_workers

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        return (self.finish(batch) if "encoded" in batch else batch for batch in self.loader)

    def finish(self, batch: dict) -> dict:
        """The batch with all its images on the device, at their final size."""
        encoded = batch.pop("encoded")
        epochs, indices = batch.pop("epochs"), batch.pop("indices")
        shape = (len(indices), encoded["shapes"][0][0], *self.size)
        images = torch.empty(shape, dtype=torch.uint8, device=self.device)  # (batch, channels, height, width)
        refused = []
        files = encoded["data"].split(encoded["lengths"])
        for group in groups(encoded["shapes"], [len(rows) for rows in encoded["rows"]]):
            crops = {}
            decoded = decode_batch(list(files[group]), shape[1], self.device)
            for rows, expected, image in zip(encoded["rows"][group], encoded["shapes"][group], decoded, strict=True):
                if image is None or tuple(image.shape) != tuple(expected):
                    refused += rows
                    continue
                for row in rows:
                    top, left, height, width = encoded["boxes"][row]
                    crops[row] = image[:, top : top + height, left : left + width]
            if crops:
                flips = torch.tensor([encoded["flips"][row] for row in crops])
                images[list(crops)] = resize_all(list(crops.values()), flips, self.size)
        encoded_rows = {row for rows in encoded["rows"] for row in rows}
        images[[row for row in range(len(indices)) if row not in encoded_rows]] = batch["images"].to(self.device)
        if refused:
            again = self.crop_batch([epochs[row] for row in refused], [indices[row] for row in refused])
            images[refused] = again["images"].to(self.device)
            if "labels" in batch:
                batch["labels"][refused] = again["labels"]  # a stand-in has its own
        return {**batch, "images": images}


def groups(shapes: list[tuple[int, int, int]], crops: list[int]) -> Iterator[slice]:
    """Which neighbours among files are decoded at once. There are so many `crops` of each: all take at most `AT_ONCE`
    bytes, if they are as high and wide as the largest file."""
    first, count, height, width = 0, 0, 0, 0
    for i, (channels, h, w) in enumerate(shapes):
        count, height, width = count + crops[i], max(height, h), max(width, w)
        if i > first and count * channels * height * width > AT_ONCE:
            yield slice(first, i)
            first, count, height, width = i, crops[i], h, w
    yield slice(first, len(shapes))


def resize_all(crops: list[torch.Tensor], flips: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 ``(channels, any height, any width)`` each -> uint8 ``(crops, channels, *size)``, as torchvision resizes
    them, to one level of 255. These are a few calls for all crops: calls for each would keep the process busy."""
    boxes = torch.tensor([[0, 0, *crop.shape[1:]] for crop in crops])
    height, width = boxes[:, 2:].amax(0).tolist()
    padded = crops[0].new_zeros(len(crops), len(crops[0]), height, width)
    for place, crop in zip(padded, crops, strict=True):
        place[:, : crop.shape[1], : crop.shape[2]] = crop
    return crop_and_resize(padded, boxes, flips, size).round_().to(torch.uint8)


def decode_in_own_stream(files: list[torch.Tensor], mode: ImageReadMode, device: torch.device) -> list[torch.Tensor]:
    """`decode_jpeg`, into the memory of another stream than the training's.

    nvjpeg does not wait for kernels that are queued. They may still read memory that was freed in the training's
    stream (pytorch/vision 9606)."""
    if device.type != "cuda":
        return decode_jpeg(files, mode, device)
    usual, own = torch.cuda.current_stream(device), decoding_stream(device)
    with torch.cuda.stream(own):
        images = decode_jpeg(files, mode, device)
    usual.wait_stream(own)
    for image in images:
        image.record_stream(usual)  # its memory is free when the GPU has read it
    return images


@functools.cache
def decoding_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def decode_batch(files: list[torch.Tensor], channels: int, device: torch.device) -> list[torch.Tensor | None]:
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    try:
        return decode_in_own_stream(files, mode, device)
    except RuntimeError as error:  # of one file; it gives none of the others then
        if "out of memory" in str(error):  # torchvision raises it as any other
            raise
        if len(files) == 1:
            return [None]
        half = len(files) // 2
        return [*decode_batch(files[:half], channels, device), *decode_batch(files[half:], channels, device)]
