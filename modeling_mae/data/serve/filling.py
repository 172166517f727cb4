"""All images of a set decoded into memory at the start, by several processes where that is faster."""

import torch
from torch.utils.data import DataLoader, Dataset

from ...errors import UserError
from ..read.arrays import cell_of
from .worker import prepare_worker


PIECE = 500  # images that a process decodes at a time
WORTH_PROCESSES = 32 << 20  # bytes of decoded images; fewer are there before other processes have started


class Pieces(Dataset):
    """The files in pieces of `PIECE`. Reading a piece writes its images into ``pixels (images, channels, height,
    width)`` and gives the images that cannot be read; None where one has another shape."""

    def __init__(self, pixels: torch.Tensor, files):
        self.pixels, self.files = pixels, files
        self.column = files.source.image_column
        self.rows = files.source.dataset.select_columns([self.column])

    def __len__(self) -> int:
        return -(-len(self.files) // PIECE)

    def __getitem__(self, piece: int) -> list[int] | None:
        unread, start = [], piece * PIECE
        for i, cell in enumerate(map(cell_of, self.rows[start : start + PIECE][self.column]), start):
            try:
                image, gone = self.files.decode(cell["bytes"], cell["path"])
            except UserError:
                unread.append(i)
                continue
            if image.shape != self.pixels.shape[1:]:
                return None
            self.pixels[i] = image
            if gone is not None:
                self.files.incomplete[i] = True
        return unread


def fill(pixels: torch.Tensor, files, num_workers: int) -> torch.Tensor | None:
    """Decode all `files` into ``pixels (images, channels, height, width)``. Gives which image stands where
    ``(images,)``; None when one has another shape. `num_workers` processes need pixels in shared memory; 0 takes this
    process.

    Raises:
        UserError: a file is bad, and bad images are errors.
    """
    loader = DataLoader(
        Pieces(pixels, files),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
        multiprocessing_context="fork" if num_workers else None,  # others would get copies of the pixels
        generator=torch.Generator(),  # of its own: the global one must stand where it stood
    )
    stand_ins = torch.arange(len(files))
    for unread in loader:
        if unread is None:
            return None
        for i in unread:  # here, so that messages come in order and once
            image, stand_ins[i] = files.read_or_next(i)
            if image.shape != pixels.shape[1:]:
                return None
            pixels[i] = image
    return stand_ins
