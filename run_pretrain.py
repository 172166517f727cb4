"""Pre-train a masked autoencoder: `accelerate launch run_pretrain.py [recipe.yaml] [--name value ...]`."""

from configuration import ArgumentError, PretrainArguments, parse_arguments


if __name__ == "__main__":  # before the other imports: --help and a misspelt option need not wait for torch
    OPTIONS = parse_arguments(PretrainArguments, default_recipe="demo")

import dataclasses
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed

from configuration.decide import Decided, base_of, decide, note_tuned, save_recipe
from modeling_mae import MAEForPreTraining
from modeling_mae.checkpoint import Beginning
from modeling_mae.data.find.fingerprint import fingerprint
from modeling_mae.data.find.joined import load_training_source
from modeling_mae.data.find.sources import SourceSettings
from modeling_mae.data.serve.crops import training_crop
from modeling_mae.data.serve.order import split_batch
from modeling_mae.data.serve.processor import processor_of
from modeling_mae.errors import UserError
from modeling_mae.evaluation.features import EVAL_BATCH, K, knn_of_saved
from modeling_mae.evaluation.growth import FeatureGrowth
from modeling_mae.evaluation.nearest import nearest_images
from modeling_mae.evaluation.reader import Reader
from modeling_mae.hub.fetch import local_checkpoint
from modeling_mae.hub.push import Hub, HubSettings
from modeling_mae.report.facts import DataFacts, FeatureFacts, Identity, MachineFacts, ModelFacts, TrainingLog
from modeling_mae.report.neighbours import save_nearest
from modeling_mae.report.pretraining import report_pretraining
from modeling_mae.report.problem import SEMANTIC_SEGMENTATION
from modeling_mae.report.reconstruction import PICTURED, ReconstructionSheet
from modeling_mae.settings import settings
from modeling_mae.training import launch
from modeling_mae.training.augment import BatchTransform
from modeling_mae.training.checkpoints import choose_checkpoint
from modeling_mae.training.endings import run_script
from modeling_mae.training.loop import updates
from modeling_mae.training.manifest import read_manifest
from modeling_mae.training.masks import Masks
from modeling_mae.training.optim import LengthSettings, OptimizerSettings, Schedule, make_optimizer
from modeling_mae.training.run_folder import claim_folder
from modeling_mae.training.state import Place, Run, RunSettings, open_run, save_model
from modeling_mae.training.tuning import TuningSettings
from modeling_mae.words import counted


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
    before = read_manifest(checkpoint)["made_with"] if checkpoint else {}
    with accelerator.main_process_first():  # the others then read from the cache of `datasets`
        source = load_training_source(settings(SourceSettings, options))
    decided = decide(options, source, accelerator, before)
    if accelerator.is_main_process:
        path = save_recipe(decided.recipe, folder, decided.reasons)
        print(f"recipe     {path}", flush=True)
        if options.plan:
            print(path.read_text(), end="")
    if options.plan:
        return
    pretrain(decided, accelerator, Place(folder, checkpoint, hub.checkpoint), hub)


