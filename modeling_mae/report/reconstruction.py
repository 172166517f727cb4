"""Draws what the model sees and what it reconstructs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure

from ..configuration_mae import MAEConfig
from ..masking_mae import mask_noise
from ..words import counted
from .figures import save_figure


PICTURED = 8  # images in the picture of a pre-training
GRAY = 128  # the colour of masked patches
MASKS = {"random": "random", "block": "random rectangles", "grid": "one patch in each 2 x 2 and more"}
STRETCH = (2, 98)  # percentiles that become black and white


@torch.no_grad()
def reconstruct_images(
    model: Any, pixel_values: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the reconstruction, shaped as `pixel_values`, and the mask ``(batch, patches)``.

    The `model`, an MAEForPreTraining, runs in eval mode. Afterwards its previous mode is restored."""
    was_training = model.training
    model.eval()
    outputs = model(pixel_values, noise=noise, prediction_ratio=1)  # every masked patch
    reconstruction = model.reconstruct(pixel_values, outputs)
    model.train(was_training)
    return reconstruction, outputs.mask


@dataclass
class ReconstructionSheet:
    """Draws the same images with the same masks whenever the training asks for a picture."""

    model: torch.nn.Module  # not wrapped; every process must draw, because a sharded model needs all of them
    pixel_values: torch.Tensor  # (images, channels, height, width), normalised
    mean: list[float]
    std: list[float]
    seed: int  # seed of the masks

    @property
    def config(self) -> MAEConfig:
        return cast(MAEConfig, self.model.config)

    def draw(self) -> torch.Tensor:
        """The picture ``(height, width, 3)`` uint8 of `reconstruction_grid`."""
        grid, generator = self.config.grid, torch.Generator().manual_seed(self.seed)
        noise = mask_noise(self.config.mask_type, len(self.pixel_values), grid, generator)  # (images, patches)
        noise = noise.to(self.pixel_values.device)
        reconstruction, mask = reconstruct_images(self.model, self.pixel_values, noise)
        return reconstruction_grid(self.pixel_values, mask, reconstruction, self.mean, self.std, grid)

    def save(self, path: Path, writes: bool) -> torch.Tensor:
        """Draw the picture, and write it as PNG if this process `writes`. Returns the picture."""
        sheet = self.draw()
        if writes:
            save_reconstruction(path, sheet)
        return sheet

    def describe(self, bands: list[int] | None = None) -> str:
        """Describes how the picture is made. `bands` as in `describe_shown`."""
        shown = describe_shown(self.config.num_channels, bands)
        return " ".join(filter(None, [describe_picture(len(self.pixel_values), self.config, self.seed), shown]))


