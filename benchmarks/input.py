"""Images per second on one core from a JPEG to a normalised 224 x 224 training crop, at 500 x 375 and 4000 x 3000.

Ours (decoding, cropping and flipping uint8 in the loading process; normalisation of whole batches) against the
pipeline of the field (PIL, RandomResizedCrop bicubic, flip, ToTensor, Normalize), with decoding alone as the limit.
They take turns in one process. "ours, loading process" leaves out the normalisation, which runs where the model does:
what a core has to do beside a GPU. "decoded whole" is ours without the reduced decoding of large photographs.

The files are noise whose strength falls with its frequency, as in nature, so that they are as large as photographs.
`--photographs` adds scikit-learn's two sample photographs, scaled up to 4000 x 3000. Then it says how far reduced
decoding is from whole decoding, on these two at their own size and scaled up, beside the difference between bilinear
and bicubic resizing. First comes what masks cost beside images alone in the same crops, and how many windows of a
large image a small model does in a second. Last, the crops of images in memory, as the demo's are, in batches of 256.

    PYTHONPATH=. python benchmarks/input.py [--images 32] [--rounds 7] [--photographs] [--masks]
"""

import argparse
import io
import itertools
import json
import statistics
import time

import datasets
import numpy as np
import torch
from PIL import Image
from scipy.spatial import cKDTree
from sklearn.datasets import load_sample_images
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomHorizontalFlip, ToTensor
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2.functional import resized_crop

from configuration.model import PRESETS
from modeling_mae import MAEConfig
from modeling_mae.data.find.sources import Source, SourceSettings, load_source
from modeling_mae.data.read.decode import Rules, decode, decode_present
from modeling_mae.data.read.reduced import Reduction
from modeling_mae.data.serve.crops import RandomResizedCrop
from modeling_mae.data.serve.decoded import Memory
from modeling_mae.data.serve.images import FileImages, ImageSettings, Opening, open_images
from modeling_mae.data.serve.masked import ScaledCrop
from modeling_mae.segmentation_mae import MAEForSemanticSegmentation
from modeling_mae.tasks.masks import MASKS
from modeling_mae.tasks.windows import classes_of, starts_of
from modeling_mae.training.augment import BatchTransform


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def noise(height: int, width: int, count: int, seed: int = 0) -> list[bytes]:
    """JPEGs as detailed as photographs (about 4 bits a pixel)."""
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    strength = 1 / np.maximum(1 / width, np.hypot(rows, columns))
    files = []
    for _ in range(count):
        pixels = np.fft.fft2(generator.standard_normal((height, width, 3)), axes=(0, 1)) * strength[..., None]
        pixels = np.fft.ifft2(pixels, axes=(0, 1)).real
        pixels = np.clip(128 + 45 * pixels / pixels.std(), 0, 255).astype(np.uint8)
        files.append(jpeg(pixels, 85))
    return files


def sample_photographs(width: int | None = None, height: int | None = None) -> list[bytes]:
    """scikit-learn's two, 640 x 427, at quality 90; scaled up where a size is given."""
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    images = [image.resize((width, height), Image.Resampling.BICUBIC) if width else image for image in images]
    return [jpeg(np.array(image), 90) for image in images]


