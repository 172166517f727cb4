"""The error for a wrong argument."""


class ArgumentError(ValueError):
    """An argument that cannot work. The message is one line: the value, the reason, the remedy.

    It is not the package's UserError, because importing the package loads torch: `--help` would take seconds.
    """
