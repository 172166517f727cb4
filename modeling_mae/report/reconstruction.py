"""Pictures of what the model sees and what it reconstructs."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from .figures import save_figure


GRAY = 128  # the colour of masked patches


@torch.no_grad()
def reconstruct_images(model, pixel_values: torch.Tensor, noise: torch.Tensor):
    """Returns the reconstruction, of the shape of `pixel_values`, and the mask ``(batch, patches)``.

    The model runs in eval mode and then returns to the mode it was in."""
    was_training = model.training
    model.eval()
    outputs = model(pixel_values, noise=noise, prediction_ratio=1)  # every masked patch
    reconstruction = model.reconstruct(pixel_values, outputs)
    model.train(was_training)
    return reconstruction, outputs.mask


def reconstruction_grid(
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    reconstruction: torch.Tensor,
    mean: list[float],
    std: list[float],
    grid: tuple[int, int],
    gap: int = 2,
) -> torch.Tensor:
    """Puts images side by side: original, masked, reconstruction, one image a row.

    Images with fewer than three channels show the first channel in gray. Images with more show the first three.
    `mean` and `std` undo the normalisation. `grid` is the number of rows and columns of patches. `gap` is the width
    of the white lines between images. Returns ``(height, width, 3)`` uint8."""
    original = _to_bytes(pixel_values, mean, std)
    reconstructed = _to_bytes(reconstruction, mean, std)
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


def _to_bytes(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Normalised images as ``(batch, 3, height, width)`` uint8 on the CPU."""
    images = images.cpu().float() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def save_reconstruction(path: Path, sheet: torch.Tensor) -> None:
    """Writes a `reconstruction_grid` as PNG with titles, enlarged so that small images can be seen."""
    height, width = sheet.shape[:2]
    title_inches, sheet_inches = 0.4, 6 * height / width
    total_inches = title_inches + sheet_inches
    figure = Figure(figsize=(6, total_inches), dpi=150)
    axes = figure.add_axes((0, 0, 1, sheet_inches / total_inches))
    axes.imshow(sheet.numpy(), interpolation="nearest", aspect="auto")
    axes.axis("off")
    middle = 1 - title_inches / 2 / total_inches
    for column, title in enumerate(("original", "masked", "reconstruction")):
        figure.text((2 * column + 1) / 6, middle, title, ha="center", va="center", size=12)
    save_figure(figure, path)
