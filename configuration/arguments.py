"""The run arguments, in parts that the scripts share. Defaults: the paper's pre-training (arXiv 2111.06377, Table 8).

Names are those of the transformers example scripts. There is no option for what the launcher owns (precision,
devices, processes) or for what follows from others (gradient accumulation, the learning rate after scaling).
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from .model import model_config, suggest


def option(default: Any, help: str, **kwargs) -> Any:
    """A dataclass field with its line for --help; a list is copied for each instance."""
    source = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**source, metadata={"help": help, **kwargs})


def _workers() -> int:
    """One loading process a core of this machine, shared among its training processes, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Checked:
    """Each part checks its own values in `check`, and hands on to the next."""

    # Given on the command line, the key drops these from a recipe: they are two ways to say the same thing.
    REPLACES: ClassVar[dict[str, tuple[str, ...]]] = {
        "dataset_name": ("train_dir", "dataset_config_name"),
        "train_dir": ("dataset_name", "dataset_config_name"),
        "model_name_or_path": ("config_name",),
        "config_name": ("model_name_or_path",),
        "num_train_epochs": ("max_train_steps",),
    }

    def check(self) -> None:
        """Raises a ValueError of one line, naming the value and the remedy, for arguments that cannot work.

        Quick, without network, and the same on every process; to be called before any long work."""

    def _require(self, name: str, holds, meaning: str) -> None:
        """`holds(value)` for the argument's value, or each of its values; None (not given) is never wrong."""
        value = getattr(self, name)
        for item in value if isinstance(value, list) else [value]:
            if item is not None and not (math.isfinite(item) and holds(item)):
                raise ValueError(f"{name} {item} does not work: give {meaning}")

    def _exclude(self, one: str, other: str) -> None:
        if getattr(self, one) and getattr(self, other):
            values = f"{one} {getattr(self, one)!r} and {other} {getattr(self, other)!r}"
            raise ValueError(f"{values} exclude each other: give one")

    def _need(self, one: str, other: str) -> None:
        if getattr(self, one) and not getattr(self, other):
            raise ValueError(f"{one} {getattr(self, one)!r} means nothing without {other}: give both or neither")


@dataclass
class ModelArguments(_Checked):
    model_name_or_path: str | None = option(
        None, "Folder or Hub id of a checkpoint to go on from, weights and configuration. Not with config_name."
    )
    config_name: str | None = option(
        None, "Model from scratch: a preset (vit_tiny ... vit_huge), a JSON file, or a folder with a config.json."
    )
    config_overrides: list[str] = option(
        [],
        "Model fields as key=value, as in image_size=32 patch_size=4 mask_ratio=0.5; added to the recipe's.",
        action="extend",
    )

    def check(self) -> None:
        super().check()
        self._exclude("model_name_or_path", "config_name")
        if self.model_name_or_path is not None and Path(self.model_name_or_path).is_file():
            raise ValueError(
                f"model_name_or_path {self.model_name_or_path!r} is a file: convert it with `python -m "
                f"modeling_mae.interop {self.model_name_or_path} FOLDER` and give FOLDER"
            )


