"""What the app shows, as pure functions of tensors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib import colormaps

from ..errors import UserError
from ..masking_mae import mask_noise, visible_count
from ..modeling_mae import MAELayer


LONGER_SIDE = 448  # pixels of an enlarged picture, approximately
SMALL_SIDE = 112  # pixels of a picture in a gallery, approximately
HIDDEN = 128  # the gray of hidden patches
MARK = (255, 64, 32)  # the colour of the frame around a chosen patch
HEAT = "inferno"  # a colour map of matplotlib
HEAT_SHARE = 0.7  # opacity of a heat map over its image


# --- masks ---


def drawn_mask(kind: str, ratio: float, grid: tuple[int, int], seed: int) -> torch.Tensor:
    """Bool ``(patches,)``, true = hidden, as `mask_noise` draws it.

    Raises:
        UserError: the ratio leaves no patch visible or none hidden.
    """
    noise = mask_noise(kind, 1, grid, torch.Generator().manual_seed(seed))[0]  # (patches,)
    try:
        visible = visible_count(len(noise), ratio)
    except ValueError as error:
        raise UserError(str(error)) from None
    return noise.argsort(stable=True).argsort() >= visible


def toggled(mask: torch.Tensor, patch: int) -> torch.Tensor:
    """`mask` ``(patches,)`` with this patch switched between hidden and visible."""
    changed = mask.clone()
    changed[patch] = ~changed[patch]
    return changed


def patch_at(x: int, y: int, size: Sequence[int], grid: tuple[int, int]) -> int:
    """The patch, in raster order, at a point of a picture of `size` (height, width) in pixels."""
    row, column = int(y) * grid[0] // size[0], int(x) * grid[1] // size[1]
    return min(max(row, 0), grid[0] - 1) * grid[1] + min(max(column, 0), grid[1] - 1)


# --- the encoder's attention and features ---


@torch.no_grad()
def attention_of(layer: MAELayer, tokens: torch.Tensor, query: int) -> torch.Tensor:
    """How much token `query` attends to each token in this block, ``(tokens,)``: the mean over the heads, with sum 1.

    `tokens` ``(1, tokens, width)`` is the block's input. Token 0 is the class token.
    """
    attention = layer.attention
    queries, keys, _ = attention.qkv(layer.norm1(tokens))[0].chunk(3, dim=-1)  # (tokens, width)
    queries = queries[query].unflatten(0, (-1, 1, attention.head_dim))  # (heads, 1, head width)
    keys = keys.unflatten(1, (-1, attention.head_dim)).transpose(0, 1)  # (heads, tokens, head width)
    scores = queries @ keys.mT * attention.scaling  # (heads, 1, tokens)
    return scores.softmax(-1, dtype=torch.float32)[:, 0].mean(0)


def principal_components(features: torch.Tensor, count: int = 3) -> torch.Tensor:
    """The first principal components ``(patches, count)`` of ``features (patches, width)``, by falling variance.

    A component's sign is arbitrary. Here the value of largest magnitude is positive. If there are fewer than `count`
    components, the others are zero.
    """
    centred = features.double() - features.double().mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred)  # rising
    most = values[-1].clamp(min=0)
    count_here = int((values[-count:] > 1e-10 * most).sum()) if most > 0 else 0
    components = centred @ directions.flip(1)[:, :count_here]  # (patches, count here)
    if count_here:
        extreme = components.gather(0, components.abs().argmax(0, keepdim=True))
        components = components * extreme.sign()
    return F.pad(components, (0, count - count_here)).float()


def as_colours(components: torch.Tensor) -> torch.Tensor:
    """Each column of ``(patches, 3)`` stretched to 0..1; a column without differences becomes 0.5."""
    low, high = components.amin(0), components.amax(0)
    span = high - low
    return torch.where(span > 0, (components - low) / span.clamp(min=1e-30), 0.5)


# --- pictures: uint8 (height, width, 3) ---


def over_pixels(patches: torch.Tensor, grid: tuple[int, int], size: Sequence[int]) -> torch.Tensor:
    """Values of patches ``(patches, ...)`` for every pixel of a picture: ``(height, width, ...)``."""
    rows = torch.arange(size[0]) * grid[0] // size[0]
    columns = torch.arange(size[1]) * grid[1] // size[1]
    return patches[rows[:, None] * grid[1] + columns]


def enlargement(size: Sequence[int], longer_side: int = LONGER_SIDE) -> int:
    """The factor that enlarges a picture of `size` (height, width) to about `longer_side` pixels."""
    return max(1, round(longer_side / max(size)))


def enlarged(picture: torch.Tensor, longer_side: int = LONGER_SIDE) -> torch.Tensor:
    """The picture enlarged by a whole factor, so that patches stay aligned."""
    factor = enlargement(picture.shape[:2], longer_side)
    return picture.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def small(picture: torch.Tensor) -> torch.Tensor:
    """The picture for a gallery. A large one is shrunk by a whole factor."""
    factor = max(picture.shape[:2]) // SMALL_SIDE
    if factor <= 1:
        return enlarged(picture, SMALL_SIDE)
    planes = F.avg_pool2d(picture.permute(2, 0, 1).float(), factor, ceil_mode=True)  # (3, height, width)
    return planes.round().to(torch.uint8).permute(1, 2, 0)


def with_hidden(picture: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The picture with the hidden patches in gray."""
    hidden = over_pixels(mask, grid, picture.shape[:2])[..., None]
    return torch.where(hidden, torch.tensor(HIDDEN, dtype=torch.uint8), picture)


def with_frame(picture: torch.Tensor, patch: int, grid: tuple[int, int]) -> torch.Tensor:
    """The picture with a frame around a patch."""
    height, width = picture.shape[0] // grid[0], picture.shape[1] // grid[1]
    top, left = patch // grid[1] * height, patch % grid[1] * width
    line = max(1, min(height, width) // 12)
    framed = picture.clone()
    framed[top : top + height, left : left + width] = torch.tensor(MARK, dtype=torch.uint8)
    inside = (slice(top + line, top + height - line), slice(left + line, left + width - line))
    framed[inside] = picture[inside]
    return framed


def with_heat(picture: torch.Tensor, heat: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The picture in gray under the colours of ``heat (patches,)``, 0 or more. The largest value is the brightest."""
    scaled = heat / heat.max().clamp(min=1e-30)
    colours = torch.from_numpy(colormaps[HEAT](over_pixels(scaled, grid, picture.shape[:2]).numpy())[..., :3]).float()
    gray = picture.float().mean(2, keepdim=True)
    return (HEAT_SHARE * 255 * colours + (1 - HEAT_SHARE) * gray).round().to(torch.uint8)


def with_colours(colours: torch.Tensor, grid: tuple[int, int], size: Sequence[int]) -> torch.Tensor:
    """A picture of ``colours (patches, 3)`` in 0..1."""
    return (over_pixels(colours, grid, size) * 255).round().to(torch.uint8)
