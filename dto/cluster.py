"""Process the groups of a run's stages on Ray actors, each with an engine of its own.

The driver is the process of `dto run`. It reads the groups, sends them to the least busy actor, and
alone writes the journal, as without Ray. So a run can be continued with any number of actors, or
without them, and its tables are the same. An actor holds no state of the run: if it dies, its
groups are computed again elsewhere.

Needed on every node: dto, the model, and the run's directory under the same path.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from dto.context import Context
from dto.errors import DtoError, EngineError
from dto.recipe import Recipe
from dto.records import Dropped
from dto.resources import Resources
from dto.runs.journal import Entry
from dto.runs.reader import RunReader
from dto.runs.stage import READ_AHEAD, Group, Stage, attempt

if TYPE_CHECKING:
    from ray.actor import ActorHandle

logger = logging.getLogger("dto")

START_SECONDS = 300.0
"""How long an actor may wait for its resources and start before it is reported."""
PIECE_SECONDS = 0.2
"""How long an entry that is ready may wait for others, to come back with them."""
BLOCK_SECONDS = 0.1
"""Blocks of groups that take less are made larger, up to `dto.runs.stage.READ_AHEAD` groups."""
MAX_DEATHS = 3
"""Actors that may die while they process a group, before the group is dropped."""


class Ray(NamedTuple):
    """Where the actors run: `address` of a cluster (None: started here), and how many (0: all)."""

    address: str | None = None
    actors: int = 0

    @classmethod
    def parse(cls, text: str) -> Ray:
        """Read `N`, `ADDRESS` or `ADDRESS,N`. Raises DtoError for anything else."""
        match = re.fullmatch(r"([1-9]\d*)|(?!\d+$)([^,\s]+)(?:,([1-9]\d*))?", text)
        if match is None:
            raise DtoError(
                f"--ray {text}: write a number of actors, the address of a cluster (auto, "
                "host:port) or both, as in auto,8"
            )
        alone, address, count = match.groups()
        return cls(address, int(alone or count or 0))


@dataclass(slots=True)
class Share:
    """What one actor did in a stage. `seconds`: the time in which it had work."""

    groups: int = 0
    generated: int = 0
    seconds: float = 0.0
    deaths: int = 0
    node: str = ""


class Worker:
    """The actor: opens what a stage needs when its first group arrives, and processes groups."""

    def __init__(
        self, path: Path, recipe: Recipe, code: bool, planned: Sequence[Stage], home: str
    ) -> None:
        self._run, self._code, self._planned, self._home = (
            RunReader(path, recipe), code, planned, home,
        )  # fmt: skip
        self._stack = AsyncExitStack()
        self._resources: Resources | None = None
        self._opening = asyncio.Lock()
        self._context: tuple[str, str, Context] | None = None  # of a stage and model
        self._stages = {stage.name: stage for stage in planned}

    async def begin(self) -> str:
        """Return the name of this node. Raises DtoError if it lacks the run's directory."""
        node = platform.node()
        with suppress(OSError):  # relative paths of the recipe then fail with their own message
            os.chdir(self._home)
        if not (self._run.path / "recipe.yaml").is_file():
            raise DtoError(
                f"node {node} does not see {self._run.path}: keep the run in a folder that all "
                "nodes share, under the same path"
            )
        resources = Resources(self._run, self._code, self._planned)
        self._resources = await self._stack.enter_async_context(resources)
        return node

    async def prepare(self, name: str, model: str) -> None:
        """Open what the stage `name` needs. Raises DtoError if the stage cannot run here."""
        async with self._opening:
            if self._resources is None:  # Ray has started this actor again
                await self.begin()
            assert self._resources is not None
            if self._context is None or self._context[:2] != (name, model):
                ctx = await self._resources.context(self._stages[name], model)
                self._context = name, model, ctx

    async def attempt(
        self, name: str, model: str, groups: Sequence[Group]
    ) -> AsyncIterator[list[Entry]]:
        """Process groups together; yield those that are ready, every `PIECE_SECONDS`.

        Raises DtoError if the stage cannot run here.
        """
        await self.prepare(name, model)
        assert self._context is not None
        stage, ctx = self._stages[name], self._context[2]
        tasks = {
            asyncio.ensure_future(attempt(group, lambda *rows: stage.work(*rows, ctx)))
            for group in groups
        }
        try:
            while tasks:
                done, tasks = await asyncio.wait(tasks, timeout=PIECE_SECONDS)
                if done:
                    yield [task.result() for task in done]
        finally:
            for task in tasks:
                task.cancel()

    async def end(self) -> None:
        """Close the engine."""
        await self._stack.aclose()


