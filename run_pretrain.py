"""Pre-train a masked autoencoder: `accelerate launch run_pretrain.py [recipe.yaml] [--name value ...]`."""

from configuration import (
    ArgumentError,
    PretrainArguments,
    checkpoint_of,
    model_config,
    model_settings,
    parse_arguments,
    settle,
)


if __name__ == "__main__":  # before the other imports: --help and a misspelt option need not wait for torch
    ARGUMENTS = parse_arguments(PretrainArguments, default_recipe="demo")

import dataclasses
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import send_to_device, set_seed

from modeling_mae import MAEForPreTraining, mask_noise
from modeling_mae.data.crops import training_crop
from modeling_mae.data.facts import image_facts
from modeling_mae.data.fingerprint import fingerprint
from modeling_mae.data.order import split_batch
from modeling_mae.data.pretraining_sets import load_pretraining_sets, load_training_source
from modeling_mae.data.processor import processor_of
from modeling_mae.data.statistics import choose_mean_std
from modeling_mae.errors import UserError
from modeling_mae.evaluation.features import EVAL_BATCH, K, knn_of_saved
from modeling_mae.evaluation.growth import FeatureGrowth
from modeling_mae.evaluation.nearest import nearest_images
from modeling_mae.hub.fetch import local_checkpoint
from modeling_mae.hub.push import Hub
from modeling_mae.masking_mae import visible_count
from modeling_mae.report.cards import Base
from modeling_mae.report.neighbours import save_nearest
from modeling_mae.report.pretraining import about_model, report_pretraining
from modeling_mae.report.reconstruction import PICTURED, ReconstructionSheet
from modeling_mae.training import launch
from modeling_mae.training.augment import BatchTransform
from modeling_mae.training.checkpoints import choose_checkpoint
from modeling_mae.training.endings import run_script
from modeling_mae.training.loop import train
from modeling_mae.training.manifest import read_manifest
from modeling_mae.training.optim import Schedule, make_optimizer
from modeling_mae.training.resizing import Resizing
from modeling_mae.training.run_folder import claim_folder
from modeling_mae.training.state import open_run, save_model
from modeling_mae.training.trials import find_batch_size, fit_length


SIZES = "sizes      {}\n"
NORMALISED_LOSS = "loss       1 is what predicting the mean of each patch gives\n"


