"""Checks of the arguments: one function per script, in the order of `--help`.

Each raises a one-line ArgumentError that names the value and the remedy. All are quick, need no network, and give the
same result on every process. They run before any long work.
"""

import importlib.util
from pathlib import Path

from .errors import ArgumentError, exclude, need, require
from .memory import check_batch, check_image_cache, check_repeats, check_training_fits
from .model import join, model_config, parse_overrides, suggest


# Larger numbers are typos: counters and rates would overflow, or the machine would fill with processes.
MAX_EPOCHS = 1_000_000
MAX_UPDATES = 10**12
MAX_RATE = 1_000_000
MAX_WORKERS = 1024
MAX_NEIGHBOURS = 16


def check_pretraining(args) -> None:
    """Raises an ArgumentError for `PretrainArguments` that cannot work."""
    check_texts(args)
    check_place(args)
    if args.own_images:  # `settle` chooses and checks the open settings once the images are known
        parse_overrides(args.config_overrides)
        check_data(args)
        check_optimizer(args)
    else:
        check_settings(args)
    check_run(args)
    check_tune(args)
    check_output_dir(args)
    check_new_bands(args)
    check_continuing(args)
    require(args, "max_hours", lambda x: x > 0, "a number of hours above 0, as in 0.5")
    exclude(args, "max_hours", "max_train_steps")
    check_resizing(args)
    require(args, "eval_every_epochs", lambda x: x >= 0, "a number of epochs, 0 for none")
    require(args, "picture_epochs", lambda x: x >= 0, "a number of epochs, 0 for none")
    check_mask_files(args)
    check_hub(args)


def check_continuing(args) -> None:
    """Checks what a run that starts from a checkpoint adds."""
    for name in ("continue_images", "train_new_first"):
        need(args, name, "model_name_or_path")
    need(args, "continue_images", "own_images")
    require(args, "train_new_first", lambda x: 0 <= x < 1, "a share in [0, 1), as in 0.05")
    require(args, "layer_decay", lambda x: 0 < x <= 1, "a factor in (0, 1], as in 0.75")


def check_settings(args) -> None:
    """Raises an ArgumentError for `PretrainArguments` without open settings that cannot work."""
    check_model(args, decoder=True)
    check_pooling(args)
    check_data(args)
    check_optimizer(args)
    require(args, "repeated_augmentation", lambda x: x >= 1, "a number of crops, 1 for one")
    check_repeats(args)


def check_evaluation(args) -> None:
    """Raises an ArgumentError if a training of `EvalArguments` cannot work."""
    check_texts(args)
    check_place(args)
    check_new_bands(args)
    check_checkpoint(args)
    check_problem_type(args)
    check_curve(args)
    require(args, "max_eval_samples", lambda x: x >= 1, "a number of images, at least 1")
    require(args, "eval_crop_fraction", lambda x: 0 < x <= 1, "a part in (0, 1], as in 0.875")
    require(args, "eval_epochs", lambda x: x >= 1, "a number of epochs, at least 1")
    require(args, "per_device_eval_batch_size", lambda x: x >= 1, "a number of images, at least 1")
    runs = args.trainings()
    for arguments in [run.recipe for run in runs] or [args.resolved(None)]:
        check_model(arguments)
        check_data(arguments)
        check_optimizer(arguments)
        check_augmentation(arguments)
        check_run(arguments)
        check_tune(arguments)
    if args.tune != "all" and all(run.recipe.tune == "all" for run in runs):
        raise ArgumentError(
            f"tune {args.tune!r} is for a training that begins with a checkpoint: give --n_partial, or leave it out"
        )
    if len(runs) > 1 and args.resume_from_checkpoint not in (None, "auto"):
        raise ArgumentError(
            f"resume_from_checkpoint {args.resume_from_checkpoint!r} is of one training, but there are {len(runs)}: "
            "give auto, which finds the checkpoint of each"
        )
    if len(runs) > 1 and args.push_to_hub == "checkpoint":
        raise ArgumentError(
            f"push_to_hub 'checkpoint' is for one training, but there are {len(runs)}: give one n_partial, or "
            "--push_to_hub end"
        )
    check_output_dir(args)
    check_hub(args)


