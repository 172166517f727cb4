"""JPEG files decoded and cropped on a GPU by nvjpeg, through torchvision. Loading workers only read them.

A worker leaves a file to the GPU if it is an ordinary JPEG: gray or YCbCr, not turned by EXIF, not cut off. It decodes
and crops all others itself, as without a GPU. What nvjpeg refuses is decoded by the CPU of the training process. So
bad files meet the rules that they always meet.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg

from ..errors import UserError
from .reduced import orientation_of


AT_ONCE = 1 << 28  # bytes of decoded images on the device
MOST_TIMES = 32  # larger a side may be than the crop's final size. From 47 on torch cannot resize it on a GPU.
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
    """The batches of `loader`, with the files that its workers left encoded decoded and cropped on `device`.

    `crop(image, box)` resizes a crop. `crop_batch(epochs, indices)` gives the batch of files that nvjpeg refuses.
    """

    def __init__(self, loader: DataLoader, device: torch.device, crop: Callable, crop_batch: Callable):
        self.loader, self.device, self.crop, self.crop_batch = loader, device, crop, crop_batch
        self.num_workers = loader.num_workers

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        return (self.finish(batch) if "encoded" in batch else batch for batch in self.loader)

    def finish(self, batch: dict) -> dict:
        """The batch with all its images on the device, at their final size."""
        encoded = batch.pop("encoded")
        epochs, indices = batch.pop("epochs"), batch.pop("indices")
        left = {row for rows in encoded["rows"] for row in rows}
        done = [row for row in range(len(indices)) if row not in left]
        cropped = dict(zip(done, batch["images"].to(self.device, non_blocking=True), strict=True))
        files = encoded["data"].split(encoded["lengths"])
        for rows, image in zip(encoded["rows"], decode_all(files, encoded["shapes"], self.device), strict=True):
            if image is None:
                again = self.crop_batch([epochs[row] for row in rows], [indices[row] for row in rows])
                cropped |= zip(rows, again["images"].to(self.device), strict=True)
                if "labels" in batch:
                    batch["labels"][rows] = again["labels"]  # a stand-in has its own
                continue
            for row in rows:
                crop = self.crop(image, encoded["boxes"][row])
                cropped[row] = crop.flip(2) if encoded["flips"][row] else crop
        return {**batch, "images": torch.stack([cropped[row] for row in range(len(indices))])}


def decode_all(files: list[torch.Tensor], shapes: list, device: torch.device) -> Iterator[torch.Tensor | None]:
    """Each of the `files` uint8 ``(bytes,)`` as uint8 ``(channels, height, width)``; None of what is refused."""
    first, size = 0, 0
    for end, (channels, height, width) in enumerate(shapes, 1):
        size += channels * height * width
        if size >= AT_ONCE or end == len(shapes):
            images = decode_batch(list(files[first:end]), channels, device)
            for image, shape in zip(images, shapes[first:end], strict=True):
                yield image if image is not None and list(image.shape) == list(shape) else None
            first, size = end, 0


def decode_batch(files: list[torch.Tensor], channels: int, device: torch.device) -> list[torch.Tensor | None]:
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    try:
        return decode_jpeg(files, mode, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # of one file; it gives none of the others then
        if len(files) == 1:
            return [None]
        half = len(files) // 2
        return [*decode_batch(files[:half], channels, device), *decode_batch(files[half:], channels, device)]
