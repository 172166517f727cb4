"""Masks as pure functions of noise: the patches with the smallest noise stay visible."""

import math

import torch


def mask_noise(
    mask_type: str,
    batch_size: int,
    grid: tuple[int, int],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Noise ``(batch, patches)`` for any mask ratio: the patches with the smallest values stay visible.

    ``random``: uniform (Section 3, "Masking"). ``block``: random rectangles are masked before the rest (Table 1f;
    aspect ratio 0.3 to 1/0.3, as BEiT draws them). ``grid``: one patch of every 2 x 2 stays visible, the same in all
    images (Table 1f). At lower ratios its diagonal neighbour is the next to stay visible.

    Raises:
        ValueError: `mask_type` is unknown.
    """
    rows, columns = grid
    uniform = torch.rand(batch_size, rows * columns, generator=generator, device=device)
    if mask_type == "random":
        return uniform
    row = torch.arange(rows, device=device).repeat_interleave(columns)  # (patches,)
    column = torch.arange(columns, device=device).repeat(rows)  # (patches,)
    if mask_type == "grid":
        rank = torch.where(row % 2 == column % 2, row % 2, 2 + row % 2)
        return (rank + uniform) / 4
    if mask_type == "block":
        blocks = 32
        area, aspect, top, left = torch.rand(4, batch_size, blocks, 1, generator=generator, device=device).unbind()
        area = (0.08 + 0.22 * area) * rows * columns
        aspect = torch.exp((2 * aspect - 1) * math.log(1 / 0.3))
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        top, left = (top * (rows - height + 1)).floor(), (left * (columns - width + 1)).floor()
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        order = torch.arange(blocks, 0, -1, device=device, dtype=torch.float32)[:, None]
        # 0 outside all blocks. Inside, the value is larger the earlier the first block that covers the patch.
        first = (inside * order).amax(1)  # (batch, patches)
        return (first + uniform) / (blocks + 1)
    raise ValueError(f"mask_type={mask_type!r} is not one of 'random', 'block', 'grid'")


def visible_count(num_patches: int, mask_ratio: float) -> int:
    """How many of `num_patches` stay visible: the floor of patches x (1 - ratio), as in the paper's code.

    Raises:
        ValueError: the ratio leaves no visible or no masked patch.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} is outside (0, 1)")
    # 10 x (1 - 0.9) is 0.9999... in floating point and means 1.
    visible = int(num_patches * (1 - mask_ratio) + 1e-6)
    if visible == 0 or visible == num_patches:
        raise ValueError(
            f"mask_ratio={mask_ratio} of {num_patches} patches leaves {visible} visible; the model needs visible and "
            "masked patches: change the ratio, or use smaller patches"
        )
    return visible


def predicted_count(num_patches: int, prediction_ratio: float, masked: int) -> int:
    """How many of the `masked` patches are predicted: `prediction_ratio` of all patches, rounded up, at most `masked`.
    If `prediction_ratio` equals the mask ratio, every masked patch is predicted.

    Raises:
        ValueError: `prediction_ratio` is outside (0, 1].
    """
    if not 0 < prediction_ratio <= 1:
        raise ValueError(f"prediction_ratio={prediction_ratio} is outside (0, 1]; 1 predicts every masked patch")
    return min(masked, max(1, math.ceil(num_patches * prediction_ratio - 1e-6)))


def last_ids(ids_restore: torch.Tensor, count: int) -> torch.Tensor:
    """The ids ``(batch, count)`` of the patches with the largest noise, in raster order."""
    others = ids_restore < ids_restore.shape[1] - count  # (batch, patches)
    return others.byte().argsort(dim=1, stable=True)[:, :count]


def shuffle_by(noise: torch.Tensor, visible: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From ``noise (batch, patches)``: the ids of the `visible` smallest ``(batch, visible)``; the mask ``(batch,
    patches)``, 1 = masked; and ids_restore ``(batch, patches)``, the inverse of the permutation that sorts the noise.
    """
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)
    places = torch.arange(noise.shape[1], device=noise.device).expand_as(ids_shuffle)
    ids_restore = torch.empty_like(ids_shuffle).scatter_(1, ids_shuffle, places)
    return ids_shuffle[:, :visible], (ids_restore >= visible).float(), ids_restore