def check_curve(args) -> None:
    """The options that make several trainings of one."""
    require(args, "label_fraction", lambda x: 0 < x <= 1, "parts in (0, 1], as in 0.1")
    require(args, "seeds", lambda x: 1 <= x <= 1000, "a number of seeds, 1 for one")
    require(args, "patience", lambda x: x >= 1, "a number of evaluations, at least 1")
    require(args, "folds", lambda x: 2 <= x <= 1000, "a number of parts, at least 2")
    need(args, "fold", "folds")
    if len(set(args.label_fractions)) < len(args.label_fractions):
        raise ArgumentError(f"label_fraction {join(args.label_fraction)} has one twice: give each once")
    if args.fold is not None and not 1 <= args.fold <= args.folds:
        raise ArgumentError(f"fold {args.fold} is not one of the {args.folds} folds: give 1 to {args.folds}")
    for arm in args.compare or []:
        if arm not in ("scratch", "start"):
            raise ArgumentError(f"compare {arm!r} does not work: give scratch, start or both")
    if args.compare and not args.do_train:
        raise ArgumentError("compare trains, but do_train is false: leave one out")
    if args.compare and args.model_name_or_path is None:
        raise ArgumentError("compare needs a checkpoint to compare: give --model_name_or_path")
    if args.folds and (args.validation_dir or args.eval_split or not args.do_train or args.reads_features):
        raise ArgumentError(
            "folds evaluate trainings on the training images: leave out validation_dir, eval_split, knn and readouts, "
            "and do_train false"
        )


def check_texts(args) -> None:
    """Refuses empty values. They come from unset shell variables; as a folder they would mean the working folder."""
    for name, value in vars(args).items():
        texts = value if name == "train_dir" and isinstance(value, list) else [value]
        if any(isinstance(text, str) and not text.strip() for text in texts):
            raise ArgumentError(f"{name} {value!r} is empty: give a value, or leave the option out")


def check_place(args) -> None:
    """model_name_or_path may be a file, a folder or a Hub id (owner/name). If owner is a folder here, the user meant a
    path, and asking the Hub would take long."""
    exclude(args, "model_name_or_path", "config_name")
    name = args.model_name_or_path
    if name is not None and not Path(name).exists() and (Path(name).parent.is_dir() or name.count("/") != 1):
        raise ArgumentError(
            f"model_name_or_path {name!r} is neither a folder here nor a Hub id: pre-train first, or give the "
            "output_dir of a run, or owner/name"
        )


def model_is_here(args) -> bool:
    """Whether the configuration is on this machine. One on the Hub is checked when it is loaded."""
    return args.model_name_or_path is None or Path(args.model_name_or_path).exists()


def check_new_bands(args) -> None:
    """Only own_images, an option of run_pretrain.py, takes the number of bands from the images."""
    from modeling_mae.words import NEW_BANDS

    own_images = getattr(args, "own_images", None)
    need(args, "new_bands", "model_name_or_path")
    if args.new_bands is not None and not NEW_BANDS.fullmatch(args.new_bands):
        raise ArgumentError(f"new_bands {args.new_bands!r} does not work: give mean, random, or rgb:3,2,1")
    if args.new_bands and not own_images and "num_channels" not in parse_overrides(args.config_overrides):
        alternative = "" if own_images is None else ", or --own_images true"
        raise ArgumentError(
            f"new_bands {args.new_bands!r} needs the number of bands: add --config_overrides num_channels=5, for "
            f"example{alternative}"
        )


def check_model(args, decoder: bool = False) -> None:
    """`decoder`: whether the decoder is trained too."""
    if model_is_here(args):
        config = model_config(args)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            if getattr(args, name, None) is not None:
                check_batch(config, getattr(args, name), name)
        trained = None if decoder else getattr(args, "n_partial", None)
        if args.tune == "all" and (trained is None or config.num_hidden_layers in trained):
            check_training_fits(config, decoder)
        channels = config.num_channels
        if args.image_mean is not None and args.image_std is not None and len(args.image_mean) != channels:
            raise ArgumentError(
                f"image_mean {join(args.image_mean)} has {len(args.image_mean)} numbers, but the model num_channels "
                f"{channels}: give as many, or --config_overrides num_channels={len(args.image_mean)}"
            )


