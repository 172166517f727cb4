"""Evaluate an encoder: `accelerate launch run_eval.py [recipe.yaml] [--name value ...]`.

Linear probing, partial and end-to-end fine-tuning, training from scratch, frozen features, or testing alone.
"""

from configuration import (
    EVAL_CROP_FRACTION,
    ArgumentError,
    EvalArguments,
    EvalRun,
    check_blocks,
    model_config,
    model_settings,
    parse_arguments,
)


if __name__ == "__main__":  # before the other imports: --help and a misspelt option need not wait for torch
    ARGUMENTS = parse_arguments(EvalArguments, default_recipe="demo_eval")

import dataclasses
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from modeling_mae import EvalNet, MAEConfig
from modeling_mae.data.images import measure_mean_std
from modeling_mae.data.labelled_sets import LabelledSets, load_labelled_sets
from modeling_mae.data.order import MicroBatches, Order, split_batch
from modeling_mae.data.processor import WHITE, Processing, checkpoint_processing, image_processor
from modeling_mae.data.sources import NAMED
from modeling_mae.errors import UserError
from modeling_mae.evaluation.classifier import (
    evaluate_classifier,
    is_classifier,
    make_classifier,
    problem_notes,
    training_view,
)
from modeling_mae.evaluation.features import K, frozen_encoder, frozen_table
from modeling_mae.files import write_json
from modeling_mae.hub import LOG_AND_BEST, Hub, local_checkpoint
from modeling_mae.report.evaluation import describe_training, report_evaluation, report_training
from modeling_mae.training import launch
from modeling_mae.training.augment import BatchTransform, Mix
from modeling_mae.training.checkpoints import choose_checkpoint
from modeling_mae.training.loop import train
from modeling_mae.training.optim import Schedule, make_optimizer
from modeling_mae.training.run_folder import claim_folder
from modeling_mae.training.state import load_model, open_run, save_model


def main(args: EvalArguments) -> None:
    # Folders and Hub
    output_dir = Path(args.output_dir)
    accelerator = launch.make_accelerator(output_dir, args.trackers)
    runs = args.runs()
    if accelerator.is_main_process:
        for folder in dict.fromkeys([output_dir, *args.run_folders()]):
            claim_folder(folder, args.overwrite_output_dir)
    hub = Hub(output_dir, **args.hub_options(), main_process=accelerator.is_main_process, beside=LOG_AND_BEST)
    hub.start()
    resume = local_checkpoint(accelerator, output_dir, args.resume_from_checkpoint, LOG_AND_BEST)

    # Images with labels, and everything that can be wrong with one of the trainings
    config = model_config(args)
    processing = find_processing(args, config, accelerator)
    sets = load_sets(args, config, processing, accelerator)
    mean, std = processing.mean, processing.std
    if mean is None:
        mean, std = measure_mean_std(sets.all()[0], accelerator.print)
    transform = BatchTransform(mean, std, config.image_height_width).to(accelerator.device)
    accelerator.print(f"data       {sets}, mean {mean}, std {std}{sets.remarks}")
    accelerator.print(f"parallel   {launch.describe_parallelism(accelerator)}")
    for run in runs:
        check_training(run, config, sets, mean, accelerator.num_processes)

    # Frozen features, the checkpoint as it is, and every training
    rows = []
    if args.knn:
        encoder = frozen_encoder(args.model_name_or_path, config, accelerator.print)
        options = {"name": "pre-trained encoder", "seed": args.seed, "logistic": True, **loading(args)}
        options["problem_type"] = sets.problem.problem_type
        rows += frozen_table(accelerator, encoder, sets.train, sets.evaluation, transform, **options)
    if not args.do_train and is_classifier(config):
        checkpoint = args.model_name_or_path
        rows.append(test_classifier("checkpoint", args, sets, transform, accelerator, hub, checkpoint, output_dir))
    with hub.training(accelerator):
        for run in runs:
            rows.append(train_classifier(run, sets, transform, hub, resume))
    skipped = sum(launch.count_over_processes(accelerator, images.skipped) for images in sets.all())
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    report_evaluation(
        output_dir=output_dir,
        name=hub.card_name(output_dir),
        rows=rows,
        folders=[run.name for run in runs],
        dataset_name=sets.eval_name,
        skipped=skipped,
        k=K,
        problem=sets.problem,
    )
    if not hub.push():
        sys.exit(1)


