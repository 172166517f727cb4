"""Evaluate an encoder: `accelerate launch run_eval.py [recipe.yaml] [--name value ...]`.

Linear probing, partial and end-to-end fine-tuning, training from scratch, frozen features, or only a test.
"""

from configuration import ArgumentError, EvalArguments, EvalTraining, checkpoint_of, model_config, parse_arguments


if __name__ == "__main__":  # before the other imports: --help and a misspelt option need not wait for torch
    OPTIONS = parse_arguments(EvalArguments, default_recipe="demo_eval")

import dataclasses
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from configuration.decide import DecidedEvaluation, base_of, decide_evaluation, note_tuned
from configuration.evaluation import EvalRecipe
from modeling_mae.checkpoint import Checkpoint, open_checkpoint
from modeling_mae.data.serve.processor import processor_of
from modeling_mae.errors import UserError
from modeling_mae.evaluation import classifier
from modeling_mae.evaluation.features import JudgeSettings, K, frozen_encoder, frozen_table
from modeling_mae.evaluation.frozen_images import probed_sets
from modeling_mae.evaluation.reader import Reader
from modeling_mae.evaluation.readouts import readout_table
from modeling_mae.evaluation.worth import save_each_image, write_verdicts
from modeling_mae.files import write_json
from modeling_mae.hub.common import LOG_AND_BEST
from modeling_mae.hub.fetch import local_checkpoint
from modeling_mae.hub.push import Hub, HubSettings
from modeling_mae.report.evaluation import WORST, describe_training, report_evaluation, report_training
from modeling_mae.report.facts import Base, Identity, TrainingLog
from modeling_mae.report.figures import save_figure
from modeling_mae.settings import settings
from modeling_mae.tasks.protocol import ViewSettings
from modeling_mae.tasks.sets import LabelledSets
from modeling_mae.training import launch
from modeling_mae.training.augment import BatchTransform, Mix
from modeling_mae.training.checkpoints import choose_checkpoint
from modeling_mae.training.endings import run_script
from modeling_mae.training.loop import updates
from modeling_mae.training.manifest import made_with_before
from modeling_mae.training.optim import LengthSettings, OptimizerSettings, Schedule, make_optimizer
from modeling_mae.training.resizing import Resizing
from modeling_mae.training.run_folder import claim_folder
from modeling_mae.training.state import Place, Run, RunSettings, open_run, save_model
from modeling_mae.training.tuning import TuningSettings
from modeling_mae.words import counted


def main(options: EvalArguments) -> None:
    folder = Path(options.output_dir)
    accelerator = launch.make_accelerator(folder, options.trackers)
    say = accelerator.print
    for claimed in dict.fromkeys([folder, *options.run_folders()]) if accelerator.is_main_process else ():
        claim_folder(claimed, options.overwrite_output_dir)
    hub = Hub(folder, settings(HubSettings, options), accelerator.is_main_process, LOG_AND_BEST).start()
    resume = local_checkpoint(accelerator, folder, options.resume_from_checkpoint, LOG_AND_BEST)
    decided = decide_evaluation(options, accelerator, made_with_before(options.run_folders(), resume))
    # The results of trainings that are finished already.
    goes_on = resume == "auto"
    finished = {each.name: each.finished_results(options, say) if goes_on else None for each in decided.trainings}
    if accelerator.is_main_process:
        decided.save_recipes()
    sets, recipe = decided.sets, decided.recipe
    say(f"data       {sets}, mean {recipe.image_mean}, std {recipe.image_std}{sets.remarks}")
    say(f"recipe     {folder / 'recipe.yaml'}", flush=True)
    work = decided.work(accelerator.num_processes)  # refuses what cannot work, also a plan
    if options.plan:
        for name, training_work in work.items():
            images, done = counted(training_work.images, "image"), ", finished" if finished[name] else ""
            say(f"training   {name}: {images}, {counted(training_work.updates, 'update')}{done}")
        return
    say(f"parallel   {launch.describe_parallelism(accelerator)}")
    rows, trained = frozen_rows(decided, accelerator, hub), list[dict]()
    with hub.finishing_uploads(accelerator):
        to_do = sum(work[name].passes for name in work if not finished[name])
        for training in decided.trainings:
            row = finished[training.name]
            if not row:
                passes = work[training.name].passes
                to_do -= passes
                row = train_classifier(training, decided, hub, resume, later=to_do / passes)
            trained.append(row)
    faults = launch.count_faults(accelerator, sets.all())
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    names = [training.name for training in decided.trainings]
    identity = Identity(hub.card_name(folder), hub.address(folder), recipe.license)
    write_verdicts(folder, decided.comparison(), trained, sets.task)
    report_evaluation(folder, identity, rows + trained, sets.facts(**faults), names, K)
    if not hub.push():
        sys.exit(1)


