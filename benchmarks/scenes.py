"""The table of the demo of masks: mean IoU over seeds, each with a pre-training of its own, by the real scripts.

Classifiers are tested after the last update, on whole scenes of the test split. Dense k-NN takes k = 20. The untrained
encoder is a checkpoint that was never trained. A stopped command goes on. Seconds are the processor's.

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


WITH_FROZEN = 100  # masks of the rows that tune no block
ROWS = {
    "raw pixels": "dense k-NN, raw patches",
    "untrained encoder": "dense k-NN, untrained encoder",
    "pre-trained encoder": "dense k-NN, pre-trained encoder",
    "untrained": "frozen linear, untrained encoder",
    "n_partial-0": "frozen linear, pre-trained encoder",
    "from-scratch": "all blocks, from scratch",
    "n_partial-4": "all blocks, pre-trained",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--masks", nargs="*", type=int, default=[100, 25, 400])
    parser.add_argument("--folder", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args()
    launch = ["accelerate", "launch", "--mixed_precision", "bf16" if options.bfloat16 else "no"]
    launch += ["--num_cpu_threads_per_process", str(torch.get_num_threads())]
    found: dict[tuple[str, int], list[float]] = {}
    for masks in options.masks:
        for seed in options.seeds:
            for row in rows_of(launch, options.folder / str(seed), seed, masks):
                value = row["knn"]["20"] if "knn" in row else row["last_mean_iou"]
                found.setdefault((row["name"], masks), []).append(100 * value)
        show(found, options.masks)


def rows_of(launch: list[str], folder: Path, seed: int, masks: int) -> list[dict]:
    pretrained, untrained = folder / "pretrained", folder / "untrained"
    run(launch, "run_pretrain.py", "pretrain_scenes", pretrained, seed)
    torch.manual_seed(seed)
    MAEForPreTraining(MAEConfig.from_pretrained(pretrained)).save_pretrained(untrained)
    frozen = [] if masks == WITH_FROZEN else ["--n_partial=4", "--knn=false"]
    words = [f"--max_train_samples={masks}", f"--model_name_or_path={pretrained}", *frozen]
    rows = run(launch, "run_eval.py", "segment_demo", folder / f"masks-{masks}", seed, *words)
    if masks == WITH_FROZEN:
        words = [f"--model_name_or_path={untrained}", "--n_partial=0", "--from_scratch=false", "--knn=false"]
        linear = run(launch, "run_eval.py", "segment_demo", folder / "untrained-linear", seed, *words)
        rows += [{**row, "name": "untrained"} for row in linear]
    return rows


def run(launch: list[str], script: str, recipe: str, place: Path, seed: int, *more: str) -> list[dict]:
    """The rows of results, of an evaluation."""
    if not (place / "report.html").exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        words = [script, recipe, f"--output_dir={place}", f"--seed={seed}", "--resume_from_checkpoint=auto", *more]
        subprocess.run([*launch, *words], check=True)
        print(f"== {place}: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before:.0f} s", flush=True)
    return json.loads((place / "results.json").read_text()) if script == "run_eval.py" else []


def show(found: dict[tuple[str, int], list[float]], columns: list[int]) -> None:
    print("\n| mean IoU in % |", *(f"{count} masks |" for count in columns))
    print("|--|" + "--|" * len(columns))
    for name, title in ROWS.items():
        cells = [found.get((name, count)) for count in columns]
        texts = [f"{statistics.mean(c):.1f} ({min(c):.1f}-{max(c):.1f})" if c else "" for c in cells]
        print(f"| {title} |", *(f"{text} |" for text in texts), flush=True)


if __name__ == "__main__":
    main()