def train_classifier(
    run: EvalRun, sets: LabelledSets, transform: BatchTransform, hub: Hub, resume: str | None
) -> dict:
    """Train a classifier, keep the best epoch and the last, and test the best. Gives its row of the results."""
    args, folder, problem = run.arguments, run.folder, sets.problem
    finished = folder / "eval_results.json"
    if resume == "auto" and finished.exists():
        check_finished(run, finished)
        return json.loads(finished.read_text())
    accelerator = launch.make_accelerator(folder, args.trackers)
    processes, micro_batch = accelerator.num_processes, args.per_device_train_batch_size
    accelerator.gradient_accumulation_steps = split_batch(args.total_batch_size, micro_batch, processes)
    images = training_view(sets.train, mean=transform.channel_mean, **args.view_options())

    # Model and optimizer
    config = model_config(args)
    set_seed(args.seed)
    encoder = None if run.n_partial is None else args.model_name_or_path
    targets = {"problem_type": problem.problem_type, "target_means": images.labels.float().mean(0)}
    model = make_classifier(config, encoder, sets.class_names, run.n_partial, accelerator.print, **targets)
    options = {"weight_decay": args.weight_decay, "layer_decay": args.layer_decay}
    optimizer = make_optimizer(args.optimizer, model, betas=(args.adam_beta1, args.adam_beta2), **options)
    tuned, whole = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Schedule and state
    data, mean, std = sets.train_fingerprint, transform.channel_mean, transform.channel_std
    schedule = Schedule.from_epochs(len(images), **args.schedule_options())
    state = open_run(
        accelerator,
        model,
        optimizer,
        images,
        schedule,
        folder,
        made_with={**args.settings(), **model_settings(config), "data": data, "mean": mean, "std": std},
        checkpoint=choose_checkpoint(accelerator, folder, resume),
        num_workers=launch.loading_workers(args.dataloader_num_workers),
        after_checkpoint=hub.checkpoint,
        **args.run_options(schedule.updates_per_epoch),
    )
    accelerator.print(
        f"\n{run.name}: {tuned:,} of {whole:,} parameters, {len(images):,} images, {schedule}, batch "
        f"{args.total_batch_size} = {processes} processes x {micro_batch} images x "
        f"{accelerator.gradient_accumulation_steps} accumulation steps, {args.optimizer}, rate {schedule.peak:.3e} "
        f"after {schedule.warmup} updates, {accelerator.mixed_precision} precision on {accelerator.device}"
        f"{state.start}"
    )
    for note in problem_notes(problem, images, args.label_fraction, args.mixup or args.cutmix, config.label_smoothing):
        accelerator.print(f"note       {note}")
    mix = Mix(args.random_erasing, args.mixup, args.cutmix, len(sets.class_names), accelerator.device)

    def loss_of(batch: dict, update: int, micro: int) -> torch.Tensor:
        place = micro * processes + accelerator.process_index
        # This seeds drop path too: all that is random depends on the update and the place in the total batch alone.
        pixel_values, labels = mix(transform(batch), batch["labels"], args.seed, update, place)
        return model(pixel_values, labels=labels).loss

    def after_epoch(epoch: int, update: int) -> None:
        if epoch % args.eval_epochs and update != schedule.updates:
            return
        results, _ = evaluate_classifier(accelerator, model, sets, transform, **loading(args))
        values = {f"eval_{key}": value for key, value in results.items() if isinstance(value, float)}
        state.history.add({"step": update, "epoch": schedule.epoch(update), **values})
        accelerator.log(values, step=update)
        better = state.progress.best is None or problem.score(results) > state.progress.best
        best = "  (best so far)" if better else ""
        accelerator.print(f"epoch {schedule.epoch(update):g}  {problem.progress(results)}{best}", flush=True)
        if better:
            state.progress.best = problem.score(results)
            save_model(accelerator, model, folder)

    launch.init_trackers(accelerator, dataclasses.asdict(args))
    train(state, loss_of, after_epoch)
    for tracker in accelerator.trackers:
        tracker.finish()

    # What the training leaves
    (folder / "last").mkdir(exist_ok=True)
    save_model(accelerator, model, folder / "last")
    log = state.history.read()
    source = {"images": len(images), "label_fraction": args.label_fraction, "source_name": sets.train_name}
    training = describe_training(n_partial=run.n_partial, pooling=config.pooling, **source)
    length = {"updates": schedule.updates, "updates_per_epoch": schedule.updates_per_epoch}
    options = {"training": training, "log": log, **length}
    row = test_classifier(run.name, args, sets, transform, accelerator, hub, str(folder), folder, **options)
    row |= {"n_partial": run.n_partial, "pooling": config.pooling, "images": len(images), "tuned_parameters": tuned}
    if accelerator.is_main_process:
        last = [entry for entry in log if f"eval_{problem.metric}" in entry][-1]
        row |= {f"last_{problem.metric}": last[f"eval_{problem.metric}"], "epochs": last["epoch"]}
        write_json(finished, row)
    accelerator.free_memory()
    return row


