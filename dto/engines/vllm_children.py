"""What every process of a vLLM engine does first: it binds its life to its parent's.

vLLM loads this as a general plugin, through its entry point in pyproject.toml. Its engine core does
not notice that the process which started it was killed, and would hold the GPU for ever.
"""

from __future__ import annotations

import multiprocessing
import os

from dto import processes

SWITCH = "DTO_VLLM_CHILD"  # set for the processes that our engine starts, and no other


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends; outside of our engine nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None and SWITCH in os.environ:
        processes.die_with_parent(parent.pid)
