"""What a loading worker does before its first batch."""

import sys


def prepare_worker(worker: int) -> None:
    """Keep a thread that hands over batches silent when the training process goes away in the middle of one.

    Python prints a traceback then. The training process itself says in one line why it ended.
    """
    print_traceback = sys.excepthook

    def without_lost_connections(kind, error, trace) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            print_traceback(kind, error, trace)

    sys.excepthook = without_lost_connections
