"""The masks of a pre-training: a pure function of the seed, the update, and an image's place in the total batch."""

import torch

from ..configuration_mae import MAEConfig
from ..errors import UserError
from ..masking_mae import mask_noise, visible_count
from .resizing import Resizing


class Masks:
    """Draws the noise of the masks for all images of an update at once. So the masks are the same with any number of
    processes, and after a stop."""

    def __init__(self, config: MAEConfig, seed: int, total_batch_size: int, device: torch.device):
        self.config, self.seed, self.total_batch_size = config, seed, total_batch_size
        self.generator = torch.Generator(device)

    def noise(self, update: int, size: tuple[int, int]) -> torch.Tensor:
        """Noise for images of `size` (height, width)."""
        self.generator.manual_seed(self.seed * 2**31 + update)
        grid = grid_of_size(self.config, size)
        device = self.generator.device
        return mask_noise(
            self.config.mask_type, self.total_batch_size, grid, self.generator, device
        )  # (total, patches)


def grid_of_size(config: MAEConfig, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the patches of an image of `size` (height, width) in pixels."""
    (height, width), (patch_height, patch_width) = size, config.patch_height_width
    return height // patch_height, width // patch_width


def check_masks(config: MAEConfig, resizing: Resizing) -> None:
    """Raises a UserError if images of one of the sizes have too few patches to mask."""
    for _, (height, width) in resizing.stages:
        rows, columns = grid_of_size(config, (height, width))
        try:
            visible_count(rows * columns, config.mask_ratio)
        except ValueError as error:
            hint = ", or give --progressive_resizing 0" if (height, width) != resizing.size else ""
            raise UserError(f"images of {height}x{width} pixels: {error}{hint}") from None