def test_classifier(
    name: str,
    args: EvalArguments,
    sets: LabelledSets,
    transform: BatchTransform,
    accelerator: Accelerator,
    hub: Hub,
    checkpoint: str,
    folder: Path,
    **training,
) -> dict:
    """The row `name` of the results: those of the classifier in `checkpoint`. Its card and pictures go to `folder`."""
    model = load_model(EvalNet, checkpoint)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    results, predictions = evaluate_classifier(
        accelerator, prepared, sets, transform, with_auroc=True, **loading(args)
    )
    if accelerator.is_main_process:
        channels, mean, std = model.config.num_channels, transform.channel_mean, transform.channel_std
        options = {"crop_fraction": sets.evaluation.crop.fraction, "white": sets.evaluation.white}
        image_processor(transform.size, mean, std, channels, **options).save_pretrained(folder)
        report_training(
            folder=folder,
            name=hub.card_name(folder),
            repo_id=hub.repo_id if hub.active and folder == hub.folder else None,
            arguments=dataclasses.asdict(args),
            results=results,
            class_names=sets.class_names,
            problem=sets.problem,
            dataset_id=sets.eval_name if args.validation_dir else NAMED.get(args.dataset_name, sets.eval_name),
            dataset_name=sets.eval_name,
            split=sets.eval_split,
            eval_images=len(sets.evaluation),
            predictions=predictions if args.save_predictions else None,
            **training,
        )
    return {"name": name, **results}


def find_processing(args: EvalArguments, config: MAEConfig, accelerator: Accelerator) -> Processing:
    """How images are brought to the model: as given, else as the checkpoint's image processor does.

    Features mean what they meant in pre-training only under its mean and deviation. A classifier that is only tested
    also keeps its crop.
    """
    checkpoint = checkpoint_processing(args.model_name_or_path)
    if args.do_train or not is_classifier(config):
        checkpoint = dataclasses.replace(checkpoint, crop_fraction=None)
        if checkpoint.white == WHITE:  # an encoder of ordinary images may be trained on others
            checkpoint = dataclasses.replace(checkpoint, white=None)
    given = Processing(args.image_mean, args.image_std, args.eval_crop_fraction, args.white_value)
    processing = checkpoint.replaced_by(given, accelerator.print)
    return dataclasses.replace(processing, crop_fraction=processing.crop_fraction or EVAL_CROP_FRACTION)


def load_sets(
    args: EvalArguments, config: MAEConfig, processing: Processing, accelerator: Accelerator
) -> LabelledSets:
    size = config.image_height_width
    if args.model_name_or_path:
        checkpoint_size = MAEConfig.from_pretrained(args.model_name_or_path).image_height_width
        if checkpoint_size != size:
            accelerator.print(
                f"note       checkpoint for images of {checkpoint_size} pixels: its positions are interpolated to "
                f"{size}"
            )
    if not args.do_train and not args.knn and not is_classifier(config):
        raise UserError(
            f"model_name_or_path {args.model_name_or_path!r} has no classifier to test: train one with --do_train "
            "true, or give --knn true"
        )
    # Training decides on the classes. A classifier that is only tested has its own.
    keeps_classes = is_classifier(config) and not args.do_train
    return load_labelled_sets(
        args.source_options(),
        train_split=args.train_split if args.do_train or args.knn else None,
        eval_split=args.eval_split,
        validation_dir=args.validation_dir,
        max_train_samples=args.max_train_samples,
        max_eval_samples=args.max_eval_samples,
        class_names=[config.id2label[i] for i in range(config.num_labels)] if keeps_classes else None,
        problem_type=args.problem_type or (config.problem_type if keeps_classes else None),
        open_options={
            "size": size,
            "num_channels": config.num_channels,
            "crop_fraction": processing.crop_fraction,
            "white": processing.white,
            "memory_budget": launch.image_memory(),
            "on_bad_image": args.on_bad_image,
        },
        main_process_first=accelerator.main_process_first,
        say=accelerator.print,
    )


def check_finished(run: EvalRun, finished: Path) -> None:
    """Raise where `finished` holds the results of another training than `run`, or of one with other settings."""
    name = json.loads(finished.read_text())["name"]
    if name != run.name:
        raise UserError(f"{finished.parent} holds the results of {name}, not of {run.name}: give another --output_dir")
    before = json.loads((finished.parent / "arguments.json").read_text())
    now = json.loads(json.dumps(dataclasses.asdict(run.arguments)))
    names = [name for name in run.arguments.result_options() if before.get(name) != now[name]]
    if names:
        changes = "; ".join(f"{name} {before.get(name)} -> {now[name]}" for name in names)
        raise UserError(
            f"{finished.parent} holds the finished results of other settings ({changes}): give another --output_dir, "
            "the same settings, or --overwrite_output_dir to start anew"
        )


def check_training(run: EvalRun, config: MAEConfig, sets: LabelledSets, mean: list[float], processes: int) -> None:
    """Raise before any long work what the last of several trainings would raise after the others."""
    args = run.arguments
    try:
        check_blocks(run.n_partial, config.num_hidden_layers)
        order = Order(
            len(training_view(sets.train, mean=mean, **args.view_options())), args.total_batch_size, args.seed
        )
        MicroBatches(order, args.per_device_train_batch_size, range(1), num_processes=processes)
    except (ArgumentError, UserError) as error:
        raise UserError(f"{run.name}: {error}") from None


def loading(args: EvalArguments) -> dict:
    workers = launch.loading_workers(args.dataloader_num_workers)
    return {"batch_size": args.per_device_eval_batch_size, "num_workers": workers}


if __name__ == "__main__":
    launch.run_script(main, ARGUMENTS, mendable=(UserError, ArgumentError))
