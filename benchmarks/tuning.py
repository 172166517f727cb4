"""Parameters, seconds of processor and memory of a pre-training update, by `--tune`: `python benchmarks/tuning.py`."""

import resource
import statistics
import subprocess
import sys
import time

import torch

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.training.optim import OptimizerSettings, make_optimizer
from modeling_mae.training.tuning import TuningSettings


UPDATES, IMAGES = 7, 32
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
SMALL |= {"decoder_hidden_size": 192, "decoder_num_hidden_layers": 4, "decoder_num_attention_heads": 6}


def measure(tune: str) -> str:
    """A line about the updates of a ViT-S/16 with a light decoder, from images of 224 pixels."""
    torch.manual_seed(0)
    model = MAEForPreTraining(MAEConfig(**SMALL, decoder_intermediate_size=768))
    what = TuningSettings(tune).apply(model) or "everything"
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay=0.05))
    pixel_values = torch.randn(IMAGES, 3, 224, 224)
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(UPDATES):
        began = time.process_time()
        model(pixel_values).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - began)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"{tune:14} {statistics.median(seconds[2:]):5.2f} s  {memory:6,.0f} MiB beside the model  {what}"


if __name__ == "__main__":
    if sys.argv[1:]:
        print(measure(sys.argv[1]))
    else:
        for tune in ("all", "last:1", "lora", "lora:8+last:1"):  # each in a process, because memory is a maximum
            subprocess.run([sys.executable, __file__, tune], check=True)
