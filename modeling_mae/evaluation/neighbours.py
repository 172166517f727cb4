"""Finds similar images by the cosine of their features: nearest neighbours and near-duplicates."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F

from ..checked import Kind, anything, check, count, listed, mapped, optional, parse, text
from ..checkpoint import open_checkpoint
from ..data.find.places import Place
from ..errors import UserError
from ..readout import nearest
from .extraction import Extractor, Features
from .inputs import Inputs, weights_checksum
from .parts import FEATURES, KEY, features_array
from .tables import ApplySettings


ALIKE = 0.9  # cosine of whitened features from which two images count as near-duplicates
RIDGE = 3  # added to the variance of each direction, in median variances; with less, copies differ as much as images
MOST_ROWS = 4096  # images used to find the directions, and so the largest number of directions


ABOUT: dict[str, Kind] = {
    "place": optional(mapped(anything)),
    "checkpoint": text,
    "settings": mapped(anything),
    "map": listed(count),
}


def load_features(path: str | Path) -> Features:
    """The features in a parquet file of `mae features`.

    Raises:
        UserError: the file does not exist, or is of another kind.
    """
    path = os.path.expanduser(path)
    try:
        table = pyarrow.parquet.read_table(path)
        about = check(path, parse((table.schema.metadata or {})[KEY]), ABOUT)
        columns = {name: table.column(name).to_pylist() for name in ("file", "row")}
        labels = table.column("label").to_pylist() if "label" in table.column_names else None
        values = features_array(table)
        values = values.reshape(len(values), *about.get("map", [-1]))
        return Features(values, columns["file"], columns["row"], labels, about)
    except FileNotFoundError:
        raise UserError(f"features file {path!r} does not exist: write one with `mae features`") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path!r} is not a features file of `mae features`: write one, or give a folder") from error


def is_features_file(path: str) -> bool:
    """Whether `mae features` wrote the file."""
    try:
        schema = pyarrow.parquet.read_schema(os.path.expanduser(path))
    except (OSError, ValueError):
        return False
    return FEATURES in schema.names and KEY in (schema.metadata or {})


def query_features(
    features: Features, images: Place, *, checkpoint: str | None = None, progress: bool = False, **options
) -> Features:
    """Features of other `images`, computed as `features` were: same checkpoint, blocks and pooling.

    `checkpoint` is the checkpoint's new place, if it has moved. `options` are fields of `ApplySettings`; by default
    this process reads the images itself.

    Raises:
        UserError: as `extract_features`, or the checkpoint has other weights than the features were made with.
    """
    checkpoint, about = checkpoint or features.about["checkpoint"], features.about
    given = {"num_workers": 0, **slices_of(features, images), **options}
    settings, made_with = ApplySettings(**given), about.get("settings", {})
    extractor = Extractor.of(checkpoint, about["blocks"], about["pooling"])
    if made_with.get("weights") not in (None, weights_checksum(extractor.encoder)):
        raise UserError(
            f"checkpoint {checkpoint!r} has other weights than the features were made with: compute them again, or "
            "give the old one with --checkpoint"
        )
    white = made_with.get("white")
    inputs = settings.open(extractor.checkpoint, images, white=white, say=lambda text: None)
    return extractor.features(inputs, settings, progress, about)


def slices_of(features: Features, images: Place) -> dict:
    """How volumes among the query `images` become slices: as those of the features."""
    place = features.about.get("place") or {}
    is_path = isinstance(images, (str, os.PathLike))
    return {name: place[name] for name in ("slices", "neighbour_slices") if is_path and name in place}


def nearest_neighbours(features: Features, queries: Features, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """(positions in `features`, cosines), both ``(queries, k)``, the nearest first. `k` is at most their number.

    Raises:
        UserError: k is below 1, or the features are of different widths, or of patches.
    """
    if k < 1:
        raise UserError(f"k {k} is not at least 1")
    if features.values.shape[1] != queries.values.shape[1]:
        widths = features.values.shape[1], queries.values.shape[1]
        raise UserError(f"features of {widths[0]} and {widths[1]} values cannot be compared: compute both alike")
    cosines, positions = nearest(_on_device(queries), _on_device(features), k)
    return positions.cpu().numpy(), cosines.cpu().numpy()


def near_duplicates(features: Features, threshold: float = ALIKE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positions, positions of the most similar earlier image, cosines), the most similar first.

    Lists every image with a cosine of at least `threshold` to an earlier one. Without these, no two images are so
    alike. The cosines are between `whitened` features. So they tell copies from images of the same kind, and the
    threshold does not depend on the encoder.

    Raises:
        UserError: the threshold is not a cosine, a feature is not finite, or they are of patches.
    """
    if not -1 <= threshold <= 1:
        raise UserError(f"threshold {threshold} is not in -1 ... 1: give a cosine, as {ALIKE}")
    values = _on_device(features)
    finite = np.isfinite(features.values).all(1)
    if not finite.all():
        name = features.files[int(finite.argmin())]
        raise UserError(f"the features of {name!r} are not finite numbers: compute them again in full precision")
    bank = whitened(values)
    cosines, earlier = (found[:, 0].cpu().numpy() for found in nearest(bank, bank, 1, only_earlier=True))
    alike = np.flatnonzero(cosines >= threshold)
    alike = alike[np.argsort(-cosines[alike], kind="stable")]
    return alike, earlier[alike], cosines[alike]


def whitened(values: torch.Tensor) -> torch.Tensor:
    """``(images, width) -> (images, directions + 1)``: centred, with about the same variance in each principal
    direction of the set (whitening with a ridge). Then different images have cosines near 0, and only copies are near
    1. Without this, all features of an encoder may point in almost the same direction."""
    centred = values - values.mean(0)
    rows = torch.linspace(0, len(values) - 1, min(len(values), MOST_ROWS), device=values.device).round().long()
    _, lengths, directions = torch.linalg.svd(centred[rows], full_matrices=False)
    variances = lengths.square() / len(rows)
    rounding = 1e-9 * values.square().mean()  # rounding errors that remain if all images are the same
    scales = (variances + RIDGE * variances.median() + rounding).clamp_min(1e-30).rsqrt()
    # With the constant, images that are all at the mean count as alike.
    return F.pad((centred @ directions.T) * scales, (0, 1), value=0.01)


def _on_device(features: Features) -> torch.Tensor:
    if features.values.ndim != 2:
        raise UserError("features of patches do not compare images: compute them with another --pooling, as mean")
    return torch.from_numpy(features.values).to(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def images_of(features: Features, checkpoint: str | None = None) -> Inputs:
    """The images that `features` were computed from, for pictures.

    Raises:
        UserError: they are no longer there, or were Python objects.
    """
    if features.about.get("place") is None:
        raise UserError("the images of these features were not on disk: they cannot be shown")
    place = dict(features.about["place"])
    word = place.pop("place")
    checkpoint = checkpoint or features.about["checkpoint"]
    settings = ApplySettings(**{**place, "on_bad_image": "skip"})
    inputs = settings.open(open_checkpoint(checkpoint), word, say=lambda text: None)
    count = features.about.get("settings", {}).get("images", "").rpartition(",")[0]
    if count and count != f"{len(inputs.source):,}":
        raise UserError(f"{word!r} has {len(inputs.source):,} images now, {count} when the features were made")
    return inputs


def pixels_of(inputs: Inputs, rows: list[int]) -> torch.Tensor:
    """``(rows, channels, height, width)`` on a scale where white is 1, in the model's crop."""
    return inputs.images.batch(0, rows)["images"].float() / 255
