"""Evaluate an encoder: `accelerate launch run_eval.py [recipe.yaml] [--name value ...]`.

Linear probing, partial and end-to-end fine-tuning, training from scratch, frozen features, or testing alone.
"""

from configuration import (
    ArgumentError,
    EvalArguments,
    EvalTraining,
    checkpoint_of,
    model_config,
    model_settings,
    parse_arguments,
)


if __name__ == "__main__":  # before the other imports: --help and a misspelt option need not wait for torch
    ARGUMENTS = parse_arguments(EvalArguments, default_recipe="demo_eval")

import dataclasses
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from modeling_mae.checkpoint import Checkpoint, open_checkpoint
from modeling_mae.data.labelled_sets import LabelledSets, load_labelled_sets
from modeling_mae.data.order import split_batch
from modeling_mae.data.processor import Processing, choose_processing, processor_of
from modeling_mae.data.statistics import choose_mean_std
from modeling_mae.errors import UserError
from modeling_mae.evaluation import classifier
from modeling_mae.evaluation.features import K, frozen_encoder, frozen_table
from modeling_mae.evaluation.frozen_images import probed_sets
from modeling_mae.evaluation.readouts import chosen_readouts, readout_table
from modeling_mae.files import write_json
from modeling_mae.hub.common import LOG_AND_BEST
from modeling_mae.hub.fetch import local_checkpoint
from modeling_mae.hub.push import Hub
from modeling_mae.report.cards import Base
from modeling_mae.report.evaluation import describe_training, report_evaluation, report_training
from modeling_mae.training import launch
from modeling_mae.training.augment import BatchTransform, Mix
from modeling_mae.training.checkpoints import choose_checkpoint
from modeling_mae.training.endings import run_script
from modeling_mae.training.loop import train
from modeling_mae.training.manifest import made_with_before
from modeling_mae.training.optim import Schedule, make_optimizer
from modeling_mae.training.run_folder import claim_folder
from modeling_mae.training.state import open_run, save_model


