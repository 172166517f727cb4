"""`python -m modeling_mae.interop` is `mae convert`."""

from ..__main__ import main


if __name__ == "__main__":
    main("convert", program="modeling_mae.interop")
