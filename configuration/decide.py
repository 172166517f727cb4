"""Turns options into a recipe without open settings, from the images, the memory, the clock, and the checkpoint that a
run goes on from.

The scripts import this after they have read the command line, because it imports torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from modeling_mae.checkpoint import Beginning, Checkpoint
from modeling_mae.configuration_mae import MAEConfig
from modeling_mae.data.find.facts import image_facts
from modeling_mae.data.find.fingerprint import fingerprint
from modeling_mae.data.find.joined import load_training_source
from modeling_mae.data.find.slices import VOLUME_OF_A_SLICE
from modeling_mae.data.find.sources import Source, SourceSettings
from modeling_mae.data.pretraining_sets import PretrainingSets, load_pretraining_sets
from modeling_mae.data.read.bit_depth import WHITE
from modeling_mae.data.serve.crops import training_crop
from modeling_mae.data.serve.images import ImageSettings, Opening
from modeling_mae.data.serve.order import split_batch
from modeling_mae.data.serve.processor import Processing, choose_processing
from modeling_mae.data.serve.statistics import choose_mean_std, keep_mean_std
from modeling_mae.evaluation import classifier
from modeling_mae.evaluation.classifier import TrainingPlan, TrainingWork, training_work
from modeling_mae.evaluation.features import K
from modeling_mae.evaluation.growth import images_per_measurement
from modeling_mae.evaluation.readouts import ReadoutSettings
from modeling_mae.evaluation.worth import Comparison
from modeling_mae.files import write_text
from modeling_mae.readout import Readout
from modeling_mae.report.facts import Base
from modeling_mae.report.worth import OWN, SCRATCH, START
from modeling_mae.settings import settings
from modeling_mae.tasks import TASKS, task_of_checkpoint
from modeling_mae.tasks.evalnet import names_of
from modeling_mae.tasks.masks import Masks, MaskSettings
from modeling_mae.tasks.protocol import ViewSettings
from modeling_mae.tasks.sets import LabelledSets, load_labelled_sets, load_masked_sets, match_labels
from modeling_mae.tasks.splits import leaks, part_of, sets_of_fold
from modeling_mae.training import launch
from modeling_mae.training.augment import BatchTransform
from modeling_mae.training.masks import check_masks
from modeling_mae.training.optim import LengthSettings, OptimizerSettings
from modeling_mae.training.resizing import Resizing
from modeling_mae.training.state import Run
from modeling_mae.training.trials import Trial, TrialSettings, find_batch_size, fit_length
from modeling_mae.training.tuning import TuningSettings
from modeling_mae.words import counted

from .arguments import PretrainArguments, PretrainRecipe
from .checks import check_augmentation, check_tune
from .errors import ArgumentError
from .evaluation import EvalArguments, EvalRecipe, EvalTraining
from .model import checkpoint_of, model_config, model_settings
from .own_images import settle
from .parsing import recipe_text


@dataclass(frozen=True)
class Decided:
    """A pre-training before its first update."""

    recipe: PretrainRecipe
    start: Checkpoint | None  # where the weights come from; None: they are new
    config: MAEConfig
    sets: PretrainingSets
    resizing: Resizing
    reasons: list[str]  # one line per choice
    chosen: dict[str, Any]  # what was chosen for the user; a resumed run keeps it

    def made_with(self, beginning: Beginning) -> dict[str, Any]:
        """All settings that decide the weights, for the checkpoints' manifest."""
        recipe, data = self.recipe, fingerprint(self.sets.source)
        new = {"new": beginning.new_parts} if recipe.train_new_first else {}
        images = {"data": data, "mean": recipe.image_mean, "std": recipe.image_std, "white": self.sets.images.white}
        chosen = {"chosen": self.chosen} if self.chosen else {}
        return {**recipe.deciding_weights(), **model_settings(self.config), **images, **chosen, **new}

    def save(self, folder: Path, shows: bool) -> None:
        """Writes recipe.yaml. `shows`: also prints it."""
        path = save_recipe(self.recipe, folder, self.reasons)
        print(f"recipe     {path}", flush=True)
        if shows:
            print(path.read_text(), end="")

    def describe(self, architecture: str, beginning: Beginning, run: Run) -> str:
        """A summary of the run before its first update, a line per subject."""
        recipe, images = self.recipe, self.sets.images
        lines = {
            "model": architecture,
            "start": f"{self.start.name}: {beginning.about}" if self.start else "",
            "data": f"{self.sets.source.name}: {counted(len(images), 'image')}, mean {recipe.image_mean}, std "
            f"{recipe.image_std}, {images.where}{images.remarks}",
            "sizes": self.resizing.describe(run.schedule.updates, run.progress.update),
            "loss": "predicting the mean of each patch gives 1" if self.config.norm_pix_loss else "",
            **run.describe(),
            "parallel": launch.describe_parallelism(run.accelerator),
        }
        return "\n".join(f"{subject:10} {text}" for subject, text in lines.items() if text)


