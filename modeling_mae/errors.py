"""The kind of error that ends a command with one line instead of a traceback."""


class UserError(ValueError):
    """What the user of a command can mend. The message is one line: the value, the reason, the remedy."""
