"""The arguments of run_pretrain.py, in parts that run_eval.py shares. `checks.py` says which values work.

The defaults are the paper's pre-training (arXiv 2111.06377, Table 8). Names are those of the transformers example
scripts. There is no option for what the launcher owns (precision, devices, processes), nor for what follows from other
options (gradient accumulation, the learning rate after scaling).
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .checks import check_pretraining
from .own_images import OPTIONS


def option(default: Any, help: str, **kwargs) -> Any:
    """A dataclass field with its line for --help; a list is copied for each instance."""
    source = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**source, metadata={"help": help, **kwargs})


# The options that a resumed run must have the same. Data, model, mean and deviation are not here: their contents are
# compared, so a moved folder is no change. A run may be made longer.
DECIDE_THE_WEIGHTS = frozenset(
    "seed total_batch_size base_learning_rate min_learning_rate warmup_epochs weight_decay adam_beta1 adam_beta2 "
    "crop_scale horizontal_flip n_partial label_fraction optimizer layer_decay auto_augment random_erasing mixup "
    "cutmix problem_type bands mix scaled_decoding decode_device repeated_augmentation "
    "progressive_resizing".split()
)


@dataclass
class ModelArguments:
    model_name_or_path: str | None = option(
        None,
        "File, folder or Hub id of any checkpoint to start from, weights and configuration. Not with config_name",
    )
    config_name: str | None = option(
        None, "Model from scratch: a preset (vit_tiny ... vit_huge), a JSON file, or a folder with a config.json."
    )
    config_overrides: list[str] = option(
        [],
        "Model fields as key=value, as in image_size=32 patch_size=4 mask_ratio=0.5. They are added to the recipe's.",
        action="extend",
    )


@dataclass
class DataArguments:
    dataset_name: str | None = option(
        None, "cifar10, cifar100, stl10, imagenet, fashion_mnist (bundled, the default), or any Hub id."
    )
    dataset_config_name: str | None = option(None, "Configuration (subset) of the Hub data set.")
    train_dir: list[str] | None = option(  # one folder is a plain text
        None,
        "Local folder of images (at any depth) or of parquet files; with streaming a folder or URL pattern of parquet "
        "or tar files. Several are joined. It takes the place of dataset_name.",
    )
    mix: list[float] | None = option(
        None, "Share of each train_dir in the training, as 0.7 0.3. By default each image comes once an epoch."
    )
    streaming: bool = option(False, "Read parquet or tar shards while training, without a copy of the whole set.")
    train_split: str = option("train", "Split to train on.")
    eval_split: str | None = option(None, "Split to evaluate on. By default the data set's validation or test split.")
    image_column_name: str | None = option(None, "Column of the images. By default the only column of images.")
    max_train_samples: int | None = option(None, "Train on this many images only.")
    image_mean: list[float] | None = option(
        None, "Mean of each channel, where white is 1. By default measured on a sample."
    )
    image_std: list[float] | None = option(None, "Standard deviation of each channel. Goes with image_mean.")
    white_value: float | None = option(
        None, "Pixel value that is white, of images with more than 8 bits. By default found from a sample."
    )
    bands: list[int] | None = option(
        None, "Bands of the files that are the model's channels, counted from 1, as 3 2 1. By default all."
    )
    crop_scale: list[float] = option(
        [0.2, 1.0], "Smallest and largest part of an image's area that a random crop takes. 1 1: no crop."
    )
    horizontal_flip: bool = option(True, "Mirror every second image, at random.")
    on_bad_image: Literal["error", "skip"] = option(
        "error", "What to do about a file that cannot be decoded. skip puts the next good image in its place."
    )
    scaled_decoding: bool = option(
        True,
        "Decode large JPEG files at 1/2, 1/4 or 1/8 size, several times faster, where their crop stays at least as "
        "large as the model's images. false: always whole.",
    )
    decode_device: Literal["cpu", "cuda"] = option(
        "cpu",
        "Where JPEG files are decoded and cropped. cuda: on the GPU by nvjpeg, whole and in each epoch anew, while "
        "loading workers only read them; those of RandAugment stay on the CPU.",
    )
    image_cache: str = option(
        "auto",
        "GiB of memory for decoded images of each set that fits, once for all processes of a machine. auto: a quarter "
        "of the free memory, 8 at most. off: none.",
    )
    cache_dir: str | None = option(None, "Folder for downloads, in place of the Hugging Face cache.")
    dataloader_num_workers: int | None = option(
        None, "Loading workers of each training process. By default one a core, 8 at most."
    )

    def source_options(self) -> dict[str, Any]:
        """What `load_source` and `load_eval_source` take beside the split."""
        return {
            "dataset_name": self.dataset_name,
            "dataset_config_name": self.dataset_config_name,
            "data_dir": self.train_dir,
            "mix": self.mix,
            "image_column_name": self.image_column_name,
            "cache_dir": self.cache_dir,
            "streaming": self.streaming,
        }

    def open_options(self, config) -> dict[str, Any]:
        """What `open_images` takes of the options and of the `MAEConfig`."""
        model = {"size": config.image_height_width, "num_channels": config.num_channels}
        return {**model, "on_bad_image": self.on_bad_image, "scaled_decoding": self.scaled_decoding}


@dataclass
class OptimizerArguments:
    num_train_epochs: float = option(800.0, "Length of the run, in epochs.")
    max_train_steps: int | None = option(None, "Length of the run in updates, in place of num_train_epochs.")
    total_batch_size: int = option(4096, "Images an update, over all processes and accumulation steps.")
    per_device_train_batch_size: int = option(64, "Images at a time on each process. Accumulation follows from it.")
    base_learning_rate: float = option(
        1.5e-4, "Learning rate of 256 images an update. It is multiplied by total_batch_size / 256."
    )
    warmup_epochs: float = option(40.0, "Epochs over which the learning rate rises from 0.")
    weight_decay: float = option(0.05, "AdamW's weight decay. Biases, norms and tokens get none.")
    adam_beta1: float = option(0.9, "AdamW's decay of the mean of gradients.")
    adam_beta2: float = option(0.95, "AdamW's decay of the mean of squared gradients.")

    def schedule_options(self) -> dict[str, Any]:
        """What `Schedule.from_epochs` takes beside the number of images."""
        return {
            "total_batch_size": self.total_batch_size,
            "num_train_epochs": self.num_train_epochs,
            "max_train_steps": self.max_train_steps,
            "warmup_epochs": self.warmup_epochs,
            "base_learning_rate": self.base_learning_rate,
        }

    def optimizer_options(self) -> dict[str, Any]:
        """What `make_optimizer` takes beside the optimizer's name and the model."""
        return {"weight_decay": self.weight_decay, "betas": (self.adam_beta1, self.adam_beta2)}


