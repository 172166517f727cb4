"""Evaluate an encoder: `accelerate launch run_eval.py [recipe.yaml] [--name value ...]`.

Linear probing, partial and end-to-end fine-tuning, training from scratch, k-NN on frozen features, or testing alone.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from configuration import EvalArguments, model_config, parse_arguments, split_batch
from modeling_mae import EvalNet, MAEConfig, MAEModel
from modeling_mae.training.augment import AutoAugmentedImages, BatchTransform, CenterCrop, Mix, training_crop
from modeling_mae.training.charts import confusion_picture, partial_curve, training_curve
from modeling_mae.training.data import (
    NAMED,
    EpochBatches,
    FileImages,
    MemoryImages,
    Part,
    count_bad,
    load_eval_source,
    load_source,
    make_images,
    measure_mean_std,
    with_crop,
)
from modeling_mae.training.eval_card import write_eval_card, write_overview
from modeling_mae.training.hub import LOG_AND_BEST, Hub, local_checkpoint
from modeling_mae.training.labels import balanced_part, missing_classes, read_labels
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
from modeling_mae.training.metrics import classification_results, frozen_accuracies, predict
from modeling_mae.training.optim import adamw, lars, sgd
from modeling_mae.training.processor import checkpoint_mean_std, image_processor


def main(args: EvalArguments) -> None:
    output_dir = Path(args.output_dir)
    accelerator = make_accelerator(output_dir, args.trackers)
    if accelerator.is_main_process:
        for folder in {output_dir, *args.run_folders()}:
            prepare_folder(folder, args.overwrite_output_dir)
    push = args.push_to_hub and accelerator.is_main_process
    hub = Hub(
        output_dir,
        args.hub_model_id,
        private=args.hub_private_repo,
        strategy=args.hub_strategy,
        active=push,
        beside=LOG_AND_BEST,
    )
    hub.start()
    if push:
        args.hub_model_id = hub.repo_id
    resume = args.resume_from_checkpoint
    args.resume_from_checkpoint = local_checkpoint(accelerator, output_dir, resume, LOG_AND_BEST)
    data = load_data(args, accelerator)
    check_runs(args, data, accelerator.num_processes)
    rows = []
    if args.knn or args.baselines:
        rows += frozen_features(args, data, accelerator)
    if not args.do_train and data.trained:
        rows.append(test(args, data, accelerator, output_dir, args.model_name_or_path, "checkpoint"))
    with hub.training(accelerator):
        for name, n_partial, from_scratch in args.runs():
            rows.append(train_one(args, data, hub, name, n_partial, from_scratch))
    skipped = sum(count_bad(accelerator, images) for images in (data.train, data.evaluation) if images is not None)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    write_json(output_dir / "results.json", rows)
    tuned = {row["n_partial"]: row["accuracy"] for row in rows if row.get("n_partial") is not None}
    scratch = next((row["accuracy"] for row in rows if row["name"] == "from-scratch"), None)
    if len(tuned) > 1:
        partial_curve(output_dir / "partial.png", tuned, scratch)
        print(f"picture    {output_dir / 'partial.png'}")
    table = results_table(rows)
    if len(args.runs()) > 1:
        name = (args.hub_model_id or output_dir.resolve().name).split("/")[-1]
        folders = [run for run, _, _ in args.runs()]
        write_overview(output_dir, name, table, folders, data.eval_name, picture=len(tuned) > 1)
    (output_dir / "results.txt").write_text(table + "\n")
    if skipped:
        print(f"skipped    {skipped} images, which cannot be decoded")
    print(f"\n{table}\n\nresults    {output_dir / 'results.json'}")
    if not hub.push():
        sys.exit(1)


# --- data ---


@dataclass
class Data:
    """What all runs share. `train` and `evaluation` hold whole sets in their evaluation crop, with labels."""

    train: MemoryImages | FileImages | None
    evaluation: MemoryImages | FileImages
    class_names: list[str]
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    transform: BatchTransform
    trained: bool  # the checkpoint is a classifier already
    source_name: str  # of the training images, where there are any
    eval_name: str
    dataset_id: str  # of what is evaluated on, as is `split`
    split: str


def load_data(args: EvalArguments, accelerator: Accelerator) -> Data:
    config = model_config(args)
    size, say = config.image_height_width, accelerator.print
    if args.model_name_or_path:
        own = MAEConfig.from_pretrained(args.model_name_or_path).image_height_width
        if own != size:
            say(f"note       checkpoint for images of {own} pixels: its positions are interpolated to {size}")
    trained = "EvalNet" in (config.architectures or [])
    if not args.do_train and not trained and not (args.knn or args.baselines):
        raise ValueError(
            f"model_name_or_path {args.model_name_or_path!r} has no classifier to test: train one with "
            "--do_train true, or give --knn true"
        )
    crop = CenterCrop(size, args.eval_crop_fraction)
    options = {
        "image_column_name": args.image_column_name,
        "label_column_name": args.label_column_name,
        "cache_dir": args.cache_dir,
    }
    place = (args.dataset_name, args.dataset_config_name, args.train_dir)
    needs_training_images = args.do_train or args.knn or args.baselines
    # Training decides on the classes; a classifier that is only tested has its own.
    names = [config.id2label[i] for i in range(config.num_labels)] if trained and not args.do_train else None
    train_images = None
    with accelerator.main_process_first():  # the others find what `datasets` has cached
        if needs_training_images:
            source = load_source(*place, args.train_split, max_samples=args.max_train_samples, **options)
            labels, names = read_labels(source, names)
        if args.validation_dir:
            place = (None, None, args.validation_dir)
        options |= {"max_samples": args.max_eval_samples, "held_out": bool(args.validation_dir)}
        eval_source, split = load_eval_source(*place, args.eval_split, **options)
    eval_labels, names = read_labels(eval_source, names)
    if needs_training_images:
        numbers = torch.from_numpy(labels)
        train_images = make_images(source, crop, size, config.num_channels, args.on_bad_image, labels=numbers)
        absent = missing_classes(labels, names)
        if absent:
            say(f"note       {len(absent)} of {len(names)} classes have no training image: {', '.join(absent[:5])}")
    numbers = torch.from_numpy(eval_labels)
    evaluation = make_images(eval_source, crop, size, config.num_channels, args.on_bad_image, labels=numbers)
    absent = missing_classes(eval_labels, names)
    if absent:
        say(f"note       {len(absent)} of {len(names)} classes have no evaluation image: {', '.join(absent[:5])}")

    # Features mean what they meant in pre-training only under its normalisation.
    found = (args.image_mean, args.image_std) if args.image_mean else checkpoint_mean_std(args.model_name_or_path)
    mean, std = found or measure_mean_std(train_images or evaluation)
    name = source.name if needs_training_images else eval_source.name
    say(
        f"data       {name}: {len(train_images) if train_images else 0:,} training images, {len(evaluation):,} of "
        f"{eval_source.name} ({split}) to evaluate on, {len(names)} classes, mean {mean}, std {std}"
    )
    return Data(
        train=train_images,
        evaluation=evaluation,
        class_names=names,
        size=size,
        mean=mean,
        std=std,
        transform=BatchTransform(mean, std, size).to(accelerator.device),
        trained=trained,
        source_name=name,
        eval_name=eval_source.name,
        dataset_id=eval_source.name if args.validation_dir else NAMED.get(args.dataset_name, eval_source.name),
        split="validation" if args.validation_dir else split,
    )


def training_images(settings: EvalArguments, data: Data):
    """The part of the training images that this run sees, under its random crops and augmentation."""
    crop = training_crop(settings.seed, settings.crop_scale, settings.horizontal_flip, data.size)
    images = with_crop(data.train, crop)
    if settings.label_fraction < 1:
        images = Part(images, balanced_part(images.labels.numpy(), settings.label_fraction, settings.seed))
    if settings.auto_augment != "none":
        images = AutoAugmentedImages(images, settings.auto_augment, data.size, data.mean, settings.seed)
    return images


def check_runs(args: EvalArguments, data: Data, processes: int) -> None:
    """Raises before any long work what the last of several runs would raise after the others."""
    depth = model_config(args).num_hidden_layers
    for name, n_partial, from_scratch in args.runs():
        settings = args.strategy(n_partial, from_scratch)
        if n_partial is not None and n_partial > depth:
            raise ValueError(f"n_partial {n_partial:g} does not work: the model has {depth} blocks")
        try:
            split_batch(settings.total_batch_size, settings.per_device_train_batch_size, processes)
            images = training_images(settings, data)
            EpochBatches(len(images), settings.per_device_train_batch_size, settings.total_batch_size, 0, 0, 1)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


# --- one training ---


def train_one(
    args: EvalArguments, data: Data, hub: Hub, name: str, n_partial: float | None, from_scratch: bool
) -> dict:
    """Train a classifier with `n_partial` blocks tuned (None: all), keep the best and the last, and test the best."""
    folder = args.run_folder(name)
    done = folder / "eval_results.json"
    if args.resume_from_checkpoint == "auto" and done.exists():
        found = json.loads(done.read_text())
        if found["name"] == name:
            return found
        raise ValueError(f"{folder} holds the results of {found['name']}, not of {name}: give another --output_dir")
    settings = args.strategy(n_partial, from_scratch)
    accelerator = make_accelerator(folder, settings.trackers)
    processes = accelerator.num_processes
    accumulation = split_batch(settings.total_batch_size, settings.per_device_train_batch_size, processes)
    accelerator.gradient_accumulation_steps = accumulation
    images = training_images(settings, data)

    # Model and optimizer
    config = model_config(settings)
    names = [config.id2label[i] for i in range(config.num_labels)]
    config.id2label = dict(enumerate(data.class_names))
    config.label2id = {label: i for i, label in config.id2label.items()}
    set_seed(settings.seed)
    if from_scratch:
        model = EvalNet(config)
    else:
        other = data.trained and names != data.class_names
        model = EvalNet.from_pretrained(settings.model_name_or_path, config=config, ignore_mismatched_sizes=other)
        if other:  # also where there are as many of them
            accelerator.print("note       the checkpoint's classifier has other classes: its head starts anew")
            model.reset_head()
    model.freeze(config.num_hidden_layers if n_partial is None else n_partial)
    if settings.optimizer == "adamw":
        betas = (settings.adam_beta1, settings.adam_beta2)
        optimizer = adamw(model, weight_decay=settings.weight_decay, betas=betas, layer_decay=settings.layer_decay)
    else:
        optimizer = {"lars": lars, "sgd": sgd}[settings.optimizer](model, weight_decay=settings.weight_decay)
    tuned, whole = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True))
    model, optimizer = accelerator.prepare(model, optimizer)

    length = Length.of(
        len(images),
        total_batch_size=settings.total_batch_size,
        num_train_epochs=settings.num_train_epochs,
        max_train_steps=settings.max_train_steps,
        warmup_epochs=settings.warmup_epochs,
        base_learning_rate=settings.base_learning_rate,
        floor=settings.min_learning_rate,
    )
    run = open_run(accelerator, folder, settings.checkpoints_kept, settings.resume_from_checkpoint)
    batches = make_batches(
        accelerator,
        images,
        run,
        length,
        batch_size=settings.per_device_train_batch_size,
        total=settings.total_batch_size,
        seed=settings.seed,
        num_workers=settings.dataloader_num_workers,
    )
    accelerator.print(
        f"\n{name}: {tuned:,} of {whole:,} parameters, {len(images):,} images, {length}, batch "
        f"{settings.total_batch_size} = {processes} processes x {settings.per_device_train_batch_size} images x "
        f"{accumulation} accumulation steps, {settings.optimizer}, rate {length.peak:.3e} after {length.warmup} "
        f"updates, {accelerator.mixed_precision} precision on {accelerator.device}"
        + (f", from update {run.progress.update} of {run.resumed}" if run.resumed else "")
    )

    classes = len(data.class_names)
    mix = Mix(settings.random_erasing, settings.mixup, settings.cutmix, classes, accelerator.device)

    def loss_of(batch: dict, update: int, micro: int) -> torch.Tensor:
        place = micro * processes + accelerator.process_index
        # Also seeds drop path: all that is random depends on the update and the place in the total batch alone.
        pixel_values, labels = mix(data.transform(batch), batch["labels"], settings.seed, update, place)
        return model(pixel_values, labels=labels).loss

    def after_epoch(epoch: int, update: int) -> None:
        if epoch % settings.eval_epochs and update != length.updates:
            return
        found = classification_results(predict_all(settings, data, accelerator, model), classes)
        values = {f"eval_{key}": value for key, value in found.items() if isinstance(value, float)}
        run.history.add({"step": update, "epoch": update / length.updates_per_epoch, **values})
        accelerator.log(values, step=update)
        better = found["accuracy"] > run.progress.best
        accelerator.print(
            f"epoch {update / length.updates_per_epoch:g}  accuracy {100 * found['accuracy']:.2f} %  "
            f"loss {found['loss']:.4f}{'  (best so far)' if better else ''}",
            flush=True,
        )
        if better:
            run.progress.best = found["accuracy"]
            save_model(accelerator, model, folder)

    init_trackers(accelerator, dataclasses.asdict(settings))
    train(
        accelerator,
        model,
        optimizer,
        batches,
        run=run,
        length=length,
        loss_of=loss_of,
        images_per_update=settings.total_batch_size,
        logging_steps=settings.logging_steps,
        checkpointing_steps=settings.checkpointing_updates(length.updates_per_epoch),
        after_epoch=after_epoch,
        after_checkpoint=hub.checkpoint,
    )
    for tracker in accelerator.trackers:
        tracker.finish()

    # What the run leaves
    (folder / "last").mkdir(exist_ok=True)
    save_model(accelerator, model, folder / "last")
    log = run.history.read()
    part = f" of {100 * settings.label_fraction:g}% of the images" if settings.label_fraction < 1 else ""
    what = "from scratch, all blocks" if from_scratch else f"{settings.n_partial[0]:g} blocks tuned"
    found = test(
        settings, data, accelerator, folder, str(folder), name, log, f"{what}, on {len(images):,} images{part}"
    )
    found |= {"n_partial": None if from_scratch else n_partial, "images": len(images), "tuned_parameters": tuned}
    if accelerator.is_main_process:
        evaluations = [entry for entry in log if "eval_accuracy" in entry]
        found |= {"last_accuracy": evaluations[-1]["eval_accuracy"], "epochs": evaluations[-1]["epoch"]}
        write_run(folder, dataclasses.asdict(settings), length, log)
        write_json(done, found)
    accelerator.free_memory()
    return found


def predict_all(settings: EvalArguments, data: Data, accelerator: Accelerator, model) -> dict:
    batch_size, workers = settings.per_device_eval_batch_size, settings.dataloader_num_workers
    return predict(accelerator, model, data.evaluation, data.transform, batch_size, workers)


def test(
    args: EvalArguments,
    data: Data,
    accelerator: Accelerator,
    folder: Path,
    checkpoint: str,
    name: str,
    log: list[dict] | None = None,
    training: str | None = None,
) -> dict:
    """Results of the classifier in `checkpoint` on the evaluation images; pictures, card, predictions in `folder`."""
    model = EvalNet.from_pretrained(checkpoint)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    predictions = predict_all(args, data, accelerator, prepared)
    found = classification_results(predictions, len(data.class_names))
    if not accelerator.is_main_process:
        return {"name": name, **found}
    image_processor(
        data.size, data.mean, data.std, model.config.num_channels, args.eval_crop_fraction
    ).save_pretrained(folder)
    if len(data.class_names) <= 100:
        confusion_picture(folder / "confusion.png", found["confusion_matrix"], data.class_names)
    if args.save_predictions:
        columns = {
            "label": predictions["label"],
            "prediction": predictions["top5"][:, 0],
            "confidence": predictions["confidence"],
            "top5": list(predictions["top5"]),
            "loss": predictions["loss"],
        }
        datasets.Dataset.from_dict(columns).to_parquet(folder / "predictions.parquet")
    if log is not None:
        training_curve(folder / "training.png", log)
    write_eval_card(
        folder,
        name=(args.hub_model_id or folder.resolve().name).split("/")[-1],
        training=f"Trained with {training} of {data.source_name}." if training else None,
        data=f"{len(data.evaluation):,} images of {data.eval_name}, split {data.split}",
        dataset_id=data.dataset_id,
        dataset_name=data.eval_name,
        split=data.split,
        results=found,
        class_names=data.class_names,
        arguments=dataclasses.asdict(args),
        repo_id=args.hub_model_id if len(args.runs()) <= 1 else None,
    )
    return {"name": name, **found}


# --- frozen features ---


def frozen_features(args: EvalArguments, data: Data, accelerator: Accelerator) -> list[dict]:
    """k-NN on the checkpoint's features; with --baselines also on raw pixels and on the features of the same encoder
    untrained, and logistic regression on all three."""
    encoders = {}
    config = model_config(args)
    if args.baselines:
        size = len(data.train) * config.num_channels * data.size[0] * data.size[1] * 4
        if size < 8 << 30:
            encoders["raw pixels"] = lambda pixels: pixels.flatten(1)
        else:
            accelerator.print(f"note       no baseline of raw pixels: they would take {size >> 30} GiB")
        set_seed(args.seed)
        encoders["untrained encoder"] = MAEModel(config)
    encoders["pre-trained encoder"] = MAEModel.from_pretrained(args.model_name_or_path, config=config)
    rows = []
    for name, encode in encoders.items():
        if isinstance(encode, MAEModel):
            encoder = accelerator.prepare_model(encode, evaluation_mode=True).eval()

            def encode(pixels, encoder=encoder):
                return encoder(pixels).pooler_output

        found = frozen_accuracies(
            accelerator,
            encode,
            data.train,
            data.evaluation,
            data.transform,
            ks=(10, 20, 100, 200),
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            logistic=args.baselines,
        )
        figures = "  ".join(f"k={k} {100 * value:.1f} %" for k, value in found.get("knn", {}).items())
        accelerator.print(f"k-NN       {name}: {figures}", flush=True)
        rows.append({"name": name, **found})
    accelerator.wait_for_everyone()
    return rows


# --- what is left at the end ---


def results_table(rows: list[dict]) -> str:
    """The rows as text, accuracies in %."""
    titles = {"n_partial-0": "linear probing"}

    def percent(value) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    head = ["", "images", "k-NN (20)", "logistic regr.", "accuracy", "last epoch"]
    lines = [head]
    for row in rows:
        title = titles.get(row["name"], row["name"].replace("n_partial-", "fine-tuned blocks: "))
        images = f"{row['images']:,}" if "images" in row else ""
        knn = row.get("knn", {}).get(20)
        figures = [knn, row.get("logistic_regression"), row.get("accuracy"), row.get("last_accuracy")]
        lines.append([title, images, *map(percent, figures)])
    used = [i for i in range(len(head)) if i == 0 or any(line[i] for line in lines[1:])]
    widths = [max(len(line[i]) for line in lines) for i in used]
    return "\n".join(
        "  ".join(line[i].ljust(w) if i == 0 else line[i].rjust(w) for i, w in zip(used, widths, strict=True))
        for line in lines
    )


if __name__ == "__main__":
    run_script(lambda: main(parse_arguments(EvalArguments, default_recipe="demo_eval")), "run_eval.py")
