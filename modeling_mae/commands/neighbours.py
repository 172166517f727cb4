"""`mae neighbours`."""

import csv
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from .common import add_image_arguments, image_options, run_to_its_end


PRINTED = 20  # near-duplicates that are printed; a file has all
SHOWN = 12  # rows of the picture


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    parser.add_argument(
        "features", help="a parquet file of `mae features`; or a folder or data set, with --checkpoint"
    )
    parser.add_argument("images", nargs="*", help="whose neighbours are looked for: image files, or a folder")
    parser.add_argument("--k", type=int, default=5, help="neighbours of each image (default 5)")
    parser.add_argument("--duplicates", action="store_true", help="look for near-duplicates among the features")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="COSINE",
        help="from which two images count as near-duplicates (default 0.9); of features that are centred and have the "
        "same variance in each of their directions, so that different images are near 0 and copies near 1",
    )
    parser.add_argument("--checkpoint", help="of a folder's features; of a features file's, if it has moved")
    parser.add_argument("--output", type=Path, metavar="OUT.csv", help="write the table there too")
    parser.add_argument(
        "--picture", type=Path, metavar="OUT.png", help="draw the images beside those that are like them"
    )
    add_image_arguments(parser)
    return lambda arguments: run_to_its_end(run, arguments, "neighbours")


def run(arguments: Namespace) -> None:
    from ..errors import UserError
    from ..evaluation.neighbours import features_of_place, is_features_file, load_features
    from ..evaluation.tables import quiet_accelerator

    if bool(arguments.images) == arguments.duplicates:
        raise UserError("give images to look for their neighbours, or --duplicates, and not both")
    quiet_accelerator()
    if arguments.features.endswith(".parquet") and is_features_file(arguments.features):
        features = load_features(arguments.features)
    elif arguments.checkpoint:
        options = {**image_options(arguments), "progress": True}
        features = features_of_place(arguments.features, arguments.checkpoint, **options)
    else:
        raise UserError(
            f"{arguments.features!r} is no features file: write one with `mae features`, or give --checkpoint and a "
            "folder of images"
        )
    show_duplicates(arguments, features) if arguments.duplicates else show_neighbours(arguments, features)


def show_neighbours(arguments: Namespace, features) -> None:
    from ..evaluation.neighbours import nearest_neighbours, query_features

    images = arguments.images[0] if len(arguments.images) == 1 else arguments.images
    queries = query_features(features, images, checkpoint=arguments.checkpoint, on_bad_image=arguments.on_bad_image)
    positions, cosines = nearest_neighbours(features, queries, arguments.k)
    table = [
        (name, rank, features.files[position], f"{cosine:.4f}")
        for name, row, values in zip(queries.files, positions, cosines, strict=True)
        for rank, (position, cosine) in enumerate(zip(row, values, strict=True), 1)
    ]
    for name, row, values in zip(queries.files, positions, cosines, strict=True):
        print(name)
        for position, cosine in zip(row, values, strict=True):
            print(f"    {cosine:.4f}  {features.files[position]}")
    write_table(arguments.output, ("file", "rank", "neighbour", "cosine"), table)
    if arguments.picture:
        draw(arguments, features, images, queries, positions, cosines)


def show_duplicates(arguments: Namespace, features) -> None:
    from ..evaluation.neighbours import ALIKE, near_duplicates

    threshold = ALIKE if arguments.threshold is None else arguments.threshold
    positions, earlier, cosines = near_duplicates(features, threshold)
    rows = [
        (features.files[one], features.files[other], f"{cosine:.4f}")
        for one, other, cosine in zip(positions, earlier, cosines, strict=True)
    ]
    for one, other, cosine in rows[:PRINTED]:
        print(f"{cosine}  {one}  is like  {other}")
    more = f", the first {PRINTED} above" if len(rows) > PRINTED else ""
    print(f"alike      {len(rows):,} of {len(features):,} images are like an earlier one (cosine {threshold:g}){more}")
    write_table(arguments.output, ("file", "like", "cosine"), rows)
    if arguments.picture and rows:
        draw(arguments, features, None, None, list(zip(positions, earlier, strict=True)), cosines[:, None])


def draw(arguments: Namespace, features, images, queries, positions, cosines) -> None:
    """A row for each image: the query and its neighbours, or two near-duplicates."""
    from ..checkpoint import open_checkpoint
    from ..data.find.places import open_place
    from ..evaluation.inputs import open_inputs
    from ..evaluation.neighbours import images_of, pixels_of
    from ..report.alike import neighbours_picture, shortened

    bank, rows = images_of(features, arguments.checkpoint), []
    if queries is not None:
        checkpoint = open_checkpoint(arguments.checkpoint or features.about["checkpoint"])
        white, source = bank.processing.white, open_place(images)
        asked = open_inputs(checkpoint, source, on_bad_image="skip", white=white, say=lambda text: None)
    for i, found in enumerate(positions[:SHOWN]):
        pixels = pixels_of(bank, [features.rows[position] for position in found])
        names = [shortened(features.files[position]) for position in found]
        values = [f"{cosine:.4f}" for cosine in cosines[i]]
        if queries is not None:
            row = [(pixels_of(asked, [queries.rows[i]])[0], shortened(queries.files[i]))]
        else:
            row, values = [], ["", *values]
        titles = [f"{name}\n{value}".strip() for name, value in zip(names, values, strict=True)]
        rows.append([*row, *zip(pixels, titles, strict=True)])
    neighbours_picture(arguments.picture, rows)
    print(f"picture    {arguments.picture}")


def write_table(path: Path | None, titles: tuple[str, ...], rows: list[tuple]) -> None:
    from ..files import replacing

    if path is not None:
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([titles, *rows])
        print(f"written    {path}")