@dataclass
class RunArguments:
    output_dir: str = option("runs/pretrain", "Folder for everything the run writes.")
    overwrite_output_dir: bool = option(False, "Start anew where output_dir already holds a run.")
    seed: int = option(0, "Seed of initialisation, masks, order and crops.")
    logging_steps: int = option(10, "Updates between two readings of loss and learning rate.")
    checkpointing_steps: str = option("epoch", "Updates between two checkpoints, or epoch for one an epoch.")
    checkpoints_kept: int = option(2, "Number of checkpoints kept, the newest.")
    resume_from_checkpoint: str | None = option(
        None,
        "A checkpoint's folder; auto for the newest in output_dir (a fresh start when there is none); or "
        "hub://owner/name[@revision] for the newest that was pushed there.",
    )
    allow_changes: bool = option(
        False, "Go on from a checkpoint that was made with other settings; each difference is printed."
    )
    report_to: list[str] = option(["tensorboard"], "Accelerate's trackers, as in tensorboard wandb; all; or none.")
    push_to_hub: str = option(
        "no",
        "Upload output_dir to the Hub. end (or true): once, at the end. checkpoint: each newest checkpoint too, to go "
        "on from elsewhere. no (or false): never.",
        nargs="?",
        const="end",
    )
    hub_model_id: str | None = option(
        None, "Hub repository to push to, [owner/]name. By default the name of output_dir."
    )
    hub_private_repo: bool = option(False, "Make the Hub repository private when it is created.")

    license: str | None = option(
        None,
        "Licence of the weights for the model card, in the Hub's words, as in apache-2.0. By default none is named.",
    )

    def run_folders(self) -> list[Path]:
        """Where the run, or each of its trainings, keeps model and checkpoints."""
        return [Path(self.output_dir)]

    @property
    def trackers(self) -> list[str]:
        """What to give to `Accelerator(log_with=...)`."""
        return [] if self.report_to == ["none"] else self.report_to

    @property
    def hub_strategy(self) -> str:
        """When to push: no, end or checkpoint."""
        return {"true": "end", "false": "no"}.get(self.push_to_hub.lower(), self.push_to_hub.lower())

    def hub_options(self) -> dict[str, Any]:
        """What `Hub` takes beside the folder and the process."""
        return {"repo_id": self.hub_model_id, "private": self.hub_private_repo, "strategy": self.hub_strategy}

    def run_options(self, updates_per_epoch: int) -> dict[str, Any]:
        """What `open_run` takes beside model, images, schedule and folder."""
        steps = self.checkpointing_steps
        return {
            "seed": self.seed,
            "batch_size": self.per_device_train_batch_size,
            "total_batch_size": self.total_batch_size,
            "logging_steps": self.logging_steps,
            "checkpointing_steps": updates_per_epoch if steps == "epoch" else int(steps),
            "checkpoints_kept": self.checkpoints_kept,
            "allow_changes": self.allow_changes,
        }

    def settings(self) -> dict[str, Any]:
        """The options that decide the weights: a run goes on exactly only with the same."""
        settings = {name: value for name, value in vars(self).items() if name in DECIDE_THE_WEIGHTS}
        # Older checkpoints do not name what is as it was before.
        if self.decode_device == "cpu":
            del settings["decode_device"]
        parts = settings.pop("progressive_resizing", [])
        while parts and parts[-1] == 0:
            parts = parts[:-1]
        return {**settings, "progressive_resizing": parts} if parts else settings


