"""Evaluate an encoder: `accelerate launch run_eval.py [recipe.yaml] [--name value ...]`.

Linear probing, partial and end-to-end fine-tuning, training from scratch, frozen features, or only a test.
"""

from configuration import ArgumentError, EvalArguments, EvalTraining, checkpoint_of, model_config, parse_arguments


if __name__ == "__main__":  # before the other imports: --help and a misspelt option need not wait for torch
    OPTIONS = parse_arguments(EvalArguments, default_recipe="demo_eval")

import dataclasses
import sys
from pathlib import Path

from accelerate.utils import set_seed

from configuration.decide import DecidedEvaluation, base_of, decide_evaluation, note_tuned
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.errors import UserError
from modeling_mae.evaluation import classifier
from modeling_mae.evaluation.classifier import PatienceSettings
from modeling_mae.evaluation.features import K
from modeling_mae.evaluation.frozen_images import probed_sets
from modeling_mae.evaluation.reader import Reader, ReadingSettings
from modeling_mae.evaluation.readouts import FrozenSettings, frozen_rows
from modeling_mae.evaluation.testing import Tested, test_classifier
from modeling_mae.evaluation.worth import write_verdicts
from modeling_mae.files import write_json
from modeling_mae.hub.common import LOG_AND_BEST
from modeling_mae.hub.fetch import local_checkpoint
from modeling_mae.hub.push import Hub, HubSettings
from modeling_mae.report.evaluation import describe_training, report_evaluation
from modeling_mae.report.facts import TrainingLog
from modeling_mae.settings import settings
from modeling_mae.tasks.protocol import ViewSettings
from modeling_mae.training import launch
from modeling_mae.training.augment import Mix
from modeling_mae.training.checkpoints import choose_checkpoint
from modeling_mae.training.endings import run_script
from modeling_mae.training.manifest import made_with_before
from modeling_mae.training.optim import LengthSettings, OptimizerSettings, Schedule, make_optimizer
from modeling_mae.training.run_folder import claim_folder
from modeling_mae.training.state import Place, RunSettings, open_run, save_model
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
    finished = decided.finished(options, say) if resume == "auto" else {}
    if accelerator.is_main_process:
        decided.save_recipes()
    sets, recipe = decided.sets, decided.recipe
    say(f"data       {sets}, mean {recipe.image_mean}, std {recipe.image_std}{sets.remarks}")
    say(f"recipe     {folder / 'recipe.yaml'}", flush=True)
    work = decided.work(accelerator.num_processes)  # refuses what cannot work, also a plan
    if options.plan:
        decided.describe_trainings(work, finished, say)
        return
    say(f"parallel   {launch.describe_parallelism(accelerator)}")
    rows, start = list[dict](), decided.start
    if start is not None:
        reader = Reader.of_size(accelerator, sets.evaluation.size, settings(ReadingSettings, recipe))
        rows += frozen_rows(reader, start, decided.config, sets, decided.readouts, settings(FrozenSettings, recipe))
        if decided.tests_checkpoint:
            tested = Tested("checkpoint", folder, hub.identity(folder, recipe.license), recipe)
            rows.append(test_classifier(reader, start, tested, sets))
    with hub.finishing_uploads(accelerator):
        to_do = sum(amount.passes for name, amount in work.items() if name not in finished)
        for training in decided.trainings:
            if training.name not in finished:
                passes = work[training.name].passes
                to_do -= passes
                finished[training.name] = train_classifier(training, decided, hub, resume, to_do / passes)
    faults = launch.count_faults(accelerator, sets.all())
    launch.end_training(accelerator)
    if not accelerator.is_main_process:
        return
    names = [training.name for training in decided.trainings]
    trained = [finished[name] for name in names]
    write_verdicts(folder, decided.comparison(), trained, sets.task)
    report_evaluation(folder, hub.identity(folder, recipe.license), rows + trained, sets.facts(**faults), names, K)
    if not hub.push():
        sys.exit(1)


def train_classifier(
    training: EvalTraining, decided: DecidedEvaluation, hub: Hub, resume: str | None, later: float
) -> dict:
    """Keeps the best epoch and the last. Returns the best one's row of results. `later` is as in `Display`."""
    recipe, folder, sets = training.recipe, training.folder, decided.sets_of(training)
    task, accelerator = sets.task, launch.make_accelerator(folder, recipe.trackers)
    reader = Reader.of_size(accelerator, sets.evaluation.size, settings(ReadingSettings, recipe))
    view, say = settings(ViewSettings, recipe), accelerator.print
    images = classifier.training_view(task, sets.training, view, recipe.image_mean, sets.groups)
    mix = Mix(recipe.random_erasing, recipe.mixup, recipe.cutmix, len(sets.class_names), accelerator.device)

    # Model, optimizer, length
    config, start = model_config(recipe), None if training.n_partial is None else checkpoint_of(recipe)
    labels = images.known_labels
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
    trains = f"{adapters or f'{tuned:,} of {whole:,} parameters'} by {recipe.optimizer}"
    say(f"\n{training.name}: {trains}, {counted(len(images), 'image')}, {run}")
    for note in task.notes(labels, recipe.label_fraction, bool(recipe.mixup or recipe.cutmix), config.label_smoothing):
        say(f"note       {note}")

    launch.init_trackers(accelerator, dataclasses.asdict(recipe))
    for update in classifier.tested_updates(run, reader, seen_sets, settings(PatienceSettings, recipe), later):
        for micro_batch in update.micro_batches():
            seen, targets = micro_batch.images, task.labels_of(micro_batch.images, images.size)
            if "features" in seen:
                loss = model(features=seen["features"], labels=targets).loss
            else:
                # This seeds drop path too. All randomness depends on the update and the place in the total batch.
                key = (recipe.seed, update.number, micro_batch.number)
                pixel_values, targets = mix(reader.transform(seen), targets, *key)  # (batch, channels, *size)
                loss = model(pixel_values, labels=targets).loss
            update.backward(loss)
        update.step()
    for tracker in accelerator.trackers:
        tracker.finish()

    # What the training leaves
    save_model(accelerator, model, folder / "last")
    reads, share = task.reads(config), recipe.label_fraction
    text = describe_training(training.n_partial, len(images), share, sets.train_name, reads, adapters)
    log = TrainingLog(run.history.read(), run.progress.update, schedule.updates_per_epoch)
    tested = Tested(training.name, folder, hub.identity(folder, recipe.license, base_of(start)), recipe, text, log)
    row = test_classifier(reader, open_checkpoint(folder), tested, sets)
    row |= {**training.kind, "pooling": reads, "images": len(images), "tuned_parameters": tuned}
    if accelerator.is_main_process:
        row |= classifier.last_results(log, task.problem)
        write_json(training.results_file, row)
    accelerator.free_memory()
    return row


if __name__ == "__main__":
    run_script(main, OPTIONS, user_errors=(UserError, ArgumentError))
