"""Which weights a training changes: all, the last blocks, or low-rank adapters by PEFT (`--tune`).

LoRA is arXiv 2106.09685. Adapters with one or two whole blocks and all norms are ExPLoRA, arXiv 2406.10973.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from ..configuration_mae import MAEConfig
from ..errors import UserError
from ..modeling_mae import MAEPreTrainedModel


RANK = 8  # of adapters
PATCH_PROJECTION = "mae.embeddings.patch_embeddings.weight"
ADAPTER = "adapter"  # folder beside a model, in PEFT's format
GRAMMAR = re.compile(r"(?P<lora>lora(:(?P<rank>[1-9]\d{0,5}))?)?(?P<plus>\+)?(last:(?P<last>[1-9]\d{0,5}))?")


@dataclass(frozen=True)
class TuningSettings:
    """What `tune` says: ``all``, ``last:2``, ``lora``, ``lora:16`` or ``lora:8+last:1``."""

    tune: str = "all"

    @property
    def parts(self) -> dict[str, str | None]:
        """The words and numbers of `tune`, None for those that it does not have.

        Raises:
            UserError: it says something else.
        """
        match = None if self.tune in ("", "all") else GRAMMAR.fullmatch(self.tune)
        found = match.groupdict() if match else {}
        if self.tune != "all" and (not found or bool(found["plus"]) != bool(found["lora"] and found["last"])):
            raise UserError(
                f"tune {self.tune!r} does not work: give all, last:2 (blocks), lora, lora:16 (rank) or lora:8+last:1"
            )
        return found

    @property
    def rank(self) -> int:
        """The rank of the adapters, 0 without any."""
        parts = self.parts
        return int(parts["rank"] or RANK) if parts.get("lora") else 0

    @property
    def last(self) -> int:
        """How many of the last blocks train whole."""
        return int(self.parts.get("last") or 0)

    def check(self, config: MAEConfig) -> None:
        """Raises a UserError if an encoder of this configuration is too small for it."""
        depth, width = config.num_hidden_layers, config.hidden_size
        if self.last >= depth:
            most = f"last:1 to last:{depth - 1}" if depth > 1 else "lora"
            raise UserError(f"tune {self.tune!r}: the encoder has {depth} blocks: give {most}, or all")
        if self.rank > width:
            raise UserError(f"tune {self.tune!r}: rank {self.rank} is above the width {width}: give a lower one")

    def apply(self, model: MAEPreTrainedModel, base: str | None = None, changed: frozenset[str] = frozenset()) -> str:
        """Freezes what does not train, and puts adapters into the attention of the encoder's other blocks. Returns
        what trains then, and how many parameters; an empty text if all do.

        An adapter belongs to the one linear layer of queries, keys and values. Decoder or head train whole, and so do
        the modules of the parameters `changed`, which are new, or fitted to other bands or patches. What `model` has
        frozen stays frozen. `base` names the weights that training begins with, for the adapters' file.
        """
        if self.tune == "all":
            return ""
        blocks = range(model.config.num_hidden_layers - self.last)
        names = self._whole_modules(model, len(blocks))
        parents = {name.rpartition(".")[0] for name in changed}
        names += sorted(name for name in parents if not f"{name}.".startswith(tuple(f"{each}." for each in names)))
        whole = {id(p) for name in names for p in model.get_submodule(name).parameters() if p.requires_grad}
        if self.rank:
            from peft import LoraConfig, inject_adapter_in_model  # late: nothing else needs it

            adapted = rf"mae\.layers\.({'|'.join(map(str, blocks))})\.attention\.qkv"
            config = LoraConfig(
                r=self.rank, lora_alpha=self.rank, target_modules=adapted, base_model_name_or_path=base
            )
            inject_adapter_in_model(config, model)
            config.modules_to_save = names  # for the file only: PEFT would keep a second copy of them in the model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name or id(parameter) in whole)
        return self._describe(model)

    def _whole_modules(self, model: MAEPreTrainedModel, first: int) -> list[str]:
        """The names of the modules that train whole: all outside the encoder, its blocks from `first` on and with them
        the final norm. If the other blocks have adapters, their norms too."""
        names = [name for name, _ in model.named_children() if name != "mae"] + ["mae.pooler"]
        depth = model.config.num_hidden_layers
        if self.last:
            names += [f"mae.layers.{i}" for i in range(first, depth)] + ["mae.layernorm"]
            names += [f"mae.layers.{i}.norm{n}" for i in range(first) for n in (1, 2)] if self.rank else []
        modules = dict(model.named_modules())
        kept = {name: modules[name] for name in names if name in modules}
        return [name for name, module in kept.items() if module.state_dict()]

    def _describe(self, model: nn.Module) -> str:
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        what = [f"adapters of rank {self.rank}"] if self.rank else []
        what += [f"the last {self.last} blocks" if self.last > 1 else "the last block"] if self.last else []
        what += ["the norms"] if self.rank and self.last else []
        what += ["the patch projection"] if model.get_parameter(PATCH_PROJECTION).requires_grad else []
        what += ["decoder" if hasattr(model, "decoder") else "head"]
        counts = [sum(size for size, trained in sizes if trained or every) for every in (False, True)]
        return f"{', '.join(what[:-1])} and {what[-1]}: {counts[0]:,} of {counts[1]:,} parameters"


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def merged(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights without adapters: those of `state`, to which their product is added, under the original names."""
    result = {}
    for name, weight in state.items():
        if ".lora_" not in name:
            stem, base, kind = name.rpartition(".base_layer.")
            down, up = (state.get(f"{stem}.lora_{half}.default.weight") if base else None for half in "AB")
            if kind == "weight" and down is not None and up is not None:
                layer: Any = model.get_submodule(stem)  # PEFT's
                weight = weight + layer.scaling["default"] * (up @ down)
            result[f"{stem}.{kind}" if base else name] = weight
    return result


def save_adapter(model: nn.Module, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes the adapters and all that trains beside them, so that `PeftModel.from_pretrained` finds them. `state` are
    the weights of `model`."""
    config = cast(Any, model).peft_config["default"]
    beside = tuple(f"{name}." for name in config.modules_to_save or ())
    kept = {
        f"base_model.model.{name.replace('.default.', '.')}": value.contiguous()
        for name, value in state.items()
        if ".lora_" in name or name.startswith(beside)
    }
    config.save_pretrained(folder)
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
