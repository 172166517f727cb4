"""Images per second on one core from a 500 x 375 JPEG to a normalised 224 x 224 training crop.

Ours (decoding, cropping and flipping uint8 in the loading process; normalisation of whole batches) against the
pipeline of the field (PIL, RandomResizedCrop bicubic, flip, ToTensor, Normalize), with decoding alone as the limit.
They take turns in one process. "ours, loading process" leaves out the normalisation, which runs where the model does:
what a core has to do beside a GPU. Below, the crops of images in memory, as the demo's are, in batches of 256.

    PYTHONPATH=. python benchmarks/input.py [--images 32] [--rounds 7]
"""

import argparse
import io
import statistics
import time

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomHorizontalFlip, ToTensor
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from modeling_mae.data.crops import RandomResizedCrop
from modeling_mae.data.decode import decode
from modeling_mae.data.images import FileImages, open_images
from modeling_mae.data.sources import Source, load_source
from modeling_mae.training.augment import BatchTransform


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def photographs(count: int) -> list[bytes]:
    """JPEGs as detailed as photographs (about 90 kB): noise whose strength falls with its frequency, as in nature."""
    generator = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500)[None]
    strength = 1 / np.maximum(1 / 500, np.hypot(rows, columns))
    files = []
    for _ in range(count):
        noise = np.fft.fft2(generator.standard_normal((375, 500, 3)), axes=(0, 1)) * strength[..., None]
        pixels = np.fft.ifft2(noise, axes=(0, 1)).real
        pixels = np.clip(128 + 45 * pixels / pixels.std(), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = photographs(args.images)

    cells = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in files]})
    source = Source(cells, "image", None, "photographs")
    ours = FileImages(source, (224, 224), 3).view(crop=RandomResizedCrop(0))
    transform = BatchTransform(MEAN, STD, (224, 224))
    usual = Compose(
        [
            TorchvisionCrop(224, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(MEAN, STD),
        ]
    )
    indices = list(range(len(files)))
    contestants = {
        "PIL, as usual": lambda: torch.stack([usual(Image.open(io.BytesIO(f)).convert("RGB")) for f in files]),
        "ours, loading process": lambda: ours.batch(0, indices),
        "ours": lambda: transform(ours.batch(0, indices)),
        "decoding alone": lambda: [decode(f, None, 3) for f in files],
    }
    times = {name: [] for name in contestants}
    for turn in range(args.rounds + 1):
        for name, work in contestants.items():
            begin = time.perf_counter()
            work()
            if turn:  # the first is for warming up
                times[name].append(time.perf_counter() - begin)
    size = sum(map(len, files)) / len(files) / 1000
    rates = {name: len(files) / statistics.median(values) for name, values in times.items()}
    print(f"{len(files)} JPEGs of 500 x 375 pixels, {size:.0f} kB on average, to 224 x 224, one core")
    print(f"{'':24}{'images/s':>10}{'ratio':>8}")
    for name, rate in rates.items():
        print(f"{name:24}{rate:10.0f}{rate / rates['PIL, as usual']:8.2f}")

    small = open_images(load_source(), (28, 28), 1, memory_budget=1 << 30).view(crop=RandomResizedCrop(0))
    normalise, durations = BatchTransform([0.3], [0.35], (28, 28)), []
    for first in range(0, 256 * 20, 256):
        batch_indices = list(range(first, first + 256))
        begin = time.perf_counter()
        normalise(small.batch(0, batch_indices))
        durations.append(time.perf_counter() - begin)
    print(f"\nimages of 28 x 28 in memory, batches of 256: {256 / statistics.median(durations):,.0f} images/s")


if __name__ == "__main__":
    main()
