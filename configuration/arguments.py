"""The arguments of run_pretrain.py, in parts that run_eval.py shares. `checks.py` says which values work.

The defaults are the paper's pre-training (arXiv 2111.06377, Table 8). Names are those of the transformers example
scripts. There is no option for what the launcher owns (precision, devices, processes), nor for what follows from other
options (gradient accumulation, the learning rate after scaling).
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .checks import check_pretraining
from .own_images import OPTIONS


Decides = Literal["weights", "result", "nothing"]


def option(default: Any, help: str, *, decides: Decides, added: bool = False, **kwargs) -> Any:
    """A dataclass field with its line for --help; a list is copied for each instance.

    `decides` says what depends on the option. weights: a resumed run must have the same. result: the results of an
    evaluation depend on it, or the checkpoint keeps its content in another form (data, model, mean, length). nothing:
    neither. `added`: version 0.1 does not have the option, and does what the default does.
    """
    metadata = {"help": help, "decides": decides, "added": added, **kwargs}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelArguments:
    model_name_or_path: str | None = option(
        None,
        "File, folder or Hub id of any checkpoint to start from, weights and configuration. Not with config_name",
        decides="result",
    )
    config_name: str | None = option(
        None,
        "Model from scratch: a preset (vit_tiny ... vit_huge), a JSON file, or a folder with a config.json.",
        decides="result",
    )
    config_overrides: list[str] = option(
        [],
        "Model fields as key=value, as in image_size=32 patch_size=4 mask_ratio=0.5. They are added to the recipe's.",
        decides="result",
        action="extend",
    )


@dataclass(frozen=True)
class DataArguments:
    dataset_name: str | None = option(
        None,
        "cifar10, cifar100, stl10, imagenet, fashion_mnist (bundled, the default), or any Hub id.",
        decides="result",
    )
    dataset_config_name: str | None = option(None, "Configuration (subset) of the Hub data set.", decides="result")
    train_dir: list[str] | None = option(  # one folder is a plain text
        None,
        "Local folder of images (at any depth) or of parquet files; with streaming a folder or URL pattern of parquet "
        "or tar files. Several are joined. It takes the place of dataset_name.",
        decides="result",
    )
    mix: list[float] | None = option(
        None,
        "Share of each train_dir in the training, as 0.7 0.3. By default each image comes once an epoch.",
        decides="weights",
    )
    streaming: bool = option(
        False, "Read parquet or tar shards while training, without a copy of the whole set.", decides="result"
    )
    train_split: str = option("train", "Split to train on.", decides="result")
    eval_split: str | None = option(
        None, "Split to evaluate on. By default the data set's validation or test split.", decides="result"
    )
    image_column_name: str | None = option(
        None, "Column of the images. By default the only column of images.", decides="result"
    )
    max_train_samples: int | None = option(None, "Train on this many images only.", decides="result")
    image_mean: list[float] | None = option(
        None, "Mean of each channel, where white is 1. By default measured on a sample.", decides="result"
    )
    image_std: list[float] | None = option(
        None, "Standard deviation of each channel. Goes with image_mean.", decides="result"
    )
    white_value: float | None = option(
        None,
        "Pixel value that is white, of images with more than 8 bits. By default found from a sample.",
        decides="result",
    )
    bands: list[int] | None = option(
        None,
        "Bands of the files that are the model's channels, counted from 1, as 3 2 1. By default all.",
        decides="weights",
    )
    crop_scale: list[float] | None = option(
        [0.2, 1.0],
        "Smallest and largest part of an image's area that a random crop takes. 1 1: no crop.",
        decides="weights",
    )
    horizontal_flip: bool = option(True, "Mirror every second image, at random.", decides="weights")
    on_bad_image: Literal["error", "skip"] = option(
        "error",
        "What to do about a file that cannot be decoded. skip puts the next good image in its place.",
        decides="result",
    )
    scaled_decoding: bool = option(
        True,
        "Decode large JPEG files at 1/2, 1/4 or 1/8 size, several times faster, where their crop stays at least as "
        "large as the model's images. false: always whole.",
        decides="weights",
    )
    image_cache: str = option(
        "auto",
        "GiB of memory for decoded images of each set that fits, once for all processes of a machine. auto: a quarter "
        "of the free memory, 8 at most. off: none.",
        decides="result",
    )
    cache_dir: str | None = option(
        None, "Folder for downloads, in place of the Hugging Face cache.", decides="nothing"
    )
    dataloader_num_workers: int | None = option(
        None, "Loading workers of each training process. By default one a core, 8 at most.", decides="nothing"
    )


@dataclass(frozen=True)
class OptimizerArguments:
    num_train_epochs: float | None = option(800.0, "Length of the run, in epochs.", decides="result")
    max_train_steps: int | None = option(
        None, "Length of the run in updates, in place of num_train_epochs.", decides="result"
    )
    total_batch_size: int | None = option(
        4096, "Images an update, over all processes and accumulation steps.", decides="weights"
    )
    per_device_train_batch_size: int | None = option(
        64, "Images at a time on each process. Accumulation follows from it.", decides="nothing"
    )
    base_learning_rate: float | None = option(
        1.5e-4, "Learning rate of 256 images an update. It is multiplied by total_batch_size / 256.", decides="weights"
    )
    warmup_epochs: float | None = option(40.0, "Epochs over which the learning rate rises from 0.", decides="weights")
    weight_decay: float | None = option(
        0.05, "AdamW's decay of weights, but not of biases, norms and tokens.", decides="weights"
    )
    adam_beta1: float = option(0.9, "AdamW's decay of the mean of gradients.", decides="weights")
    adam_beta2: float = option(0.95, "AdamW's decay of the mean of squared gradients.", decides="weights")


@dataclass(frozen=True)
class RunArguments:
    output_dir: str = option("runs/pretrain", "Folder for everything the run writes.", decides="nothing")
    overwrite_output_dir: bool = option(False, "Start anew where output_dir already holds a run.", decides="nothing")
    plan: bool = option(
        False,
        "Decide all that is open, print and save it as recipe.yaml in output_dir, and stop before the training.",
        decides="nothing",
    )
    seed: int = option(0, "Seed of initialisation, masks, order and crops.", decides="weights")
    logging_steps: int = option(10, "Updates between two readings of loss and learning rate.", decides="nothing")
    checkpointing_steps: str = option(
        "epoch", "Updates between two checkpoints, or epoch for one an epoch.", decides="nothing"
    )
    checkpoints_kept: int = option(2, "Number of checkpoints kept, the newest.", decides="nothing")
    resume_from_checkpoint: str | None = option(
        None,
        "A checkpoint's folder; auto for the newest in output_dir (a fresh start when there is none); or "
        "hub://owner/name[@revision] for the newest that was pushed there.",
        decides="nothing",
    )
    allow_changes: bool = option(
        False,
        "Go on from a checkpoint that was made with other settings; each difference is printed.",
        decides="nothing",
    )
    report_to: list[str] = option(
        ["tensorboard"], "Accelerate's trackers, as in tensorboard wandb; all; or none.", decides="nothing"
    )
    push_to_hub: str = option(
        "no",
        "Upload output_dir to the Hub. end (or true): once, at the end. checkpoint: each newest checkpoint too, to go "
        "on from elsewhere. no (or false): never.",
        decides="nothing",
        nargs="?",
        const="end",
    )
    hub_model_id: str | None = option(
        None, "Hub repository to push to, [owner/]name. By default the name of output_dir.", decides="nothing"
    )
    hub_private_repo: bool = option(False, "Make the Hub repository private when it is created.", decides="nothing")

    license: str | None = option(
        None,
        "Licence of the weights for the model card, in the Hub's words, as in apache-2.0. By default none is named.",
        decides="nothing",
    )

    def __post_init__(self):
        push = self.push_to_hub.lower()
        push = {"true": "end", "false": "no"}.get(push, push)
        object.__setattr__(self, "push_to_hub", push)  # the object is frozen, and still new

    def check(self) -> None:
        """Raises an ArgumentError for arguments that cannot work. Quick and without network."""

    def deciding(self, *kinds: Decides) -> list[str]:
        """The names of the options that decide one of these kinds."""
        return [field.name for field in fields(self) if field.metadata["decides"] in kinds]

    def deciding_weights(self) -> dict[str, Any]:
        """The options that decide the weights: a run goes on exactly only with the same."""
        values = {name: getattr(self, name) for name in self.deciding("weights")}
        parts = values.get("progressive_resizing", [])
        while parts and parts[-1] == 0:
            values["progressive_resizing"] = parts = parts[:-1]
        added = self.added()  # older checkpoints do not name them
        return {name: value for name, value in values.items() if name not in added or value != added[name]}

    @classmethod
    def added(cls) -> dict[str, Any]:
        """The options that version 0.1 does not have, with what their absence means."""
        defaults = cls()
        return {field.name: getattr(defaults, field.name) for field in fields(cls) if field.metadata["added"]}

    def run_folders(self) -> list[Path]:
        """Where the run, or each of its trainings, keeps model and checkpoints."""
        return [Path(self.output_dir)]

    @property
    def trackers(self) -> list[str]:
        """What to give to `Accelerator(log_with=...)`."""
        return [] if self.report_to == ["none"] else self.report_to


@dataclass(frozen=True)
class PretrainArguments(RunArguments, OptimizerArguments, DataArguments, ModelArguments):
    """The arguments of run_pretrain.py. With `own_images`, what is None follows from the images."""

    own_images: bool = option(
        False,
        "What you do not give follows from the images, and is printed with its reason: size, patch, decoder, batch, "
        "length, rate, crop. See the recipe own_images.",
        decides="nothing",
    )
    num_train_epochs: float | None = option(None, "Length of the run, in epochs. By default 800.", decides="result")
    total_batch_size: int | None = option(
        None, "Images an update, over all processes and accumulation steps. By default 4096.", decides="weights"
    )
    per_device_train_batch_size: int | None = option(
        None, "Images at a time on each process. Accumulation follows from it. By default 64.", decides="nothing"
    )
    base_learning_rate: float | None = option(
        None,
        "Learning rate of 256 images an update. It is multiplied by total_batch_size / 256. By default 1.5e-4.",
        decides="weights",
    )
    warmup_epochs: float | None = option(
        None, "Epochs over which the learning rate rises from 0. By default 40.", decides="weights"
    )
    crop_scale: list[float] | None = option(
        None,
        "Smallest and largest part of an image's area that a random crop takes. 1 1: no crop. By default 0.2 1.",
        decides="weights",
    )
    max_hours: float | None = option(
        None,
        "Hours that training may take. After a few trial updates the run gets as many epochs as fit, to a hundredth, "
        "at most num_train_epochs, and keeps that length when it goes on from a checkpoint.",
        decides="nothing",
    )
    auto_batch_size: bool = option(
        False,
        "On a GPU, halve per_device_train_batch_size until it fits into memory. total_batch_size stays. The gradients "
        "of an update are then added in another order: the last bits of the weights depend on the size found.",
        decides="nothing",
    )
    picture_epochs: int = option(
        10, "Epochs between two pictures of reconstructions. 0: only at the end.", decides="nothing"
    )
    eval_every_epochs: int = option(
        0,
        "Epochs between two looks at the features: k-NN accuracy if there are labels, and effective rank. 0: none.",
        decides="nothing",
    )
    repeated_augmentation: int = option(
        1,
        "Crops of each image in an update; it is decoded once. Each counts as an image seen: total_batch_size and "
        "epochs stay as long as with 1, of fewer different images.",
        decides="weights",
    )
    progressive_resizing: list[float] = option(
        [],
        "Part of the updates that see images with half of the height and width, and then with three quarters, rounded "
        "to whole patches, as 0.5 0.3. The rest sees the whole size. By default, and with 0, all do: the paper's way.",
        decides="weights",
        added=True,
    )
    knn: bool = option(
        False,
        "At the end, k-NN accuracy of the features, where there are labels and a split to evaluate on.",
        decides="nothing",
    )

    def __post_init__(self):
        super().__post_init__()
        for paper in () if self.own_images else (OptimizerArguments(), DataArguments()):
            for name in OPTIONS:
                if getattr(self, name) is None and hasattr(paper, name):
                    object.__setattr__(self, name, getattr(paper, name))  # the object is frozen, and still new

    def check(self) -> None:
        """Raises an ArgumentError for arguments that cannot work. Quick and without network."""
        check_pretraining(self)


class PretrainRecipe(PretrainArguments):
    """Arguments in which nothing is open: what `decide` makes of them."""

    if TYPE_CHECKING:
        num_train_epochs: float
        total_batch_size: int
        per_device_train_batch_size: int
        base_learning_rate: float
        warmup_epochs: float
        weight_decay: float
        crop_scale: list[float]
        image_mean: list[float]
        image_std: list[float]
