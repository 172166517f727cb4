"""Training steps per second, ours against transformers' ViTMAEForPreTraining of the same architecture.

"ours, cross" has the same encoder and the cross decoder of the same depth and width, which predicts a quarter of the
patches. The loss is another one, so its speed alone does not say which is better.

A step is forward, backward and the AdamW update on random images. The contestants take turns in one process, one
step each, so that what else the machine does hits all alike; medians are shown. All have the same optimizer (torch's
fused AdamW) and, as ViTMAE's own are zero from scratch, filled position tables. Peak memory is what a contestant
takes on a GPU, or a process of its own on a CPU. The matrix-multiply rate of the machine, measured between the steps,
is the limit for a step's arithmetic. `--compile` lets each take part again, compiled as a whole or block by block
(`accelerate launch --dynamo_backend inductor`, `--dynamo_use_regional_compilation`).

    PYTHONPATH=. python benchmarks/train_step.py [--sizes base tiny demo] [--rounds 7] [--compile whole blocks]
        [--device cuda] [--dtype bfloat16] [--batch 256]
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from accelerate.utils import compile_regions
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from configuration import PretrainArguments, model_config, parse_arguments
from modeling_mae import MAEForPreTraining
from modeling_mae.training.optim import parameter_groups


WORDS = {  # name: (arguments of run_pretrain.py, images a step)
    "base": (["--config_name", "vit_base"], 8),
    "large": (["--config_name", "vit_large"], 8),
    "tiny": (["--config_name", "vit_tiny", "--config_overrides", "image_size=32", "patch_size=4"], 64),
    "demo": (["demo", "--output_dir", "runs/benchmark", "--overwrite_output_dir", "true"], 256),
}
SHARED = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps image_size "
    "patch_size num_channels qkv_bias mask_ratio norm_pix_loss decoder_hidden_size decoder_num_hidden_layers "
    "decoder_num_attention_heads decoder_intermediate_size"
).split()


def build(name: str, size: str, device: str) -> torch.nn.Module:
    """The model of a contestant."""
    config = model_config(parse_arguments(PretrainArguments, WORDS[size][0]))
    torch.manual_seed(0)
    if "cross" in name:
        config.decoder_type, config.prediction_ratio = "cross", 0.25
    model = MAEForPreTraining(config)
    if "transformers" in name:
        theirs = ViTMAEForPreTraining(ViTMAEConfig(**{key: getattr(config, key) for key in SHARED}))
        with torch.no_grad():
            theirs.vit.embeddings.position_embeddings.copy_(model.mae.embeddings.positions.table)
            theirs.decoder.decoder_pos_embed.copy_(model.decoder.positions.table)
        model = theirs
    model = model.to(device).train()
    if name.endswith("blocks"):
        return compile_regions(model)
    return torch.compile(model) if name.endswith("whole") else model


def stepper(name: str, size: str, batch: int, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """A function that does one step of `batch` images."""
    model = build(name, size, device)
    config = model.config
    # transformers' names differ, the rule (no decay in 1-D) and the optimizer are the same
    groups = parameter_groups(model, 0.05)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    images = torch.randn(batch, config.num_channels, height, width, device=device)

    def step() -> None:
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(work, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def high_water() -> float:
    """Most resident MB that this process ever had; not ru_maxrss, which begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peak_of_process(*contestant) -> float:
    """MB that three steps take beyond what the imports took."""
    before = high_water()
    step = stepper(*contestant)
    for _ in range(3):
        step()
    return high_water() - before


def in_a_process_of_its_own(function, *arguments):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Contestant:
    """What was measured of one of them, and its next step."""

    def __init__(self, name: str, size: str, batch: int, device: str, dtype: torch.dtype):
        self.name, self.times, self.given = name, [], (name, size, batch, device, dtype)
        before = torch.cuda.memory_allocated() if device == "cuda" else 0
        begin = time.perf_counter()
        self.step = stepper(*self.given)
        seconds(self.step, device)
        self.start = time.perf_counter() - begin  # with building and compiling
        self.step()
        self.work = 0
        if "compiled" not in name:
            with FlopCounterMode(display=False) as counter:
                self.step()
            self.work = counter.get_total_flops()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.step()
            self.peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        else:
            self.peak = in_a_process_of_its_own(peak_of_process, *self.given)


def compare(size: str, names: list[str], rounds: int, batch: int, device: str, dtype: torch.dtype) -> None:
    contestants = [Contestant(name, size, batch, device, dtype) for name in names]
    work = {each.name: each.work for each in contestants}
    side = 8192 if device == "cuda" else 1536
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    products = []
    for _ in range(rounds):
        for each in contestants:
            each.times.append(seconds(each.step, device))
        products.append(seconds(lambda: one @ other, device))
    rate = 2 * side**3 / statistics.median(products)
    images = {each.name: batch / statistics.median(each.times) for each in contestants}
    machine = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"\n{size}: {batch} images a step, {machine}, {dtype}, matrix products at {rate / 1e9:,.0f} GFLOP/s")
    columns = f"{'images/s':>10}{'ratio':>8}{'peak MB':>10}{'GFLOP/image':>13}{'of product rate':>17}{'start, s':>10}"
    print(f"{'':30}{columns}")
    for each in contestants:
        done = work[each.name.partition(", compiled")[0]] / batch  # a step does the same work when compiled
        rates = f"{images[each.name]:10.1f}{images[each.name] / images['transformers']:8.2f}{each.peak:10.0f}"
        share = done * images[each.name] / rate
        print(f"{each.name:30}{rates}{done / 1e9:13.2f}{100 * share:16.0f}%{each.start:10.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(WORDS), default=["base", "tiny", "demo"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, help="images a step; default: 8 of 224 x 224, 64 or 256 of small ones")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", nargs="+", choices=["whole", "blocks"], default=[], help="all compiled, too")
    args = parser.parse_args()
    names = ["transformers", "ours", "ours, cross"]
    names += [f"{name}, compiled {way}" for way in args.compile for name in names]
    for size in args.sizes:
        compare(size, names, args.rounds, args.batch or WORDS[size][1], args.device, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
