"""`python -m modeling_mae.app`, the same as `mae app`."""

import argparse
import sys

from ..errors import UserError
from .command import HELP, add_arguments


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m modeling_mae.app", description=HELP)
    run = add_arguments(parser)
    try:
        run(parser.parse_args())
    except UserError as error:
        sys.exit(f"modeling_mae.app: error: {error}")


if __name__ == "__main__":
    main()
