"""What a stage says of itself.

A new stage is one module with a :class:`Stage` at its end, and a line in `dto.pipeline`; every
other list of stages follows from there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple

from dto.context import Context
from dto.recipe import Recipe
from dto.runs.reader import RunReader

Work = Callable[..., Awaitable[Any]]
"""`work(*rows, ctx)` for one group: gives a record, a Dropped, or a list of records, Dropped and
Timed."""
Needs = Literal["nothing", "tokenizer", "model"]

_DRAWN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty")
SAMPLING = tuple(f"sample.{key}" for key in _DRAWN)
"""Settings of everything that imitates the policy."""
ANSWERING = tuple(f"evaluate.{key}" for key in ("samples", "max_tokens", *_DRAWN))
"""Settings of everything that answers as `evaluate` does."""
RENDERING = (
    "model.name", "model.revision", "model.tokenizer", "model.family", "model.system",
    "model.template", "model.think",
)  # fmt: skip
"""What decides how a message is rendered, and where a response thinks."""


class Group(NamedTuple):
    """The rows that are worked on together, and the key under which their result is kept.

    A group of one Dropped is that row's end: no work is done for it.
    """

    key: str
    rows: tuple[Any, ...]


class Timed(NamedTuple):
    """A row for the table, and beside it what depends on scheduling.

    `seconds` run from the request to the grade, under whatever load the engine has. `wasted` counts
    tokens that were generated for the row and are not in it, aborted requests included (where an
    abort races with a step, at most one token too many for each).
    """

    row: Any
    seconds: float
    wasted: int = 0


class Card(NamedTuple):
    """How a stage's table is published: a config of the run's dataset on the Hub.

    Without a `split` the rows have one of their own, and the config a file for each of them.
    """

    place: int  # in the card; the lowest that a run has is what `load_dataset` gives unasked
    config: str
    split: str
    about: str


def always(*values: str) -> Callable[[Recipe], tuple[str, ...]]:
    """The same for every recipe."""
    return lambda recipe: values


def responses(recipe: Recipe) -> str:
    """How many responses a run samples, in words."""
    if recipe.sample.imported:
        return "imported"
    return f"{recipe.problems.train * recipe.sample.samples:,}"


def never(recipe: Recipe) -> bool:
    """For no recipe."""
    return False


def _no_groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    return iter(())


async def _no_work(*rows: Any) -> None:
    """Of a stage that works whole."""


_BASE, _NOTHING = always("base"), always()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of a run: groups of rows go in, a table comes out; or it works as a whole.

    `reads` are the stages whose tables it reads (those upstream of them are implied). `settings`
    are the keys that decide its rows, beside `seed`; one that ends in a dot is a whole group. What
    a stage before it reads is left out: that one's digest says so. `files` name files and folders
    whose content decides too. `groups` are read off the event loop; for a stage without a model
    `ctx` has no engine.

    Every group goes through `work`. A stage that works `whole` has neither groups nor work: it is
    given the run's directory, its recipe and whether programs may be run, once every engine is
    closed, and returns what its manifest is to say.
    """

    name: str
    about: str
    """What `dto --help` says."""
    amount: Callable[[Recipe], str]
    """How much it does, for the plan."""
    reads: Callable[[Recipe], tuple[str, ...]]
    settings: Callable[[Recipe], tuple[str, ...]]
    record: type[Any] = NoneType
    """A row of its table."""
    groups: Callable[[RunReader, Context], Iterator[Group]] = _no_groups
    work: Work = _no_work
    whole: Callable[[Path, Recipe, bool], dict[str, Any]] | None = None
    total: Callable[[RunReader], int | None] = lambda run: None
    """How many groups there are, for the progress bar."""
    needs: Needs = "model"
    models: Callable[[Recipe], tuple[str, ...]] = _BASE
    """The models that it asks in turn: `base`, `trained`, or names of others."""
    asks_model: Callable[[Recipe], bool] | None = None
    """Whether the model's settings and weights decide its rows; None: as it needs one."""
    renders: bool = False
    """Whether prompts decide its rows though no model does."""
    asks_judge: Callable[[Recipe], bool] = never
    """Whether a judge of its own decides its rows."""
    check: Callable[[Context], None] | None = None
    """Refuse, before any work, what the engine cannot do."""
    files: Callable[[Recipe], tuple[str, ...]] = _NOTHING
    window: int | None = None
    """Groups under way at once; None: `window` of the recipe."""
    spends: bool = True
    """Whether what it takes is a cost of optimizing and training."""
    step: bool = True
    """Whether `dto run` goes through it and it has a command of its own."""
    card: Card | None = None
    paper: str = ""
    """The arXiv id of the paper whose step it is."""
    width: Callable[[Recipe], int] = lambda recipe: 1
    """How many requests it makes together for one row."""
    of_method: bool = False
    """Whether a method of a comparison may have settings of its own for it."""

    def decided_by_model(self, recipe: Recipe) -> bool:
        """Whether the model's settings and weights decide its rows."""
        return self.needs == "model" if self.asks_model is None else self.asks_model(recipe)