@dataclass
class PretrainArguments(RunArguments, OptimizerArguments, DataArguments, ModelArguments):
    """The arguments of run_pretrain.py. With `own_images`, what is None follows from the images."""

    own_images: bool = option(
        False,
        "What you do not give follows from the images, and is printed with its reason: size, patch, decoder, batch, "
        "length, rate, crop. See the recipe own_images.",
    )
    num_train_epochs: float | None = option(None, "Length of the run, in epochs. By default 800.")
    total_batch_size: int | None = option(
        None, "Images an update, over all processes and accumulation steps. By default 4096."
    )
    per_device_train_batch_size: int | None = option(
        None, "Images at a time on each process. Accumulation follows from it. By default 64."
    )
    base_learning_rate: float | None = option(
        None, "Learning rate of 256 images an update. It is multiplied by total_batch_size / 256. By default 1.5e-4."
    )
    warmup_epochs: float | None = option(None, "Epochs over which the learning rate rises from 0. By default 40.")
    crop_scale: list[float] | None = option(
        None, "Smallest and largest part of an image's area that a random crop takes. 1 1: no crop. By default 0.2 1."
    )
    max_hours: float | None = option(
        None,
        "Hours that training may take. After a few trial updates the run gets as many epochs as fit, to a hundredth, "
        "at most num_train_epochs, and keeps that length when it goes on from a checkpoint.",
    )
    auto_batch_size: bool = option(
        False,
        "On a GPU, halve per_device_train_batch_size until it fits into memory. total_batch_size stays. The gradients "
        "of an update are then added in another order: the last bits of the weights depend on the size found.",
    )
    picture_epochs: int = option(10, "Epochs between two pictures of reconstructions. 0: only at the end.")
    eval_every_epochs: int = option(
        0,
        "Epochs between two looks at the features: k-NN accuracy if there are labels, and effective rank. 0: none.",
    )
    repeated_augmentation: int = option(
        1,
        "Crops of each image in an update; it is decoded once. Each counts as an image seen: total_batch_size and "
        "epochs stay as long as with 1, of fewer different images.",
    )
    progressive_resizing: list[float] = option(
        [],
        "Part of the updates that see images with half of the height and width, and then with three quarters, rounded "
        "to whole patches, as 0.5 0.3. The rest sees the whole size. By default, and with 0, all do: the paper's way.",
    )
    knn: bool = option(
        False, "At the end, k-NN accuracy of the features, where there are labels and a split to evaluate on."
    )

    def __post_init__(self):
        for paper in () if self.own_images else (OptimizerArguments(), DataArguments()):
            for name in OPTIONS:
                if getattr(self, name) is None and hasattr(paper, name):
                    setattr(self, name, getattr(paper, name))

    def set_options(self) -> dict[str, Any]:
        """What `load_training_source` takes of the options."""
        return {name: getattr(self, name) for name in ("train_split", "max_train_samples")}

    def open_options(self, config) -> dict[str, Any]:
        return {**super().open_options(config), "bands": self.bands}

    def trial_options(self) -> dict[str, Any]:
        """What `fit_length` takes of the options."""
        batches = {"batch_size": self.per_device_train_batch_size, "total_batch_size": self.total_batch_size}
        options = {"hours": self.max_hours, "wanted": self.num_train_epochs, "seed": self.seed, **batches}
        options["repeats"] = self.repeated_augmentation
        return {**options, "epochs_between_looks": self.eval_every_epochs, "knn": self.knn}

    def length(self) -> dict[str, float]:
        """The options that `with_length` changes."""
        return {"num_train_epochs": self.num_train_epochs, "warmup_epochs": self.warmup_epochs}

    def with_length(self, epochs: float) -> "PretrainArguments":
        """The same run with another length. The warm-up keeps its share."""
        warmup = self.warmup_epochs * epochs / self.num_train_epochs
        return dataclasses.replace(self, num_train_epochs=epochs, warmup_epochs=warmup)

    def with_length_of(self, chosen: dict[str, Any]) -> "PretrainArguments":
        """With `max_hours`, the length that was `chosen` for the checkpoint that a run goes on from, or a shorter one
        that is given."""
        if not self.max_hours or "num_train_epochs" not in chosen:
            return self
        epochs = min(chosen["num_train_epochs"], self.num_train_epochs or math.inf)
        return dataclasses.replace(self, num_train_epochs=epochs, warmup_epochs=chosen["warmup_epochs"])

    def run_options(self, updates_per_epoch: int) -> dict[str, Any]:
        return {**super().run_options(updates_per_epoch), "repeats": self.repeated_augmentation}

    def check(self) -> None:
        """Raises an ArgumentError for arguments that cannot work. Quick and without network."""
        check_pretraining(self)
