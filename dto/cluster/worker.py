"""The actor: it holds an engine, and processes the groups that the driver gives it."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from dto.context import Context
from dto.errors import DtoError
from dto.recipe import Recipe
from dto.resources import Resources
from dto.runs.journal import Entry
from dto.runs.reader import RunReader
from dto.runs.stage import Group, Stage, attempt

GATHER_SECONDS = 0.01
"""How long a finished group waits for others, so that they share a reply."""


class Ticket(NamedTuple):
    """A group on its way; the number is given once in a session of the driver."""

    number: int
    group: Group


class Result(NamedTuple):
    """What became of a group: an entry, or the error of a stage that cannot run."""

    number: int
    entry: Entry | DtoError


class Worker:
    """Processes groups between `begin` and the next `begin`, all that it has at a time.

    A `term` numbers these times. A new process of a dead actor knows no term, so it can tell
    calls for its predecessor from its own.
    """

    def __init__(
        self, path: Path, recipe: Recipe, code: bool, planned: Sequence[Stage], home: str
    ) -> None:
        self._run, self._home = RunReader(path, recipe), home
        self._stages = {stage.name: stage for stage in planned}
        self._resources = Resources(self._run, code, planned)
        self._stack = AsyncExitStack()
        self._entered = False
        self._context: tuple[str, str, Context] | None = None  # of a stage and model
        self._term = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._results: list[Result] = []
        self._ready = asyncio.Event()

    async def place(self) -> str:
        """Return the name of this node. Raises DtoError if it lacks the run's directory."""
        node = platform.node()
        with suppress(OSError):  # relative paths of the recipe then fail with their own message
            os.chdir(self._home)
        if not (self._run.path / "recipe.yaml").is_file():
            raise DtoError(
                f"node {node} does not see {self._run.path}: keep the run in a folder that all "
                "nodes share, under the same path"
            )
        return node

    async def begin(self, name: str, model: str, term: int) -> None:
        """Open the engine for a stage and model, and drop groups that are in progress.

        Raises DtoError if the stage cannot run here.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._entered:
            await self._stack.enter_async_context(self._resources)
            self._entered = True
        if self._context is None or self._context[:2] != (name, model):
            ctx = await self._resources.context(self._stages[name], model)
            self._context = name, model, ctx
        self._term = term
        self._results.clear()
        self._ready.set()  # a `take` of the last term ends

    async def give(self, term: int, tickets: Sequence[Ticket]) -> None:
        """Start to process groups."""
        for ticket in tickets if term == self._term else ():
            task = asyncio.create_task(self._process(ticket))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def take(self, term: int) -> list[Result] | None:
        """Wait for finished groups, and return them; None in another term."""
        while term == self._term and not self._results:
            self._ready.clear()
            await self._ready.wait()
        await asyncio.sleep(GATHER_SECONDS)
        if term != self._term:
            return None
        results, self._results = self._results, []
        return results

    async def _process(self, ticket: Ticket) -> None:
        assert self._context is not None
        name, _, ctx = self._context
        work = self._stages[name].work
        entry: Entry | DtoError
        try:
            entry = await attempt(ticket.group, lambda *rows: work(*rows, ctx))
        except DtoError as error:
            entry = type(error)(str(error))
        self._results.append(Result(ticket.number, entry))
        self._ready.set()

    async def end(self) -> None:
        """Close the engine."""
        await self._stack.aclose()