def check_masks(config, resizing: Resizing) -> None:
    """Raises a UserError where images of a size have too few patches to hide a part of them."""
    patch_height, patch_width = config.patch_height_width
    for _, (height, width) in resizing.stages:
        try:
            visible_count(height // patch_height * (width // patch_width), config.mask_ratio)
        except ValueError as error:
            hint = ", or give --progressive_resizing 0" if (height, width) != resizing.size else ""
            raise UserError(f"images of {height}x{width} pixels: {error}{hint}") from None


def main(args: PretrainArguments) -> None:
    # Folder and Hub
    output_dir = Path(args.output_dir)
    accelerator = launch.make_accelerator(output_dir, args.trackers)
    decoding = launch.decoding(accelerator, args.decode_device, args.dataloader_num_workers)
    main_process, processes, say = accelerator.is_main_process, accelerator.num_processes, accelerator.print
    if not args.own_images:  # an error here leaves the folder as it is
        split_batch(args.total_batch_size, args.per_device_train_batch_size, processes)
    if main_process:
        claim_folder(output_dir, args.overwrite_output_dir)
    hub = Hub(output_dir, **args.hub_options(), main_process=main_process).start()
    resume = local_checkpoint(accelerator, output_dir, args.resume_from_checkpoint)
    checkpoint = choose_checkpoint(accelerator, output_dir, resume)
    before = read_manifest(checkpoint)["made_with"] if checkpoint else {}

    # Images, and what is left open and follows from them
    main_first = accelerator.main_process_first
    source = load_training_source(args.source_options(), **args.set_options(), main_process_first=main_first)
    chosen = before.get("chosen", {})
    args = args.with_length_of(chosen)
    if args.own_images:
        facts = dataclasses.asdict(image_facts(source, args.bands))
        args, chosen, reasons = settle(args, **facts, processes=processes, before=chosen)
        say(*(f"chosen     {reason}\n" for reason in reasons), sep="", end="", flush=True)
    config, start = model_config(args), checkpoint_of(args)
    if start is not None:
        say(start.told(trains_decoder=True), end="", flush=True)
    resizing = Resizing(config.image_height_width, config.patch_height_width, tuple(args.progressive_resizing))
    check_masks(config, resizing)
    sets = load_pretraining_sets(
        source,
        args.source_options(),
        eval_split=args.eval_split,
        k=K if args.knn or args.eval_every_epochs else None,
        white=args.white_value or before.get("white"),
        open_options=args.open_options(config) | launch.image_memory(accelerator, args.image_cache) | decoding,
        main_process_first=main_first,
        say=say,
    )
    images = sets.images
    mean, std = choose_mean_std(images, (args.image_mean, args.image_std), before, say)
    transform = BatchTransform(mean, std, images.size).to(accelerator.device)

    # Model and optimizer
    set_seed(args.seed)
    model = MAEForPreTraining(config) if start is None else start.whole(config)
    about = about_model(config, sum(p.numel() for p in model.parameters()))
    optimizer = make_optimizer("adamw", model, **args.optimizer_options())
    model, optimizer = accelerator.prepare(model, optimizer)
    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)

    # Batch and loss
    if args.auto_batch_size:
        fitting = find_batch_size(accelerator, unwrapped, args.total_batch_size, args.per_device_train_batch_size)
        args = dataclasses.replace(args, per_device_train_batch_size=fitting)
    total_batch, micro_batch = args.total_batch_size, args.per_device_train_batch_size
    accelerator.gradient_accumulation_steps = split_batch(total_batch, micro_batch, processes)
    generator = torch.Generator(accelerator.device)

    def loss_at(size: tuple[int, int], batch: dict, update: int, micro: int) -> torch.Tensor:
        pixel_values = transform(batch, size)  # (batch, channels, *size)
        # The mask of an image is a pure function of (seed, update, place in the total batch). So it is the same with
        # any number of processes, and after a resume.
        generator.manual_seed(args.seed * 2**31 + update)
        grid = unwrapped.grid_of(pixel_values)
        noise = mask_noise(config.mask_type, total_batch, grid, generator, accelerator.device)
        first = (micro * processes + accelerator.process_index) * micro_batch
        return model(pixel_values, noise=noise[first : first + len(pixel_values)]).loss

    # Length and run
    training_images = images.view(crop=training_crop(args.seed, args.crop_scale, args.horizontal_flip, images.size))
    loading = {"batch_size": EVAL_BATCH, "num_workers": launch.loading_workers(args.dataloader_num_workers)}
    growth = FeatureGrowth(accelerator, images, sets.evaluation, transform, k=K, **loading)
    if args.max_hours and not checkpoint:
        options = {**args.trial_options(), "num_workers": loading["num_workers"], "images_a_look": growth.images}
        losses = [(part, partial(loss_at, size)) for part, size in resizing.stages]
        args = args.with_length(fit_length(accelerator, model, optimizer, training_images, losses, **options))
    elif args.max_hours and "num_train_epochs" not in before.get("chosen", {}):
        say("note       max_hours counts where a run begins: this one keeps its length")
    chosen |= args.length() if args.max_hours else {}
    schedule = Schedule.from_epochs(len(images), **args.schedule_options())
    made_with = {**args.settings(), **model_settings(config), "data": fingerprint(source), "mean": mean, "std": std}
    run = open_run(
        *(accelerator, model, optimizer, training_images, schedule, output_dir),
        made_with={**made_with, "white": images.white, **({"chosen": chosen} if chosen else {})},
        checkpoint=checkpoint,
        num_workers=loading["num_workers"],
        after_checkpoint=hub.checkpoint,
        **args.run_options(schedule.updates_per_epoch),
    )
    sizes = resizing.describe(schedule.updates, run.progress.update)
    say(
        f"model      {about['architecture']}\n"
        f"data       {source.name}: {len(images):,} images, mean {mean}, std {std}, {images.where}{images.remarks}\n"
        f"batch      {launch.describe_batch(accelerator, total_batch, micro_batch)}\n"
        f"length     {schedule}{run.start}\n"
        f"{sizes and SIZES.format(sizes)}"
        f"rate       {schedule.describe_rate()}, cosine to 0\n"
        f"precision  {accelerator.mixed_precision}, on {accelerator.device}\n"
        f"{NORMALISED_LOSS * config.norm_pix_loss}"
        f"parallel   {launch.describe_parallelism(accelerator)}"
    )

    # Training, with pictures and looks at the features
    pixel_values = transform(send_to_device(images.batch(0, images.spread(PICTURED)), accelerator.device))
    sheet = ReconstructionSheet(unwrapped, pixel_values, mean, std, args.seed)

    def loss_of(batch: dict, update: int, micro: int) -> torch.Tensor:
        return loss_at(resizing.size_at(update, schedule.updates), batch, update, micro)

    def after_epoch(epoch: int, update: int) -> None:
        if args.eval_every_epochs and (epoch % args.eval_every_epochs == 0 or update == schedule.updates):
            growth.look(run.history, unwrapped, schedule.epoch(update), update)
        if args.picture_epochs and epoch % args.picture_epochs == 0:
            path = output_dir / "pictures" / f"reconstruction-epoch-{epoch:04d}.png"
            launch.log_image(accelerator, "reconstruction", sheet.save(path, main_process), update)

    launch.init_trackers(accelerator, dataclasses.asdict(args))
    if args.eval_every_epochs:
        growth.look_at_baselines(run.history, config, args.seed)
    with hub.finishing_uploads(accelerator):
        train(run, loss_of, after_epoch, resizing=resizing if sizes else None)

    # What the run leaves: the model first, whatever may fail after it
    save_model(accelerator, model, output_dir)
    if main_process:
        processor_of(images, mean, std).save_pretrained(output_dir)
    drawn = sheet.save(output_dir / "reconstruction.png", main_process)
    launch.log_image(accelerator, "reconstruction", drawn, schedule.updates)
    nearest = nearest_images(accelerator, unwrapped, images, sets.evaluation, transform, **loading)
    evaluation = sets.evaluation if args.knn else None
    knn = knn_of_saved(accelerator, output_dir, images, evaluation, transform, seed=args.seed, **loading)
    about |= launch.count_faults(accelerator, [images]) | launch.hardware(accelerator)
    accelerator.end_training()
    if not main_process:
        return
    report_pretraining(
        output_dir=output_dir,
        arguments=dataclasses.asdict(args),
        picture=sheet.describe(args.bands),
        neighbours=save_nearest(output_dir / "neighbours.png", nearest, mean, std),
        license=args.license,
        base=Base(start.source, start.license, start.on_hub) if start else None,
        knn=knn,
        k=K,
        **hub.about(output_dir),
        **sets.about,
        **run.about,
        **run.times,
        **about,
    )
    if not hub.push():
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, ARGUMENTS, mendable=(UserError, ArgumentError))
