"""The table of the demo of masks: mean IoU over seeds, each with a pre-training of its own, by the real scripts.

Every row is read out after the last update, on whole scenes (they have the model's size), on the test scenes. The rows
of neighbours take k = 20; the heads are those of the recipe. The untrained encoder is a checkpoint that nothing trained.
Seconds are those of the processor.

    PYTHONPATH=. python benchmarks/scenes.py [--seeds 0 1 2] [--masks 100 25 400] [--folder runs/scenes] [--bfloat16]
"""

import argparse
import json
import resource
import statistics
import subprocess
from pathlib import Path

import torch

from modeling_mae import MAEConfig, MAEForPreTraining


WITH_FROZEN = 100  # masks of the rows that train no block
NEIGHBOURS = "20"
ROWS = {
    "raw pixels": "dense k-NN of raw patches",
    "untrained encoder": "dense k-NN of the untrained encoder",
    "pre-trained encoder": "dense k-NN of the pre-trained encoder",
    "untrained": "frozen linear, untrained encoder",
    "n_partial-0": "frozen linear, pre-trained encoder",
    "from-scratch": "all blocks from scratch",
    "n_partial-4": "all blocks tuned",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--masks", nargs="*", type=int, default=[100, 25, 400])
    parser.add_argument("--folder", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    launch = ["accelerate", "launch", "--mixed_precision", "bf16" if options.bfloat16 else "no"]
    launch += ["--num_cpu_threads_per_process", str(torch.get_num_threads())]
    for seed in options.seeds:
        folder = options.folder / str(seed)
        pretrained, untrained = folder / "pretrained", folder / "untrained"
        run(launch, "run_pretrain.py", "pretrain_scenes", pretrained, seed)
        torch.manual_seed(seed)
        MAEForPreTraining(MAEConfig.from_pretrained(pretrained)).save_pretrained(untrained)
        for masks in options.masks:
            rows = segment(launch, folder, pretrained, seed, masks)
            if masks == WITH_FROZEN:
                alone = ("--n_partial", "0", "--from_scratch", "false", "--knn", "false")
                rows += [{**row, "name": "untrained"} for row in segment(launch, folder, untrained, seed, masks, *alone)]
            for row in rows:
                value = row["knn"][NEIGHBOURS] if "knn" in row else row["last_mean_iou"]
                found.setdefault((row["name"], masks), []).append(100 * value)
        show(found, options.masks)


def segment(launch: list[str], folder: Path, checkpoint: Path, seed: int, masks: int, *more: str) -> list[dict]:
    """The rows of results of `segment_demo` on `checkpoint`."""
    place = folder / f"{checkpoint.name}-{masks}"
    if masks != WITH_FROZEN:
        more = ("--n_partial", "4", "--knn", "false")
    words = ["--model_name_or_path", str(checkpoint), "--max_train_samples", str(masks), *more]
    run(launch, "run_eval.py", "segment_demo", place, seed, *words)
    return json.loads((place / "results.json").read_text())


def run(launch: list[str], script: str, recipe: str, place: Path, seed: int, *more: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    words = [script, recipe, "--output_dir", str(place), "--seed", str(seed), "--overwrite_output_dir", "true", *more]
    subprocess.run([*launch, *words], check=True)
    print(f"== {place}: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before:.0f} s", flush=True)


def show(found: dict[tuple[str, int], list[float]], columns: list[int]) -> None:
    print("\n| mean IoU in % |", *(f"{count} masks |" for count in columns))
    print("|--|" + "--|" * len(columns))
    for name, title in ROWS.items():
        cells = [found.get((name, count)) for count in columns]
        texts = [f"{statistics.mean(c):.1f} ({min(c):.1f}-{max(c):.1f})" if c else "" for c in cells]
        print(f"| {title} |", *(f"{text} |" for text in texts), flush=True)


if __name__ == "__main__":
    main()