def pretrain(decided: Decided, accelerator: Accelerator, place: Place, hub: Hub) -> None:
    recipe, config, sets, resizing = decided.recipe, decided.config, decided.sets, decided.resizing
    images, mean, std, start = sets.images, recipe.image_mean, recipe.image_std, decided.start
    transform = BatchTransform(mean, std, images.size).to(accelerator.device)

    # Model, optimizer, length
    set_seed(recipe.seed)
    beginning = Beginning(MAEForPreTraining(config)) if start is None else start.beginning(config)
    model = beginning.model
    parameters = sum(p.numel() for p in model.parameters())
    changed, source = beginning.new | beginning.fitted, None if start is None else start.source
    tuned = settings(TuningSettings, recipe).apply(model, source, changed)
    about = ModelFacts.of(config, parameters, tuned)
    accelerator.on_main_process(note_tuned)(recipe, place.folder, tuned, decided.reasons)
    optimizer = make_optimizer(model, settings(OptimizerSettings, recipe), beginning.new)
    model, optimizer = accelerator.prepare(model, optimizer)
    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
    schedule = Schedule.from_epochs(len(images), settings(LengthSettings, recipe))
    view = images.view(crop=training_crop(recipe.seed, recipe.crop_scale, recipe.horizontal_flip, images.size))
    made_with = decided.made_with(fingerprint(sets.source), beginning)
    run = open_run(accelerator, model, optimizer, view, schedule, settings(RunSettings, recipe), place, made_with)
    describe(decided, run, about.architecture, beginning)

    # Pictures, and measurements of the features
    pixel_values = transform(send_to_device(images.batch(0, images.spread(PICTURED)), accelerator.device))
    sheet = ReconstructionSheet(unwrapped, pixel_values, mean, std, recipe.seed)
    reader = Reader(accelerator, transform, EVAL_BATCH, launch.loading_workers(recipe.dataloader_num_workers))
    growth = FeatureGrowth(reader, images, sets.evaluation, K, sets.bank)

    def after_epoch(epoch: int, update: int) -> None:
        if recipe.eval_every_epochs and (epoch % recipe.eval_every_epochs == 0 or update == schedule.updates):
            growth.measure_and_log(run.history, unwrapped, schedule.epoch(update), update)
        if recipe.picture_epochs and epoch % recipe.picture_epochs == 0:
            path = place.folder / "pictures" / f"reconstruction-epoch-{epoch:04d}.png"
            launch.log_image(accelerator, "reconstruction", sheet.save(path, accelerator.is_main_process), update)

    launch.init_trackers(accelerator, dataclasses.asdict(recipe))
    if recipe.eval_every_epochs:
        growth.measure_baselines(run.history, config, recipe.seed, start)
    masks = Masks(config, recipe.seed, recipe.total_batch_size, accelerator.device)
    with hub.finishing_uploads(accelerator):
        for update in updates(run, resizing, after_epoch):
            noise = masks.noise(update.number, update.size)  # (total batch, patches)
            for micro_batch in update.micro_batches():
                pixel_values = transform(micro_batch.images, update.size)  # (batch, channels, *size)
                update.backward(model(pixel_values, noise=noise[micro_batch.rows]).loss)
            update.step()

    # What the run leaves: the model first, in case something later fails
    save_model(accelerator, model, place.folder)
    if accelerator.is_main_process:
        processor_of(images, mean, std).save_pretrained(place.folder)
    drawn = sheet.save(place.folder / "reconstruction.png", accelerator.is_main_process)
    launch.log_image(accelerator, "reconstruction", drawn, schedule.updates)
    nearest = nearest_images(reader, unwrapped, images, sets.pictured)
    knn = knn_of_saved(reader, place.folder, sets.compared, sets.evaluation if recipe.knn else None, recipe.seed)
    faults = launch.count_faults(accelerator, [images])
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    neighbours = save_nearest(place.folder / "neighbours.png", nearest, mean, std)
    problem = SEMANTIC_SEGMENTATION if sets.bank is not None else None
    features = FeatureFacts(K, knn, sheet.describe(recipe.bands), neighbours, problem)
    report(decided, run, about, features, hub, faults)
    if not hub.push():
        sys.exit(1)


def report(
    decided: Decided, run: Run, about: ModelFacts, features: FeatureFacts, hub: Hub, faults: dict[str, int]
) -> None:
    """Writes pictures, card and page. `faults` are the counts of `launch.count_faults`."""
    recipe, sets, source, accelerator = decided.recipe, decided.sets, decided.sets.source, run.accelerator
    folder, count = run.place.folder, len(sets.images)
    machine = (accelerator.num_processes, accelerator.device.type, accelerator.mixed_precision)
    report_pretraining(
        folder,
        Identity(hub.card_name(folder), hub.address(folder), recipe.license, base_of(decided.start)),
        dataclasses.asdict(recipe),
        TrainingLog(run.history.read(), run.schedule.updates, run.schedule.updates_per_epoch),
        DataFacts(source.name, source.dataset_id or source.name, count, sets.eval_split, **faults),
        about,
        MachineFacts(run.seconds, *machine, run.share_waited),
        features,
    )


def describe(decided: Decided, run: Run, architecture: str, beginning: Beginning) -> None:
    """Prints a summary of the run, before its first update."""
    recipe, sets, schedule, accelerator = decided.recipe, decided.sets, run.schedule, run.accelerator
    images, sizes = sets.images, decided.resizing.describe(schedule.updates, run.progress.update)
    batch = launch.describe_batch(accelerator, recipe.total_batch_size, recipe.per_device_train_batch_size)
    lines = [
        f"model      {architecture}",
        *([f"start      {decided.start.name}: {beginning.about}"] if decided.start else []),
        f"data       {sets.source.name}: {counted(len(images), 'image')}, mean {recipe.image_mean}, std "
        f"{recipe.image_std}, {images.where}{images.remarks}",
        f"batch      {batch}",
        f"length     {schedule}{run.start}",
        *([f"sizes      {sizes}"] if sizes else []),
        f"rate       {schedule.describe_rate()}, cosine to 0",
        f"precision  {accelerator.mixed_precision}, on {accelerator.device}",
        *(["loss       predicting the mean of each patch gives 1"] if decided.config.norm_pix_loss else []),
        f"parallel   {launch.describe_parallelism(accelerator)}",
    ]
    accelerator.print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    run_script(main, OPTIONS, user_errors=(UserError, ArgumentError))
