"""Arguments that name images, and the end of a run: shared by several subcommands."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..evaluation.tables import ApplySettings

CHECKPOINT = "file, folder or Hub id of any encoder or classifier, of this or another project"
SOURCE = (
    "a folder of images or of parquet files; an image, a parquet or a tar file; a URL or pattern of shards "
    "(https://host/shard-{000..999}.tar); cifar10, cifar100, stl10, imagenet, fashion_mnist; or a Hub id"
)
GO_ON = "the same command goes on"


def add_image_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments that say which images of the source to use, and how to read them."""
    parser.add_argument("--split", help="train, test, ... (default: all images of a path)")
    parser.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a data set on the Hub")
    parser.add_argument("--image_column_name", metavar="NAME", help="the column of images, if there are several")
    parser.add_argument("--label_column_name", metavar="NAME", help="the column to keep as label")
    parser.add_argument("--streaming", action="store_true", help="read parquet files as a stream, without a copy")
    parser.add_argument("--cache_dir", metavar="FOLDER", help="folder for the cache of `datasets`")
    parser.add_argument(
        "--on_bad_image",
        choices=("error", "skip"),
        default="error",
        help="skip: name, count and leave out unreadable images",
    )
    parser.add_argument(
        "--max_image_pixels", type=int, metavar="N", help="pixels of the largest image to read (default: 180 million)"
    )
    add_slice_arguments(parser)
    parser.add_argument("--batch_size", type=int, metavar="N", help="images at a time; fewer need less memory")
    parser.add_argument(
        "--dataloader_num_workers", type=int, metavar="N", help="processes that read images (default: one per core)"
    )


def add_slice_arguments(parser: ArgumentParser) -> None:
    """Adds the options that see stacks and volumes as slices."""
    parser.add_argument(
        "--slices",
        metavar="WHICH",
        help="slices of stacks and volumes, each as an image: all, middle:32 or every:4 (default: a stack's first "
        "page). Give what the checkpoint was trained with",
    )
    parser.add_argument(
        "--neighbour_slices",
        type=int,
        default=0,
        metavar="N",
        help="slices on each side that are channels of a slice, as in training",
    )


def apply_settings(arguments: Namespace) -> "ApplySettings":
    """The values of the arguments of `add_image_arguments`."""
    from ..data.read.limits import MOST_PIXELS
    from ..evaluation.tables import BATCH, ApplySettings

    return ApplySettings(
        split=arguments.split,
        dataset_config_name=arguments.dataset_config_name,
        image_column_name=arguments.image_column_name,
        label_column_name=arguments.label_column_name,
        streaming=arguments.streaming,
        cache_dir=arguments.cache_dir,
        slices=arguments.slices,
        neighbour_slices=arguments.neighbour_slices,
        on_bad_image=arguments.on_bad_image,
        max_image_pixels=MOST_PIXELS if arguments.max_image_pixels is None else arguments.max_image_pixels,
        batch_size=BATCH if arguments.batch_size is None else arguments.batch_size,
        num_workers=arguments.dataloader_num_workers,
    )


def run_to_its_end(work: Callable[[Namespace], None], arguments: Namespace, subcommand: str) -> None:
    """Runs ``work(arguments)``. A UserError, a full disk, a killed process and Ctrl-C end it with one line."""
    from ..training.endings import ignore_loading_workers, run_script

    try:
        run_script(work, arguments, script=f"mae {subcommand}", go_on=GO_ON)
    except KeyboardInterrupt:
        ignore_loading_workers()
        print(f"mae {subcommand}: stopped: {GO_ON}", file=sys.stderr)
        sys.exit(130)