def reconstruction_grid(
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    reconstruction: torch.Tensor,
    mean: list[float],
    std: list[float],
    grid: tuple[int, int],
    gap: int = 2,
) -> torch.Tensor:
    """Puts images side by side: original, masked, reconstruction, one image per row.

    `mean` and `std` undo the normalisation, and `visible_colours` chooses the colours. `grid` is the number of rows
    and columns of patches. `gap` is the width of the white lines between images. Returns ``(height, width, 3)`` uint8.
    """
    original, reconstructed = visible_colours(pixel_values, reconstruction, mean=mean, std=std)
    batch, _, height, width = original.shape
    patch_height, patch_width = height // grid[0], width // grid[1]
    hidden = mask.cpu().bool().view(batch, 1, *grid)
    hidden = hidden.repeat_interleave(patch_height, 2).repeat_interleave(patch_width, 3)  # (batch, 1, height, width)
    masked = torch.where(hidden, torch.tensor(GRAY, dtype=torch.uint8), original)
    sheet = torch.full((batch * (height + gap) - gap, 3 * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for row in range(batch):
        for column, images in enumerate((original, masked, reconstructed)):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = images[row].permute(1, 2, 0)
    return sheet


def visible_colours(
    originals: torch.Tensor, *others: torch.Tensor, mean: list[float], std: list[float]
) -> list[torch.Tensor]:
    """Normalised images ``(batch, channels, height, width)`` as ``(batch, 3, height, width)`` uint8, all alike.

    Images with fewer than three channels show the first channel in gray, others the first three. With more than three
    channels, or values beyond 0..1, they are stretched: the 2nd percentile of the originals is black, the 98th
    white."""
    shown = [_shown(images, mean, std) for images in (originals, *others)]
    sample = shown[0].transpose(0, 1).flatten(1).numpy()  # (3, values)
    low, high = torch.from_numpy(np.percentile(sample, STRETCH, axis=1)).float()  # (3,) each
    if originals.shape[1] > 3 or low.min() < 0 or high.max() > 1:
        low, span = low.view(-1, 1, 1), (high - low).clamp(min=1e-12).view(-1, 1, 1)
        shown = [(images - low) / span for images in shown]
    return [_to_bytes(images) for images in shown]


def describe_picture(images: int, config: MAEConfig, seed: int) -> str:
    """Describes how a `ReconstructionSheet` of this many images was made."""
    words = (
        f"{counted(images, 'training image')}, evenly spaced and without random crops, one per row: the image, the "
        f"image with {100 * config.mask_ratio:g} % of its patches hidden (gray), and the model's reconstruction. "
        f"Masks are {MASKS[config.mask_type]}, drawn from the seed {seed}. Visible patches of the reconstruction are "
        "the image's own."
    )
    if not config.norm_pix_loss:
        return words
    return (
        f"{words} The model predicts normalised patches: in the picture, each prediction gets the mean and deviation "
        "of the hidden patch, which the model does not know."
    )


def describe_shown(channels: int, bands: list[int] | None = None) -> str:
    """Describes which bands the picture shows, and how. Empty for gray and RGB images. `bands` are the channels'
    numbers in the files."""
    if channels in (1, 3) and not bands:
        return ""
    numbers = bands or list(range(1, channels + 1))
    if channels < 3:
        return f"The picture shows band {numbers[0]} in gray."
    sentence = f"The picture shows bands {numbers[0]}, {numbers[1]} and {numbers[2]} as red, green and blue"
    if channels == 3:
        return f"{sentence}."
    return f"{sentence}, each stretched: percentile {STRETCH[0]} is black, percentile {STRETCH[1]} is white."


def _shown(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Normalised images as ``(batch, 3, height, width)`` on the CPU, where white is 1."""
    images = images.cpu().float() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def _to_bytes(images: torch.Tensor) -> torch.Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def save_reconstruction(path: Path, sheet: torch.Tensor) -> None:
    """Writes a `reconstruction_grid` as PNG with titles, enlarged so that small images are visible."""
    save_sheet(path, sheet.numpy(), {1 / 6: "original", 3 / 6: "masked", 5 / 6: "reconstruction"})


def save_sheet(
    path: Path,
    sheet: np.ndarray,
    titles: dict[float, str] | None = None,
    labels: dict[tuple[float, float], str] | None = None,
    inches: float = 6,
) -> None:
    """Writes ``sheet (height, width, 3)`` as PNG, `inches` wide, at 150 pixels per inch.

    `titles` is {share of the width: text above the sheet}, `labels` is {(x, y) in the sheet's pixels: text above that
    point}."""
    height, width = sheet.shape[:2]
    title_inches, sheet_inches = 0.4 if titles else 0.0, inches * height / width
    total_inches = title_inches + sheet_inches
    figure = Figure(figsize=(inches, total_inches), dpi=150)
    axes = figure.add_axes((0, 0, 1, sheet_inches / total_inches))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.axis("off")
    middle = 1 - title_inches / 2 / total_inches
    for place, title in (titles or {}).items():
        figure.text(place, middle, title, ha="center", va="center", size=12)
    for (x, y), label in (labels or {}).items():
        axes.text(x, y, label, ha="center", va="bottom", size=6, parse_math=False)  # a name may hold $
    save_figure(figure, path)
