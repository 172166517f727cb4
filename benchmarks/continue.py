"""What going on from weights of another domain brings: Fashion-MNIST to scikit-learn's digits.

The demo's model is pre-trained on the bundled images of Fashion-MNIST. Its weights then go on with 1,297 images of
digits (8 x 8 in the files), in one, three and five bands: the image, its two gradients, their size, and the image
blurred. Measured is k-NN (k = 20, mean of the patch tokens) on 500 other digits: of the weights untouched, after going
on, and of the same network from scratch, with equal updates. All weights go on at a tenth of the demo's rate. Adapters
and the network from scratch learn at the demo's rate. ARMS has the words of each arm, which the folder of the weights
follows.

    PYTHONPATH=. python benchmarks/continue.py [--bands 1 3 5] [--seeds 0 1 2] [--updates 300] [--folder FOLDER]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits


TRAINING, RATE = 1_297, 3e-3  # images; the demo's rate for 256 images per update
CONTINUED = ("continue_images", "--base_learning_rate", RATE / 10, "--model_name_or_path")
SCRATCH = ("own_images", "--base_learning_rate", RATE, "--config_name")
ADAPTED = ("continue_images", "--base_learning_rate", RATE)  # few weights learn, so the rate is not lowered
ARMS: dict[str, tuple] = {
    "continued": CONTINUED,
    "LoRA": (*ADAPTED, "--tune", "lora", "--model_name_or_path"),
    "LoRA and the last block": (*ADAPTED, "--tune", "lora+last:1", "--model_name_or_path"),
    "scratch": SCRATCH,
}
SHARED = "--total_batch_size 64 --per_device_train_batch_size 64 --eval_every_epochs 1000 --picture_epochs 0"
SHARED += " --crop_scale 0.6 1 --horizontal_flip false --report_to none --dataloader_num_workers 0"


def bands_of(image: np.ndarray) -> np.ndarray:
    """uint8 ``(5, 8, 8)`` of a digit ``(8, 8)`` in 0..16."""
    down, right = np.gradient(image)
    bands = [image, 8 + down / 2, 8 + right / 2, np.hypot(down, right), gaussian_filter(image, 1)]
    return (np.stack(bands).clip(0, 16) * (255 / 16)).round().astype(np.uint8)


def save_digits(folder: Path, bands: int) -> None:
    """The folders train and test, with a folder for each digit in both."""
    digits = load_digits()
    for place, i in enumerate(np.random.default_rng(0).permutation(len(digits.images))):
        split = "train" if place < TRAINING else "test"
        path = folder / split / str(digits.target[i]) / f"{i:04}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = bands_of(digits.images[i])[:bands]
        np.save(path, values[0] if bands == 1 else values)


def pretrain(folder: Path, *words) -> dict[str, float]:
    """The measurements of the features before and after a run into `folder`, which may be there already."""
    if not (folder / "trainer_state.json").exists():
        words = ("run_pretrain.py", *words, "--output_dir", folder)
        subprocess.run([sys.executable, *map(str, words)], check=True, stdout=sys.stderr)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {
        key: value for entry in log if "rank" in entry or "rank_untrained" in entry for key, value in entry.items()
    }


def measure(folder: Path, bands: int, seeds: list[int], updates: int, arms: list[str]) -> dict[str, list[float]]:
    """k-NN accuracies in 0..1, one for each seed."""
    base, images = folder / "base", folder / f"digits-{bands}"
    if not images.exists():
        save_digits(images, bands)
    found: dict[str, list[float]] = {}
    for arm in arms:
        scratch = (f"num_channels={bands}",) if ARMS[arm] is SCRATCH else ()
        fit = ("--config_overrides", *scratch) if scratch else ("--new_bands", "mean") if bands > 1 else ()
        for seed in seeds:
            words = (*ARMS[arm], base, "--train_dir", images, *SHARED.split(), *fit)
            run = folder / f"{arm}-{bands}-{seed}".replace(" ", "-")
            figures = pretrain(run, *words, "--max_train_steps", updates, "--seed", seed)
            for name, key in (("raw pixels", "knn_raw_pixels"), ("untouched", "knn_start"), (arm, "knn")):
                if key in figures and len(found.setdefault(name, [])) < len(seeds):
                    found[name].append(figures[key])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bands", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=12, help="of the pre-training on Fashion-MNIST")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--folder", type=Path, default=Path("runs/continue"))
    options = parser.parse_args()
    words = ("demo", "--num_train_epochs", options.epochs, "--warmup_epochs", 1, "--picture_epochs", 0)
    pretrain(options.folder / "base", *words, "--progressive_resizing", 0, "--report_to", "none")
    for bands in options.bands:
        found = measure(options.folder, bands, options.seeds, options.updates, options.arms)
        for name, values in found.items():
            low, high, mean = (100 * f(values) for f in (min, max, statistics.mean))
            print(f"| {bands} | {name} | {mean:.1f} ({low:.1f}-{high:.1f}) |", flush=True)


if __name__ == "__main__":
    main()
