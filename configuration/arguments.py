"""The arguments of run_pretrain.py, in groups that run_eval.py shares. `checks.py` checks the values.

The defaults are the paper's pre-training (arXiv 2111.06377, Table 8). Names are those of the transformers example
scripts. The launcher sets precision, devices and processes. Gradient accumulation and the scaled learning rate follow
from other options.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .checks import check_pretraining
from .own_images import OPTIONS


Decides = Literal["weights", "result", "nothing"]


def option(default: Any, help: str, *, decides: Decides, added: bool = False, **kwargs) -> Any:
    """A dataclass field with its line for --help; a list is copied for each instance.

    `decides` says what depends on the option. weights: a resumed run must have the same value. result: an evaluation's
    results do, or the checkpoint records it in another form (data, model, mean, length). nothing: neither. `added`:
    version 0.1 does not have the option, and behaves like its default.
    """
    metadata = {"help": help, "decides": decides, "added": added, **kwargs}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelArguments:
    model_name_or_path: str | None = option(
        None,
        "Checkpoint to start from (weights and configuration): a file, a folder or a Hub id. Not with config_name.",
        decides="result",
    )
    config_name: str | None = option(
        None,
        "Model from scratch: a preset (vit_tiny ... vit_huge), a JSON file, or a folder with a config.json.",
        decides="result",
    )
    config_overrides: list[str] = option(
        [],
        "Model fields as key=value: image_size=32 patch_size=4 mask_ratio=0.5. They are added to the recipe's.",
        decides="result",
        action="extend",
    )
    new_bands: str | None = option(
        None,
        "What a checkpoint makes of images with another number of bands. mean: each reads the mean of its bands. "
        "random: new weights. rgb:3,2,1: band 3 is red, 2 green, 1 blue, the others read the mean.",
        decides="weights",
        added=True,
    )


@dataclass(frozen=True)
class DataArguments:
    dataset_name: str | None = option(
        None,
        "cifar10, cifar100, stl10, imagenet, fashion_mnist (bundled, the default), or any Hub id.",
        decides="result",
    )
    dataset_config_name: str | None = option(None, "Configuration (subset) of the Hub data set.", decides="result")
    train_dir: list[str] | None = option(  # a single folder is a str
        None,
        "Local folder of images (at any depth), of parquet or of tar files, or one file. With streaming: a folder or "
        "URL pattern of parquet or tar files. Several are joined. Replaces dataset_name.",
        decides="result",
    )
    mix: list[float] | None = option(
        None,
        "Share of each train_dir in the training, as 0.7 0.3. By default every image is used once per epoch.",
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
        None, "Mean of each channel (white is 1). By default measured on a sample.", decides="result"
    )
    image_std: list[float] | None = option(
        None, "Standard deviation of each channel. Give it with image_mean.", decides="result"
    )
    white_value: float | None = option(
        None,
        "Pixel value of white in images with more than 8 bits. By default found from a sample.",
        decides="result",
    )
    bands: list[int] | None = option(
        None,
        "Bands of the files to use as channels, counted from 1, as 3 2 1. By default all.",
        decides="weights",
    )
    crop_scale: list[float] | None = option(
        [0.2, 1.0],
        "Smallest and largest part of an image's area that a random crop takes. 1 1: no crop.",
        decides="weights",
    )
    horizontal_flip: bool = option(True, "Mirror each image with probability 0.5.", decides="weights")
    on_bad_image: Literal["error", "skip"] = option(
        "error",
        "What to do if a file cannot be decoded. skip uses the next good image instead.",
        decides="result",
    )
    max_image_pixels: int = option(
        180_000_000,
        "Height x width of the largest image that is read. A larger file is a bad image. Raise it if memory allows.",
        decides="result",
        added=True,
    )
    slices: str | None = option(
        None,
        "Slices of TIFF stacks, of .npy arrays of three axes, of NIfTI and of DICOM series, each as an image: all, "
        "middle:32 or every:4. By default the first page of a stack, and no volumes.",
        decides="weights",
        added=True,
    )
    neighbour_slices: int = option(
        0,
        "Slices on each side that become channels of a slice. 1: three channels, the slice below, itself, and above.",
        decides="weights",
        added=True,
    )
    scaled_decoding: bool = option(
        True,
        "Decode large JPEG files at 1/2, 1/4 or 1/8 size if the crop stays at least as large as the model's images: "
        "several times faster. false: always at full size.",
        decides="weights",
    )
    image_cache: str = option(
        "auto",
        "GiB of memory for the decoded images of each set, shared by all processes of a machine. A set that does not "
        "fit is not cached. auto: a quarter of the free memory, 8 at most. off: none.",
        decides="result",
    )
    cache_dir: str | None = option(None, "Folder for downloads instead of the Hugging Face cache.", decides="nothing")
    dataloader_num_workers: int | None = option(
        None, "Loading workers of each training process. By default one per core, 8 at most.", decides="nothing"
    )


@dataclass(frozen=True)
class MaskArguments:
    """Where masks are, and what their numbers mean. Pre-training reads masks for k-NN alone."""

    mask_dir: str | None = option(
        None,
        "Folder of masks, each named like its image. By default folders called masks are found.",
        decides="result",
        added=True,
    )
    mask_column_name: str | None = option(
        None,
        "Column of the masks. By default the one that is called mask, annotation or label.",
        decides="result",
        added=True,
    )
    mask_values: str | None = option(
        None,
        "binary: all numbers above 0 in a mask are one class; classes: each number is one, though they look like "
        "numbers of things.",
        decides="weights",
        added=True,
    )
    ignore_index: int | None = option(
        None,
        "Number of the pixels without a class. By default 255, where no class has it.",
        decides="weights",
        added=True,
    )


@dataclass(frozen=True)
class OptimizerArguments:
    num_train_epochs: float | None = option(800.0, "Length of the run, in epochs.", decides="result")
    max_train_steps: int | None = option(
        None, "Length of the run in updates, instead of num_train_epochs.", decides="result"
    )
    total_batch_size: int | None = option(
        4096, "Images per update, over all processes and accumulation steps.", decides="weights"
    )
    per_device_train_batch_size: int | None = option(
        64, "Images at a time on each process. Accumulation follows from it.", decides="nothing"
    )
    base_learning_rate: float | None = option(
        1.5e-4,
        "Learning rate for 256 images per update. It is multiplied by total_batch_size / 256.",
        decides="weights",
    )
    warmup_epochs: float | None = option(40.0, "Epochs over which the learning rate rises from 0.", decides="weights")
    weight_decay: float | None = option(
        0.05, "AdamW's weight decay. Biases, norms and tokens are not decayed.", decides="weights"
    )
    adam_beta1: float = option(0.9, "AdamW's decay of the mean of gradients.", decides="weights")
    adam_beta2: float = option(0.95, "AdamW's decay of the mean of squared gradients.", decides="weights")


@dataclass(frozen=True)
class RunArguments:
    output_dir: str = option("runs/pretrain", "Folder for everything the run writes.", decides="nothing")
    overwrite_output_dir: bool = option(False, "Start over if output_dir already holds a run.", decides="nothing")
    plan: bool = option(
        False,
        "Choose all open settings, print them, save them as recipe.yaml in output_dir, and stop before training.",
        decides="nothing",
    )
    seed: int = option(0, "Seed of initialisation, masks, order and crops.", decides="weights")
    tune: str = option(
        "all",
        "Which weights of the encoder train. all; last:2: the last two blocks; lora or lora:16: low-rank adapters of "
        "the attention, by default of rank 8 (PEFT); lora:8+last:1: ExPLoRA. Decoder or head always train.",
        decides="weights",
        added=True,
    )
    logging_steps: int = option(10, "Updates between two log entries of loss and learning rate.", decides="nothing")
    checkpointing_steps: str = option(
        "epoch", "Updates between two checkpoints; epoch: one per epoch.", decides="nothing"
    )
    checkpoints_kept: int = option(2, "How many of the newest checkpoints are kept.", decides="nothing")
    resume_from_checkpoint: str | None = option(
        None,
        "A checkpoint's folder; auto: the newest in output_dir (without one, a fresh start); or "
        "hub://owner/name[@revision]: the newest that was pushed there.",
        decides="nothing",
    )
    allow_changes: bool = option(
        False,
        "Go on from a checkpoint that was made with other settings. The run prints each difference.",
        decides="nothing",
    )
    report_to: list[str] = option(
        ["tensorboard"], "Accelerate's trackers (as tensorboard wandb), all, or none.", decides="nothing"
    )
    push_to_hub: str = option(
        "no",
        "Upload output_dir to the Hub. end (or true): once, at the end. checkpoint: also each new checkpoint, so that "
        "another machine can go on from it. no (or false): never.",
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
        "Licence of the weights for the model card, as the Hub spells it: apache-2.0. By default the card names none.",
        decides="nothing",
    )

    def __post_init__(self):
        push = self.push_to_hub.lower()
        push = {"true": "end", "false": "no"}.get(push, push)
        object.__setattr__(self, "push_to_hub", push)  # the object is frozen, and still new

    def check(self) -> None:
        """Raises an ArgumentError for arguments that cannot work. Quick and without network."""

    def deciding(self, *kinds: Decides) -> list[str]:
        """The names of the options whose `decides` is one of these kinds."""
        return [field.name for field in fields(self) if field.metadata["decides"] in kinds]

    def deciding_weights(self) -> dict[str, Any]:
        """The options that decide the weights. Only with the same values does a run go on exactly."""
        values = {name: getattr(self, name) for name in self.deciding("weights")}
        parts = values.get("progressive_resizing", [])
        while parts and parts[-1] == 0:
            values["progressive_resizing"] = parts = parts[:-1]
        added = self.added()  # older checkpoints do not have them
        return {name: value for name, value in values.items() if name not in added or value != added[name]}

    @classmethod
    def added(cls) -> dict[str, Any]:
        """The options that version 0.1 does not have, with the values that it behaves like."""
        defaults = cls()
        return {field.name: getattr(defaults, field.name) for field in fields(cls) if field.metadata["added"]}

    def run_folders(self) -> list[Path]:
        """The folders that hold model and checkpoints of the run, or of each of its trainings."""
        return [Path(self.output_dir)]

    @property
    def trackers(self) -> list[str]:
        """The value for `Accelerator(log_with=...)`."""
        return [] if self.report_to == ["none"] else self.report_to


@dataclass(frozen=True)
class PretrainArguments(RunArguments, OptimizerArguments, MaskArguments, DataArguments, ModelArguments):
    """The arguments of run_pretrain.py. With `own_images`, those that are None are chosen from the images."""

    own_images: bool = option(
        False,
        "Choose what you do not give from the images, and print the reasons: size, patch, decoder, batch, length, "
        "rate, crop. See the recipe own_images.",
        decides="nothing",
    )
    continue_images: bool = option(
        False,
        "With own_images and model_name_or_path: a tenth of the rate, the checkpoint's mean and deviation, and a "
        "light decoder if it has none. See the recipe continue_images.",
        decides="nothing",
        added=True,
    )
    train_new_first: float = option(
        0.0,
        "Share of the updates, at the start, that train only what the checkpoint does not have, as its decoder.",
        decides="weights",
        added=True,
    )
    layer_decay: float = option(
        1.0, "Learning rate of a block, relative to the next block's.", decides="weights", added=True
    )
    num_train_epochs: float | None = option(None, "Length of the run, in epochs. By default 800.", decides="result")
    total_batch_size: int | None = option(
        None, "Images per update, over all processes and accumulation steps. By default 4096.", decides="weights"
    )
    per_device_train_batch_size: int | None = option(
        None, "Images at a time on each process. Accumulation follows from it. By default 64.", decides="nothing"
    )
    base_learning_rate: float | None = option(
        None,
        "Learning rate for 256 images per update. It is multiplied by total_batch_size / 256. By default 1.5e-4.",
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
        "Hours that training may take. A few trial updates are timed to find how many epochs fit (to a hundredth, at "
        "most num_train_epochs). A run that goes on from a checkpoint keeps its length.",
        decides="nothing",
    )
    exclude: str | None = option(
        None,
        "File of images to leave out: the table that `mae neighbours --duplicates --output` writes, or a name in each "
        "line.",
        decides="result",
        added=True,
    )
    auto_batch_size: bool = option(
        False,
        "On a GPU, halve per_device_train_batch_size until it fits into memory. total_batch_size stays the same. The "
        "size found changes the order in which gradients are added, and so the last bits of the weights.",
        decides="nothing",
    )
    picture_epochs: int = option(
        10, "Epochs between two pictures of reconstructions. 0: only at the end.", decides="nothing"
    )
    eval_every_epochs: int = option(
        0,
        "Epochs between two measurements of the features (effective rank; with labels or masks, k-NN). 0: none.",
        decides="nothing",
    )
    repeated_augmentation: int = option(
        1,
        "Crops of each image in an update. The image is decoded once. Each crop counts as an image seen: updates and "
        "epochs keep their length, with fewer different images.",
        decides="weights",
    )
    progressive_resizing: list[float] = option(
        [],
        "Share of the updates with images of half the height and width, then with three quarters, rounded to whole "
        "patches: 0.5 0.3. The other updates see full-size images. By default (and with 0) all do, as in the paper.",
        decides="weights",
        added=True,
    )
    knn: bool = option(
        False,
        "At the end, k-NN accuracy of the features, if there are labels and an evaluation split. Images with masks: "
        "mean IoU of the patches' k-NN.",
        decides="nothing",
    )

    def __post_init__(self):
        super().__post_init__()
        for paper in () if self.own_images else (OptimizerArguments(), DataArguments()):
            for name in OPTIONS:
                if getattr(self, name) is None and hasattr(paper, name):
                    object.__setattr__(self, name, getattr(paper, name))  # the object is frozen, and still new

    def deciding(self, *kinds: Decides) -> list[str]:
        """As in `RunArguments`. Masks decide no weights here: no update sees them."""
        names, masks = super().deciding(*kinds), [field.name for field in fields(MaskArguments)]
        return [name for name in names if name not in masks or "result" in kinds]

    def check(self) -> None:
        """Raises an ArgumentError for arguments that cannot work. Quick and without network."""
        check_pretraining(self)


class PretrainRecipe(PretrainArguments):
    """Arguments without open settings, as `decide` returns them."""

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
