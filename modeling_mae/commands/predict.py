"""`mae predict`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from .common import SOURCE, add_image_arguments, apply_settings, run_to_its_end


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    parser.epilog = (
        "Several processes: accelerate launch -m modeling_mae predict ... A killed run goes on with the same command."
    )
    parser.add_argument("checkpoint", help="file, folder or Hub id of a model, as run_eval.py writes it")
    parser.add_argument("source", help=f"{SOURCE}; labels are not needed")
    parser.add_argument("output", metavar="OUT", help="OUT.parquet or OUT.csv; for masks a folder, of a PNG an image")
    parser.add_argument("--to", choices=("parquet", "csv"), help="default: as OUT ends")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, finished or not")
    parser.add_argument(
        "--overlay",
        choices=("true", "false"),
        default="false",
        help="true: for each mask also the image under the colours of its classes",
    )
    add_image_arguments(parser)
    return lambda arguments: run_to_its_end(run, arguments, "predict")


def run(arguments: Namespace) -> None:
    from ..checkpoint import open_checkpoint
    from ..evaluation.mask_prediction import MaskOutput, output_folder, write_masks, writes_masks
    from ..evaluation.prediction import write_predictions
    from ..evaluation.tables import Output

    if writes_masks(open_checkpoint(arguments.checkpoint)):
        folder = MaskOutput(output_folder(arguments.output), arguments.overlay == "true", arguments.overwrite)
        write_masks(arguments.checkpoint, arguments.source, folder, apply_settings(arguments))
        return
    output = Output(arguments.output, arguments.to, arguments.overwrite)
    write_predictions(arguments.checkpoint, arguments.source, output, apply_settings(arguments))
