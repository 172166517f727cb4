"""Fits the layers that read and predict patches to images with other bands, and to another patch size."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration_mae import MAEConfig
from ..errors import UserError
from ..modeling_mae import MAEForPreTraining, MAEModel, MAEPreTrainedModel
from ..words import NEW_BANDS


Size = tuple[int, int]  # (height, width) in pixels
READING, PREDICTION = "mae.embeddings.patch_embeddings", "decoder.head"
PATCH_LAYERS = frozenset(f"{layer}.{kind}" for layer in (READING, PREDICTION) for kind in ("weight", "bias"))


def sources_of_bands(new_bands: str | None, old: int, new: int) -> list[int | None]:
    """For each of the `new` bands of the images, which of the `old` bands of the checkpoint it is. None: none of them.

    `new_bands` is ``mean``, ``random``, or ``rgb:3,2,1``: band 3 is red, band 2 green, band 1 blue. None: the bands
    stay.

    Raises:
        UserError: it does not fit these numbers of bands.
    """
    if new_bands is None:
        return list(range(old))
    match = NEW_BANDS.fullmatch(new_bands)
    if match is None:
        raise UserError(f"new_bands {new_bands!r} does not work: give mean, random, or rgb:3,2,1")
    places = [int(number) - 1 for number in match.groups() if number]
    if not places and old == new:
        raise UserError(f"new_bands {new_bands!r}: the checkpoint has {old} bands already: leave it out")
    if places and (old != 3 or len(set(places)) < 3 or min(places) < 0 or max(places) >= new):
        raise UserError(
            f"new_bands {new_bands!r} needs a checkpoint of 3 bands, which has {old}, and three different bands in "
            f"1 ... {new}: give mean, or other bands"
        )
    return [places.index(band) if band in places else None for band in range(new)]


def band_matrix(new_bands: str | None, old: int, new: int) -> torch.Tensor:
    """``(new, old)``, float64: each new band as a mixture of the old ones. An unknown band is the mean of all."""
    matrix = torch.full((new, old), 1 / old, dtype=torch.float64)
    for band, source in enumerate(sources_of_bands(new_bands, old, new)):
        if source is not None:
            matrix[band] = F.one_hot(torch.tensor(source), old)
    return matrix


def resize_matrix(old: Size, new: Size) -> torch.Tensor:
    """The bilinear resizing of a patch as a matrix ``(new pixels, old pixels)``, float64."""
    pixels = old[0] * old[1]
    images = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *old)
    return F.interpolate(images, new, mode="bilinear", align_corners=False, antialias=True).flatten(1).T


def fit_reading(weight: torch.Tensor, bands: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """The patch projection's ``weight (width, old pixels * old bands)`` for other patches.

    Tokens stay what they were for images that are constant over their bands, by the factor old / new bands, and for
    patches that are resized up. For patches that are resized down they change least (FlexiViT, arXiv 2212.08013,
    Section 3.4: the pseudo-inverse of the resizing).
    """
    new, old = bands.shape
    weight = weight.double().unflatten(1, (-1, old))  # (width, old pixels, old bands)
    weight = torch.einsum("np,wpo->wno", torch.linalg.pinv(pixels.T), weight)
    return torch.einsum("wpo,no->wpn", weight, bands * (old / new)).flatten(1)  # (width, new pixels * new bands)


def fit_prediction(values: torch.Tensor, bands: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """The prediction's weight or bias ``(old pixels * old bands, ...)`` for other patches: the predicted patch is
    resized, and an unknown band is predicted as the mean of the old ones."""
    values = values.double().unflatten(0, (-1, bands.shape[1]))  # (old pixels, old bands, ...)
    return torch.einsum("qp,no,po...->qn...", pixels, bands, values).flatten(0, 1)


@torch.no_grad()
def fit_patches(model: MAEPreTrainedModel, config: MAEConfig, new_bands: str | None, new: set[str]) -> None:
    """Changes `model` to the bands, patch size and image size of `config`, which has the same grid of patches.

    `new` are the names of its parameters that were not loaded. With ``new_bands='random'`` those of the layers of the
    patches are added.

    Raises:
        UserError: as `sources_of_bands`.
    """
    own, encoder = model.config, cast(MAEModel, model if isinstance(model, MAEModel) else model.mae)
    bands = band_matrix(new_bands, own.num_channels, config.num_channels)
    pixels = resize_matrix(own.patch_height_width, config.patch_height_width)
    reading, read = encoder.embeddings.patch_embeddings, nn.Linear(config.patch_dim, own.hidden_size)
    encoder.embeddings.patch_embeddings = read
    own.num_channels, own.patch_size, own.image_size = config.num_channels, config.patch_size, config.image_size
    if not _is_new(model, read, READING, new_bands, new):
        read.weight.copy_(fit_reading(reading.weight, bands, pixels))
        read.bias.copy_(reading.bias)
    if not isinstance(model, MAEForPreTraining):
        return
    prediction = cast(nn.Linear, model.decoder.head)
    model.decoder.head = predicted = nn.Linear(prediction.in_features, config.patch_dim)
    if not _is_new(model, predicted, PREDICTION, new_bands, new):
        predicted.weight.copy_(fit_prediction(prediction.weight, bands, pixels))
        predicted.bias.copy_(fit_prediction(prediction.bias, bands, pixels))


def _is_new(model: MAEPreTrainedModel, layer: nn.Linear, name: str, new_bands: str | None, new: set[str]) -> bool:
    """Initialises the `layer` and enters its parameters into `new`, unless it was loaded and is to be fitted."""
    names = {f"{name}.weight", f"{name}.bias"}
    if new_bands != "random" and not names <= new:
        return False
    model._init_weights(layer)
    new |= names
    return True
