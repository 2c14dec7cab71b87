"""What work took: every token counted, and the FLOPs of a model.

The runner opens `metered` scopes around each group of rows; engines `charge` the usage of a request
to whoever asked for it. Scopes and account are context variables, so they follow the tasks that a
stage function starts. In the same way the grader says which comparisons it gave up.

Attention FLOPs are the cost that 2505.21765 (section 4) reports. One query position t attends to
t + 1 keys; in each of L layers and H heads of width D the scores q·k and the sum over values take
one multiply and one add per key and channel each:

    attention(t) = 4 · L · H · D · (t + 1)

Model FLOPs count everything else too, by the usual rule (2001.08361, section 2.1): each of the N
parameters that take part in a token's forward pass multiplies and adds once:

    forward(t) = 2 · N + attention(t)

N leaves out the tables that a token only looks a row up in (embeddings of tokens and positions) and
has the LM head, tied or not. Of a mixture of experts it has the share of the experts that a token
is sent to. An upper bound for tokens that are read: an engine computes the LM head of the last of
them alone. Training takes a forward pass and a backward pass of twice its FLOPs: 6 · N a token.
Adapters (LoRA) need no gradients of the frozen weights: 4 · N, their own parameters, a percent or
so, left out. Gradient checkpointing computes the forward pass a second time, and a reference model
(DPO, O1-Pruner, GRPO with a divergence) one of its own: 2 · N more each. Cached prefixes cost
nothing again.
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
    """What the formulas need; `parameters` is N, None where it is not known."""

    layers: int
    heads: int
    head_dim: int
    parameters: int | None = None


def attention_flops(shape: ModelShape | None, start: int, end: int) -> float:
    """FLOPs of the attention at positions start … end-1, given that all earlier keys are cached.

    Sum over t of 4·L·H·D·(t + 1); nan when the shape is not known.
    """
    if shape is None:
        return nan
    keys = (end * (end + 1) - start * (start + 1)) // 2
    return float(4 * shape.layers * shape.heads * shape.head_dim * keys)


def forward_flops(shape: ModelShape | None, start: int, end: int) -> float:
    """Model FLOPs of positions start … end-1, given that all earlier keys are cached.

    Sum over t of 2·N + 4·L·H·D·(t + 1); nan when the shape or the parameters are not known.
    """
    if shape is None or shape.parameters is None:
        return nan
    return 2.0 * shape.parameters * (end - start) + attention_flops(shape, start, end)


Account = Literal["policy", "judge"]
"""For whom tokens are generated: a judge's are counted apart, also when the policy judges."""


@dataclass(slots=True)
class Usage:
    """Tokens and FLOPs of some requests.

    `generated` includes `wasted`: tokens that were sampled and then thrown away (cancelled
    requests). `cached` is the part of `prompt` that was not computed again. Cached and wasted
    depend on scheduling, so they never enter a table; they are kept beside it. `failed` counts the
    requests that came back as `failed`: the runner owes their rows again. FLOPs are those of
    `dto.usage`, nan where the model is not known well enough; model FLOPs hold the attention's.
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
        """From JSON. FLOPs are not known where an earlier version did not count them."""
        known = {key: nan if value is None else value for key, value in data.items()}
        return Usage(**({"model_flops": nan} | known if data else {}))

    def as_json(self) -> dict[str, Any]:
        """For JSON, which has no nan: FLOPs that are not known are null."""
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
    """Collect what is charged to an account inside the block, by tasks started there too.

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
    """Requests made inside the block go to this account."""
    token = _account.set(account)
    try:
        yield
    finally:
        _account.reset(token)


def charge(usage: Usage) -> None:
    """Charge a request to all open scopes of the account that it is made for.

    Call it on the event loop, in the caller's task.
    """
    account = _account.get()
    for owner, scope in _scopes.get():
        if owner == account:
            scope.add(usage)


@contextmanager
def counting_given_up() -> Iterator[Counter[str]]:
    """Count, by reason, the answers inside the block that are wrong for want of time or memory.

    Tasks started there count too. Scopes nest.
    """
    reasons: Counter[str] = Counter()
    token = _given_up.set((*_given_up.get(), reasons))
    try:
        yield reasons
    finally:
        _given_up.reset(token)


def give_up(reason: str) -> None:
    """Count an answer that is graded wrong because comparing it exceeded a limit, or broke."""
    for reasons in _given_up.get():
        reasons[reason] += 1
