"""What pre-training leaves beside the model: its settings, log, loss curve, k-NN accuracies and card."""

import math
from pathlib import Path

from ..files import write_json
from .cards import write_pretraining_card
from .charts import features_curve, loss_curve
from .run import write_run


def describe_model(config, parameters: int) -> str:
    """The architecture of an `MAEConfig` in a line; `parameters` is their number."""
    patch, image = ("x".join(map(str, size)) for size in (config.patch_height_width, config.image_height_width))
    decoder = "decoder" if config.decoder_type == "self" else f"{config.decoder_type} decoder"
    return (
        f"{config.num_hidden_layers} x {config.hidden_size} encoder, {config.decoder_num_hidden_layers} x "
        f"{config.decoder_hidden_size} {decoder}, {parameters / 1e6:.3g} M parameters, patches of {patch} in {image} "
        f"pixels, {config.num_channels} channel{'s' if config.num_channels > 1 else ''}"
    )


def report_pretraining(
    *,
    output_dir: Path,
    name: str,
    repo_id: str | None,
    arguments: dict,
    updates: int,
    updates_per_epoch: int,
    log: list[dict],
    images: int,
    source_name: str,
    dataset_id: str,
    architecture: str,
    normalised: bool,
    seconds: float,
    processes: int,
    device_type: str,
    precision: str,
    skipped: int,
    knn: dict[str, float],
    knn_split: str | None,
    k: int,
    incomplete: int = 0,
    shown: str = "",
) -> None:
    """Writes arguments.json, trainer_state.json, loss.png, knn.json and README.md, and prints the results.
    features.png is written where `log` has entries of `FeatureGrowth`.

    `repo_id` is the Hub repository that users load the model from, None if there is none. `log` has one entry for
    each reading of the loss. `skipped` of the `images` could not be decoded, `incomplete` had missing values. `knn`
    is the accuracy in 0..1 of each kind of features, with `k` neighbours; it is empty if there is no k-NN evaluation,
    and then there is no knn.json.
    `shown` is what `describe_shown` says.
    """
    write_run(output_dir, arguments=arguments, updates=updates, updates_per_epoch=updates_per_epoch, log=log)
    loss_curve(output_dir / "loss.png", log, normalised=normalised)
    growth = [entry for entry in log if "rank" in entry or "rank_untrained" in entry]
    growth.sort(key=lambda entry: entry["step"])  # the baselines are of step 0, whenever they were measured
    if len(growth) > 1:
        features_curve(output_dir / "features.png", growth, k)
    if knn:
        write_json(output_dir / "knn.json", knn)
    results = {
        "final loss": f"{[entry['loss'] for entry in log if 'loss' in entry][-1]:.4f}",
        "updates": f"{updates:,}",
        "time": f"{seconds / 60:.1f} minutes on {processes} x {device_type}",
        "precision": precision,
    }
    if skipped:
        results["bad images skipped"] = f"{skipped:,}"
    if incomplete:
        results["images with missing values"] = f"{incomplete:,}, each filled with the mean of its band"
    write_pretraining_card(
        output_dir,
        name=name,
        data=f"{images:,} images of {source_name}",
        architecture=architecture,
        arguments=arguments,
        results=results,
        normalised=normalised,
        dataset_id=dataset_id,
        dataset_name=source_name,
        knn=knn,
        knn_split=knn_split,
        k=k,
        repo_id=repo_id,
        shown=shown,
    )
    _print_results(output_dir, images, skipped, incomplete, knn)
    if len(growth) > 1:
        print(f"features   {output_dir / 'features.png'}: {judge_growth(growth)}")


def judge_growth(log: list[dict]) -> str:
    """What the entries of `FeatureGrowth` say: since when the features beat raw pixels, and whether they still grow.

    A difference counts where it is larger than a standard error of an accuracy on so many images.
    """
    baselines, entries = log[0], [entry for entry in log if "knn" in entry]
    if not entries:
        ranks = [entry["rank"] for entry in log if "rank" in entry]
        return f"effective rank {baselines.get('rank_untrained', ranks[0]):.1f} untrained, {ranks[-1]:.1f} now"
    last, raw = entries[-1]["knn"], baselines.get("knn_raw_pixels")
    error = math.sqrt(last * (1 - last) / baselines["knn_images"])
    sentence = f"k-NN accuracy {100 * last:.1f} %"
    if raw is not None:
        behind = [entry["epoch"] for entry in entries if entry["knn"] <= raw]
        ahead = [entry["epoch"] for entry in entries if not behind or entry["epoch"] > behind[-1]]
        beats = f"beat raw pixels ({100 * raw:.1f} %) since epoch {ahead[0]:g}" if ahead else ""
        sentence = f"{sentence}, features {beats or f'do not beat raw pixels ({100 * raw:.1f} %)'}"
    if len(entries) < 2:
        return sentence
    earlier = entries[: max(1, 3 * len(entries) // 4)]  # a last quarter that brings nothing is a plateau
    if last > max(entry["knn"] for entry in earlier) + error:
        return f"{sentence}; still rising: longer training will help"
    return f"{sentence}; no longer rising: longer training at these settings will bring little"


def _print_results(output_dir: Path, images: int, skipped: int, incomplete: int, knn: dict) -> None:
    if skipped:
        print(f"skipped    {skipped} of {images} images, which cannot be decoded")
    if incomplete:
        print(f"filled     {incomplete} of {images} images, whose missing values became the mean of their band")
    for features, accuracy in knn.items():
        print(f"k-NN accuracy, {features:18} {100 * accuracy:5.1f} %")
    print(f"pictures   {output_dir / 'reconstruction.png'}  {output_dir / 'loss.png'}")
    print(f"model      {output_dir}: MAEModel.from_pretrained({str(output_dir)!r})")