@dataclass
class DataArguments(_Checked):
    dataset_name: str | None = option(
        None, "cifar10, cifar100, stl10, imagenet, fashion_mnist (bundled, the default), or any Hub id."
    )
    dataset_config_name: str | None = option(None, "Configuration (subset) of the Hub data set.")
    train_dir: str | None = option(None, "Local folder of images (any depth) or of parquet files, for dataset_name.")
    train_split: str = option("train", "Split to train on.")
    eval_split: str | None = option(None, "Split to evaluate on; the data set's test or validation split by default.")
    image_column_name: str | None = option(None, "Column of the images; found from the features when not given.")
    max_train_samples: int | None = option(None, "Train on this many images only.")
    image_mean: list[float] | None = option(
        None, "Mean of each channel, where white is 1; measured on a sample when not given."
    )
    image_std: list[float] | None = option(None, "Standard deviation of each channel, as image_mean.")
    crop_scale: list[float] = option(
        [0.2, 1.0], "Smallest and largest part of an image's area that a random crop takes; 1 1: no crop."
    )
    horizontal_flip: bool = option(True, "Mirror every second image, at random.")
    on_bad_image: Literal["error", "skip"] = option(
        "error", "What to do about a file that cannot be decoded; skip puts the next good one in its place."
    )
    cache_dir: str | None = option(None, "Folder for downloads, in place of the Hugging Face cache.")
    dataloader_num_workers: int = field(
        default_factory=_workers,
        metadata={"help": "Loading processes for each training process; by default from this machine's cores."},
    )

    def check(self) -> None:
        super().check()
        self._exclude("dataset_name", "train_dir")
        self._need("dataset_config_name", "dataset_name")
        self._require("max_train_samples", lambda x: x >= 1, "a number of images, at least 1")
        self._require("dataloader_num_workers", lambda x: x >= 0, "a number of processes, 0 for none")
        self._require("crop_scale", lambda x: 0 < x <= 1, "two parts of the area in (0, 1], as in 0.2 1.0")
        if len(self.crop_scale) != 2 or self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(
                f"crop_scale {_join(self.crop_scale)} does not work: give smallest, largest, as in 0.2 1.0"
            )
        mean, std = self.image_mean, self.image_std
        if (mean is None) != (std is None) or (mean is not None and len(mean) != len(std)):
            raise ValueError(
                f"image_mean {_join(mean)} and image_std {_join(std)} do not fit: give one number a channel in each, "
                "or neither to have them measured"
            )
        self._require("image_mean", lambda x: 0 <= x <= 1, "numbers in 0 to 1, where white is 1 (divide by 255)")
        self._require("image_std", lambda x: 0 < x <= 1, "numbers in (0, 1], where white is 1 (divide by 255)")


@dataclass
class OptimizerArguments(_Checked):
    num_train_epochs: float = option(800.0, "Length of the run, in epochs.")
    max_train_steps: int | None = option(None, "Length of the run in updates, in place of num_train_epochs.")
    total_batch_size: int = option(4096, "Images an update, over all processes and accumulation steps.")
    per_device_train_batch_size: int = option(64, "Images at a time on each process; accumulation follows from it.")
    base_learning_rate: float = option(1.5e-4, "Learning rate of 256 images an update; times total_batch_size / 256.")
    warmup_epochs: float = option(40.0, "Epochs over which the learning rate rises from 0.")
    weight_decay: float = option(0.05, "AdamW's weight decay; none on biases, norms and tokens.")
    adam_beta1: float = option(0.9, "AdamW's decay of the mean of gradients.")
    adam_beta2: float = option(0.95, "AdamW's decay of the mean of squared gradients.")

    def check(self) -> None:
        super().check()
        self._require("num_train_epochs", lambda x: x > 0, "a number of epochs above 0")
        self._require("max_train_steps", lambda x: x >= 1, "a number of updates, at least 1")
        self._require("total_batch_size", lambda x: x >= 1, "a number of images, at least 1")
        self._require("per_device_train_batch_size", lambda x: x >= 1, "a number of images, at least 1")
        self._require("base_learning_rate", lambda x: x > 0, "a rate above 0, the paper's is 1.5e-4")
        self._require("weight_decay", lambda x: x >= 0, "0 or more, the paper's is 0.05")
        self._require("adam_beta1", lambda x: 0 <= x < 1, "a number in [0, 1), the paper's is 0.9")
        self._require("adam_beta2", lambda x: 0 <= x < 1, "a number in [0, 1), the paper's is 0.95")
        self._require("warmup_epochs", lambda x: x >= 0, "a number of epochs, 0 for none")
        # with max_train_steps a short trial of a long recipe may well end inside the warm-up
        if self.max_train_steps is None and self.warmup_epochs >= self.num_train_epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is not shorter than the run of num_train_epochs "
                f"{self.num_train_epochs:g}: give --warmup_epochs {self.num_train_epochs / 20:g}, say"
            )


