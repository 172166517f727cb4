"""Words that several rooms share: values of options, and counts."""

import re


SEMANTIC_SEGMENTATION = "semantic_segmentation"  # a problem_type, for which transformers has no name
SLICES = re.compile(r"all|(middle|every):([1-9]\d{0,8})")  # which slices of a volume are images
NEW_BANDS = re.compile(r"mean|random|rgb:(\d+),(\d+),(\d+)")  # what becomes of a checkpoint's bands


def counted(number: float, thing: str, things: str = "") -> str:
    """`1 image`, `1,234 images`; `things` is the plural, unless that is the singular with an s."""
    amount = f"{int(number):,}" if number == int(number) else f"{number:g}"
    return f"{amount} {thing if number == 1 else things or f'{thing}s'}"
