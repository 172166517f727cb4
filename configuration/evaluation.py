"""The arguments of run_eval.py, and the paper's settings of the two kinds of evaluation.

What is left open (None) takes the paper's value for the number of blocks tuned: linear probing (arXiv 2111.06377,
Table 10) for 0, fine-tuning (Table 9) for the others; what the paper leaves open is the official code's.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .arguments import DataArguments, ModelArguments, OptimizerArguments, RunArguments, option
from .model import model_config, model_fields, parse_overrides
from .parsing import parse_mapping


LINEAR_PROBING = {
    "optimizer": "lars",
    "base_learning_rate": 0.1,
    "min_learning_rate": 0.0,
    "weight_decay": 0.0,
    "layer_decay": 1.0,
    "total_batch_size": 16384,
    "num_train_epochs": 90.0,
    "warmup_epochs": 10.0,
    "auto_augment": "none",
    "random_erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "config_overrides": ["pooling=cls", "head_norm=batch", "head_initializer_range=0.01"],
}
FINE_TUNING = {
    "optimizer": "adamw",
    "base_learning_rate": 1e-3,
    "min_learning_rate": 1e-6,
    "weight_decay": 0.05,
    "layer_decay": 0.75,
    "total_batch_size": 1024,
    "num_train_epochs": 100.0,
    "warmup_epochs": 5.0,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "config_overrides": [
        "pooling=mean",
        "head_norm=layer",
        "head_initializer_range=2e-5",
        "drop_path_rate=0.1",
        "label_smoothing=0.1",
    ],
}
BY_BLOCKS = "; by default the paper's for the number of blocks tuned."


@dataclass
class EvalArguments(RunArguments, OptimizerArguments, DataArguments, ModelArguments):
    """The arguments of run_eval.py."""

    output_dir: str = option("runs/eval", "Folder for everything the run writes.")
    n_partial: list[float] | None = option(
        None,
        "Blocks to tune: 0 linear probing, 0.5 the last block's MLP, 1, 2, ... the last blocks, the depth all; "
        "several values run one after another. 0 by default.",
    )
    from_scratch: bool = option(False, "Also train the same network from scratch, as the supervised baseline.")
    do_train: bool = option(True, "False: only test the checkpoint as it is.")
    knn: bool = option(False, "Weighted k-NN on the frozen features (k 10, 20, 100, 200, temperature 0.07).")
    baselines: bool = option(
        False, "k-NN and logistic regression on raw pixels, on an untrained encoder and on the checkpoint's features."
    )
    validation_dir: str | None = option(None, "Folder to evaluate on, of images by class or of parquet files.")
    label_column_name: str | None = option(None, "Column of the labels; found from the features when not given.")
    label_fraction: float = option(1.0, "Part of the training images to use, the same of each class, as in 0.1.")
    max_eval_samples: int | None = option(None, "Evaluate on this many images only.")
    eval_crop_fraction: float = option(
        0.875,
        "Part of the shorter side that evaluation keeps: 0.875 is 224 of 256 as in the paper, 1 for small images.",
    )
    eval_epochs: int = option(1, "Epochs between two evaluations.")
    per_device_eval_batch_size: int = option(256, "Images at a time on each process in evaluation.")
    save_predictions: bool = option(False, "Write the predictions of the evaluation images as predictions.parquet.")
    crop_scale: list[float] = option(
        [0.08, 1.0], "Smallest and largest part of an image's area that a random crop takes; 1 1: no crop."
    )
    optimizer: str | None = option(None, "lars, sgd or adamw" + BY_BLOCKS)
    num_train_epochs: float | None = option(None, "Length of the run, in epochs" + BY_BLOCKS)
    total_batch_size: int | None = option(None, "Images an update, over all processes" + BY_BLOCKS)
    base_learning_rate: float | None = option(None, "Learning rate of 256 images an update" + BY_BLOCKS)
    min_learning_rate: float | None = option(None, "Learning rate that the cosine ends at" + BY_BLOCKS)
    warmup_epochs: float | None = option(None, "Epochs over which the learning rate rises from 0" + BY_BLOCKS)
    weight_decay: float | None = option(None, "Weight decay, none on biases, norms, tokens" + BY_BLOCKS)
    layer_decay: float | None = option(None, "Factor of the learning rate from a block to the one before" + BY_BLOCKS)
    adam_beta2: float = option(0.999, "AdamW's decay of the mean of squared gradients.")
    auto_augment: str | None = option(
        None, "RandAugment in timm's words, as in rand-m9-mstd0.5-inc1, or none" + BY_BLOCKS
    )
    random_erasing: float | None = option(None, "Probability of random erasing" + BY_BLOCKS)
    mixup: float | None = option(None, "Alpha of mixup, 0 for none" + BY_BLOCKS)
    cutmix: float | None = option(None, "Alpha of cutmix, 0 for none" + BY_BLOCKS)
    linear_overrides: list[str] = option(
        [],
        "Arguments and model fields as key=value for linear probing alone, where a run also tunes; they win over all.",
        action="extend",
    )

    # What differs from one strategy to the other only through its default.
    REPLACES: ClassVar[dict[str, tuple[str, ...]]] = {
        **RunArguments.REPLACES,
        "train_dir": ("dataset_name", "dataset_config_name", "validation_dir"),
        "dataset_name": ("train_dir", "dataset_config_name", "validation_dir"),
    }

    def runs(self) -> list[tuple[str, float | None, bool]]:
        """(name, n_partial, from scratch) of every training there is to do; n_partial None is all blocks."""
        if not self.do_train:
            return []
        values = self.n_partial if self.n_partial is not None else [] if self.from_scratch else [0.0]
        runs = [(f"n_partial-{value:g}", value, False) for value in values]
        return runs + [("from-scratch", None, True)] * self.from_scratch

    def run_folder(self, name: str) -> Path:
        """One run writes into output_dir itself, several into a folder each."""
        return Path(self.output_dir) / name if len(self.runs()) > 1 else Path(self.output_dir)

    def run_folders(self) -> list[Path]:
        return [self.run_folder(name) for name, _, _ in self.runs()]

    def strategy(self, n_partial: float | None, from_scratch: bool = False) -> "EvalArguments":
        """The arguments of one training, with nothing left open. ValueError for a wrong linear override."""
        paper: dict[str, Any] = dict(LINEAR_PROBING if n_partial == 0 else FINE_TUNING)
        if from_scratch:
            paper["layer_decay"] = 1.0  # there are no lower blocks to spare
        values = {name: value for name, value in paper.items() if getattr(self, name) is None}
        values["config_overrides"] = paper["config_overrides"] + self.config_overrides
        if n_partial == 0:
            fields = {field.name for field in dataclasses.fields(self)} - {"n_partial", "linear_overrides"}
            overrides = parse_overrides(self.linear_overrides, "linear_overrides", [*fields, *model_fields()])
            parsed = parse_mapping(type(self), {key: value for key, value in overrides.items() if key in fields})
            values.update({key: getattr(parsed, key) for key in overrides if key in fields})
            values["config_overrides"] += [t for t in self.linear_overrides if t.partition("=")[0] not in fields]
        return dataclasses.replace(self, n_partial=None if n_partial is None else [n_partial], **values)

    def check(self) -> None:
        self._require("label_fraction", lambda x: 0 < x <= 1, "a part in (0, 1], as in 0.1")
        self._require("max_eval_samples", lambda x: x >= 1, "a number of images, at least 1")
        self._require("eval_crop_fraction", lambda x: 0 < x <= 1, "a part in (0, 1], as in 0.875")
        self._require("eval_epochs", lambda x: x >= 1, "a number of epochs, at least 1")
        self._require("per_device_eval_batch_size", lambda x: x >= 1, "a number of images, at least 1")
        self._check_model()
        if len(self.runs()) > 1 and self.resume_from_checkpoint not in (None, "auto"):
            raise ValueError(
                f"resume_from_checkpoint {self.resume_from_checkpoint!r} is of one run, and there are "
                f"{len(self.runs())}: give auto, which goes on with each"
            )
        if len(self.runs()) > 1 and self.hub_strategy == "checkpoint":
            raise ValueError(
                f"hub_strategy 'checkpoint' is for one run, and there are {len(self.runs())}: give one n_partial, or "
                "--hub_strategy end"
            )
        resolved = [self.strategy(value, scratch) for _, value, scratch in self.runs()] or [self.strategy(None)]
        for arguments in resolved:
            arguments.check_resolved()
        self._check_output_dir()

    def check_resolved(self) -> None:
        """The checks of one training's arguments, in which nothing is left open."""
        super().check()
        self._check_channels()
        if self.optimizer not in ("lars", "sgd", "adamw"):
            raise ValueError(f"optimizer {self.optimizer!r} does not work: give lars, sgd or adamw")
        self._require("layer_decay", lambda x: 0 < x <= 1, "a factor in (0, 1], the paper's is 0.75")
        self._require("min_learning_rate", lambda x: x >= 0, "a rate, 0 or more")
        self._require("random_erasing", lambda x: 0 <= x <= 1, "a probability")
        self._require("mixup", lambda x: x >= 0, "0 or more, the paper's is 0.8")
        self._require("cutmix", lambda x: x >= 0, "0 or more, the paper's is 1.0")
        if (self.mixup or self.cutmix) and self.per_device_train_batch_size % 2:
            raise ValueError(
                f"per_device_train_batch_size {self.per_device_train_batch_size} is odd: mixup and cutmix need pairs; "
                "give an even one, or --mixup 0 --cutmix 0"
            )
        if self.auto_augment != "none" and not self.auto_augment.startswith("rand-"):
            raise ValueError(
                f"auto_augment {self.auto_augment!r} is no RandAugment in timm's words: give rand-m9-mstd0.5-inc1, "
                "say, or none"
            )

    def _check_output_dir(self) -> None:
        if self.do_train and len(self.runs()) != 1 and self.n_partial == []:
            raise ValueError("n_partial is empty: give 0, 0.5, 1, ... or the depth")
        self._check_own_folder()
        super()._check_output_dir()

    def _check_model(self) -> None:
        name = self.model_name_or_path
        needs = not self.do_train or self.knn or self.baselines or any(not scratch for _, _, scratch in self.runs())
        if name is None and needs:
            raise ValueError(
                "model_name_or_path is not given: give a pre-trained checkpoint's folder or Hub id, or only "
                "--from_scratch true with --config_name"
            )
        if name is not None and not Path(name).exists() and (Path(name).parent.is_dir() or name.count("/") > 1):
            raise ValueError(f"model_name_or_path {name!r} is not a folder here: pre-train first, or give a Hub id")
        if name is None or Path(name).is_dir():
            depth = model_config(self).num_hidden_layers
            for value in self.n_partial or []:
                if value not in (0, 0.5, *range(1, depth + 1)):
                    raise ValueError(
                        f"n_partial {value:g} does not work: give 0 (head only), 0.5 (the last block's MLP too) or 1 "
                        f"... {depth} (that many of the last blocks; {depth} is everything)"
                    )