def check_pooling(args) -> None:
    """Pre-training does not train the queries of attention pooling, so its k-NN accuracy would mean nothing."""
    if model_is_here(args) and model_config(args).pooling == "attention":
        raise ArgumentError(
            "pooling='attention' is trained with labels, but pre-training has none: leave it to run_eval.py, and "
            "give --config_overrides pooling=mean here"
        )


def check_checkpoint(args) -> None:
    """run_eval.py needs a checkpoint, except to train from scratch, and n_partial must fit the depth."""
    name = args.model_name_or_path
    if args.n_partial == []:
        raise ArgumentError("n_partial is empty: give 0, 0.5, 1, ... or the depth")
    trains_from_scratch_only = args.do_train and args.from_scratch and not args.n_partial
    if name is None and (args.reads_features or not trains_from_scratch_only):
        raise ArgumentError(
            "model_name_or_path is not given: give a pre-trained checkpoint's folder or Hub id, or only "
            "--from_scratch true with --config_name"
        )
    if model_is_here(args):
        depth = model_config(args).num_hidden_layers
        for value in args.n_partial or []:
            check_blocks(value, depth)
    twice = [value for value in args.n_partial or [] if args.n_partial.count(value) > 1]
    if twice:
        raise ArgumentError(
            f"n_partial {join(args.n_partial)} has {twice[0]:g} twice: give each number of blocks once"
        )


def check_problem_type(args) -> None:
    from modeling_mae.tasks import TASKS
    from modeling_mae.words import SEMANTIC_SEGMENTATION

    if args.problem_type not in (None, *TASKS):
        hint = suggest(args.problem_type, TASKS) or f": give {', '.join(TASKS)}"
        raise ArgumentError(f"problem_type {args.problem_type!r} does not work{hint}")
    if args.with_masks:
        check_masks(args)
        return
    for name in ("mask_dir", "mask_column_name", "mask_values", "ignore_index"):
        if getattr(args, name) is not None:
            raise ArgumentError(
                f"{name} {getattr(args, name)!r} is for masks: add --problem_type {SEMANTIC_SEGMENTATION}"
            )


def check_mask_files(args) -> None:
    """Where masks are, and what their numbers mean."""
    exclude(args, "mask_dir", "mask_column_name")
    check_choice(args, "mask_values", (None, "binary", "classes"))


def check_choice(args, name: str, known: tuple) -> None:
    if getattr(args, name) not in known:
        words = ", ".join(map(str, filter(None, known)))
        raise ArgumentError(f"{name} {getattr(args, name)!r} does not work: give {words}")


def check_masks(args) -> None:
    """What semantic segmentation cannot have, and its own numbers."""
    check_mask_files(args)
    check_choice(args, "class_weights", ("none", "auto"))
    check_choice(args, "segmentation_head", ("linear", "multiscale", "upernet"))
    require(args, "dice_weight", lambda x: x >= 0, "a weight, 0 for none")
    require(args, "zoom", lambda x: 0.01 <= x <= 100, "two enlargements, as in 0.5 2")
    if len(args.zoom) != 2 or args.zoom[0] > args.zoom[1]:
        raise ArgumentError(f"zoom {join(args.zoom)} does not work: give smallest, largest, as in 0.5 2")
    if args.readouts is not None or args.feature_layers is not None or args.feature_pooling is not None:
        raise ArgumentError("readouts compare one label an image, and masks have many: give --knn true alone")
    for name in ("mixup", "cutmix", "random_erasing"):
        if getattr(args, name):
            raise ArgumentError(f"{name} {getattr(args, name):g} does not change masks with their images: give 0")
    if args.auto_augment not in (None, "none"):
        raise ArgumentError(f"auto_augment {args.auto_augment!r} does not change masks with their images: give none")


def check_blocks(n_partial: float | None, depth: int) -> None:
    """Raises an ArgumentError if a model of `depth` blocks cannot tune `n_partial` of them."""
    if n_partial is not None and n_partial not in (0, 0.5, *range(1, depth + 1)):
        raise ArgumentError(
            f"n_partial {n_partial:g} does not work: give 0 (head only), 0.5 (the last block's MLP too) or 1 ... "
            f"{depth} (that many of the last blocks; {depth} is everything)"
        )


