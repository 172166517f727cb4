"""Counts in words."""


def counted(number: float, thing: str, things: str = "") -> str:
    """`1 image`, `1,234 images`; `things` is the plural where it is not the singular with an s."""
    amount = f"{int(number):,}" if number == int(number) else f"{number:g}"
    return f"{amount} {thing if number == 1 else things or f'{thing}s'}"
