"""From JPEG files to trained step: images per second of the real run_pretrain.py, and how long it waits for images.

The files are 500 x 375, as large as photographs; `--distinct` of them differ, the rest are copies, each a file of its
own. What is decoded is not kept, so that each epoch decodes, but for "kept": there all files are decoded before the
first update. The rate is read from the second half of the run, after imports and compilation.

    PYTHONPATH=. python benchmarks/jpeg_to_step.py [--images 40000] [--ways cpu kept] [--epochs 3]
        [-- options of run_pretrain.py, such as --config_name vit_large]
"""

import argparse
import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from input import noise


ON_GPU = torch.cuda.is_available()
LIGHT = ["decoder_hidden_size=64", "decoder_num_hidden_layers=1", "decoder_num_attention_heads=2"]
MODEL = ["--config_name", "vit_base"] if ON_GPU else ["--config_name", "vit_tiny", "--config_overrides", *LIGHT]
LOGGED = 5  # updates between two readings
WAYS = {
    "cpu": ["--image_cache", "off"],
    "kept": [],
}


def write_files(folder: Path, data: bytes, first: int, count: int) -> None:
    for i in range(first, first + count):
        (folder / f"{i:06}.jpg").write_bytes(data)


def make_files(folder: Path, count: int, distinct: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    copies = -(-count // distinct)
    firsts = list(range(0, count, copies))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        made = pool.map(functools.partial(noise, 375, 500, 1), firsts)
        for first, (data,) in zip(firsts, made, strict=True):
            write_files(folder, data, first, min(copies, count - first))


def train(folder: Path, way: str, batch: int, epochs: int, options: list[str]) -> str:
    """Run the command; give the images per second of its second half, and what it says of its waiting."""
    with tempfile.TemporaryDirectory() as run:
        words = ["--train_dir", str(folder), "--cache_dir", f"{run}/cache", "--output_dir", f"{run}/run"]
        words += ["--num_train_epochs", str(epochs), "--warmup_epochs", "1", "--checkpointing_steps", "1000000"]
        words += ["--total_batch_size", str(batch), "--per_device_train_batch_size", str(batch), "--knn", "false"]
        if way == "kept":
            words += ["--image_cache", f"{1 + len(os.listdir(folder)) * 375 * 500 * 3 / 2**30:.1f}"]
        words += "--image_mean 0.5 0.5 0.5 --image_std 0.2 0.2 0.2".split()
        words += ["--logging_steps", f"{LOGGED}", "--report_to", "none"]
        command = [sys.executable, "run_pretrain.py", *words, *WAYS[way], *options]
        log, seen, begin = Path(run) / "run" / "history.jsonl", [], time.perf_counter()
        with open(f"{run}/printed", "w+") as printed:
            process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
            while process.poll() is None:
                time.sleep(0.02)
                entries = log.read_text().splitlines() if log.exists() else []
                if entries and (not seen or len(entries) > seen[-1][0]):
                    seen.append((len(entries), time.perf_counter() - begin))
            printed.seek(0)
            said = printed.read().splitlines()
    if process.returncode:
        return f"failed: {said[-1]}"
    if len(seen) < 3:
        return "too few updates: give more images or epochs"
    (first, start), (last, end) = seen[len(seen) // 2], seen[-1]
    rate = batch * LOGGED * (last - first) / (end - start)
    waiting = next(line for line in said if line.startswith("waiting "))
    return f"{rate:8.0f} images/s   update {LOGGED * seen[0][0]} after {seen[0][1]:.1f} s   {waiting}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000 if ON_GPU else 400)
    parser.add_argument("--distinct", type=int, default=2_000 if ON_GPU else 40)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--batch", type=int, default=512 if ON_GPU else 40)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are, or will be; default: one that is removed")
    parser.add_argument("options", nargs="*", default=MODEL)
    args = parser.parse_args()
    os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "bf16" if ON_GPU else "no")
    with tempfile.TemporaryDirectory() as place:
        folder = args.folder or Path(place) / "images"
        if not folder.exists():
            make_files(folder, args.images, args.distinct)
        count = len(os.listdir(folder))
        print(f"{count:,} JPEGs of 500 x 375, batches of {args.batch}, {' '.join(args.options)}", flush=True)
        for way in args.ways:
            print(f"{way:6}{train(folder, way, args.batch, args.epochs, args.options)}", flush=True)


if __name__ == "__main__":
    main()