def decide(options: PretrainArguments, accelerator: Accelerator, before: dict[str, Any]) -> Decided:
    """Chooses the open settings, and prints each choice with its reason.

    `before` are the settings of the checkpoint that the run goes on from, empty for a fresh start.

    Raises:
        ArgumentError, UserError: the given settings and the choices do not work together.
    """
    say, processes, goes_on = accelerator.print, accelerator.num_processes, bool(before)
    chosen = dict(before.get("chosen", {}))
    reasons: list[str] = []
    with accelerator.main_process_first():  # the others then read from the cache of `datasets`
        source = load_training_source(settings(SourceSettings, options))
    given = length_of_earlier_run(options, chosen)
    if given.own_images:
        given, chosen, reasons = settle(given, image_facts(source, given.bands), processes, chosen)
        for reason in reasons:
            say(f"chosen     {reason}", flush=True)
    recipe = PretrainRecipe(**vars(given))  # mean and deviation follow
    split_batch(recipe.total_batch_size, recipe.per_device_train_batch_size, processes)
    config, start = model_config(recipe), checkpoint_of(recipe)
    check_tune(recipe, config)
    if start is not None:
        say(start.notes_text(trains_decoder=True), end="", flush=True)
    resizing = Resizing(config.image_height_width, config.patch_height_width, tuple(recipe.progressive_resizing))
    check_masks(config, resizing)
    sets = _open_sets(recipe, config, source, accelerator, before)
    if start is not None:
        recipe = _continued(recipe, start, sets, goes_on, reasons, say)
    mean, std = choose_mean_std(sets.images, settings(ImageSettings, recipe), before, say)
    recipe = replace(recipe, image_mean=mean, image_std=std, white_value=_open_white(sets.images.white))
    if recipe.auto_batch_size or (recipe.max_hours and not goes_on):
        changed = frozenset[str]() if start is None else start.patch_layers
        optimizer, tuning = settings(OptimizerSettings, recipe), settings(TuningSettings, recipe)
        trial = Trial(accelerator, config, optimizer, tuning, changed)
        recipe = _by_trials(recipe, trial, sets, resizing, goes_on, reasons)
    if recipe.max_hours and goes_on and "num_train_epochs" not in chosen:
        say("note       max_hours only applies when a run begins: this run keeps its length")
    if recipe.max_hours:
        chosen |= {"num_train_epochs": recipe.num_train_epochs, "warmup_epochs": recipe.warmup_epochs}
    recipe = replace(recipe, own_images=False, continue_images=False, max_hours=None, auto_batch_size=False)
    return Decided(recipe, start, config, sets, resizing, reasons, chosen)


def _continued(
    recipe: PretrainRecipe,
    start: Checkpoint,
    sets: PretrainingSets,
    goes_on: bool,
    reasons: list[str],
    say: Callable[..., None],
) -> PretrainRecipe:
    """The recipe with what follows from the weights that the training begins with."""
    known = len(reasons)
    if recipe.train_new_first and not start.has_new_parts:
        recipe = replace(recipe, train_new_first=0.0)
        reasons.append("train_new_first=0: the checkpoint has all parts")
    elif recipe.train_new_first and recipe.continue_images:
        reasons.append(f"train_new_first={recipe.train_new_first:g}: new parts would pull at trained weights")
    if recipe.layer_decay != 1 and recipe.continue_images:
        reasons.append(f"layer_decay={recipe.layer_decay:g}: lower blocks fit most images already and change less")
    if recipe.continue_images and recipe.image_mean is None and not goes_on:  # a run keeps those that it began with
        kept = keep_mean_std(sets.images, start.processing, start.sources_of_bands, say)
        if kept is None:
            say("note       the checkpoint does not say mean and deviation of its images: they are measured")
        else:
            recipe = replace(recipe, image_mean=kept[0], image_std=kept[1])
            why = "the checkpoint's" + (" where it knows the band, else measured" if recipe.new_bands else "")
            reasons.append(f"image_mean={kept[0]} image_std={kept[1]}: {why}")
    for reason in reasons[known:]:
        say(f"chosen     {reason}", flush=True)
    return recipe