class Fleet:
    """Actors for consecutive stages; leaving the async context ends them."""

    def __init__(
        self, where: Ray, run: RunReader, allow_code_execution: bool, planned: Sequence[Stage]
    ) -> None:
        self._where, self._run, self._code = where, run, allow_code_execution
        self._planned = planned
        self._actors: list[ActorHandle[Worker]] = []
        self._busy: Counter[int] = Counter()  # groups by actor
        self._since: dict[int, float] = {}  # when `_busy` changed
        self._block = 1
        self._stage = ("", "")
        self._down: dict[int, asyncio.Task[None]] = {}  # actors that died and are started again
        self._reason = ""
        self.shares: list[Share] = []

    @property
    def size(self) -> int:
        """The number of actors."""
        return len(self._actors)

    def shared(self) -> list[dict[str, Any]]:
        """What each actor did since the last call: groups, tokens, seconds, deaths, node."""
        done = [asdict(share) for share in self.shares]
        self.shares = [Share(node=share.node) for share in self.shares]
        return done

    async def __aenter__(self) -> Fleet:
        try:
            import ray
        except ImportError:
            raise DtoError("ray is not installed: pip install 'dto[ray]'") from None
        from ray.exceptions import RayError

        needs = resources(self._run.recipe)
        if not ray.is_initialized():
            logging.getLogger("ray").setLevel(logging.ERROR)
            try:
                ray.init(
                    address=self._where.address or "local",  # not a cluster that runs here already
                    num_cpus=None if self._where.address else max(self._where.actors, _cores()),
                    include_dashboard=False if self._where.address is None else None,
                    log_to_driver=False,
                    configure_logging=False,  # it would format the handlers of the program anew
                )
            except (RayError, ConnectionError, OSError, ValueError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise DtoError(
                    f"ray: no cluster at {self._where.address}: {first}; if it asks for a token, "
                    "set RAY_AUTH_MODE=token"
                ) from None
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        most = _most(needs, there)
        count = self._where.actors or most
        if count > most or not most:
            raise DtoError(_lacking(count, needs, there))
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        remote = ray.remote(Worker).options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=100_000,
        )
        made = (self._run.path.absolute(), self._run.recipe, self._code, self._planned)
        home = str(Path.cwd())
        self._actors = [
            cast("ActorHandle[Worker]", remote.remote(*made, home)) for _ in range(count)
        ]
        self.shares = [Share() for _ in self._actors]
        starts = [asyncio.ensure_future(self._call(actor.begin)) for actor in self._actors]
        try:
            async with asyncio.timeout(START_SECONDS):
                nodes = await asyncio.gather(*starts)
        except TimeoutError:
            late = sum(start.cancelled() for start in starts)
            after: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            await self._kill()
            raise DtoError(_late(late, count, needs, free, after)) from None
        except BaseException:
            await self._kill()
            raise
        for share, node in zip(self.shares, nodes, strict=True):
            share.node = node
        logger.info(
            "ray       %d actors on %d nodes, each with %s", count, len(set(nodes)), _shown(needs)
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if exc[0] is None:
            await asyncio.gather(
                *(self._call(actor.end) for actor in self._actors), return_exceptions=True
            )
        await self._kill()

    async def _kill(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    async def prepare(self, stage: Stage, model: str) -> None:
        """Open on every actor what a stage needs, before it is sent a group.

        Raises DtoError as the stage does, and if an actor dies over it.
        """
        from ray.exceptions import RayError

        self._stage = stage.name, model
        try:
            await asyncio.gather(
                *(self._call(actor.prepare, stage.name, model) for actor in self._actors)
            )
        except RayError as error:
            raise DtoError(_died_opening(stage.name, resources(self._run.recipe), error)) from None

    def block(self) -> int:
        """How many groups to send in one call: more of those that take little time."""
        return self._block

    def status(self) -> str:
        """How many actors are alive, for the progress bar."""
        return f"{self.size - len(self._down)} of {self.size} actors"

    async def attempt(
        self, stage: Stage, model: str, groups: Sequence[Group]
    ) -> AsyncIterator[Entry]:
        """Process groups of a planned stage on the least busy actor, elsewhere those of a dead one.

        The groups of an actor that died are processed one by one, since any of them may have killed
        it. One that was on `MAX_DEATHS` dying actors is dropped with reason `error`. Raises
        DtoError as the stage's work does, and if no actor is left.
        """
        from ray.exceptions import ObjectLostError, RayActorError

        waiting = deque([list(groups)])
        deaths = Counter[str]()
        while waiting:
            some = {group.key: group for group in waiting.popleft()}
            place = await self._place()
            start = time.perf_counter()
            self._take(place, len(some))
            try:
                pieces = self._pieces(
                    self._actors[place].attempt, stage.name, model, [*some.values()]
                )
                async for entries in pieces:
                    for entry in entries:
                        self.shares[place].groups += 1
                        self.shares[place].generated += entry.usage.generated
                        del some[entry.key]
                        self._take(place, -1)
                        yield entry
                self._adapt(time.perf_counter() - start, len(groups))
            except (RayActorError, ObjectLostError) as error:
                self._revive(place, error)
                for key, group in some.items():
                    deaths[key] += 1
                    if deaths[key] < MAX_DEATHS:
                        waiting.append([group])
                    else:
                        yield self._given_up(key)
            finally:
                self._take(place, -len(some))

    def _take(self, place: int, groups: int) -> None:
        """Add groups to those that an actor has, or take them off; keep its busy time."""
        before, now = self._busy[place], time.perf_counter()
        if before:
            self.shares[place].seconds += now - self._since[place]
        self._since[place] = now
        self._busy[place] += groups

    def _adapt(self, seconds: float, groups: int) -> None:
        if seconds > 4 * BLOCK_SECONDS:
            self._block = max(1, self._block // 2)
        elif seconds < BLOCK_SECONDS and groups >= self._block:
            self._block = min(READ_AHEAD, self._block * 2)

    def _given_up(self, key: str) -> Entry:
        detail = f"the actors that processed it died {MAX_DEATHS} times, the last: {self._reason}"
        return Entry(key, dropped=[Dropped(key, "error", detail)])

    async def _place(self) -> int:
        """The least busy actor that is alive; waits for one if all are being started again."""
        while not (alive := set(range(self.size)) - self._down.keys()):
            waiting = [task for task in self._down.values() if not task.done()]
            if not waiting:
                raise DtoError(
                    f"ray: all actors have died, the last: {self._reason}; finished rows are kept, "
                    "and the same command goes on"
                )
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return min(alive, key=lambda index: self._busy[index])

    def _revive(self, place: int, error: Exception) -> None:
        """Leave a dead actor out until Ray has started it again."""
        if place not in self._down:
            self._reason = " ".join(str(error).split())[:300]
            share = self.shares[place]
            logger.warning("ray       an actor on %s died: %s", share.node, self._reason)
            share.deaths += 1
            self._down[place] = asyncio.create_task(self._again(place))

    async def _again(self, place: int) -> None:
        from ray.exceptions import ActorUnavailableError, RayError

        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    with suppress(ActorUnavailableError):  # Ray has not started it yet
                        self.shares[place].node = await self._call(self._actors[place].begin)
                        await self._call(self._actors[place].prepare, *self._stage)
                        break
                    await asyncio.sleep(0.2)
        except (RayError, DtoError, TimeoutError) as error:
            self._reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return  # it stays out
        del self._down[place]

    async def _call(self, method: Any, *arguments: Any) -> Any:
        """Await a call of an actor; its DtoErrors are raised as they are."""
        with _as_raised():
            return await method.remote(*arguments)

    async def _pieces(self, method: Any, *arguments: Any) -> AsyncIterator[list[Entry]]:
        """What a call of an actor yields."""
        with _as_raised():
            async for piece in method.remote(*arguments):
                yield await piece


@contextmanager
def _as_raised() -> Iterator[None]:
    """Raise the DtoErrors of an actor as they are."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, DtoError):
            raise type(cause)(str(cause)) from None
        raise EngineError(f"an actor failed: {type(cause).__name__}: {cause}") from None
    except (TypeError, AttributeError, PicklingError) as error:  # rows of an extension
        raise DtoError(f"ray: a row cannot be sent to an actor: {error}") from None


def resources(recipe: Recipe) -> dict[str, float]:
    """What one actor asks Ray for: a core, and the GPUs of its engine."""
    model = recipe.model
    gpus = model.tensor_parallel if model.engine == "vllm" and model.device != "cpu" else 0
    return {"CPU": 1, **({"GPU": gpus} if gpus else {})}


def _most(needs: Mapping[str, float], there: Mapping[str, float]) -> int:
    return int(min(there.get(name, 0) // amount for name, amount in needs.items()))


def _lacking(count: int, needs: Mapping[str, float], there: Mapping[str, float]) -> str:
    return (
        f"ray: {count or 1} actors with {_shown(needs)} each were asked for, and there is "
        f"{_shown({name: there.get(name, 0) for name in needs})}: lower --ray, "
        "model.tensor_parallel, or name a larger cluster"
    )


def _late(
    late: int,
    count: int,
    needs: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> str:
    """The error for actors that have not begun, by what was free before and after the wait."""
    begun = f"ray: {late} of {count} actors have not begun in {START_SECONDS:g} s"
    if _most(needs, before) < count and not _most(needs, after):
        return (
            f"{begun}: they wait for {_shown(needs)} each, which others on the cluster use: lower "
            "--ray, or try again when those have ended"
        )
    return (
        f"{begun}, although there is {_shown(needs)} for each: their nodes are slow to start dto. "
        "The same command tries again; the logs of Ray on those nodes have the reason"
    )


def _died_opening(stage: str, needs: Mapping[str, float], error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"ray: an actor with {_shown(needs)} died while it opened the model for {stage}, probably "
        f"because memory ran out: {reason}. Lower --ray or the size of the engine "
        "(model.slots, model.gpu_memory, model.context)"
    )


def _shown(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items())


def _cores() -> int:
    return os.cpu_count() or 1
