"""What pre-training leaves beside the model: its settings, log, loss curve, k-NN accuracies and card."""

from pathlib import Path

from ..files import write_json
from .cards import write_pretraining_card
from .charts import loss_curve
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
) -> None:
    """Writes arguments.json, trainer_state.json, loss.png, knn.json and README.md, and prints the results.

    `repo_id` is the Hub repository that users load the model from, None if there is none. `log` has one entry for
    each reading of the loss. `skipped` of the `images` could not be decoded. `knn` is the accuracy in 0..1 of each
    kind of features, with `k` neighbours; it is empty if there is no k-NN evaluation, and then there is no knn.json.
    """
    write_run(output_dir, arguments=arguments, updates=updates, updates_per_epoch=updates_per_epoch, log=log)
    loss_curve(output_dir / "loss.png", log)
    if knn:
        write_json(output_dir / "knn.json", knn)
    results = {
        "final loss": f"{log[-1]['loss']:.4f}",
        "updates": f"{updates:,}",
        "time": f"{seconds / 60:.1f} minutes on {processes} x {device_type}",
        "precision": precision,
    }
    if skipped:
        results["bad images skipped"] = f"{skipped:,}"
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
    )
    _print_results(output_dir, images, skipped, knn)


def _print_results(output_dir: Path, images: int, skipped: int, knn: dict[str, float]) -> None:
    if skipped:
        print(f"skipped    {skipped} of {images} images, which cannot be decoded")
    for features, accuracy in knn.items():
        print(f"k-NN accuracy, {features:18} {100 * accuracy:5.1f} %")
    print(f"pictures   {output_dir / 'reconstruction.png'}  {output_dir / 'loss.png'}")
    print(f"model      {output_dir}: MAEModel.from_pretrained({str(output_dir)!r})")