def base_of(start: Checkpoint | None) -> Base | None:
    """What a card says about the weights that a training began with."""
    return None if start is None else Base(start.source, start.license, start.on_hub)


def save_recipe(recipe: object, folder: Path, reasons: Sequence[str] = ()) -> Path:
    """Writes recipe.yaml, with which the script repeats the training. The reasons become comments in it."""
    path = folder / "recipe.yaml"
    write_text(path, "".join(f"# {reason}\n" for reason in reasons) + recipe_text(recipe))
    return path


def note_tuned(recipe: PretrainRecipe | EvalRecipe, folder: Path, tuned: str, reasons: Sequence[str] = ()) -> None:
    """Adds to the recipe.yaml of `save_recipe` what trains, by `TuningSettings.apply`."""
    if tuned:
        save_recipe(recipe, folder, [*reasons, f"tune={recipe.tune}: trains {tuned}"])


def _open_white(white: float) -> float | None:
    """The value of the option `white_value`. None for 8-bit images, in which only 255 can be white."""
    return None if white == WHITE else white


def length_of_earlier_run(options: PretrainArguments, chosen: dict[str, Any]) -> PretrainArguments:
    """With `max_hours`, keeps the length that was chosen when the run began, or takes a shorter one that is given."""
    if not options.max_hours or "num_train_epochs" not in chosen:
        return options
    epochs = min(chosen["num_train_epochs"], options.num_train_epochs or chosen["num_train_epochs"])
    return replace(options, num_train_epochs=epochs, warmup_epochs=chosen["warmup_epochs"])


def with_length(recipe: PretrainRecipe, epochs: float) -> PretrainRecipe:
    """The same run with another length. The warm-up keeps its share."""
    warmup = recipe.warmup_epochs * epochs / recipe.num_train_epochs
    return replace(recipe, num_train_epochs=epochs, warmup_epochs=warmup)


def _open_sets(
    recipe: PretrainArguments, config: MAEConfig, source: Source, accelerator: Accelerator, before: dict[str, Any]
) -> PretrainingSets:
    memory = launch.image_memory(accelerator, recipe.image_cache, recipe.dataloader_num_workers)
    opening = Opening(config.image_height_width, config.num_channels, settings(ImageSettings, recipe), memory)
    return load_pretraining_sets(
        source,
        settings(SourceSettings, recipe),
        opening.with_white(recipe.white_value or before.get("white")),
        k=K if recipe.knn or recipe.eval_every_epochs else None,
        match_labels=match_labels,
        main_process_first=accelerator.main_process_first,
        say=accelerator.print,
        load_masked=partial(load_masked_sets, task=Masks(settings(MaskSettings, recipe))),
    )


def _by_trials(
    recipe: PretrainRecipe,
    trial: Trial,
    sets: PretrainingSets,
    resizing: Resizing,
    goes_on: bool,
    reasons: list[str],
) -> PretrainRecipe:
    """The recipe with the largest batch that fits into memory, and the length that fits into `max_hours`."""
    accelerator = trial.accelerator
    if recipe.auto_batch_size:
        model = accelerator.unwrap_model(trial.model, keep_torch_compile=False)
        fitting = find_batch_size(accelerator, model, recipe.total_batch_size, recipe.per_device_train_batch_size)
        recipe = replace(recipe, per_device_train_batch_size=fitting)
    if recipe.max_hours and not goes_on:
        images, transform = sets.images, BatchTransform(recipe.image_mean, recipe.image_std, sets.images.size)
        view = images.view(crop=training_crop(recipe.seed, recipe.crop_scale, recipe.horizontal_flip, images.size))
        accelerator.gradient_accumulation_steps = split_batch(
            recipe.total_batch_size, recipe.per_device_train_batch_size, accelerator.num_processes
        )
        measured = images_per_measurement(images, sets.evaluation, sets.bank)
        trial_settings = settings(TrialSettings, recipe)
        pixels = transform.to(accelerator.device)
        epochs, reason = fit_length(trial, view, partial(pixels), resizing.stages, trial_settings, measured)
        reasons.append(f"num_train_epochs={epochs:g}: {reason}")
        accelerator.print(f"chosen     {reasons[-1]}", flush=True)
        recipe = with_length(recipe, epochs)
    trial.close()
    return recipe


