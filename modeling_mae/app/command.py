"""The command `mae app`: its options, and what it runs."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..commands.common import add_slice_arguments
from ..errors import UserError


if TYPE_CHECKING:
    from ..data.find.slices import SliceSettings

MOST_IMAGES = 1000
LAST_PORT = 65535


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], None]:
    """Adds the options to `parser`. Returns the function that runs the command."""
    parser.add_argument("checkpoint", help="a file, a folder or a Hub id, of this or another project")
    parser.add_argument(
        "--images", metavar="FOLDER", help="show the nearest neighbours among the images of this folder"
    )
    parser.add_argument(
        "--max_images",
        type=int,
        default=MOST_IMAGES,
        help="use at most this many images of the folder, evenly spaced (default %(default)s)",
    )
    parser.add_argument(
        "--max_image_pixels", type=int, metavar="N", help="pixels of the largest image to read (default: 180 million)"
    )
    add_slice_arguments(parser)
    parser.add_argument(
        "--host",
        nargs="+",
        metavar="NAME",
        help="other names by which a browser reaches the page, as behind a proxy; '*' is any",
    )
    parser.add_argument("--port", type=int, help="port of the page (default: a free one, from 7860 on)")
    parser.add_argument(
        "--to_space",
        metavar="NAME/SPACE",
        help="write a folder that runs as a Hugging Face Space, push it if there is a token, and start nothing",
    )
    parser.add_argument(
        "--space_dir", type=Path, help="where --to_space writes (default: a folder with the Space's name)"
    )
    parser.add_argument("--private", action="store_true", help="make the Space private")
    return run


def run(arguments: Namespace) -> None:
    """Runs the command.

    Raises:
        UserError: an option does not work, or Gradio is missing.
    """
    for name in ("max_images", "max_image_pixels"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
    if arguments.port is not None and not 0 < arguments.port <= LAST_PORT:
        raise UserError(f"--port {arguments.port} does not work: give 1 ... {LAST_PORT}, or leave it out")
    if arguments.to_space:
        if arguments.slices:
            raise UserError("--slices is for volumes on this machine, and a Space gets pictures: leave one out")
        from .space import make_space  # imported late: it loads the Hub's client

        make_space(
            arguments.checkpoint,
            arguments.to_space,
            arguments.space_dir,
            images=arguments.images,
            most=arguments.max_images,
            private=arguments.private,
        )
        return
    from ..data.find.slices import SliceSettings  # late: it loads `datasets`

    serve(
        arguments.checkpoint,
        arguments.images,
        arguments.max_images,
        arguments.port,
        max_image_pixels=arguments.max_image_pixels,
        hosts=arguments.host or [],
        slices=SliceSettings(arguments.slices, arguments.neighbour_slices) if arguments.slices else None,
    )


def serve(
    checkpoint: str,
    images: str | None = None,
    most: int = MOST_IMAGES,
    port: int | None = None,
    title: str | None = None,
    max_image_pixels: int | None = None,
    hosts: Sequence[str] = (),
    slices: "SliceSettings | None" = None,
) -> None:
    """Serve the page of a checkpoint until Ctrl-C. A Space runs this too. `title` is shown above the page. It answers
    to the names of this machine and to `hosts`. With `slices`, it shows slices of stacks and volumes.

    Raises:
        UserError: the checkpoint, the folder or the port does not work, or Gradio is missing.
    """
    try:
        from .page import Page  # late: Gradio takes seconds
        from .serving import launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the app needs Gradio, which is not installed: pip install gradio") from None
    from ..data.read.limits import MOST_PIXELS
    from .explorer import Explorer, Folder

    explorer = Explorer(checkpoint, MOST_PIXELS if max_image_pixels is None else max_image_pixels, slices)
    folder = Folder(explorer, images, most, progress) if images else None
    launch(Page(explorer, folder, title), port, hosts)


def progress(batches: list) -> Iterable:
    from tqdm import tqdm

    return tqdm(batches, desc="reading the folder", unit="batch", leave=False)
