"""`mae neighbours`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import add_image_arguments, apply_settings, run_to_its_end


if TYPE_CHECKING:
    from ..evaluation.extraction import Features

PRINTED = 20  # near-duplicates printed; the file has all
SHOWN = 12  # rows of the picture


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    parser.add_argument(
        "features", help="a parquet file of `mae features`; or a folder or data set, with --checkpoint"
    )
    parser.add_argument("images", nargs="*", help="find the neighbours of these: image files, or a folder")
    parser.add_argument("--k", type=int, default=5, help="neighbours of each image (default 5)")
    parser.add_argument("--duplicates", action="store_true", help="find near-duplicates among the images")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="COSINE",
        help="cosine from which two images count as near-duplicates (default 0.9). Features are whitened "
        "first, so that different images are near 0 and copies near 1",
    )
    parser.add_argument("--checkpoint", help="for a folder; for a features file if its own has moved")
    parser.add_argument("--output", metavar="OUT.csv", help="write the table to this file too")
    parser.add_argument("--picture", metavar="OUT.png", help="draw the images and those that are like them")
    add_image_arguments(parser)
    return lambda arguments: run_to_its_end(run, arguments, "neighbours")


def run(arguments: Namespace) -> None:
    from ..errors import UserError
    from ..evaluation.extraction import extract_features
    from ..evaluation.neighbours import is_features_file, load_features
    from ..evaluation.tables import local_path, quiet_accelerator

    if bool(arguments.images) == arguments.duplicates:
        raise UserError("give either images, to find their neighbours, or --duplicates")
    for output in ("output", "picture"):
        if getattr(arguments, output) is not None:
            setattr(arguments, output, local_path(getattr(arguments, output)))
    quiet_accelerator()
    if arguments.features.endswith(".parquet") and is_features_file(arguments.features):
        features = load_features(arguments.features)
    elif arguments.checkpoint:
        options = asdict(apply_settings(arguments))
        features = extract_features(arguments.checkpoint, arguments.features, progress=True, **options)
    else:
        raise UserError(
            f"{arguments.features!r} is not a features file: write one with `mae features`, or give --checkpoint and "
            "a folder of images"
        )
    show_duplicates(arguments, features) if arguments.duplicates else show_neighbours(arguments, features)


def show_neighbours(arguments: Namespace, features: "Features") -> None:
    from ..evaluation.neighbours import nearest_neighbours, query_features

    reading = apply_settings(arguments)
    images = arguments.images[0] if len(arguments.images) == 1 else arguments.images
    queries = query_features(
        features,
        images,
        checkpoint=arguments.checkpoint,
        on_bad_image=reading.on_bad_image,
        max_image_pixels=reading.max_image_pixels,
    )
    positions, cosines = nearest_neighbours(features, queries, arguments.k)
    table = []
    for name, row, values in zip(queries.files, positions, cosines, strict=True):
        print(name)
        for rank, (position, cosine) in enumerate(zip(row, values, strict=True), 1):
            print(f"    {cosine:.4f}  {features.files[position]}")
            table.append((name, rank, features.files[position], f"{cosine:.4f}"))
    write_table(arguments.output, ("file", "rank", "neighbour", "cosine"), table)
    if arguments.picture:
        draw(arguments, features, (queries, images), positions, cosines)


def show_duplicates(arguments: Namespace, features: "Features") -> None:
    from ..evaluation.neighbours import ALIKE, near_duplicates

    threshold = ALIKE if arguments.threshold is None else arguments.threshold
    positions, earlier, cosines = near_duplicates(features, threshold)
    rows = [
        (features.files[one], features.files[other], f"{cosine:.4f}")
        for one, other, cosine in zip(positions, earlier, cosines, strict=True)
    ]
    for one, other, value in rows[:PRINTED]:
        print(f"{value}  {one}  is like  {other}")
    more = f", the first {PRINTED} above" if len(rows) > PRINTED else ""
    print(f"alike      {len(rows):,} of {len(features):,} images are like an earlier one (cosine {threshold:g}){more}")
    write_table(arguments.output, ("file", "like", "cosine"), rows)
    if arguments.picture and rows:
        alike = replace(
            features,
            files=[features.files[position] for position in positions],
            rows=[features.rows[position] for position in positions],
        )
        draw(arguments, features, (alike, None), earlier[:, None], cosines[:, None])


def draw(
    arguments: Namespace, features: "Features", asked: tuple["Features", Any], positions: Any, cosines: Any
) -> None:
    """Draws a row per query: its image, then the images of `features` at `positions` ``(queries, k)``. `asked` is (the
    queries' features, the given images; None for images of `features`)."""
    from ..checkpoint import open_checkpoint
    from ..evaluation.neighbours import images_of, pixels_of, slices_of
    from ..evaluation.tables import ApplySettings
    from ..report.neighbours import NeighbourRows, save_neighbours, shortened

    bank = inputs = images_of(features, arguments.checkpoint)
    queries, images = asked
    if images is not None:
        checkpoint = arguments.checkpoint or features.about["checkpoint"]
        settings = ApplySettings(**{"on_bad_image": "skip", **slices_of(features, images)})
        white = bank.processing.white
        inputs = settings.open(open_checkpoint(checkpoint), images, white=white, say=lambda text: None)
    positions = positions[:SHOWN]
    found = pixels_of(bank, [features.rows[position] for position in positions.flatten()])
    titles = [
        [shortened(name), *(f"{shortened(features.files[at])}\n{value:.4f}" for at, value in zip(*row, strict=True))]
        for name, *row in zip(queries.files[:SHOWN], positions, cosines[:SHOWN], strict=True)
    ]
    shown = NeighbourRows(pixels_of(inputs, queries.rows[:SHOWN]), found.unflatten(0, positions.shape), titles=titles)
    channels = found.shape[1]
    save_neighbours(arguments.picture, shown, [0.0] * channels, [1.0] * channels)
    print(f"picture    {arguments.picture}")


def write_table(path: Path | None, titles: tuple[str, ...], rows: list[tuple]) -> None:
    from ..files import write_csv

    if path is not None:
        write_csv(path, titles, rows)
        print(f"written    {path}")
