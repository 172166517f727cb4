"""Pre-train a masked autoencoder: `accelerate launch run_pretrain.py [recipe.yaml] [--name value ...]`."""

from configuration import ArgumentError, PretrainArguments, parse_arguments


if __name__ == "__main__":  # before the other imports: --help and a misspelt option need not wait for torch
    OPTIONS = parse_arguments(PretrainArguments, default_recipe="demo")

import dataclasses
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from configuration.decide import Decided, base_of, decide, note_tuned
from modeling_mae import MAEForPreTraining
from modeling_mae.checkpoint import Beginning
from modeling_mae.data.serve.crops import training_crop
from modeling_mae.data.serve.order import split_batch
from modeling_mae.data.serve.processor import processor_of
from modeling_mae.errors import UserError
from modeling_mae.evaluation.monitor import Monitor, MonitorSettings
from modeling_mae.evaluation.reader import Reader, ReadingSettings
from modeling_mae.hub.fetch import local_checkpoint
from modeling_mae.hub.push import Hub, HubSettings
from modeling_mae.report.facts import DataFacts, MachineFacts, ModelFacts, TrainingLog
from modeling_mae.report.pretraining import report_pretraining
from modeling_mae.settings import settings
from modeling_mae.training import launch
from modeling_mae.training.checkpoints import choose_checkpoint
from modeling_mae.training.endings import run_script
from modeling_mae.training.loop import updates
from modeling_mae.training.manifest import read_manifest
from modeling_mae.training.masks import Masks
from modeling_mae.training.optim import LengthSettings, OptimizerSettings, Schedule, make_optimizer
from modeling_mae.training.run_folder import claim_folder
from modeling_mae.training.state import Place, RunSettings, open_run, save_model
from modeling_mae.training.tuning import TuningSettings


def main(options: PretrainArguments) -> None:
    folder = Path(options.output_dir)
    accelerator = launch.make_accelerator(folder, options.trackers)
    total, micro = options.total_batch_size, options.per_device_train_batch_size
    if total and micro:  # checked before the folder is changed
        split_batch(total, micro, accelerator.num_processes)
    if accelerator.is_main_process:
        claim_folder(folder, options.overwrite_output_dir)
    hub = Hub(folder, settings(HubSettings, options), accelerator.is_main_process).start()
    resume = local_checkpoint(accelerator, folder, options.resume_from_checkpoint)
    checkpoint = choose_checkpoint(accelerator, folder, resume)
    decided = decide(options, accelerator, read_manifest(checkpoint)["made_with"] if checkpoint else {})
    if accelerator.is_main_process:
        decided.save(folder, shows=options.plan)
    if not options.plan:
        pretrain(decided, accelerator, Place(folder, checkpoint, hub.checkpoint), hub)


def pretrain(decided: Decided, accelerator: Accelerator, place: Place, hub: Hub) -> None:
    recipe, config, sets, start = decided.recipe, decided.config, decided.sets, decided.start
    images, folder = sets.images, place.folder

    # Model, optimizer, length
    set_seed(recipe.seed)
    beginning = Beginning(MAEForPreTraining(config)) if start is None else start.beginning(config)
    model = beginning.model
    parameters = sum(p.numel() for p in model.parameters())
    changed, origin = beginning.new | beginning.fitted, None if start is None else start.source
    tuned = settings(TuningSettings, recipe).apply(model, origin, changed)
    accelerator.on_main_process(note_tuned)(recipe, folder, tuned, decided.reasons)
    optimizer = make_optimizer(model, settings(OptimizerSettings, recipe), beginning.new)
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = Schedule.from_epochs(len(images), settings(LengthSettings, recipe))
    view = images.view(crop=training_crop(recipe.seed, recipe.crop_scale, recipe.horizontal_flip, images.size))
    saving, made_with = settings(RunSettings, recipe), decided.made_with(beginning)
    run = open_run(accelerator, model, optimizer, view, schedule, saving, place, made_with)
    about = ModelFacts.of(config, parameters, tuned)
    accelerator.print(decided.describe(about.architecture, beginning, run), flush=True)

    launch.init_trackers(accelerator, dataclasses.asdict(recipe))
    reader = Reader.of_size(accelerator, images.size, settings(ReadingSettings, recipe))
    monitor = Monitor(run, sets, reader, settings(MonitorSettings, recipe))
    monitor.evaluate_baselines(start)
    masks = Masks(config, recipe.seed, recipe.total_batch_size, accelerator.device)
    with hub.finishing_uploads(accelerator):
        for update in updates(run, decided.resizing, monitor.after_epoch):
            noise = masks.noise(update.number, update.size)  # (total batch, patches)
            for micro_batch in update.micro_batches():
                pixel_values = reader.transform(micro_batch.images, update.size)  # (batch, channels, *size)
                update.backward(model(pixel_values, noise=noise[micro_batch.rows]).loss)
            update.step()

    # What the run leaves: the model first, in case something later fails
    save_model(accelerator, model, folder)
    if accelerator.is_main_process:
        processor_of(images, recipe.image_mean, recipe.image_std).save_pretrained(folder)
    features = monitor.of_trained()
    faults = launch.count_faults(accelerator, [images])
    launch.end_training(accelerator)
    if not accelerator.is_main_process:
        return
    source, machine = sets.source, (accelerator.num_processes, accelerator.device.type, accelerator.mixed_precision)
    report_pretraining(
        folder,
        hub.identity(folder, recipe.license, base_of(start)),
        dataclasses.asdict(recipe),
        TrainingLog(run.history.read(), schedule.updates, schedule.updates_per_epoch),
        DataFacts(source.name, source.dataset_id or source.name, len(images), sets.eval_split, **faults),
        about,
        MachineFacts(run.seconds, *machine, run.share_waited),
        features,
    )
    if not hub.push():
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, OPTIONS, user_errors=(UserError, ArgumentError))
