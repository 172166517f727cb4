"""`mae predict`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from .common import SOURCE, add_image_arguments, apply_settings, run_to_its_end


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    parser.epilog = (
        "Several processes: accelerate launch -m modeling_mae predict ... A killed run goes on with the same command."
    )
    parser.add_argument("checkpoint", help="file, folder or Hub id of a classifier, as run_eval.py writes it")
    parser.add_argument("source", help=f"{SOURCE}; labels are not needed")
    parser.add_argument("output", metavar="OUT", help="OUT.parquet or OUT.csv")
    parser.add_argument("--to", choices=("parquet", "csv"), help="default: as OUT ends")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, finished or not")
    add_image_arguments(parser)
    return lambda arguments: run_to_its_end(run, arguments, "predict")


def run(arguments: Namespace) -> None:
    from ..evaluation.prediction import write_predictions
    from ..evaluation.tables import Output

    output = Output(arguments.output, arguments.to, arguments.overwrite)
    write_predictions(arguments.checkpoint, arguments.source, output, apply_settings(arguments))