def race(title: str, files: list[bytes], rounds: int) -> None:
    """Print the table of the contestants."""
    cells = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in files]})
    source = Source(cells, "image", None, "photographs")
    ours = FileImages(source, Opening((224, 224), 3)).view(crop=RandomResizedCrop(0))
    whole = ours.view()
    whole.settings = ImageSettings(scaled_decoding=False)
    transform = BatchTransform(MEAN, STD, (224, 224))
    usual = Compose(
        [
            TorchvisionCrop(224, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(MEAN, STD),
        ]
    )
    indices, epochs = list(range(len(files))), itertools.count()
    contestants = {
        "PIL, as usual": lambda: torch.stack([usual(Image.open(io.BytesIO(f)).convert("RGB")) for f in files]),
        "ours, loading process": lambda: ours.batch(next(epochs), indices),
        "ours": lambda: transform(ours.batch(next(epochs), indices)),
        "ours, decoded whole": lambda: whole.batch(next(epochs), indices),
        "decoding alone": lambda: [decode(f, None, 3) for f in files],
    }
    times = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            begin = time.perf_counter()
            work()
            if turn:  # the first is for warming up
                times[name].append(time.perf_counter() - begin)
    size = sum(map(len, files)) / len(files) / 1000
    rates = {name: len(files) / statistics.median(values) for name, values in times.items()}
    print(f"{len(files)} JPEGs, {title}, {size:,.0f} kB on average, to 224 x 224, one core, medians of {rounds}")
    print(f"{'':24}{'images/s':>10}{'ratio':>8}")
    for name, rate in rates.items():
        print(f"{name:24}{rate:10.1f}{rate / rates['PIL, as usual']:8.2f}")
    print(flush=True)


def mask(height: int, width: int, classes: int, generator: np.random.Generator) -> bytes:
    """A PNG of smooth regions: each pixel has the class of the nearest of 4 x `classes` points."""
    points = generator.uniform(0, (height, width), (4 * classes, 2))
    pixels = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    nearest = cKDTree(points).query(pixels)[1].reshape(height, width)
    buffer = io.BytesIO()
    Image.fromarray((nearest % classes).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def race_masks(files: list[bytes], rounds: int) -> None:
    """Print what masks cost beside images alone, in the same crops, with masks in memory and read in each epoch."""
    generator = np.random.default_rng(0)
    cells = {"image": files, "mask": [mask(375, 500, 20, generator) for _ in files]}
    cells = {name: [{"bytes": data, "path": None} for data in column] for name, column in cells.items()}
    source = Source(datasets.Dataset.from_dict(cells), "image", None, "photographs", mask_column="mask")
    opening, crop = Opening((224, 224), 3), ScaledCrop(0, (224, 224), [1.0, 2.0], True, False, MEAN)
    labels, names = MASKS.read(source)
    masked = MASKS.open_images(source, labels, names, opening).view(crop=crop)
    read = MASKS.open_images(source, labels, names, opening).view(crop=crop)  # masks are kept for the first alone
    indices, epochs = list(range(len(files))), itertools.count()
    contestants = {
        "images alone": FileImages(source, opening).view(crop=crop),
        "with masks in memory": masked,
        "with masks read": read,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        epoch = next(epochs)
        for name, images in contestants.items():
            begin = time.perf_counter()
            images.batch(epoch, indices)
            if turn:
                times[name].append(time.perf_counter() - begin)
    usual = statistics.median(times["images alone"])
    print(f"{len(files)} JPEGs of 500 x 375 with masks of 20 classes, crops of 224 x 224, medians of {rounds}")
    for name, values in times.items():
        print(f"{name:24}{len(files) / statistics.median(values):10.1f}{statistics.median(values) / usual:8.3f}")
    print(flush=True)


def race_windows(rounds: int, side: int = 1000) -> None:
    """Print the windows that a model of patches does in a second, by itself and in `classes_of`."""
    config = MAEConfig(**json.loads((PRESETS / "vit_tiny.json").read_text()), num_labels=20)
    model = MAEForSemanticSegmentation(config).eval()
    image, transform = torch.randint(0, 256, (3, side, side), dtype=torch.uint8), BatchTransform(MEAN, STD, (224, 224))
    count = len(starts_of(side, 224)) ** 2
    batch = torch.randn(count, 3, 224, 224)

    @torch.no_grad()
    def alone() -> None:
        for some in batch.split(len(starts_of(side, 224))):
            model(some)

    def in_image() -> None:
        classes_of(model, image, lambda rows: transform({"images": rows}, tuple(rows.shape[2:])))

    times: dict[str, list[float]] = {"the model alone": [], "windows of an image": []}
    for turn in range(rounds + 1):
        for values, work in zip(times.values(), (alone, in_image), strict=True):
            begin = time.perf_counter()
            work()
            if turn:
                values.append(time.perf_counter() - begin)
    usual = statistics.median(times["the model alone"])
    print(f"{count} windows of 224 x 224 of an image of {side} x {side}, vit_tiny, 20 classes, medians of {rounds}")
    for name, values in times.items():
        print(f"{name:24}{count / statistics.median(values):10.1f} windows/s{statistics.median(values) / usual:8.3f}")
    print(flush=True)


def compare_decoding(title: str, files: list[bytes], size: int) -> None:
    """Print the difference of reduced to whole decoding, in steps of 255, over random crops of each reduction."""
    crop = RandomResizedCrop(0, (0.01, 1.0))
    differences: dict[int, list[tuple[float, int, float]]] = {2: [], 4: [], 8: []}
    for i, data in enumerate(files):
        whole = decode(data, None, 3)
        for epoch in range(100):
            boxes, _ = crop(epoch, [i], *whole.shape[1:])
            reduction = Reduction(lambda height, width, boxes=boxes: boxes, (size, size))
            times = reduction(*whole.shape[1:])
            if times > 1 and len(differences[times]) < 10 * (i + 1):
                reduced = decode_present(data, None, Rules(3, reduction=reduction))[0].crop(
                    boxes[0].tolist(), (size, size)
                )
                bicubic, bilinear = (
                    resized_crop(whole, *boxes[0].tolist(), [size, size], mode, antialias=True)
                    for mode in (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR)
                )
                apart = (reduced.int() - bicubic.int()).abs()
                usual = (bilinear.int() - bicubic.int()).abs().float().mean().item()
                differences[times].append((apart.float().mean().item(), apart.max().item(), usual))
    for times, values in differences.items():
        if values:
            means, largest, usual = zip(*values, strict=True)
            print(
                f"{title} to {size}, at 1/{times}: mean {statistics.mean(means):.2f}, largest {max(largest)} of 255, "
                f"{len(values)} crops; bilinear to bicubic {statistics.mean(usual):.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--masks", action="store_true", help="only masks beside images alone, and windows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = noise(375, 500, args.images)
    race_masks(files, args.rounds)
    race_windows(args.rounds)
    if args.masks:
        return
    race("500 x 375", files, args.rounds)
    race("4000 x 3000", noise(3000, 4000, 2), args.rounds)
    if args.photographs:
        large = sample_photographs(4000, 3000)
        race("photographs scaled up to 4000 x 3000", large, args.rounds)
        compare_decoding("640 x 427", sample_photographs(), 64)
        compare_decoding("4000 x 3000", large, 224)

    small = open_images(load_source(SourceSettings()), Opening((28, 28), 1, memory=Memory(1 << 30))).view(
        crop=RandomResizedCrop(0)
    )
    normalise, durations = BatchTransform([0.3], [0.35], (28, 28)), []
    for first in range(0, 256 * 20, 256):
        batch_indices = list(range(first, first + 256))
        begin = time.perf_counter()
        normalise(small.batch(0, batch_indices))
        durations.append(time.perf_counter() - begin)
    print(f"\nimages of 28 x 28 in memory, batches of 256: {256 / statistics.median(durations):,.0f} images/s")


if __name__ == "__main__":
    main()
