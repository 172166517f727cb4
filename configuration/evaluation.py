"""The arguments of run_eval.py, and the papers' settings of linear and attentive probing and of fine-tuning.

An open argument (None) takes the paper's value for the number of tuned blocks (arXiv 2111.06377): linear probing
(Table 10) for 0, fine-tuning (Table 9) for all others. If the paper gives none, it takes the official code's.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import DataArguments, MaskArguments, ModelArguments, OptimizerArguments, RunArguments, option
from .checks import check_blocks, check_evaluation
from .errors import ArgumentError
from .model import model_fields, parse_overrides, parse_pairs, starting_weights
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
# Attentive probing (pooling=attention, no block tuned) differs only in the batch, as in arXiv 2506.10178's code.
ATTENTIVE_PROBING = {"total_batch_size": 4096}
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
# Semantic segmentation as published comparisons on ADE20K have it (arXiv 2111.06377, Section 5, and its official
# code): AdamW at 1e-4 for 16 images, layer decay 0.65, drop path 0.1. Crop, flip and enlargement are all that is
# random. The rate falls by a cosine here, there in a line.
SEGMENTATION = {
    "optimizer": "adamw",
    "base_learning_rate": 1.6e-3,
    "min_learning_rate": 0.0,
    "weight_decay": 0.05,
    "layer_decay": 0.65,
    "total_batch_size": 16,
    "num_train_epochs": 100.0,
    "warmup_epochs": 1.0,
    "auto_augment": "none",
    "random_erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "config_overrides": ["drop_path_rate=0.1", "head_initializer_range=0.01"],
}
# What a frozen encoder has otherwise: its head alone can take a higher rate, and nothing overfits.
SEGMENTATION_PROBING = {"base_learning_rate": 1.6e-2, "weight_decay": 0.0, "layer_decay": 1.0}
EVAL_BATCH, MASKS_BATCH = 256, 16  # images that are evaluated at a time
EVAL_CROP_FRACTION = 0.875  # 224 of 256 pixels (paper, Section A.1)
RESULTS = "eval_results.json"  # in the folder of each training
BY_BLOCKS = " By default the paper's for the number of tuned blocks."


@dataclass(frozen=True)
class EvalArguments(RunArguments, OptimizerArguments, MaskArguments, DataArguments, ModelArguments):
    """The arguments of run_eval.py."""

    output_dir: str = option("runs/eval", "Folder for everything the run writes.", decides="nothing")
    n_partial: list[float] | None = option(
        None,
        "Blocks to tune. 0: linear probing, or attentive probing with pooling=attention; 0.5: the last block's MLP; "
        "1, 2, ...: the last blocks; the depth: all. Several values are trained one after another. 0 by default.",
        decides="weights",
    )
    from_scratch: bool = option(False, "Also train the same network from scratch, as a baseline.", decides="nothing")
    compare: list[str] | None = option(
        None,
        "What to compare the checkpoint with. scratch: the same network from scratch; start: the weights that its "
        "pre-training began with. Says what the pre-training is worth, with an interval.",
        decides="nothing",
        added=True,
    )
    seeds: int = option(
        1,
        "Trainings of each kind, with seed, seed + 1, ... A seed also draws the labels.",
        decides="nothing",
        added=True,
    )
    do_train: bool = option(True, "false: train nothing, only test the checkpoint.", decides="result")
    knn: bool = option(
        False,
        "k-NN (k 10, 20, 100, 200) and logistic regression on frozen features: raw pixels, an untrained encoder, and "
        "the checkpoint's.",
        decides="nothing",
    )
    readouts: str | None = option(
        None,
        "all: a table of the encoder's frozen features by blocks and poolings, to find which suit the data. Columns: "
        "k-NN, logistic regression, and a probe (attentive for the pooling attention).",
        decides="nothing",
    )
    feature_layers: list[int] | None = option(
        None,
        "Blocks whose features are concatenated for that table, counted from 1. By default the last block.",
        decides="nothing",
    )
    feature_pooling: list[str] | None = option(
        None,
        "Poolings for that table, a row for each: mean, mean_deviation, attention or flatten of the patch tokens, or "
        "cls, the class token. By default mean.",
        decides="nothing",
    )
    validation_dir: str | None = option(
        None, "Folder to evaluate on: class folders of images, or parquet files.", decides="result"
    )
    label_column_name: str | None = option(
        None, "Column of the labels. By default the only column of labels.", decides="result"
    )
    problem_type: str | None = option(
        None,
        "single_label_classification, multi_label_classification, regression or semantic_segmentation. By default the "
        "label column decides: classes; lists of classes, or of 0 and 1; fractions, or lists of them. Only the option "
        "makes whole numbers a regression, and only it reads masks.",
        decides="weights",
    )
    label_fraction: list[float] = option(  # a single one is a float
        [1.0],
        "Share of the training images to use, the same for each class, as 0.1. Several, as 0.01 0.1 1, give a curve: "
        "each is trained with as many updates as the largest.",
        decides="weights",
    )
    max_eval_samples: int | None = option(None, "Evaluate on this many images only.", decides="result")
    eval_crop_fraction: float | None = option(
        None,
        "Share of the shorter side that the evaluation crop keeps. By default 0.875 (224 of 256, as in the paper), or "
        "the checkpoint's own if nothing is trained. Give 1 for small images.",
        decides="result",
    )
    eval_epochs: int = option(1, "Epochs between two evaluations.", decides="result")
    patience: int | None = option(
        None,
        "Stop after so many evaluations without a better one. By default a training has its full length.",
        decides="result",
        added=True,
    )
    group_by: str | None = option(
        None,
        "Column, or regular expression for the file names, that tells which images belong together (a patient, a "
        "site, a scene). Label fractions, folds and intervals take whole groups.",
        decides="weights",
        added=True,
    )
    folds: int | None = option(
        None,
        "Without images to evaluate on: split the training images into so many parts, and evaluate on each part a "
        "training on the others. Every part has its share of each class.",
        decides="weights",
        added=True,
    )
    fold: int | None = option(None, "Train for this fold only, counted from 1.", decides="weights", added=True)
    class_weights: str = option(
        "none",
        "auto: weigh classes of few pixels more in the loss of masks, 0.1 to 10.",
        decides="weights",
        added=True,
    )
    dice_weight: float = option(
        0.0, "Weight of the Dice loss beside the cross-entropy of masks.", decides="weights", added=True
    )
    segmentation_head: str = option(
        "linear",
        "Head for masks. linear: one layer; multiscale: four blocks, for thin things; upernet: as published "
        "comparisons have it.",
        decides="weights",
        added=True,
    )
    zoom: list[float] = option(
        [0.5, 2.0],
        "Smallest and largest enlargement of an image and its mask in training. 1 1: none.",
        decides="weights",
        added=True,
    )
    quarter_turns: bool = option(
        False, "Also turn an image and its mask by quarters, where images have no up.", decides="weights", added=True
    )
    eval_windows: bool = option(
        True,
        "Evaluate masks in overlapping windows of the model's size. False: whole images, whatever their size.",
        decides="result",
        added=True,
    )
    per_device_eval_batch_size: int | None = option(
        None,
        f"Images per process at a time in evaluation, on a CPU at most 64. By default {EVAL_BATCH}, with masks "
        f"{MASKS_BATCH}.",
        decides="nothing",
    )
    save_predictions: bool = option(
        False, "Write the predictions of the evaluation images as predictions.parquet.", decides="nothing"
    )
    crop_scale: list[float] = option(
        [0.08, 1.0],
        "Smallest and largest part of an image's area that a random crop takes. 1 1: no crop.",
        decides="weights",
    )
    optimizer: str | None = option(None, "lars, sgd or adamw." + BY_BLOCKS, decides="weights")
    num_train_epochs: float | None = option(None, "Length of the run, in epochs." + BY_BLOCKS, decides="result")
    total_batch_size: int | None = option(
        None, "Images per update, over all processes." + BY_BLOCKS, decides="weights"
    )
    base_learning_rate: float | None = option(
        None, "Learning rate for 256 images per update." + BY_BLOCKS, decides="weights"
    )
    min_learning_rate: float | None = option(
        None, "Learning rate at the end of the cosine." + BY_BLOCKS, decides="weights"
    )
    warmup_epochs: float | None = option(
        None, "Epochs over which the learning rate rises from 0." + BY_BLOCKS, decides="weights"
    )
    weight_decay: float | None = option(
        None, "Weight decay. Biases, norms and tokens are not decayed." + BY_BLOCKS, decides="weights"
    )
    layer_decay: float | None = option(
        None, "Learning rate of a block, relative to the next block's." + BY_BLOCKS, decides="weights"
    )
    adam_beta2: float = option(0.999, "AdamW's decay of the mean of squared gradients.", decides="weights")
    auto_augment: str | None = option(
        None, "RandAugment policy as timm spells it (rand-m9-mstd0.5-inc1), or none." + BY_BLOCKS, decides="weights"
    )
    random_erasing: float | None = option(None, "Probability of random erasing." + BY_BLOCKS, decides="weights")
    mixup: float | None = option(None, "Alpha of mixup, 0 for none." + BY_BLOCKS, decides="weights")
    cutmix: float | None = option(None, "Alpha of cutmix, 0 for none." + BY_BLOCKS, decides="weights")
    linear_overrides: list[str] = option(
        [],
        "Options for linear probing only, in a run that also tunes blocks. In a recipe: a mapping with the recipe's "
        "keys, also config_overrides. On the command line: key=value. They win over all others.",
        decides="nothing",
        action="extend",
    )

    def __post_init__(self):
        super().__post_init__()
        word, _, blocks = self.tune.partition(":")
        if word == "last" and blocks.isdecimal() and int(blocks) and self.n_partial is None:  # another word for it
            object.__setattr__(self, "n_partial", [float(blocks)])  # the object is frozen, and still new
            object.__setattr__(self, "tune", "all")
        if isinstance(self.label_fraction, list) and len(self.label_fraction) == 1:
            object.__setattr__(self, "label_fraction", self.label_fraction[0])

    @property
    def reads_features(self) -> bool:
        """Whether the run evaluates frozen features."""
        return (
            self.knn
            or self.readouts is not None
            or self.feature_layers is not None
            or self.feature_pooling is not None
        )

    @property
    def with_masks(self) -> bool:
        from modeling_mae.words import SEMANTIC_SEGMENTATION

        return self.problem_type == SEMANTIC_SEGMENTATION

    @property
    def whole_crop(self) -> float:
        """Part of the shorter side that evaluation keeps where nothing else is given."""
        return 1.0 if self.with_masks else EVAL_CROP_FRACTION

    @property
    def eval_batch(self) -> int:
        """Images that a process evaluates at a time."""
        return self.per_device_eval_batch_size or (MASKS_BATCH if self.with_masks else EVAL_BATCH)

    @property
    def label_fractions(self) -> list[float]:
        return self.label_fraction if isinstance(self.label_fraction, list) else [self.label_fraction]

    def trainings(self) -> list["EvalTraining"]:
        """All trainings of the run. Raises an ArgumentError for a wrong linear override, or if the weights that the
        pre-training began with are not known."""
        if not self.do_train:
            return []
        compare = self.compare or []
        scratch = self.from_scratch or "scratch" in compare
        values = self.n_partial if self.n_partial is not None else [] if scratch and not compare else [0.0]
        arms: list[tuple[str, float | None]] = [(f"n_partial-{value:g}", value) for value in values]
        arms += [(f"start-{name}", value) for name, value in arms] if "start" in compare else []
        arms += [("from-scratch", None)] * scratch
        each = list(itertools.product(arms, self._variants()))
        trainings = []
        for (arm, value), (end, options) in each:
            # A single training writes into output_dir itself, several write into a subfolder each.
            folder = Path(self.output_dir) / f"{arm}{end}" if len(each) > 1 else Path(self.output_dir)
            recipe = self._of_one(value, folder, starts=arm.startswith("start-"))
            trainings.append(EvalTraining(f"{arm}{end}", folder, value, dataclasses.replace(recipe, **options), arm))
        return trainings

    def _variants(self) -> list[tuple[str, dict[str, Any]]]:
        """(end of the name, options) of each training of an arm. Only what differs between them is named."""
        folds = range(1, (self.folds or 0) + 1) if self.fold is None else ()
        choices: list[list[tuple[str, dict[str, Any]]]] = [
            [(f"_labels-{share:g}", {"label_fraction": [share]}) for share in self.label_fractions],
            [(f"_seed-{seed}", {"seed": seed}) for seed in range(self.seed, self.seed + self.seeds)],
            [(f"_fold-{fold}", {"fold": fold}) for fold in folds],
        ]
        variants: list[tuple[str, dict[str, Any]]] = [("", {})]
        for choice in choices:
            if len(choice) > 1:
                variants = [(end + name, given | option) for end, given in variants for name, option in choice]
        return variants

    def _of_one(self, n_partial: float | None, folder: Path, starts: bool) -> "EvalRecipe":
        """The recipe that repeats this one training. `starts`: from the weights that the pre-training began with."""
        recipe = dataclasses.replace(self.resolved(n_partial), output_dir=str(folder), linear_overrides=[])
        recipe = dataclasses.replace(recipe, from_scratch=n_partial is None, compare=None, seeds=1)
        if str(folder) != self.output_dir:  # frozen features are evaluated once, for output_dir
            recipe = dataclasses.replace(recipe, knn=False, readouts=None, feature_layers=None, feature_pooling=None)
        if starts:
            start, new_bands = starting_weights(str(self.model_name_or_path))
            recipe = dataclasses.replace(recipe, model_name_or_path=start, new_bands=new_bands or recipe.new_bands)
        return EvalRecipe(**vars(recipe))

    def run_folders(self) -> list[Path]:
        return [training.folder for training in self.trainings()]

    def resolved(self, n_partial: float | None) -> "EvalArguments":
        """The arguments of one training without open settings. `n_partial` None: from scratch, all blocks."""
        paper: dict[str, Any] = dict(self._papers(n_partial))
        if n_partial is None:
            paper["layer_decay"] = 1.0  # from scratch, the lower blocks have no training to protect
        for_linear = self._linear_overrides() if n_partial == 0 else {}
        if len(self.label_fractions) > 1:  # the curve's own count
            for_linear.pop("label_fraction", None)
        overrides = self.config_overrides + for_linear.pop("config_overrides", [])
        if n_partial == 0 and parse_overrides(overrides).get("pooling") == "attention":
            paper |= ATTENTIVE_PROBING
        values = {name: value for name, value in paper.items() if getattr(self, name) is None} | for_linear
        values["config_overrides"] = paper["config_overrides"] + overrides
        values["tune"] = "all" if n_partial is None else self.tune
        values.setdefault("eval_crop_fraction", self.eval_crop_fraction or self.whole_crop)
        values.setdefault("per_device_eval_batch_size", self.eval_batch)
        total: int = values.get("total_batch_size") or self.total_batch_size or 1
        if self.with_masks and (self.per_device_train_batch_size or total) > total:
            # The same for 1, 2 and 4 processes, since a BatchNorm sees what a process sees at a time.
            values["per_device_train_batch_size"] = max(1, total // 4)
        return dataclasses.replace(self, n_partial=None if n_partial is None else [n_partial], **values)

    def _papers(self, n_partial: float | None) -> dict[str, Any]:
        if not self.with_masks:
            return LINEAR_PROBING if n_partial == 0 else FINE_TUNING
        return SEGMENTATION | SEGMENTATION_PROBING if n_partial == 0 else SEGMENTATION

    def _linear_overrides(self) -> dict[str, Any]:
        def options() -> list[str]:
            return [
                field.name for field in dataclasses.fields(self) if field.name not in ("n_partial", "linear_overrides")
            ]

        for text in self.linear_overrides:
            key, _, value = text.partition("=")
            if key not in options() and key in model_fields():
                raise ArgumentError(
                    f"linear_overrides {text!r}: {key} is a field of the model, write "
                    f"config_overrides={{{key}: {value}}}"
                )
        mapping = parse_pairs(self.linear_overrides, "linear_overrides", options, "the options", "optimizer=sgd")
        arguments = parse_mapping(type(self), mapping)
        return {key: getattr(arguments, key) for key in mapping}

    def check(self) -> None:
        """Raises an ArgumentError for arguments that cannot work. Quick and without network."""
        check_evaluation(self)


class EvalRecipe(EvalArguments):
    """Arguments of one training without open settings."""

    if TYPE_CHECKING:
        optimizer: str
        num_train_epochs: float
        total_batch_size: int
        per_device_train_batch_size: int
        base_learning_rate: float
        min_learning_rate: float
        warmup_epochs: float
        weight_decay: float
        layer_decay: float
        auto_augment: str
        random_erasing: float
        mixup: float
        cutmix: float
        crop_scale: list[float]
        per_device_eval_batch_size: int
        image_mean: list[float]
        image_std: list[float]
        label_fraction: float  # type: ignore[assignment]


@dataclass(frozen=True)
class EvalTraining:
    """One training of run_eval.py."""

    name: str  # of the arm, with what else differs between the trainings: n_partial-4_labels-0.1_seed-0_fold-1
    folder: Path
    n_partial: float | None  # number of tuned blocks; None: from scratch, all of them
    recipe: EvalRecipe
    arm: str = ""  # n_partial-0, n_partial-0.5, ..., from-scratch, start-n_partial-0, ...

    @property
    def starts(self) -> bool:
        """Whether it is from the weights that the pre-training began with."""
        return self.arm.startswith("start-")

    @property
    def kind(self) -> dict[str, Any]:
        """What tells it from the other trainings of the run, for its row of results."""
        recipe = self.recipe
        fold = {"fold": recipe.fold} if recipe.fold else {}
        row = {"n_partial": self.n_partial, "tune": recipe.tune, "arm": self.arm}
        return {**row, "label_fraction": recipe.label_fraction, "seed": recipe.seed, **fold}

    @property
    def results_file(self) -> Path:
        """The file of its results, written when it is finished."""
        return self.folder / RESULTS

    def check_blocks(self, depth: int) -> None:
        """Raises an ArgumentError if an encoder of `depth` blocks cannot tune `n_partial` of them, or would keep new
        patch weights frozen."""
        try:
            check_blocks(self.n_partial, depth)
        except ArgumentError as error:
            raise ArgumentError(f"{self.name}: {error}") from None
        frozen = self.n_partial is not None and (self.n_partial < depth or self.recipe.tune != "all")
        if frozen and self.recipe.new_bands == "random":
            raise ArgumentError(
                f"{self.name}: new_bands 'random' makes new patch weights, and they would stay frozen: give "
                f"--n_partial {depth}, or --new_bands mean"
            )

    def finished_results(self, options: EvalArguments, say: Callable[[str], None]) -> dict | None:
        """The results that an earlier call of this training left in the folder, or None if there is training to do.

        A finished training goes on from its last checkpoint if its length has changed, or with `allow_changes`. `say`
        prints that. `options` are those of the call.

        Raises:
            ArgumentError: the results are from another training, or from other settings.
        """
        if not self.results_file.exists():
            return None
        from modeling_mae.checked import check, invalid_file, mapped, plain, read_json, text

        row = check(self.results_file, read_json(self.results_file), {"name": text}, needed=("name",))
        if row["name"] != self.name:
            raise ArgumentError(
                f"{self.folder} holds the results of {row['name']}, not of {self.name}: give another --output_dir"
            )
        arguments = self.folder / "arguments.json"
        before = read_json(arguments)
        if not mapped(plain)(before):
            raise invalid_file(arguments, "a setting is neither a value nor a list of values")
        before = self.recipe.added() | before
        now = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
        names = [name for name in self.recipe.deciding("weights", "result") if before.get(name) != now[name]]
        # Not compared here if one call was given them and the other measured them: the checkpoint has the numbers.
        for name in ("image_mean", "image_std", "white_value"):
            if name in names and None in (before.get(name), getattr(options, name)):
                names.remove(name)
        if not names:
            return row
        changes = "; ".join(f"{name} {before.get(name)} -> {now[name]}" for name in names)
        if not self.recipe.allow_changes and not {"num_train_epochs", "max_train_steps"}.issuperset(names):
            raise ArgumentError(
                f"{self.folder} holds the finished results of other settings ({changes}): give another --output_dir, "
                "the same settings, --allow_changes true to go on from its last checkpoint with these, or "
                "--overwrite_output_dir to start over"
            )
        say(f"note       {self.name} was finished with other settings ({changes}): it goes on with the new ones")
        return None