def check_data(args) -> None:
    exclude(args, "dataset_name", "train_dir")
    need(args, "dataset_config_name", "dataset_name")
    check_mix(args)
    check_slices(args)
    require(args, "max_train_samples", lambda x: x >= 1, "a number of images, at least 1")
    for name in ("max_train_samples", "max_eval_samples"):
        if args.streaming and getattr(args, name, None) is not None:
            raise ArgumentError(
                f"{name} {getattr(args, name)} does not go with streaming, which reads whole shards: give fewer "
                "shards with train_dir"
            )
    mean, std = args.image_mean, args.image_std
    if (mean is None) != (std is None) or (mean is not None and len(mean) != len(std)):
        raise ArgumentError(
            f"image_mean {join(mean)} and image_std {join(std)} do not fit: give one number per channel in each, or "
            "neither to measure them"
        )
    require(args, "image_mean", lambda x: True, "finite numbers (white is 1)")
    require(args, "image_std", lambda x: x > 0, "numbers above 0 (white is 1)")
    require(args, "white_value", lambda x: x > 0, "the value of a white pixel, as 4095 for 12 bits")
    require(args, "max_image_pixels", lambda x: x >= 1, "the pixels of the largest image, as 180000000")
    require(args, "bands", lambda x: x >= 1, "numbers of bands, counted from 1")
    require(args, "crop_scale", lambda x: 0 < x <= 1, "two shares of the area in (0, 1], as in 0.2 1.0")
    if args.crop_scale is None:
        pass  # `settle` chooses it
    elif len(args.crop_scale) != 2 or args.crop_scale[0] > args.crop_scale[1]:
        raise ArgumentError(f"crop_scale {join(args.crop_scale)} does not work: give smallest, largest, as in 0.2 1.0")
    check_image_cache(args)
    require(args, "dataloader_num_workers", lambda x: 0 <= x <= MAX_WORKERS, "a number of workers, 0 for none")


def check_slices(args) -> None:
    from modeling_mae.words import SLICES

    require(args, "neighbour_slices", lambda x: 0 <= x <= MAX_NEIGHBOURS, f"a number of slices, 0 to {MAX_NEIGHBOURS}")
    need(args, "neighbour_slices", "slices")
    if args.slices is None:
        return
    if not SLICES.fullmatch(args.slices):
        raise ArgumentError(f"slices {args.slices!r} does not work: give all, middle:32 or every:4")
    exclude(args, "slices", "streaming")
    exclude(args, "slices", "dataset_name")
    if args.train_dir is None and getattr(args, "validation_dir", None) is None:
        raise ArgumentError(f"slices {args.slices!r} are of files in a folder: give it with --train_dir")


def check_mix(args) -> None:
    folders = args.train_dir if isinstance(args.train_dir, list) else [args.train_dir] * (args.train_dir is not None)
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise ArgumentError(f"train_dir has {twice[0]!r} twice: give each folder once, and its share with --mix")
    require(args, "mix", lambda x: x > 0, "shares above 0, as in 0.7 0.3")
    if args.mix is not None and (len(args.mix) != len(folders) or len(folders) < 2):
        raise ArgumentError(
            f"mix {join(args.mix)} has {len(args.mix)} shares, but train_dir has {len(folders)} folders: give a "
            "share for each of two or more folders"
        )


