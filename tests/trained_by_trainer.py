"""One update of transformers' Trainer on 16 images, as `python tests/trained_by_trainer.py NAME MICRO_BATCH FOLDER`
with any launcher. Prints the loss that it logs, the norm of the update, and what `evaluate` gives."""

import json
import os
import sys

import torch
from conftest import tiny_config
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from modeling_mae import EvalNet, MAEForPreTraining


IMAGES = 16


class Labelled(torch.utils.data.Dataset):
    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": i % 3}


class Unlabelled(Labelled):
    def __getitem__(self, i):
        # The same noise for an image in every run: what is compared is the loss, not the masks.
        item = super().__getitem__(i)
        return {"pixel_values": item["pixel_values"], "noise": item["pixel_values"][0].flatten()[:16]}


def one_update(name: str, micro_batch: int, folder: str, processes: int = 1) -> dict[str, float]:
    """All `IMAGES` in one update, in as many micro-batches as it takes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = {
        "EvalNet": lambda: EvalNet(tiny_config(num_labels=3, head_initializer_range=0.5)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)),
        "MAE": lambda: MAEForPreTraining(tiny_config()),
    }[name]()
    data = Unlabelled() if name == "MAE" else Labelled()
    steps = IMAGES // micro_batch // processes
    options = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    arguments = TrainingArguments(
        folder, max_steps=1, per_device_train_batch_size=micro_batch, gradient_accumulation_steps=steps,
        learning_rate=1.0, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, **options,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer.train()
    change = [(new.detach() - old).square().sum() for new, old in zip(model.parameters(), before, strict=True)]
    loss = trainer.state.log_history[0]["loss"]
    return {"loss": loss, "update": torch.stack(change).sum().sqrt().item(), **trainer.evaluate()}


if __name__ == "__main__":
    found = one_update(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(os.environ.get("WORLD_SIZE", "1")))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))