@dataclass
class RunArguments(_Checked):
    output_dir: str = option("runs/pretrain", "Folder for everything the run writes.")
    overwrite_output_dir: bool = option(False, "Start anew where output_dir already holds a run.")
    seed: int = option(0, "Seed of initialisation, masks, order and crops.")
    logging_steps: int = option(10, "Updates between two readings of loss and learning rate.")
    checkpointing_steps: str = option("epoch", "Updates between two checkpoints, or epoch for one an epoch.")
    checkpoints_kept: int = option(2, "Number of checkpoints kept, the newest.")
    resume_from_checkpoint: str | None = option(
        None,
        "A checkpoint's folder, auto for the newest in output_dir (a fresh start when there is none), or "
        "hub://owner/name[@revision] for the newest that was pushed there.",
    )
    report_to: list[str] = option(["tensorboard"], "Accelerate's trackers, as in tensorboard wandb; all, or none.")
    push_to_hub: bool = option(False, "Upload output_dir to the Hub at the end.")
    hub_strategy: Literal["end", "checkpoint"] = option(
        "end", "When to push: only at the end, or each newest checkpoint too, in the background, to go on from."
    )
    hub_model_id: str | None = option(None, "Hub repository to push to, [owner/]name; output_dir's name if not given.")
    hub_private_repo: bool = option(False, "Make the Hub repository private when it is created.")

    def run_folders(self) -> list[Path]:
        """Where the run, or each of its runs, keeps model and checkpoints."""
        return [Path(self.output_dir)]

    @property
    def trackers(self) -> list[str]:
        """What to give to `Accelerator(log_with=...)`."""
        return [] if self.report_to == ["none"] else self.report_to

    def checkpointing_updates(self, updates_per_epoch: int) -> int:
        return updates_per_epoch if self.checkpointing_steps == "epoch" else int(self.checkpointing_steps)

    def check(self) -> None:
        super().check()
        self._require("seed", lambda x: 0 <= x < 2**32, "a whole number in 0 to 4294967295")
        self._require("logging_steps", lambda x: x >= 1, "a number of updates, at least 1")
        self._require("checkpoints_kept", lambda x: x >= 1, "a number of checkpoints, at least 1")
        steps = self.checkpointing_steps
        if steps != "epoch" and not (steps.isdecimal() and int(steps) >= 1):
            raise ValueError(f"checkpointing_steps {steps!r} does not work: give epoch or a number of updates")
        self._check_trackers()
        self._check_output_dir()
        self._check_hub()

    def _check_own_folder(self) -> None:
        own = Path(self.model_name_or_path).resolve() if self.model_name_or_path else None
        folders = [path.resolve() for path in (Path(self.output_dir), *self.run_folders())]
        if own in folders and self.resume_from_checkpoint is None:
            raise ValueError(
                f"output_dir {self.output_dir!r} is where model_name_or_path {self.model_name_or_path!r} lies: give "
                "another output_dir, so that the checkpoint stays as it is"
            )

    def _check_channels(self) -> None:
        # a configuration on the Hub would need the network: that one is checked when it is loaded
        if self.model_name_or_path is None or Path(self.model_name_or_path).is_dir():
            channels = model_config(self).num_channels
            if self.image_mean is not None and len(self.image_mean) != channels:
                raise ValueError(
                    f"image_mean {_join(self.image_mean)} has {len(self.image_mean)} numbers, the model has "
                    f"num_channels {channels}: give as many, or --config_overrides num_channels={len(self.image_mean)}"
                )

    def _check_trackers(self) -> None:
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import LoggerType

        if len(self.report_to) > 1 and {"all", "none"} & set(self.report_to):
            raise ValueError(f"report_to {_join(self.report_to)} does not work: all and none stand alone")
        for name in self.trackers:
            if name not in LoggerType.list():
                hint = suggest(name, LoggerType.list()) or f": those are {', '.join(LoggerType.list())}, none"
                raise ValueError(f"report_to {name!r} is not one of Accelerate's trackers{hint}")
            # Accelerate leaves out, without a word, what is not installed
            if name != "all" and LoggerType(name) not in get_available_trackers():
                raise ValueError(f"report_to {name!r} is not installed: pip install it, or give another or none")

    def _check_output_dir(self) -> None:
        resume = self.resume_from_checkpoint
        self._exclude("overwrite_output_dir", "resume_from_checkpoint")
        if Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise ValueError(f"output_dir {self.output_dir!r} is a file: give a folder")
        folders = self.run_folders()
        checkpoints = sorted(str(path) for folder in folders for path in folder.glob("checkpoint-*"))
        on_hub = resume is not None and resume.startswith("hub://")
        if on_hub:
            from modeling_mae.training.hub import hub_source

            hub_source(resume)
        elif resume not in (None, "auto") and not Path(resume).is_dir():
            hint = f"give auto or one of {', '.join(checkpoints)}" if checkpoints else "there is none in output_dir"
            raise ValueError(f"resume_from_checkpoint {resume!r} is not a folder: {hint}")
        held = any((folder / "model.safetensors").exists() for folder in folders)
        # what the Hub has and what is here may be of different runs
        if (held or checkpoints) and not (resume and not on_hub or self.overwrite_output_dir):
            raise ValueError(
                f"output_dir {self.output_dir!r} already holds a run: give another, --resume_from_checkpoint auto to "
                "go on, or --overwrite_output_dir to start anew"
            )

    def _check_hub(self) -> None:
        from huggingface_hub import get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        self._need("hub_model_id", "push_to_hub")
        self._need("hub_private_repo", "push_to_hub")
        if self.hub_strategy != "end":
            self._need("hub_strategy", "push_to_hub")
        if not self.push_to_hub:
            return
        try:
            validate_repo_id(self.hub_model_id or Path(self.output_dir).resolve().name)
        except HFValidationError as error:
            raise ValueError(f"hub_model_id {self.hub_model_id!r}: {error}") from None
        if get_token() is None:
            raise ValueError("push_to_hub True needs a Hub token: run `hf auth login` or set HF_TOKEN")