@dataclass(frozen=True)
class DecidedEvaluation:
    """An evaluation before its first update."""

    recipe: EvalRecipe  # what all trainings share
    trainings: list[EvalTraining]  # each with its own recipe
    start: Checkpoint | None  # where the weights come from; None: they are new
    config: MAEConfig
    sets: LabelledSets
    readouts: list[Readout]
    tests_checkpoint: bool  # whether to test the checkpoint's own classifier

    def sets_of(self, training: EvalTraining) -> LabelledSets:
        """The sets of one training, with `folds` parts of the training images."""
        recipe = training.recipe
        return sets_of_fold(self.sets, recipe.folds, recipe.fold) if recipe.folds and recipe.fold else self.sets

    def save_recipes(self) -> None:
        """Writes recipe.yaml of each training, and of a run of several."""
        for training in self.trainings:
            save_recipe(training.recipe, training.folder)
        if len(self.trainings) != 1:
            save_recipe(self.recipe, Path(self.recipe.output_dir))

    def comparison(self) -> Comparison | None:
        """Which trainings are compared: each own arm with training from scratch and with the starting weights."""
        arms = dict.fromkeys(training.arm for training in self.trainings)
        own = [arm for arm in arms if arm.startswith(OWN)]
        pairs = [(arm, against) for arm in own for against in (SCRATCH, f"{START}{arm}") if against in arms]
        groups = {training.folder: self.sets_of(training).eval_groups for training in self.trainings}
        return Comparison(pairs, self.recipe.tune, groups) if self.recipe.compare else None

    def work(self, processes: int) -> dict[str, TrainingWork]:
        """The work of each training, by its name. Raises a UserError for one that cannot work."""
        work, depth = {}, self.config.num_hidden_layers
        for training in self.trainings:
            recipe = training.recipe
            view, length = settings(ViewSettings, recipe), settings(LengthSettings, recipe)
            plan = TrainingPlan(training.name, training.n_partial, view, length, recipe.per_device_train_batch_size)
            work[training.name] = training_work(plan, self.sets_of(training), recipe.image_mean, depth, processes)
        return work

    def finished(self, options: EvalArguments, say: Callable[[str], None]) -> dict[str, dict]:
        """The rows of results of trainings that an earlier call of the run has finished, by their names."""
        rows = {training.name: training.finished_results(options, say) for training in self.trainings}
        return {name: row for name, row in rows.items() if row is not None}

    def describe_trainings(
        self, work: dict[str, TrainingWork], finished: dict[str, dict], say: Callable[[str], None]
    ) -> None:
        """Prints a line for each training. `work` and `finished` are what the methods of these names return."""
        for name, training in work.items():
            images, done = counted(training.images, "image"), ", finished" if name in finished else ""
            say(f"training   {name}: {images}, {counted(training.updates, 'update')}{done}")

    def made_with(self, training: EvalTraining) -> dict[str, Any]:
        """All settings that decide a training's weights, for the manifest of its checkpoints."""
        recipe, sets = training.recipe, self.sets
        images = {"data": sets.train_fingerprint, "mean": recipe.image_mean, "std": recipe.image_std}
        config = model_config(recipe)
        return {**recipe.deciding_weights(), **model_settings(config), **images, "white": sets.training.white}


def decide_evaluation(options: EvalArguments, accelerator: Accelerator, before: dict[str, Any]) -> DecidedEvaluation:
    """Chooses the open settings: images and labels, image size, crop and normalisation, and the trainings. `before`
    are the settings of the checkpoint that the run goes on from, empty for a fresh start.

    Raises:
        ArgumentError, UserError: something is wrong with one of the trainings.
    """
    say, config, start = accelerator.print, model_config(options), checkpoint_of(options)
    for training in options.trainings():
        _fitted_to_images(training, config)  # errors come before the images are read
    readouts = settings(ReadoutSettings, options).chosen(config.num_hidden_layers)
    name, reads_features = options.model_name_or_path, options.reads_features
    tests_checkpoint = not options.do_train and classifier.is_tested(config, name, reads_features)
    say(start.notes_text() if start else "", classifier.describe_resizing(config, start), sep="", end="")
    processing = choose_processing(
        start.processing if start else Processing(),
        Processing.given(settings(ImageSettings, options)),
        keeps_crop=not options.do_train,
        keeps_white=tests_checkpoint,
        crop_fraction=options.whole_crop,
        say=say,
    )
    # The training set decides task and classes. A classifier that is only tested brings its own.
    task = task_of_checkpoint(config) if tests_checkpoint else None
    if options.with_masks:
        task = Masks(settings(MaskSettings, options))
    elif options.problem_type:
        task = TASKS[options.problem_type]
    where = settings(SourceSettings, options)
    if not (options.do_train or options.reads_features):
        where = replace(where, train_split=None)
    reading = processing.applied(settings(ImageSettings, options))
    memory = launch.image_memory(accelerator, options.image_cache, options.dataloader_num_workers)
    sets = load_labelled_sets(
        where,
        Opening(config.image_height_width, config.num_channels, reading, memory),
        task,
        class_names=names_of(config) if tests_checkpoint else None,
        main_process_first=accelerator.main_process_first,
        say=say,
        group_by=options.group_by or (VOLUME_OF_A_SLICE if options.slices else None),
        in_folds=options.folds is not None,
    )
    mean, std = choose_mean_std(sets.all()[0], reading, before, say)
    reading = replace(reading, image_mean=mean, image_std=std, white_value=_open_white(sets.evaluation.white))
    options = replace(options, **vars(reading), per_device_eval_batch_size=options.eval_batch)
    recipe = EvalRecipe(**vars(options))
    trainings = [_fitted_to_images(training, config) for training in recipe.trainings()]
    for training in trainings:
        training.check_blocks(config.num_hidden_layers)
        check_tune(training.recipe, config)
    decided = DecidedEvaluation(recipe, trainings, start, config, sets, readouts, tests_checkpoint)
    for note in leaks(decided.sets_of(trainings[0])) if trainings else ():
        say(f"note       {note}")
    if len(options.label_fractions) == 1:
        return decided
    most, processes = max(options.label_fractions), accelerator.num_processes
    return replace(
        decided, trainings=[_in_a_curve(each, decided.sets_of(each), most, processes) for each in trainings]
    )