def check_optimizer(args) -> None:
    epochs = f"at most {MAX_EPOCHS}"
    require(args, "num_train_epochs", lambda x: 0 < x <= MAX_EPOCHS, f"a number of epochs above 0, {epochs}")
    require(args, "max_train_steps", lambda x: 1 <= x <= MAX_UPDATES, f"a number of updates, 1 to {MAX_UPDATES}")
    require(args, "total_batch_size", lambda x: x >= 1, "a number of images, at least 1")
    require(args, "per_device_train_batch_size", lambda x: x >= 1, "a number of images, at least 1")
    rate = f"a rate above 0, at most {MAX_RATE}, the paper's is 1.5e-4"
    require(args, "base_learning_rate", lambda x: 0 < x <= MAX_RATE, rate)
    require(args, "warmup_epochs", lambda x: 0 <= x <= MAX_EPOCHS, f"a number of epochs, 0 for none, {epochs}")
    # With max_train_steps, a short trial of a long recipe may well end inside the warm-up.
    open_length = args.num_train_epochs is None or args.warmup_epochs is None
    if not open_length and args.max_train_steps is None and args.warmup_epochs >= args.num_train_epochs:
        raise ArgumentError(
            f"warmup_epochs {args.warmup_epochs:g} is not shorter than the run of num_train_epochs "
            f"{args.num_train_epochs:g}: give --warmup_epochs {args.num_train_epochs / 20:g}, for example"
        )
    require(args, "weight_decay", lambda x: 0 <= x <= MAX_RATE, f"0 to {MAX_RATE}, the paper's is 0.05")
    require(args, "adam_beta1", lambda x: 0 <= x < 1, "a number in [0, 1), the paper's is 0.9")
    require(args, "adam_beta2", lambda x: 0 <= x < 1, "a number in [0, 1), the paper's is 0.95")


def check_augmentation(args) -> None:
    """Checks what run_eval.py's trainings add to the optimizer's settings. None of it is open."""
    if args.optimizer not in ("lars", "sgd", "adamw"):
        raise ArgumentError(f"optimizer {args.optimizer!r} does not work: give lars, sgd or adamw")
    require(args, "layer_decay", lambda x: 0 < x <= 1, "a factor in (0, 1], the paper's is 0.75")
    require(args, "min_learning_rate", lambda x: 0 <= x <= MAX_RATE, f"a rate, 0 to {MAX_RATE}")
    require(args, "random_erasing", lambda x: 0 <= x <= 1, "a probability")
    require(args, "mixup", lambda x: 0 <= x <= MAX_RATE, f"0 to {MAX_RATE}, the paper's is 0.8")
    require(args, "cutmix", lambda x: 0 <= x <= MAX_RATE, f"0 to {MAX_RATE}, the paper's is 1.0")
    if (args.mixup or args.cutmix) and args.per_device_train_batch_size % 2:
        raise ArgumentError(
            f"per_device_train_batch_size {args.per_device_train_batch_size} is odd: mixup and cutmix need pairs; "
            "give an even one, or --mixup 0 --cutmix 0"
        )
    if args.auto_augment != "none" and not args.auto_augment.startswith("rand-"):
        raise ArgumentError(
            f"auto_augment {args.auto_augment!r} is not a RandAugment policy of timm: give none, or for example "
            "rand-m9-mstd0.5-inc1"
        )


def check_resizing(args) -> None:
    parts = args.progressive_resizing  # at most as many as SCALES in training/resizing.py
    require(args, "progressive_resizing", lambda x: 0 <= x < 1, "shares of the updates below 1, as in 0.5 0.3")
    if len(parts) > 2 or sum(parts) >= 1:
        raise ArgumentError(
            f"progressive_resizing {join(parts)} does not work: give one or two shares with a sum below 1, "
            "because the full size comes last"
        )


def check_run(args) -> None:
    require(args, "seed", lambda x: 0 <= x < 2**32, "a whole number in 0 to 4294967295")
    require(args, "logging_steps", lambda x: x >= 1, "a number of updates, at least 1")
    steps = args.checkpointing_steps
    if steps != "epoch" and not (steps.isdecimal() and len(steps) < 19 and int(steps) >= 1):
        raise ArgumentError(f"checkpointing_steps {steps!r} does not work: give epoch or a number of updates")
    require(args, "checkpoints_kept", lambda x: x >= 1, "a number of checkpoints, at least 1")
    check_trackers(args)


