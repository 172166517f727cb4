"""Mean and deviation of each channel, measured on a sample of a set of images."""

import time
from collections.abc import Callable

import torch

from ...errors import UserError
from ..read.bit_depth import WHITE
from ..read.header import read_header
from .images import SHAPE_SAMPLE, FileImages, Images, ImageSettings, MemoryImages
from .processor import Processing


STATISTICS_SAMPLE = 2048  # images that mean and deviation are measured on, at most
STATISTICS_FEWEST = 16
STATISTICS_PIXELS = 1 << 18  # of an image that are enough for them
MUCH = 0.5  # of a checkpoint's deviation: beyond it, images differ from those that it was trained on
STATISTICS_BUDGET = 800_000_000  # pixels of JPEG files to decode for them: some seconds
OTHER_FORMATS = 4  # times as long as JPEG at reduced size takes a pixel of other files
SECONDS_BETWEEN_NEWS = 2


def measure_mean_std(images: Images, say: Callable[[str], None] | None = None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over evenly spaced images, where white is 1.

    Missing values do not count. Large images are thinned out, and fewer are read. How many depends on their sizes
    alone: the numbers are the same on every machine. `say` prints the progress if this takes more than a moment.
    """
    counts, moments, told = torch.zeros((), dtype=torch.int64), _Moments(), time.monotonic()
    sample = images.spread(_statistics_sample(images))
    for done, index in enumerate(sample, 1):
        image = _enough_of(images, index)
        if images.dtype != torch.uint8:
            moments.add(image)
        else:
            counts = counts + torch.stack([torch.bincount(_present(channel), minlength=256) for channel in image])
        if say is not None and time.monotonic() - told > SECONDS_BETWEEN_NEWS:
            told = time.monotonic()
            say(f"statistics {done} of {len(sample)} images read for mean and deviation")
    if images.dtype != torch.uint8:
        return moments.mean_std()
    values, counts = torch.arange(256, dtype=torch.float64) / 255, counts.double()  # (256,), (channels, 256)
    total = counts.sum(1)
    mean = (counts * values).sum(1) / total
    std = ((counts * values.square()).sum(1) / total - mean**2).clamp(min=0).sqrt()
    # A channel that holds a single value has no deviation to divide by.
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) or 1.0 for v in std.tolist()]


def choose_mean_std(
    images: Images,
    settings: ImageSettings,
    before: dict,
    say: Callable[[str], None],
) -> tuple[list[float], list[float]]:
    """Mean and deviation as the `settings` give them; else of the run that goes on, which was made with `before`; else
    measured.

    Raises:
        UserError: as `check_mean_std`.
    """
    mean, std = settings.image_mean, settings.image_std
    if mean is None or std is None:
        ratio = before.get("white", images.white) / images.white  # they were measured on that scale
        mean, std = ([v * ratio for v in before[key]] if key in before else None for key in ("mean", "std"))
    if mean is None or std is None:
        mean, std = measure_mean_std(images, say)
    check_mean_std(images, mean, std)
    return mean, std


def keep_mean_std(
    images: Images, known: Processing, sources: list[int | None], say: Callable[[str], None]
) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of the images that a checkpoint was trained on, which its weights know. None if it does not
    say them.

    `known` is the checkpoint's processing. `sources` names for each band of the images the checkpoint's band that it
    is. A band with None is measured. `say` prints a note if the images differ much.
    """
    if known.mean is None or known.std is None or max((band or 0 for band in sources), default=0) >= len(known.mean):
        return None
    scale = known.white / images.white if known.white not in (None, WHITE) else 1.0
    measured_mean, measured_std = measure_mean_std(images, say)
    mean, std = list(measured_mean), list(measured_std)
    for band, source in enumerate(sources):
        if source is not None:
            mean[band], std[band] = known.mean[source] * scale, known.std[source] * scale
    pairs = zip(mean, std, measured_mean, measured_std, strict=True)
    if any(max(abs(a - c), abs(b - d)) > MUCH * b for a, b, c, d in pairs):
        say(
            f"note       the images differ much from the checkpoint's: their mean is {measured_mean}, std "
            f"{measured_std}. The "
            f"checkpoint's mean {mean}, std {std} are kept, because its weights know them; --image_mean and "
            "--image_std replace them"
        )
    return mean, std


def _present(channel: torch.Tensor) -> torch.Tensor:
    """The values of a channel of 8 bits, flat, without NaN."""
    return channel.flatten() if channel.dtype == torch.uint8 else channel[~channel.isnan()].byte()


def check_mean_std(images: Images, mean: list[float], std: list[float]) -> None:
    """UserError for numbers that images of 8 bits cannot have: they are not divided by 255. Decimals have any."""
    for name, values in (("image_mean", mean), ("image_std", std)):
        wrong = [value for value in values if not 0 <= value <= 1]
        if wrong and images.dtype == torch.uint8:
            raise UserError(
                f"{name} {wrong[0]:g} does not work: these images have 8 bits, whose white is 1; give numbers in 0 to "
                "1 (divide by 255)"
            )


class _Moments:
    """Sums over the pixels of images that are not 8 bits, in float64."""

    def __init__(self):
        zero = torch.zeros(1, dtype=torch.float64)
        self.count, self.sum, self.squares = zero, zero, zero  # (channels,) each, after the first image

    def add(self, image: torch.Tensor) -> None:
        values = image.flatten(1).double() / WHITE  # (channels, pixels)
        count, mean = (~values.isnan()).sum(1), values.nanmean(1)
        total = self.count + count
        before = self.sum / self.count if self.count.sum() else mean
        # Deviations from the mean, joined as Chan et al. do: sums of squares would cancel.
        self.squares = self.squares + (values - mean[:, None]).square().nansum(1)
        self.squares = self.squares + (mean - before).square() * (self.count * count / total)
        self.sum, self.count = self.sum + values.nansum(1), total

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Six digits of each: decimals may be far from 1."""
        mean, std = self.sum / self.count, (self.squares / self.count).sqrt()
        return [float(f"{v:.6g}") for v in mean.tolist()], [float(f"{v:.6g}") or 1.0 for v in std.tolist()]


def _statistics_sample(images: Images) -> int:
    """How many images to measure on, so that it takes seconds."""
    files = getattr(images, "files", images)
    if not isinstance(files, FileImages):
        return STATISTICS_SAMPLE
    headers = files.try_files(files.spread(SHAPE_SAMPLE), read_header)
    costs = [header.pixels * (1 if header.format == "JPEG" else OTHER_FORMATS) for header in headers]
    affordable = int(STATISTICS_BUDGET * len(costs) // max(1, sum(costs)))
    return max(STATISTICS_FEWEST, min(STATISTICS_SAMPLE, affordable))


def _enough_of(images: Images, index: int) -> torch.Tensor:
    """Image `index`, uncropped, and thinned out if it is large. Images in memory and their files give the same."""
    files = getattr(images, "files", images)
    small = isinstance(images, MemoryImages) and images.pixels[0, 0].numel() <= STATISTICS_PIXELS
    if (small and not images.incomplete.any()) or not isinstance(files, FileImages):
        return images.read(index)
    return files.read_whole(index, STATISTICS_PIXELS)[0]