def frozen_rows(decided: DecidedEvaluation, accelerator: Accelerator, hub: Hub) -> list[dict]:
    """The rows of results that need no training: frozen features, and the checkpoint's own classifier."""
    recipe, config, sets = decided.recipe, decided.config, decided.sets
    rows: list[dict] = []
    start, reader = decided.start, reader_of(recipe, sets, accelerator)
    if start is None:
        return rows
    if recipe.knn or decided.readouts:
        judging = JudgeSettings(recipe.seed, sets.task if recipe.with_masks else sets.frozen_task)
    if recipe.knn:
        encoder = frozen_encoder(start, config, accelerator.print)
        rows += frozen_table(reader, encoder, sets.training, sets.evaluation, "pre-trained encoder", judging)
    if decided.readouts:
        encoder, memory = frozen_encoder(start, config), launch.feature_memory()
        rows += readout_table(reader, encoder, sets.training, sets.evaluation, decided.readouts, judging, memory)
    if decided.tests_checkpoint:
        place = Trained("checkpoint", Path(recipe.output_dir), recipe)
        rows.append(test_classifier(reader, start, place, sets, hub))
    return rows


def reader_of(recipe: EvalRecipe, sets: LabelledSets, accelerator: Accelerator) -> Reader:
    transform = BatchTransform(recipe.image_mean, recipe.image_std, sets.evaluation.size).to(accelerator.device)
    workers = launch.loading_workers(recipe.dataloader_num_workers)
    return Reader(accelerator, transform, recipe.per_device_eval_batch_size, workers)


def train_classifier(
    training: EvalTraining, decided: DecidedEvaluation, hub: Hub, resume: str | None, later: float
) -> dict:
    """Keeps the best epoch and the last. Returns the best one's row of results. `later` is as in `Display`."""
    recipe, folder, sets = training.recipe, training.folder, decided.sets_of(training)
    task, accelerator = sets.task, launch.make_accelerator(folder, recipe.trackers)
    reader = reader_of(recipe, sets, accelerator)
    view = settings(ViewSettings, recipe)
    images = classifier.training_view(task, sets.training, view, recipe.image_mean, sets.groups)
    mix = Mix(recipe.random_erasing, recipe.mixup, recipe.cutmix, len(sets.class_names), accelerator.device)

    # Model, optimizer, length
    config, start = model_config(recipe), None if training.n_partial is None else checkpoint_of(recipe)
    labels, say = images.labels, accelerator.print
    assert labels is not None
    set_seed(recipe.seed)
    model = task.new_model(config, start, sets.class_names, training.n_partial, labels, say)
    adapters = settings(TuningSettings, recipe).apply(model, None if start is None else start.source)
    accelerator.on_main_process(note_tuned)(recipe, folder, adapters)
    optimizer = make_optimizer(model, settings(OptimizerSettings, recipe))
    tuned, whole = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True))
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = Schedule.from_epochs(len(images), settings(LengthSettings, recipe))
    seen_sets, epochs = sets, schedule.epoch(schedule.updates)
    if not mix.changes:
        images, seen_sets = probed_sets(reader, model, images, sets, epochs, launch.feature_memory())
    place = Place(folder, choose_checkpoint(accelerator, folder, resume), hub.checkpoint)
    saving, made_with = settings(RunSettings, recipe), decided.made_with(training)
    run = open_run(accelerator, model, optimizer, images, schedule, saving, place, made_with)
    what = adapters or f"{tuned:,} of {whole:,} parameters"
    describe(training.name, recipe, run, f"{what}, {counted(len(images), 'image')}")
    for note in task.notes(labels, recipe.label_fraction, bool(recipe.mixup or recipe.cutmix), config.label_smoothing):
        say(f"note       {note}")

    def after_epoch(epoch: int, update: int) -> None:
        if epoch % recipe.eval_epochs == 0 or update == schedule.updates:
            results, _ = classifier.evaluate_classifier(reader, model, seen_sets)
            classifier.keep_if_best(run, folder, task, results)

    launch.init_trackers(accelerator, dataclasses.asdict(recipe))
    all_updates = updates(run, Resizing(images.size, (1, 1)), after_epoch, later)
    for update in classifier.with_patience(all_updates, run, task.problem, recipe.patience):
        for micro_batch in update.micro_batches():
            seen, targets = micro_batch.images, task.labels_of(micro_batch.images, images.size)
            if "features" in seen:
                loss = model(features=seen["features"], labels=targets).loss
            else:
                # This seeds drop path too. All randomness depends on the update and the place in the total batch.
                key = (recipe.seed, update.number, micro_batch.number)
                pixel_values, targets = mix(reader.transform(seen), targets, *key)
                loss = model(pixel_values, labels=targets).loss
            update.backward(loss)
        update.step()
    for tracker in accelerator.trackers:
        tracker.finish()

    # What the training leaves
    (folder / "last").mkdir(exist_ok=True)
    save_model(accelerator, model, folder / "last")
    facts = (training.n_partial, len(images), recipe.label_fraction, sets.train_name, task.reads(config), adapters)
    log = TrainingLog(run.history.read(), run.progress.update, schedule.updates_per_epoch)
    tested = Trained(training.name, folder, recipe, base_of(start), describe_training(*facts), log)
    row = test_classifier(reader, open_checkpoint(folder), tested, sets, hub)
    row |= {"n_partial": training.n_partial, "pooling": task.reads(config), "images": len(images), **training.kind}
    row |= {"tuned_parameters": tuned, "tune": recipe.tune}
    if accelerator.is_main_process:
        row |= classifier.last_results(log, task.problem)
        write_json(training.results_file, row)
    accelerator.free_memory()
    return row