@dataclass
class PretrainArguments(RunArguments, OptimizerArguments, DataArguments, ModelArguments):
    """The arguments of run_pretrain.py."""

    picture_epochs: int = option(10, "Epochs between two pictures of reconstructions; 0: only at the end.")
    knn: bool = option(False, "At the end, k-NN accuracy of the features, where there are labels and an eval_split.")

    def check(self) -> None:
        self._check_own_folder()
        super().check()
        self._require("picture_epochs", lambda x: x >= 0, "a number of epochs, 0 for none on the way")
        self._check_channels()


def _join(values: list | None) -> str:
    return "(not given)" if values is None else " ".join(map(str, values))


def split_batch(total: int, per_device: int, processes: int) -> int:
    """Accumulation steps so that `total` images an update are `per_device` at a time on each of `processes`.

    ValueError, with the nearest numbers that work, when `total` is not a multiple of `per_device * processes`."""
    at_once = per_device * processes
    if total % at_once == 0:
        return total // at_once
    totals = [n for n in (total // at_once * at_once, (total // at_once + 1) * at_once) if n > 0]
    remedy = f"--total_batch_size {' or '.join(map(str, totals))}"
    if total % processes == 0:
        fitting = [n for n in range(1, total // processes + 1) if total // processes % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - per_device))
        remedy += f", or --per_device_train_batch_size {nearest}"
    raise ValueError(
        f"total_batch_size {total} is not a multiple of {processes} processes x per_device_train_batch_size "
        f"{per_device} = {at_once}; the nearest that work: {remedy}"
    )
