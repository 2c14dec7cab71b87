"""Every token counted: engines charge the usage of a request to whoever asked for it.

The runner opens a `metered` scope around each group of rows; engines call `charge`. The scope is a
context variable, so it follows the tasks that a stage function starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields


@dataclass(slots=True)
class Usage:
    """Tokens and FLOPs of some requests.

    `generated` includes `wasted`: tokens that were sampled and then thrown away (cancelled
    requests). `cached` is the part of `prompt` that was not computed again. Cached and wasted
    depend on scheduling, so they never enter a table; they are kept beside it. `failed` counts the
    requests that came back as `failed`: the runner owes their rows again.
    """

    requests: int = 0
    failed: int = 0
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    wasted: int = 0
    attention_flops: float = 0.0

    def add(self, other: Usage) -> None:
        """Add another usage to this one."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


_scopes: ContextVar[tuple[Usage, ...]] = ContextVar("dto_ledger", default=())


@contextmanager
def metered() -> Iterator[Usage]:
    """Collect what is charged inside the block, by tasks started there too; scopes nest."""
    usage = Usage()
    token = _scopes.set((*_scopes.get(), usage))
    try:
        yield usage
    finally:
        _scopes.reset(token)


def charge(usage: Usage) -> None:
    """Charge a request to all open scopes. Call it on the event loop, in the caller's task."""
    for scope in _scopes.get():
        scope.add(usage)
