"""Pre-train a masked autoencoder: `accelerate launch run_pretrain.py [recipe.yaml] [--name value ...]`."""

import dataclasses
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device, set_seed

from configuration import PretrainArguments, model_config, parse_arguments, split_batch
from modeling_mae import MAEForPreTraining, MAEModel, mask_noise
from modeling_mae.training.augment import BatchTransform, CenterCrop, training_crop
from modeling_mae.training.card import write_card
from modeling_mae.training.data import (
    NAMED,
    NoSplit,
    count_bad,
    load_eval_source,
    load_source,
    make_images,
    measure_mean_std,
    with_crop,
)
from modeling_mae.training.hub import Hub, local_checkpoint
from modeling_mae.training.loop import (
    Length,
    init_trackers,
    make_accelerator,
    make_batches,
    open_run,
    prepare_folder,
    run_script,
    save_model,
    train,
    write_json,
    write_run,
)
from modeling_mae.training.metrics import frozen_accuracies
from modeling_mae.training.optim import adamw
from modeling_mae.training.pictures import loss_curve, reconstruct_images, reconstruction_grid, save_reconstruction
from modeling_mae.training.processor import image_processor


NEIGHBOURS = 20  # k of the k-NN accuracy that a run ends with


def main(args: PretrainArguments) -> None:
    output_dir = Path(args.output_dir)
    accelerator = make_accelerator(output_dir, args.trackers)
    main_process = accelerator.is_main_process
    accumulation = split_batch(args.total_batch_size, args.per_device_train_batch_size, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = accumulation
    if main_process:
        prepare_folder(output_dir, args.overwrite_output_dir)
    push = args.push_to_hub and main_process
    hub = Hub(output_dir, args.hub_model_id, private=args.hub_private_repo, strategy=args.hub_strategy, active=push)
    hub.start()
    resume = local_checkpoint(accelerator, output_dir, args.resume_from_checkpoint)

    # Data. One process reads first: the others find what `datasets` has cached.
    config = model_config(args)
    size = config.image_height_width
    crop = training_crop(args.seed, args.crop_scale, args.horizontal_flip, size)
    with accelerator.main_process_first():
        source = load_source(
            args.dataset_name,
            args.dataset_config_name,
            args.train_dir,
            args.train_split,
            args.image_column_name,
            max_samples=args.max_train_samples,
            cache_dir=args.cache_dir,
        )
    images = make_images(source, crop, size, config.num_channels, args.on_bad_image)
    knn_images, knn_split = labelled_images(args, config, accelerator, images) if args.knn else (None, None)
    mean, std = (args.image_mean, args.image_std) if args.image_mean else measure_mean_std(images)
    transform = BatchTransform(mean, std, size).to(accelerator.device)

    # Model and optimizer
    set_seed(args.seed)
    if args.model_name_or_path:
        model = MAEForPreTraining.from_pretrained(args.model_name_or_path, config=config)
    else:
        model = MAEForPreTraining(config)
    optimizer = adamw(model, weight_decay=args.weight_decay, betas=(args.adam_beta1, args.adam_beta2))
    model, optimizer = accelerator.prepare(model, optimizer)

    length = Length.of(
        len(images),
        total_batch_size=args.total_batch_size,
        num_train_epochs=args.num_train_epochs,
        max_train_steps=args.max_train_steps,
        warmup_epochs=args.warmup_epochs,
        base_learning_rate=args.base_learning_rate,
    )
    run = open_run(accelerator, output_dir, args.checkpoints_kept, resume)
    batches = make_batches(
        accelerator,
        images,
        run,
        length,
        batch_size=args.per_device_train_batch_size,
        total=args.total_batch_size,
        seed=args.seed,
        num_workers=args.dataloader_num_workers,
    )

    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
    parameters = sum(p.numel() for p in unwrapped.parameters())
    architecture = (
        f"{config.num_hidden_layers} x {config.hidden_size} encoder, {config.decoder_num_hidden_layers} x "
        f"{config.decoder_hidden_size} decoder, {parameters / 1e6:.3g} M parameters, patches of "
        f"{'x'.join(map(str, config.patch_height_width))} in {'x'.join(map(str, size))} pixels, "
        f"{config.num_channels} channel{'s' if config.num_channels > 1 else ''}"
    )
    accelerator.print(
        f"model      {architecture}\n"
        f"data       {source.name}: {len(images):,} images, mean {mean}, std {std}, "
        f"{'in memory' if hasattr(images, 'images') else 'from files'}\n"
        f"batch      {args.total_batch_size} = {accelerator.num_processes} processes x "
        f"{args.per_device_train_batch_size} images x {accumulation} accumulation steps\n"
        f"length     {length}"
        f"{f', from update {run.progress.update} of {run.resumed}' if run.resumed else ''}\n"
        f"rate       {length.peak:.3e} after {length.warmup} updates of warm-up, cosine to 0\n"
        f"precision  {accelerator.mixed_precision}, on {accelerator.device}"
    )

    # The mask of an image is a pure function of (seed, update, place in the total batch): the same with any number of
    # processes, and after a resume.
    generator = torch.Generator(accelerator.device)

    def loss_of(batch: dict, update: int, micro: int) -> torch.Tensor:
        pixel_values = transform(batch)  # (batch, channels, height, width)
        generator.manual_seed(args.seed * 2**31 + update)
        noise = mask_noise(config.mask_type, args.total_batch_size, config.grid, generator, accelerator.device)
        first = (micro * accelerator.num_processes + accelerator.process_index) * args.per_device_train_batch_size
        return model(pixel_values, noise=noise[first : first + len(pixel_values)]).loss

    chosen = [(0, i) for i in range(0, len(images), max(1, len(images) // 8))][:8]

    def picture(path: Path, update: int) -> None:
        central = with_crop(images, CenterCrop(size))
        pixel_values = transform(send_to_device(central.__getitems__(chosen), accelerator.device))
        fixed = mask_noise(config.mask_type, len(chosen), config.grid, torch.Generator().manual_seed(args.seed))
        # On every process: a sharded model needs all of them.
        reconstruction, mask = reconstruct_images(unwrapped, pixel_values, fixed.to(accelerator.device))
        if not main_process:
            return
        sheet = reconstruction_grid(pixel_values, mask, reconstruction, mean, std, config.grid)
        save_reconstruction(path, sheet)
        for tracker in accelerator.trackers:
            if hasattr(tracker, "log_images"):
                values = sheet.numpy()[None]
                extra = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"reconstruction": values}, step=update, **extra)

    def after_epoch(epoch: int, update: int) -> None:
        if args.picture_epochs and epoch % args.picture_epochs == 0:
            picture(output_dir / "pictures" / f"reconstruction-epoch-{epoch:04d}.png", update)

    init_trackers(accelerator, dataclasses.asdict(args))
    began = time.perf_counter()
    with hub.training(accelerator):
        train(
            accelerator,
            model,
            optimizer,
            batches,
            run=run,
            length=length,
            loss_of=loss_of,
            images_per_update=args.total_batch_size,
            logging_steps=args.logging_steps,
            checkpointing_steps=args.checkpointing_updates(length.updates_per_epoch),
            after_epoch=after_epoch,
            after_checkpoint=hub.checkpoint,
        )
    seconds = time.perf_counter() - began

    # What the run leaves: the model first, whatever may fail after it
    save_model(accelerator, model, output_dir)
    log = run.history.read()
    if main_process:
        image_processor(size, mean, std, config.num_channels).save_pretrained(output_dir)
        write_run(output_dir, dataclasses.asdict(args), length, log)
        loss_curve(output_dir / "loss.png", log)
    picture(output_dir / "reconstruction.png", length.updates)
    skipped = count_bad(accelerator, images)
    knn = {}
    if knn_images is not None:
        sharded = accelerator.distributed_type == DistributedType.FSDP
        trained = MAEModel.from_pretrained(output_dir).to(accelerator.device) if sharded else unwrapped.mae
        knn = knn_table(args, config, accelerator, trained.eval(), images, knn_images, transform)
    accelerator.end_training()
    if not main_process:
        return
    if knn:
        write_json(output_dir / "knn.json", knn)
    write_card(
        output_dir,
        name=hub.repo_id.split("/")[-1],
        data=f"{len(images):,} images of {source.name}",
        architecture=architecture,
        arguments=dataclasses.asdict(args),
        results={
            "final loss": f"{log[-1]['loss']:.4f}",
            "updates": f"{length.updates:,}",
            "time": f"{seconds / 60:.1f} minutes on {accelerator.num_processes} x {accelerator.device.type}",
            "precision": accelerator.mixed_precision,
            **({"bad images skipped": f"{skipped:,}"} if skipped else {}),
        },
        normalised=config.norm_pix_loss,
        knn=knn,
        knn_split=knn_split,
        repo_id=hub.repo_id if args.push_to_hub else None,
        dataset_id=NAMED.get(args.dataset_name, args.dataset_name or source.name),
        dataset_name=source.name,
    )
    if skipped:
        print(f"skipped    {skipped} of {len(images)} images, which cannot be decoded")
    for key, value in knn.items():
        print(f"k-NN accuracy, {key:18} {100 * value:5.1f} %")
    print(f"pictures   {output_dir / 'reconstruction.png'}  {output_dir / 'loss.png'}")
    print(f"model      {output_dir}: MAEModel.from_pretrained({str(output_dir)!r})")
    if not hub.push():
        sys.exit(1)


def labelled_images(args, config, accelerator: Accelerator, images):
    """(images to test the k-NN classifier on, their split), or (None, None), which is said, where it cannot be."""
    size = config.image_height_width
    try:
        with accelerator.main_process_first():
            source, split = load_eval_source(
                args.dataset_name,
                args.dataset_config_name,
                args.train_dir,
                args.eval_split,
                image_column_name=args.image_column_name,
                cache_dir=args.cache_dir,
            )
    except NoSplit as error:
        if args.eval_split:
            raise
        accelerator.print(f"no k-NN accuracy: {error}")
        return None, None
    evaluation = make_images(source, CenterCrop(size), size, config.num_channels, args.on_bad_image)
    reason = None
    if images.labels is None or evaluation.labels is None:
        reason = "not every image has a label"
    elif len(images) < NEIGHBOURS:
        reason = f"{len(images)} training images are fewer than k = {NEIGHBOURS}"
    if reason:
        accelerator.print(f"no k-NN accuracy: {reason}")
        return None, None
    return evaluation, split


def knn_table(
    args, config, accelerator: Accelerator, trained: MAEModel, images, evaluation, transform
) -> dict[str, float]:
    """k-NN accuracy (k = 20) of raw pixels, of the same encoder untrained, and of the trained one."""
    size = config.image_height_width
    torch.manual_seed(args.seed)
    untrained = MAEModel(config).to(accelerator.device).eval()
    encoders = {
        "raw pixels": lambda pixels: pixels.flatten(1),
        "untrained encoder": lambda pixels: untrained(pixels).pooler_output,
        "trained encoder": lambda pixels: trained(pixels).pooler_output,
    }
    train_images, workers = with_crop(images, CenterCrop(size)), args.dataloader_num_workers
    options = {"ks": (NEIGHBOURS,), "batch_size": 256, "num_workers": workers}
    found = {
        name: frozen_accuracies(accelerator, encode, train_images, evaluation, transform, **options)
        for name, encode in encoders.items()
    }
    return {name: accuracies["knn"][NEIGHBOURS] for name, accuracies in found.items() if accuracies}


if __name__ == "__main__":
    run_script(lambda: main(parse_arguments(PretrainArguments, default_recipe="demo")), "run_pretrain.py")