def _fitted_to_images(training: EvalTraining, config: MAEConfig) -> EvalTraining:
    """The training for images of the size and bands of `config`. Starting weights may be for others.

    Raises:
        ArgumentError: nothing says how to fit the bands of the weights, or their patches do not fit the size.
    """
    recipe, before = training.recipe, model_config(training.recipe) if training.starts else config
    changes = []
    if before.num_channels != config.num_channels:
        changes.append(f"num_channels={config.num_channels}")
        if recipe.new_bands is None:
            raise ArgumentError(
                f"compare start: the weights of {recipe.model_name_or_path!r} take {before.num_channels} channels, "
                f"the images have {config.num_channels}, and the pre-training does not say how it fitted them: leave "
                "start out"
            )
    if before.image_height_width != config.image_height_width:
        height, width = config.image_height_width
        changes.append(f"image_size={height if height == width else [height, width]}")
    if not changes:
        return training
    sized = replace(recipe, config_overrides=[*recipe.config_overrides, *changes])
    try:
        model_config(sized)
    except ArgumentError as error:
        raise ArgumentError(
            f"compare start: the weights of {recipe.model_name_or_path!r} cannot take these images ({error}): leave "
            "start out"
        ) from None
    return replace(training, recipe=sized)


def _in_a_curve(training: EvalTraining, sets: LabelledSets, most: float, processes: int) -> EvalTraining:
    """The training with as many updates as that of the fraction `most` of the labels, evaluated as often."""
    recipe, images = training.recipe, sets.training
    labels = images.known_labels.numpy()
    few, whole = (
        len(part_of(sets.task, labels, sets.groups, fraction, recipe.seed)) if fraction < 1 else len(labels)
        for fraction in (recipe.label_fraction, most)
    )
    length = settings(LengthSettings, recipe)
    fewer = length.for_fewer(few, whole)
    epoch, epoch_of_few = (
        max(1, n // batch) for n, batch in ((whole, length.total_batch_size), (few, fewer.total_batch_size))
    )
    changed = {
        **{name: value for name, value in vars(fewer).items() if hasattr(recipe, name)},
        "per_device_train_batch_size": _largest_divisor(
            max(1, fewer.total_batch_size // processes),
            recipe.per_device_train_batch_size,
            even=bool(recipe.mixup or recipe.cutmix),
        ),
        "eval_epochs": max(1, round(recipe.eval_epochs * epoch / epoch_of_few)),
        "checkpointing_steps": str(epoch) if recipe.checkpointing_steps == "epoch" else recipe.checkpointing_steps,
    }
    changed_recipe = replace(recipe, **changed)
    try:
        check_augmentation(changed_recipe)
    except ArgumentError as error:
        raise ArgumentError(f"{training.name}, on {counted(few, 'image')}: {error}") from None
    return replace(training, recipe=changed_recipe)


def _largest_divisor(whole: int, limit: int, even: bool) -> int:
    """The largest divisor of `whole` that is at most `limit`. `even`: the largest even one, or 1 if there is none."""
    numbers = range(min(whole, limit), 0, -1)
    return next((number for number in numbers if whole % number == 0 and not (even and number % 2)), 1)