def main(args: EvalArguments) -> None:
    # Folders and Hub
    output_dir, trainings = Path(args.output_dir), args.trainings()
    accelerator = launch.make_accelerator(output_dir, args.trackers)
    decoding = launch.decoding(accelerator, args.decode_device, args.dataloader_num_workers)
    main_process, say = accelerator.is_main_process, accelerator.print
    for folder in dict.fromkeys([output_dir, *args.run_folders()]) if main_process else ():
        claim_folder(folder, args.overwrite_output_dir)
    hub = Hub(output_dir, **args.hub_options(), main_process=main_process, beside=LOG_AND_BEST).start()
    resume = local_checkpoint(accelerator, output_dir, args.resume_from_checkpoint, LOG_AND_BEST)
    # The results of trainings that need not be done again.
    finished = {training.name: training.finished_results(say) if resume == "auto" else None for training in trainings}

    # Images with labels, and everything that can be wrong with one of the trainings
    config, start = model_config(args), checkpoint_of(args)
    loading = args.loading_options(launch.loading_workers(args.dataloader_num_workers))
    readouts = chosen_readouts(config.num_hidden_layers, **args.readout_options())
    tests_checkpoint = not args.do_train and classifier.is_tested(config, args.model_name_or_path, args.reads_features)
    say(start.told() if start else "", classifier.describe_resizing(config, start), sep="", end="")
    processing = choose_processing(
        start.processing if start else Processing(),
        Processing(**args.processing_options()),
        keeps_white=tests_checkpoint,
        say=say,
        **args.crop_options(),
    )
    # Training decides on the classes. A classifier that is only tested has its own.
    sets = load_labelled_sets(
        args.source_options(),
        **args.set_options(),
        class_names=classifier.class_names_of(config) if tests_checkpoint else None,
        problem_type=args.problem_type or (config.problem_type if tests_checkpoint else None),
        open_options={
            **args.open_options(config),
            **launch.image_memory(accelerator, args.image_cache),
            **decoding,
            **processing.open_options(),
        },
        main_process_first=accelerator.main_process_first,
        say=say,
    )
    before = made_with_before(args.run_folders(), resume)
    mean, std = choose_mean_std(sets.all()[0], (processing.mean, processing.std), before, say)
    transform = BatchTransform(mean, std, config.image_height_width).to(accelerator.device)
    say(f"data       {sets}, mean {mean}, std {std}{sets.remarks}")
    say(f"parallel   {launch.describe_parallelism(accelerator)}")
    for training in trainings:
        training.check_blocks(config.num_hidden_layers)
    common = {"depth": config.num_hidden_layers, "mean": mean, "processes": accelerator.num_processes}
    work = {
        each.name: classifier.training_work(each.name, sets.train, each.n_partial, **common, **each.work_options())
        for each in trainings
    }

    # Frozen features, the checkpoint as it is, and every training
    rows = []
    compared = (sets.train, sets.evaluation, transform)
    options = {"seed": args.seed, "problem_type": sets.problem.problem_type, **loading}
    if args.knn:
        encoder = frozen_encoder(start, config, say)
        rows += frozen_table(accelerator, encoder, *compared, name="pre-trained encoder", logistic=True, **options)
    if readouts:
        encoder = start.encoder(config)
        options["memory_budget"] = launch.feature_memory()
        rows += readout_table(accelerator, encoder, *compared, readouts, **options)
    if tests_checkpoint:
        rows.append(test_classifier(accelerator, "checkpoint", start, output_dir, args, sets, transform, hub))
    with hub.finishing_uploads(accelerator):
        to_do = sum(amount for name, amount in work.items() if not finished[name])
        for training in trainings:
            row = finished[training.name]
            if not row:
                to_do -= work[training.name]
                row = train_classifier(training, sets, transform, hub, resume, later=to_do / work[training.name])
            rows.append(row)
    faults = launch.count_faults(accelerator, sets.all())
    accelerator.end_training()
    if not main_process:
        return
    report_evaluation(
        output_dir=output_dir,
        rows=rows,
        folders=[training.name for training in trainings],
        k=K,
        license=args.license,
        **hub.about(output_dir),
        **sets.about_evaluation,
        **faults,
    )
    if not hub.push():
        sys.exit(1)


