"""What seconds of pre-training bring: k-NN and probe accuracy of ours (self and cross decoder, and with small images
first) and of transformers' ViTMAE in a plain loop, once with its position tables filled and once as it comes, where
they are zero.

Each contestant gets the same seconds, its data included: ours reads its images from memory, the plain loop runs the
usual PIL pipeline in as many loading workers as there are cores. The rate follows the part of the seconds that is used
up, so each budget is a whole training with a cosine of its own. All have the demo's sizes, batch, rates and crops.
They take turns of some seconds in one process, so that what else the machine does hits all alike. Seconds are those
of the wall. Readout: mean of the last block's patch tokens, whole images; k-NN with k = 20; the probe is logistic
regression on 12,000 labels; 2,000 evaluation images.

    PYTHONPATH=. python benchmarks/time_to_accuracy.py [--budgets 10 30 100] [--seeds 0 1 2] [--dtype bfloat16]
        [--batch 64] [--only "ours" ...] [--picture FILE.png]
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import datasets
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToTensor,
)
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from benchmarks.train_step import SHARED
from configuration import PretrainArguments, model_config, parse_arguments
from modeling_mae import MAEForPreTraining
from modeling_mae.data.find.joined import load_training_source
from modeling_mae.data.find.sources import BUNDLED, SourceSettings
from modeling_mae.data.pretraining_sets import load_pretraining_sets
from modeling_mae.data.serve.crops import training_crop
from modeling_mae.data.serve.decoded import Memory
from modeling_mae.data.serve.images import Images, Opening
from modeling_mae.data.serve.statistics import measure_mean_std
from modeling_mae.evaluation.features import K, knn_metrics, linear_metric
from modeling_mae.evaluation.reader import FrozenSet
from modeling_mae.settings import settings
from modeling_mae.tasks.sets import load_masked_sets, match_labels
from modeling_mae.training.augment import BatchTransform
from modeling_mae.training.optim import parameter_groups
from modeling_mae.training.resizing import Resizing


SMALL_FIRST = "ours, small images first"
NAMES = ("ours", "ours, cross", SMALL_FIRST, "transformers, positions filled", "transformers, as it comes")
SMALL_PARTS = (0.4, 0.3)  # of the seconds: about 0.5 and 0.3 of the updates, as `--progressive_resizing 0.5 0.3`
TURN = 5.0  # seconds; shorter ones would give the plain loop batches that its workers load while others train
WARMUP = 0.125  # of a budget


class Contestant:
    """A model, its optimizer, its stream of pixel values, and the seconds it has trained."""

    def __init__(
        self, name: str, seed: int, budget: float, bfloat16: bool, arguments, images: Images, transform: BatchTransform
    ):
        self.name, self.budget, self.bfloat16, self.seconds, self.updates = name, budget, bfloat16, 0.0, 0
        self.peak = arguments.base_learning_rate * arguments.total_batch_size / 256
        torch.manual_seed(seed)
        self.model = build(name, arguments)
        groups = parameter_groups(self.model, arguments.weight_decay)
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=self.peak, betas=betas, fused=True)
        patch = model_config(arguments).patch_height_width
        self.resizing = Resizing(images.size, patch, SMALL_PARTS if name == SMALL_FIRST else ())
        self.transform = transform if name.startswith("ours") else None
        if self.transform:
            self.batches = our_batches(images, seed, arguments)
        else:
            self.batches = usual_batches(transform, seed, arguments)

    def train_for(self, seconds: float) -> None:
        """Train until `seconds` of this turn, or the budget, are used up."""
        self.model.train()
        began, before = time.perf_counter(), self.seconds
        while self.seconds < min(before + seconds, self.budget):
            part = self.seconds / self.budget
            rate = part / WARMUP if part < WARMUP else (1 + math.cos(math.pi * (part - WARMUP) / (1 - WARMUP))) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = self.peak * rate
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                loss = self.model(self.pixel_values()).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            self.seconds = before + time.perf_counter() - began

    def pixel_values(self) -> torch.Tensor:
        """The next ones, ``(batch, 1, height, width)``."""
        batch = next(self.batches)
        milliseconds = int(1000 * self.seconds), int(1000 * self.budget)
        return self.transform(batch, self.resizing.size_at(*milliseconds)) if self.transform else batch


def build(name: str, arguments) -> torch.nn.Module:
    config = model_config(arguments)
    if name == "ours, cross":
        config.decoder_type, config.prediction_ratio = "cross", 0.25
    ours = MAEForPreTraining(config)
    if name.startswith("ours"):
        return ours
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**{key: getattr(config, key) for key in SHARED}))
    if name.endswith("filled"):
        with torch.no_grad():
            theirs.vit.embeddings.position_embeddings.copy_(ours.mae.embeddings.positions.table)
            theirs.decoder.decoder_pos_embed.copy_(ours.decoder.positions.table)
    return theirs


def our_batches(images: Images, seed: int, arguments) -> Iterator[dict]:
    size, batch = images.size, arguments.total_batch_size
    view = images.view(crop=training_crop(seed, arguments.crop_scale, arguments.horizontal_flip, size))
    options = {"batch_size": batch, "total_batch_size": batch, "process_index": 0, "num_processes": 1}
    yield from view.training_loader(seed=seed, updates=range(10**6), num_workers=0, **options)


def usual_batches(transform: BatchTransform, seed: int, arguments) -> Iterator[torch.Tensor]:
    size, scale = transform.size, tuple(arguments.crop_scale)
    usual = Compose(
        [
            RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(transform.channel_mean, transform.channel_std),
        ]
    )
    table = datasets.load_dataset("parquet", data_files=str(BUNDLED / "train*"), split="train")
    table.set_transform(lambda rows: {"pixel_values": [usual(image.convert("L")) for image in rows["image"]]})
    generator = torch.Generator().manual_seed(seed)
    options = {"shuffle": True, "drop_last": True, "generator": generator, "persistent_workers": True}
    loader = DataLoader(table, arguments.total_batch_size, num_workers=torch.get_num_threads(), **options)
    while True:
        yield from (batch["pixel_values"] for batch in loader)


@torch.no_grad()
def features(model: torch.nn.Module, images: Images, transform: BatchTransform) -> FrozenSet:
    """Mean patch tokens ``(images, width)`` and labels ``(images,)``."""
    encoder = model.eval().mae if isinstance(model, MAEForPreTraining) else model.eval().vit
    if not isinstance(model, MAEForPreTraining):
        encoder.config.mask_ratio = 0.0  # ViTMAE masks and shuffles whenever it is called; a mean has no order
    pooled, labels = [], []
    for first in range(0, len(images), 500):
        batch = images.batch(0, list(range(first, min(first + 500, len(images)))))
        pooled.append(encoder(transform(batch)).last_hidden_state[:, 1:].mean(1))
        labels.append(batch["labels"])
    if not isinstance(model, MAEForPreTraining):
        encoder.config.mask_ratio = 0.75
    return FrozenSet(torch.cat(pooled).numpy(), torch.cat(labels).numpy())


def measure(contestant: Contestant, train: Images, evaluation: Images, transform: BatchTransform) -> dict:
    sets = [features(contestant.model, images, transform) for images in (train, evaluation)]
    return {
        "name": contestant.name,
        "budget": contestant.budget,
        "updates": contestant.updates,
        "knn": 100 * knn_metrics(*sets, (K,))[K],
        "probe": 100 * linear_metric(*sets),
    }


def draw(path: Path, rows: list[dict]) -> None:
    """Mean over the seeds, with the range as a band."""
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    titles = {"knn": "k-NN (k = 20)", "probe": "logistic regression"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name in dict.fromkeys(row["name"] for row in rows):
            budgets = sorted({row["budget"] for row in rows})
            values = [[row[key] for row in rows if (row["name"], row["budget"]) == (name, b)] for b in budgets]
            (line,) = axes.plot(budgets, [statistics.mean(v) for v in values], marker="o", label=name)
            axes.fill_between(
                budgets, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.2
            )
        axes.set(xscale="log", xticks=budgets, xticklabels=[f"{b:g}" for b in budgets], title=title)
        axes.set(xlabel="seconds of pre-training", ylabel="accuracy in %")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[10.0, 30.0, 100.0], help="seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="of the contestants")
    parser.add_argument("--batch", type=int, default=128, help="images an update; the rates follow from it")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of autocast, for all")
    parser.add_argument("--picture", type=Path, help="a PNG file for the curves")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    batch = ["--total_batch_size", str(args.batch), "--per_device_train_batch_size", str(args.batch)]
    arguments = parse_arguments(PretrainArguments, ["demo", "--output_dir", "runs/benchmark", *batch])
    config = model_config(arguments)
    where = settings(SourceSettings, arguments)
    sets = load_pretraining_sets(
        load_training_source(where),
        where,
        Opening(config.image_height_width, 1, memory=Memory(1 << 30)),
        k=K,
        match_labels=match_labels,
        load_masked=load_masked_sets,
        main_process_first=nullcontext,
        say=print,
    )
    transform = BatchTransform(*measure_mean_std(sets.images), config.image_height_width)
    rows, bfloat16 = [], args.dtype == "bfloat16"
    for seed in args.seeds:
        for budget in args.budgets:
            contestants = [
                Contestant(name, seed, budget, bfloat16, arguments, sets.images, transform) for name in args.only
            ]
            while any(contestant.seconds < budget for contestant in contestants):
                for contestant in contestants:
                    contestant.train_for(TURN)
            for contestant in contestants:
                row = {"seed": seed, **measure(contestant, sets.images, sets.evaluation, transform)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    print(
        f"\n{'':32}" + "".join(f"{f'{budget:g} s: updates':>18}{'k-NN':>18}{'probe':>18}" for budget in args.budgets)
    )
    for name in args.only:
        line = f"{name:32}"
        for budget in args.budgets:
            chosen = [row for row in rows if (row["name"], row["budget"]) == (name, budget)]
            line += f"{statistics.mean(row['updates'] for row in chosen):18.0f}"
            for key in ("knn", "probe"):
                values = [row[key] for row in chosen]
                line += f"{statistics.mean(values):8.1f} ({min(values):.1f}-{max(values):.1f})"
        print(line)
    if args.picture:
        draw(args.picture, rows)


if __name__ == "__main__":
    main()
