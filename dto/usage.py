"""Count the tokens and FLOPs of every request.

The runner opens a `metered` scope around each group of rows, and engines `charge` each request to
the open scopes. Scopes and account are context variables, so tasks started by a stage function
inherit them. In the same way the grader counts the comparisons that it gave up.

Attention FLOPs are the cost that 2505.21765 (section 4) reports. The query at position t attends to
t + 1 keys. In each of L layers and H heads of width D, the scores q·k and the weighted sum of the
values each take one multiplication and one addition per key and channel:

    attention(t) = 4 · L · H · D · (t + 1)

Model FLOPs add all other operations by the usual rule (2001.08361, section 2.1): each of the N
parameters in a token's forward pass takes one multiplication and one addition:

    forward(t) = 2 · N + attention(t)

N excludes lookup tables (embeddings of tokens and positions) and includes the LM head, tied or not.
For a mixture of experts, N includes the share of the experts that one token uses. For prompt tokens
this is an upper bound, because an engine computes the LM head for the last one only.

Cached prefixes cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from math import isnan, nan
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes in the formulas. `parameters` is N, or None if unknown."""

    layers: int
    heads: int
    head_dim: int
    parameters: int | None = None


def attention_flops(shape: ModelShape | None, start: int, end: int) -> float:
    """Attention FLOPs of positions start … end-1, with all earlier keys cached.

    Sum over t of 4·L·H·D·(t + 1); nan if the shape is unknown.
    """
    if shape is None:
        return nan
    keys = (end * (end + 1) - start * (start + 1)) // 2
    return float(4 * shape.layers * shape.heads * shape.head_dim * keys)


def forward_flops(shape: ModelShape | None, start: int, end: int) -> float:
    """Model FLOPs of positions start … end-1, with all earlier keys cached.

    Sum over t of 2·N + 4·L·H·D·(t + 1); nan if the shape or N is unknown.
    """
    if shape is None or shape.parameters is None:
        return nan
    return 2.0 * shape.parameters * (end - start) + attention_flops(shape, start, end)


Account = Literal["policy", "judge"]
"""The account of a request. A judge's tokens are counted separately, even if the policy judges."""


@dataclass(slots=True)
class Usage:
    """Tokens and FLOPs of some requests.

    `generated` includes `wasted` tokens, which were sampled and then discarded (cancelled
    requests). `cached` is the part of `prompt` that came from the prefix cache. Cached and wasted
    tokens depend on scheduling, so they are stored beside the tables, never in them. `failed`
    counts failed requests, whose rows the runner computes again. FLOPs follow the module's
    formulas, nan if the model's shape is unknown; model FLOPs include attention FLOPs.
    """

    requests: int = 0
    failed: int = 0
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    wasted: int = 0
    attention_flops: float = 0.0
    model_flops: float = 0.0

    @staticmethod
    def read(data: Mapping[str, Any]) -> Usage:
        """Read a usage from JSON. FLOPs that an earlier version did not count are nan."""
        known = {key: nan if value is None else value for key, value in data.items()}
        return Usage(**({"model_flops": nan} | known if data else {}))

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON, which has no nan: unknown FLOPs become null."""
        return {key: None if isnan(value) else value for key, value in asdict(self).items()}

    def add(self, other: Usage) -> None:
        """Add another usage to this one."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


_scopes: ContextVar[tuple[tuple[Account, Usage], ...]] = ContextVar("dto_ledger", default=())
_account: ContextVar[Account] = ContextVar("dto_account", default="policy")
_given_up: ContextVar[tuple[Counter[str], ...]] = ContextVar("dto_given_up", default=())


@contextmanager
def metered(account: Account = "policy") -> Iterator[Usage]:
    """Collect the usage charged to an account inside the block, also by tasks started there.

    Scopes nest.
    """
    usage = Usage()
    token = _scopes.set((*_scopes.get(), (account, usage)))
    try:
        yield usage
    finally:
        _scopes.reset(token)


@contextmanager
def charged_to(account: Account) -> Iterator[None]:
    """Charge requests made inside the block to this account."""
    token = _account.set(account)
    try:
        yield
    finally:
        _account.reset(token)


def charge(usage: Usage) -> None:
    """Add the usage of a request to all open scopes of the current account.

    Call this on the event loop, in the caller's task.
    """
    account = _account.get()
    for owner, scope in _scopes.get():
        if owner == account:
            scope.add(usage)


@contextmanager
def counting_given_up() -> Iterator[Counter[str]]:
    """Count answers that were passed to :func:`give_up`, by reason.

    Includes tasks started inside the block. Scopes nest.
    """
    reasons: Counter[str] = Counter()
    token = _given_up.set((*_given_up.get(), reasons))
    try:
        yield reasons
    finally:
        _given_up.reset(token)


def give_up(reason: str) -> None:
    """Count an answer whose comparison exceeded a limit, crashed, or failed under its rule."""
    for reasons in _given_up.get():
        reasons[counted_as(reason)] += 1


def counted_as(reason: str) -> str:
    """A reason without the message of its exception: `rule_error: ValueError`."""
    return ": ".join(reason.split(": ", 2)[:2])