def train_classifier(
    training: EvalTraining, sets: LabelledSets, transform: BatchTransform, hub: Hub, resume: str | None, later: float
) -> dict:
    """Train a classifier, keep the best epoch and the last, and test the best. Gives its row of the results. `later`
    is as in `train`."""
    args, folder, problem = training.arguments, training.folder, sets.problem
    accelerator = launch.make_accelerator(folder, args.trackers)
    total_batch, micro_batch = args.total_batch_size, args.per_device_train_batch_size
    accelerator.gradient_accumulation_steps = split_batch(total_batch, micro_batch, accelerator.num_processes)
    loading = args.loading_options(launch.loading_workers(args.dataloader_num_workers))
    images = classifier.training_view(sets.train, mean=transform.channel_mean, **args.view_options())
    mix = Mix(args.random_erasing, args.mixup, args.cutmix, len(sets.class_names), accelerator.device)

    # Model and optimizer
    config, start = model_config(args), None if training.n_partial is None else checkpoint_of(args)
    set_seed(args.seed)
    targets = {"problem_type": problem.problem_type, "target_means": images.labels.float().mean(0)}
    new = (config, start, sets.class_names, training.n_partial, accelerator.print)
    model = classifier.make_classifier(*new, **targets)
    optimizer = make_optimizer(args.optimizer, model, **args.optimizer_options())
    tuned, whole = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True))
    model, optimizer = accelerator.prepare(model, optimizer)

    # Schedule and run
    processing = {"mean": transform.channel_mean, "std": transform.channel_std, "white": sets.train.white}
    schedule = Schedule.from_epochs(len(images), **args.schedule_options())
    seen_sets = sets
    if not mix.changes:
        options = {"epochs": schedule.epoch(schedule.updates), "memory_budget": launch.feature_memory(), **loading}
        images, seen_sets = probed_sets(accelerator, model, images, sets, transform, **options)
    run = open_run(
        *(accelerator, model, optimizer, images, schedule, folder),
        made_with={**args.settings(), **model_settings(config), "data": sets.train_fingerprint, **processing},
        checkpoint=choose_checkpoint(accelerator, folder, resume),
        num_workers=loading["num_workers"],
        after_checkpoint=hub.checkpoint,
        **args.run_options(schedule.updates_per_epoch),
    )
    accelerator.print(
        f"\n{training.name}: {tuned:,} of {whole:,} parameters, {len(images):,} images, {schedule}, batch "
        f"{launch.describe_batch(accelerator, total_batch, micro_batch)}, {args.optimizer}, rate "
        f"{schedule.describe_rate()}, {accelerator.mixed_precision} precision on {accelerator.device}{run.start}"
    )
    shares = (args.label_fraction, args.mixup or args.cutmix, config.label_smoothing)
    for note in classifier.problem_notes(problem, images, *shares):
        accelerator.print(f"note       {note}")

    def loss_of(batch: dict, update: int, micro: int) -> torch.Tensor:
        if "features" in batch:
            return model(features=batch["features"], labels=batch["labels"]).loss
        place = micro * accelerator.num_processes + accelerator.process_index
        # This seeds drop path too: all that is random depends on the update and the place in the total batch alone.
        pixel_values, labels = mix(transform(batch), batch["labels"], args.seed, update, place)
        return model(pixel_values, labels=labels).loss

    def after_epoch(epoch: int, update: int) -> None:
        if epoch % args.eval_epochs == 0 or update == schedule.updates:
            results, _ = classifier.evaluate_classifier(accelerator, model, seen_sets, transform, **loading)
            classifier.keep_if_best(run, folder, problem, results)

    launch.init_trackers(accelerator, dataclasses.asdict(args))
    train(run, loss_of, after_epoch, later)
    for tracker in accelerator.trackers:
        tracker.finish()

    # What the training leaves
    (folder / "last").mkdir(exist_ok=True)
    save_model(accelerator, model, folder / "last")
    described = (training.n_partial, len(images), args.label_fraction, sets.train_name, config.pooling)
    about = {"training": describe_training(*described), **run.about}
    about["base"] = Base(start.source, start.license, start.on_hub) if start else None
    row = test_classifier(
        accelerator, training.name, open_checkpoint(folder), folder, args, sets, transform, hub, **about
    )
    row |= {"n_partial": training.n_partial, "pooling": config.pooling}
    row |= {"images": len(images), "tuned_parameters": tuned}
    if accelerator.is_main_process:
        last = [entry for entry in about["log"] if f"eval_{problem.metric}" in entry][-1]
        row |= {f"last_{problem.metric}": last[f"eval_{problem.metric}"], "epochs": last["epoch"]}
        write_json(training.results_file, row)
    accelerator.free_memory()
    return row


def test_classifier(
    accelerator: Accelerator,
    name: str,
    checkpoint: Checkpoint,
    folder: Path,
    args: EvalArguments,
    sets: LabelledSets,
    transform: BatchTransform,
    hub: Hub,
    **about,
) -> dict:
    """The row `name` of the results: those of the classifier in `checkpoint`. Its card and pictures go to `folder`."""
    model = accelerator.prepare_model(checkpoint.classifier(), evaluation_mode=True)
    loading = args.loading_options(launch.loading_workers(args.dataloader_num_workers))
    tested = classifier.evaluate_classifier(accelerator, model, sets, transform, **loading, with_auroc=True)
    results, predictions = tested
    if accelerator.is_main_process:
        processor_of(sets.evaluation, transform.channel_mean, transform.channel_std).save_pretrained(folder)
        report_training(
            folder=folder,
            arguments=dataclasses.asdict(args),
            results=results,
            predictions=predictions if args.save_predictions else None,
            license=args.license,
            **hub.about(folder),
            **sets.about_evaluation,
            **about,
        )
    return {"name": name, **results}


if __name__ == "__main__":
    run_script(main, ARGUMENTS, mendable=(UserError, ArgumentError))
