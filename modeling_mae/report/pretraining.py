"""What pre-training leaves beside the model: its settings, log, loss curve, k-NN accuracies and card."""

from pathlib import Path

from ..files import write_json
from .advice import judge_growth
from .cards import Base, write_pretraining_card
from .charts import features_curve, loss_curve
from .figures import save_figure
from .run import PRETRAINING, Training, write_run
from .run_pages import run_figures, write_run_page


def about_model(config, parameters: int) -> dict:
    """What a report says of the model of an `MAEConfig`: `architecture` is a line, with the number of `parameters`."""
    patch, image = ("x".join(map(str, size)) for size in (config.patch_height_width, config.image_height_width))
    decoder = "decoder" if config.decoder_type == "self" else f"{config.decoder_type} decoder"
    architecture = (
        f"{config.num_hidden_layers} x {config.hidden_size} encoder, {config.decoder_num_hidden_layers} x "
        f"{config.decoder_hidden_size} {decoder}, {parameters / 1e6:.3g} M parameters, patches of {patch} in {image} "
        f"pixels, {config.num_channels} channel{'s' if config.num_channels > 1 else ''}"
    )
    return {"architecture": architecture, "depth": config.num_hidden_layers, "normalised": config.norm_pix_loss}


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
    picture: str = "",
    neighbours: str = "",
    depth: int | None = None,
    waited: float | None = None,
    license: str | None = None,
    base: Base | None = None,
) -> None:
    """Writes arguments.json, trainer_state.json, summary.json, loss.png, knn.json, README.md and report.html, and
    prints the results. features.png is written where `log` has entries of `FeatureGrowth`.

    `repo_id` is the Hub repository that users load the model from, None if there is none. `log` has one entry for
    each reading of the loss. `skipped` of the `images` could not be decoded, `incomplete` had missing values. `knn`
    is the accuracy in 0..1 of each kind of features, with `k` neighbours; it is empty if there is no k-NN evaluation,
    and then there is no knn.json.
    `picture` and `neighbours` say how reconstruction.png and neighbours.png were made, which are there already.
    `depth` is the number of the encoder's blocks. `waited` is the part of the time, 0..1, in which the training waited
    for images. `license` is the one that the card names. `base` are the weights that the training began
    with.
    """
    write_run(output_dir, arguments=arguments, updates=updates, updates_per_epoch=updates_per_epoch, log=log)
    training = Training(arguments, log)
    save_figure(loss_curve(log, normalised=normalised), output_dir / "loss.png")
    if len(training.growth) > 1:
        save_figure(features_curve(training.growth, k), output_dir / "features.png")
    if knn:
        write_json(output_dir / "knn.json", knn)
    summary = {"kind": PRETRAINING, "name": name, "repo_id": repo_id, "data": source_name, "images": images}
    summary |= {"architecture": architecture, "depth": depth, "normalised": normalised, "k": k}
    summary |= {"updates_per_epoch": updates_per_epoch, "seconds": seconds, "waited": waited, "processes": processes}
    summary |= {"device_type": device_type, "precision": precision, "skipped": skipped, "incomplete": incomplete}
    write_json(output_dir / "summary.json", summary | {"picture": picture, "neighbours": neighbours})
    results = {"final loss": f"{training.losses[-1]['loss']:.4f}", "updates": f"{updates:,}", **run_figures(summary)}
    write_pretraining_card(
        output_dir,
        name=name,
        data=f"{images:,} images of {source_name}",
        architecture=architecture,
        arguments=arguments,
        results=results,
        picture=picture,
        dataset_id=dataset_id,
        dataset_name=source_name,
        knn=knn,
        knn_split=knn_split,
        k=k,
        repo_id=repo_id,
        license=license,
        base=base,
        neighbours=neighbours,
    )
    page = write_run_page(output_dir)
    _print_results(output_dir, images, skipped, incomplete, knn)
    if len(training.growth) > 1:
        print(f"features   {output_dir / 'features.png'}: {judge_growth(training.growth)}")
    print(f"report     {page}")


def _print_results(output_dir: Path, images: int, skipped: int, incomplete: int, knn: dict) -> None:
    if skipped:
        print(f"skipped    {skipped} of {images} images, which cannot be decoded")
    if incomplete:
        print(f"filled     {incomplete} of {images} images, whose missing values became the mean of their band")
    for features, accuracy in knn.items():
        print(f"k-NN accuracy, {features:18} {100 * accuracy:5.1f} %")
    print(f"pictures   {output_dir / 'reconstruction.png'}  {output_dir / 'loss.png'}")
    print(f"model      {output_dir}: MAEModel.from_pretrained({str(output_dir)!r})")
