"""Reconstructions and the loss curve, as files that a person can look at."""

import gc
import os
from pathlib import Path

import torch
from matplotlib.figure import Figure


@torch.no_grad()
def reconstruct_images(model, pixel_values: torch.Tensor, noise: torch.Tensor):
    """(reconstruction as `pixel_values`, mask ``(batch, patches)``), in eval mode; the mode is restored."""
    training = model.training
    model.eval()
    outputs = model(pixel_values, noise=noise)
    reconstruction = model.reconstruct(pixel_values, outputs)
    model.train(training)
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
    """``(height, width, 3)`` uint8: a row an image, original | masked (gray) | reconstruction. One channel is shown
    gray, of more than three the first three; `grid` = (rows, columns) of patches."""

    def to_bytes(images):
        images = images.float() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)

    original, restored = to_bytes(pixel_values.cpu()), to_bytes(reconstruction.cpu())
    batch, _, height, width = original.shape
    hidden = mask.cpu().bool().view(batch, 1, *grid)
    hidden = hidden.repeat_interleave(height // grid[0], 2).repeat_interleave(width // grid[1], 3)
    masked = torch.where(hidden, torch.tensor(128, dtype=torch.uint8), original)
    sheet = torch.full((batch * (height + gap) - gap, 3 * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for row in range(batch):
        for column, images in enumerate((original, masked, restored)):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = images[row].permute(1, 2, 0)
    return sheet


def save_reconstruction(path: Path, sheet: torch.Tensor) -> None:
    """The grid as PNG with titles, enlarged so that small images can be seen."""
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(6, 0.4 + 6 * height / width), dpi=150)
    axes = figure.add_axes((0, 0, 1, 6 * height / width / (0.4 + 6 * height / width)))
    axes.imshow(sheet.numpy(), interpolation="nearest", aspect="auto")
    axes.axis("off")
    for i, title in enumerate(("original", "masked", "reconstruction")):
        figure.text((2 * i + 1) / 6, 1 - 0.2 / (0.4 + 6 * height / width), title, ha="center", va="center", size=12)
    save_figure(figure, path)


def loss_curve(path: Path, log_history: list[dict]) -> None:
    """Loss, and the learning rate on an axis of its own, against epochs."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    epochs = [entry["epoch"] for entry in log_history]
    axes.plot(epochs, [entry["loss"] for entry in log_history], color="tab:blue")
    axes.set(xlabel="epoch", ylabel="loss on masked patches")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(
        epochs, [entry["learning_rate"] for entry in log_history], color="tab:gray", linestyle="--", linewidth=1
    )
    rates.set_ylabel("learning rate (dashed)")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png")
    os.replace(partial, path)
    gc.collect()  # the figures before: each is one large cycle, and left to the collector's time they cost 2 MB each