def check_tune(args, config=None) -> None:
    """What trains must fit the model and the other options, and adapters need PEFT. `config` is the model's, None if
    it may still have to be fetched."""
    from modeling_mae.errors import UserError
    from modeling_mae.training.tuning import TuningSettings

    if args.tune == "all":
        return
    name, tuning = f"tune {args.tune!r}", TuningSettings(args.tune)
    try:
        adapters = tuning.rank > 0
        if args.model_name_or_path is None:
            raise UserError(f"{name} needs weights to start from: give --model_name_or_path, or leave it out")
        if config is None and model_is_here(args):
            config = model_config(args)
        if config is not None:
            tuning.check(config)
    except UserError as error:
        raise ArgumentError(str(error)) from None
    blocks = getattr(args, "n_partial", None)  # None in pre-training
    if blocks is not None and not adapters:
        raise ArgumentError(f"{name} and n_partial {join(blocks)} both say which blocks train: give one")
    if blocks is not None and config is not None and blocks != [config.num_hidden_layers]:
        raise ArgumentError(
            f"{name} is for end-to-end tuning: give --n_partial {config.num_hidden_layers} instead of {join(blocks)}"
        )
    if adapters and importlib.util.find_spec("peft") is None:
        raise ArgumentError(f"{name} needs PEFT, which is not installed: pip install 'modeling-mae[peft]'")


def check_trackers(args) -> None:
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    if len(args.report_to) > 1 and {"all", "none"} & set(args.report_to):
        raise ArgumentError(f"report_to {join(args.report_to)} does not work: give all or none without other names")
    for name in args.trackers:
        if name not in LoggerType.list():
            hint = suggest(name, LoggerType.list()) or f": those are {', '.join(LoggerType.list())}, none"
            raise ArgumentError(f"report_to {name!r} is not one of Accelerate's trackers{hint}")
        # Accelerate silently leaves out a tracker that is not installed.
        if name != "all" and LoggerType(name) not in get_available_trackers():
            raise ArgumentError(f"report_to {name!r} is not installed: pip install it, or give another or none")


def check_output_dir(args) -> None:
    """Refuses an output_dir in which the run would overwrite another run, or the checkpoint that it starts from."""
    resume = args.resume_from_checkpoint
    exclude(args, "overwrite_output_dir", "resume_from_checkpoint")
    if "://" in args.output_dir:
        raise ArgumentError(f"output_dir {args.output_dir!r} is a URL: give a folder here, and copy it afterwards")
    if Path(args.output_dir).exists() and not Path(args.output_dir).is_dir():
        raise ArgumentError(f"output_dir {args.output_dir!r} is a file: give a folder")
    folders = args.run_folders()
    checkpoint = Path(args.model_name_or_path).resolve() if args.model_name_or_path else None
    if resume is None and checkpoint in [path.resolve() for path in (Path(args.output_dir), *folders)]:
        raise ArgumentError(
            f"output_dir {args.output_dir!r} holds model_name_or_path {args.model_name_or_path!r}: give "
            "another output_dir, so that the checkpoint is not overwritten"
        )
    checkpoints = sorted(str(path) for folder in folders for path in folder.glob("checkpoint-*"))
    on_hub = resume is not None and resume.startswith("hub://")
    if resume not in (None, "auto") and not on_hub and not Path(resume).is_dir():
        hint = f"give auto or one of {', '.join(checkpoints)}" if checkpoints else "output_dir has none"
        raise ArgumentError(f"resume_from_checkpoint {resume!r} is not a folder: {hint}")
    holds_a_run = checkpoints or any((folder / "model.safetensors").exists() for folder in folders)
    # The checkpoint on the Hub and the files here may be from different runs.
    goes_on_here = resume is not None and not on_hub
    if holds_a_run and not goes_on_here and not args.overwrite_output_dir:
        raise ArgumentError(
            f"output_dir {args.output_dir!r} already holds a run: give another, --resume_from_checkpoint auto to go "
            "on, or --overwrite_output_dir to start over"
        )


def check_hub(args) -> None:
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if args.push_to_hub not in ("no", "end", "checkpoint"):
        raise ArgumentError(f"push_to_hub {args.push_to_hub!r} does not work: give no, end or checkpoint")
    if args.push_to_hub == "no":
        for name in ("hub_model_id", "hub_private_repo"):
            if getattr(args, name):
                raise ArgumentError(f"{name} {getattr(args, name)!r} means nothing without push_to_hub: give both")
        return
    try:
        validate_repo_id(args.hub_model_id or Path(args.output_dir).resolve().name)
    except HFValidationError as error:
        raise ArgumentError(f"hub_model_id {args.hub_model_id!r}: {error}") from None
    if get_token() is None:
        raise ArgumentError(f"push_to_hub {args.push_to_hub!r} needs a Hub token: run `hf auth login` or set HF_TOKEN")
