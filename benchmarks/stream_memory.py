"""Resident memory of a process that streams, and of its loading workers, over some minutes: figures and a picture.

PYTHONPATH=. python benchmarks/stream_memory.py [--kind tar] [--train_dir FOLDER_OR_PATTERN] [--minutes 3] \\
    [--plot memory.png]
"""

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import pyarrow.parquet

from modeling_mae.data.find.sources import BUNDLED, SourceSettings, load_source
from modeling_mae.data.serve.crops import RandomResizedCrop
from modeling_mae.data.serve.images import Opening, open_images


SIDE = 28
SHARDS, IMAGES_PER_SHARD = 1000, 100
BATCH = 512
EVERY = 1.0  # seconds between two samples
SETTLED = 30  # samples, about a second each, until all loading workers have begun
BYTES_PER_MIB = 1 << 20


def make_shards(folder: Path, kind: str) -> str:
    """1,000 parquet or tar files of 100 bundled images each."""
    table = pyarrow.parquet.read_table(next(iter(sorted(BUNDLED.rglob("*train*.parquet")))))
    for shard in range(SHARDS):
        rows = table.slice(shard * IMAGES_PER_SHARD % (len(table) - IMAGES_PER_SHARD), IMAGES_PER_SHARD)
        if kind == "parquet":
            pyarrow.parquet.write_table(rows, folder / f"train-{shard:04}.parquet")
            continue
        with tarfile.open(folder / f"train-{shard:04}.tar", "w") as tar:
            for i, cell in enumerate(rows.column("image").to_pylist()):
                member = tarfile.TarInfo(f"{i:03}.png")
                member.size = len(cell["bytes"])
                tar.addfile(member, io.BytesIO(cell["bytes"]))
    return str(folder)


def memory(process: psutil.Process) -> tuple[float, float]:
    """(resident, of which shared with nobody) MiB of a process and its children, each counted whole.

    The resident memory holds the mapped pages of the units, which the system takes back when it needs room.
    """
    kinds = [each.memory_full_info() for each in [process, *process.children(True)]]
    return sum(kind.rss for kind in kinds) / BYTES_PER_MIB, sum(kind.uss for kind in kinds) / BYTES_PER_MIB


def sample(images, workers: int, seconds: float) -> list[tuple[float, float, float, int]]:
    """(seconds, resident MiB, unshared MiB, images seen) once a second while the loader runs."""
    process, began, samples, seen = psutil.Process(), time.monotonic(), [], 0
    crop = RandomResizedCrop(seed=0)
    options = {"seed": 0, "batch_size": BATCH, "total_batch_size": BATCH, "num_workers": workers}
    for batch in images.view(crop=crop).training_loader(updates=range(10**9), **options):
        seen += len(batch["images"])
        now = time.monotonic() - began
        if now > len(samples) * EVERY:
            samples.append((now, *memory(process), seen))
        if now > seconds:
            return samples
    return samples


def draw(samples: list[tuple[float, float, float, int]], path: str) -> None:
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    seconds, resident, unshared, images = zip(*samples, strict=True)
    axes.plot(np.array(seconds) / 60, resident, label="resident")
    axes.plot(np.array(seconds) / 60, unshared, label="of which not shared")
    axes.legend()
    axes.set(xlabel="minutes", ylabel="MiB, loading workers included", ylim=(0, None))
    axes.set_title(f"Memory over {images[-1]:,} images of a stream")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["parquet", "tar"], default="parquet", help="of the shards that are made")
    parser.add_argument("--train_dir", help="1,000 shards of the bundled images by default")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--dataloader_num_workers", type=int, default=1)
    parser.add_argument("--plot", default="stream_memory.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = args.train_dir or make_shards(Path(folder), args.kind)
        source = load_source(SourceSettings(train_dir=place, streaming=True, cache_dir=f"{folder}/cache"))
        images = open_images(source, Opening((SIDE, SIDE), 1))
        samples = sample(images, args.dataloader_num_workers, 60 * args.minutes)
    print(f"{samples[-1][3]:,} images in {samples[-1][0]:.0f} s, {len(images):,} in the stream")
    for name, column in (("resident", 1), ("of which not shared", 2)):
        sizes = [each[column] for each in samples]
        settled = sizes[min(SETTLED, len(sizes) - 1)]
        figures = (
            f"{sizes[0]:.0f} first, {settled:.0f} after {SETTLED} samples, {sizes[-1]:.0f} last, {max(sizes):.0f} most"
        )
        print(f"MiB {name}: {figures}")
    draw(samples, args.plot)


if __name__ == "__main__":
    main()
