"""`mae features`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from .common import CHECKPOINT, SOURCE, add_image_arguments, apply_settings, run_to_its_end


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    parser.epilog = (
        "A killed run goes on with the same command. Several processes: accelerate launch -m modeling_mae features ..."
    )
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.add_argument("source", help=SOURCE)
    parser.add_argument("output", metavar="OUT.parquet", help="or OUT.npy, which also writes OUT.csv")
    parser.add_argument(
        "--block",
        type=int,
        nargs="+",
        metavar="N",
        help="encoder blocks, counted from 1; several are concatenated (default: the last)",
    )
    parser.add_argument(
        "--pooling",
        choices=("mean", "mean_deviation", "cls", "flatten", "patches", "attention"),
        help="how tokens become features: the mean of the patches, mean and standard deviation, the class token, all "
        "patches in a row, all patches as a map (rows, columns, width), or the checkpoint's trained attention "
        "(default: the checkpoint's own pooling, mostly the mean)",
    )
    parser.add_argument(
        "--to", choices=("parquet", "npy"), help="npy: an array, and the names as CSV (default: by the ending of OUT)"
    )
    parser.add_argument(
        "--per",
        choices=("image", "volume"),
        default="image",
        help="volume: one row for each volume, the mean over its slices (default: one for each image or slice)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, finished or not")
    add_image_arguments(parser)
    return lambda arguments: run_to_its_end(run, arguments, "features")


def run(arguments: Namespace) -> None:
    from ..errors import UserError
    from ..evaluation.extraction import write_features
    from ..evaluation.tables import Output

    output = Output(arguments.output, arguments.to, arguments.overwrite, arguments.per == "volume")
    settings = apply_settings(arguments)
    if arguments.per == "volume" and settings.slices is None:
        raise UserError("per volume needs slices: add --slices all")
    write_features(arguments.checkpoint, arguments.source, output, settings, arguments.block, arguments.pooling)
