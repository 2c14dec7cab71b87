"""Python's garbage collector, in processes that are ours alone."""

import atexit
import gc
import sys


def collect_rarely() -> None:
    """Collect garbage less often in this process, and not at its exit.

    torch and its libraries leave a million objects that stay. Visiting them again and again takes a
    third of the time in which a process with them starts and ends.
    """
    gc.set_threshold(100_000, 20, 20)
    atexit.register(_skip_the_last)


def _skip_the_last() -> None:
    # Triton reports each of its objects that outlives the interpreter, in sixty lines.
    if "triton" not in sys.modules:
        gc.freeze()