def describe(name: str, recipe: EvalRecipe, run: Run, what: str) -> None:
    """Prints a summary of a training, before its first update."""
    accelerator, schedule = run.accelerator, run.schedule
    batch = launch.describe_batch(accelerator, recipe.total_batch_size, recipe.per_device_train_batch_size)
    accelerator.print(
        f"\n{name}: {what}, {schedule}, batch {batch}, {recipe.optimizer}, rate {schedule.describe_rate()}, "
        f"{accelerator.mixed_precision} precision on {accelerator.device}{run.start}"
    )


@dataclasses.dataclass(frozen=True)
class Trained:
    """A classifier to test: its name in the results, the folder of its card, and how it was trained."""

    name: str
    folder: Path
    recipe: EvalRecipe
    base: Base | None = None
    training: str = ""
    log: TrainingLog | None = None  # None: it was trained before


def test_classifier(reader: Reader, checkpoint: Checkpoint, tested: Trained, sets: LabelledSets, hub: Hub) -> dict:
    """Tests the classifier and writes its card and pictures. Returns its row of results."""
    model = reader.accelerator.prepare_model(checkpoint.trained(sets.task.model_class), evaluation_mode=True)
    results, columns = classifier.evaluate_classifier(reader, model, sets, final=True)
    recipe, folder = tested.recipe, tested.folder
    examples = sets.task.examples(model, reader.transform, sets.evaluation, columns, sets.class_names)
    if reader.accelerator.is_main_process:
        processor_of(sets.evaluation, recipe.image_mean, recipe.image_std).save_pretrained(folder)
        save_each_image(folder, sets.task.each_image(columns))
        if examples is not None:
            save_figure(examples, folder / WORST)
        written = sets.task.written(columns) if recipe.save_predictions else None
        identity = Identity(hub.card_name(folder), hub.address(folder), recipe.license, tested.base)
        shown = dataclasses.asdict(recipe)
        report_training(folder, identity, shown, sets.facts(), results, written, tested.log, tested.training)
    return {"name": tested.name, **results}


if __name__ == "__main__":
    run_script(main, OPTIONS, user_errors=(UserError, ArgumentError))
