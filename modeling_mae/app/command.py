"""The command `mae app`: its options, and what it runs."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import UserError


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
    if arguments.max_images < 1:
        raise UserError(f"--max_images {arguments.max_images} must be at least 1")
    if arguments.port is not None and not 0 < arguments.port <= LAST_PORT:
        raise UserError(f"--port {arguments.port} does not work: give 1 ... {LAST_PORT}, or leave it out")
    if arguments.to_space:
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
    serve(arguments.checkpoint, arguments.images, arguments.max_images, arguments.port)


def serve(
    checkpoint: str,
    images: str | None = None,
    most: int = MOST_IMAGES,
    port: int | None = None,
    title: str | None = None,
) -> None:
    """Serve the page of a checkpoint until Ctrl-C. A Space runs this too. `title` is shown above the page.

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
    from .explorer import Explorer, Folder

    explorer = Explorer(checkpoint)
    folder = Folder(explorer, images, most, progress) if images else None
    launch(Page(explorer, folder, title), port)


def progress(batches: list) -> Iterable:
    from tqdm import tqdm

    return tqdm(batches, desc="reading the folder", unit="batch", leave=False)
