"""The kinds of errors that end a command with one line instead of a traceback."""


class UserError(ValueError):
    """What the user of a command can mend. The message is one line: the value, the reason, the remedy."""


class TrainingStopped(Exception):
    """Training ended before its last update. The message says where, why and how to go on; `code` is the exit
    status."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code
