"""The driver's part: send the groups of a stage to actors, and return their entries.

The driver is the process of `dto run`. It reads the groups, sends each to the least busy actor, and
alone writes the journal, as without Ray. So a run can be continued with any number of actors, or
without them, and its tables are the same. An actor holds no state of the run: if it dies, its
groups are computed again elsewhere.

A call of Ray costs as much as ten groups. So each actor has one call under way that hands it all
groups that wait for it, and one that waits for all that it has finished meanwhile: where groups are
slow a call has one of them, where the driver is busy it has many. A slow group holds back no other.

Needed on every node: dto, the model, and the run's directory under the same path.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, cast

from dto.cluster import places
from dto.cluster.places import Ray
from dto.cluster.seats import NOTES, Seat, Share, read_notes
from dto.cluster.worker import Worker
from dto.errors import DtoError, EngineError, disk_errors
from dto.records import Dropped
from dto.runs import manifest
from dto.runs.journal import Entry
from dto.runs.reader import RunReader
from dto.runs.stage import Group, Stage

if TYPE_CHECKING:
    from ray.actor import ActorHandle

logger = logging.getLogger("dto")

MAX_DEATHS = 3
"""Actors that may die while they process a group, before the group is dropped."""
SAY_SECONDS = 10.0
"""How long to wait for actors before the log says what they wait for."""
NOTE_SECONDS = 5.0
"""Seconds between notes of what each actor did: a killed driver loses this much of its account."""


class Fleet:
    """Actors for consecutive stages; leaving the async context ends them.

    Call `open` for each stage and model, then `attempt` for each of its groups.
    """

    def __init__(
        self, where: Ray, run: RunReader, allow_code_execution: bool, planned: Sequence[Stage]
    ) -> None:
        self._where, self._run, self._code = where, run, allow_code_execution
        self._planned = planned
        self._needs = places.resources(run.recipe)
        self._seats: list[Seat] = []
        self._changed = asyncio.Event()  # an actor is back, or is given up
        self._stage: tuple[Stage, str] | None = None
        self._directory = Path()
        self._numbers = self._terms = 0
        self._reason = ""
        self._past: list[dict[str, Any]] = []  # of earlier sessions
        self._noted = 0.0

    @property
    def size(self) -> int:
        """The number of actors."""
        return len(self._seats)

    @property
    def alive(self) -> list[Seat]:
        """The actors that can take groups."""
        return [seat for seat in self._seats if seat.alive]

    def status(self) -> str:
        """The actors that are alive, for the progress bar."""
        return f"{len(self.alive)} of {self.size} actors"

    def shared(self) -> list[dict[str, Any]]:
        """What each actor did in this stage, with a line for each session that worked on it."""
        session = max((line["session"] for line in self._past), default=0) + 1
        gpus = self._needs.get("GPU", 0)
        return [*self._past, *(seat.share.as_json(session, gpus) for seat in self._seats)]

    async def __aenter__(self) -> Fleet:
        try:
            import ray
        except ImportError:
            raise DtoError("ray is not installed: pip install 'dto[ray]'") from None
        from ray.exceptions import RayError

        needs = self._needs
        if not ray.is_initialized():
            logging.getLogger("ray").setLevel(logging.ERROR)
            try:
                ray.init(
                    address=self._where.address or "local",  # else one that runs here, if any
                    num_cpus=None if self._where.address else self._local_cores(),
                    include_dashboard=False if self._where.address is None else None,
                    log_to_driver=False,
                    configure_logging=False,  # it would format the handlers of the program anew
                )
            except (RayError, ConnectionError, OSError, ValueError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                address = self._where.address
                raise DtoError(
                    f"ray: no cluster at {address}: {first}; if it asks for a token, set "
                    "RAY_AUTH_MODE=token"
                    if address
                    else f"ray could not start here: {first}"
                ) from None
        nodes = places.nodes()
        most = places.room(needs, [node["Resources"] for node in nodes])
        count = self._where.actors or most
        if count > most or not most:
            raise DtoError(places.lacking(count, needs, nodes))
        remote = ray.remote(Worker).options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=100,
        )
        made = (self._run.path.absolute(), self._run.recipe, self._code, self._planned)
        home = str(Path.cwd())
        free = _free()
        self._seats = [
            Seat(cast("ActorHandle[Worker]", remote.remote(*made, home))) for _ in range(count)
        ]
        try:
            await self._start(free)
        except BaseException:
            await self._kill()
            raise
        where = len({seat.share.node for seat in self._seats})
        shown = places.shown(needs)
        logger.info("ray       %d actors on %d nodes, each with %s", count, where, shown)
        return self

    def _local_cores(self) -> int:
        return max(self._where.actors, places.cores())

    async def _start(self, free: places.Amounts) -> None:
        """Wait until every actor has begun on its node. Raises DtoError at the first failure."""
        from ray.exceptions import RayError

        starts = {asyncio.ensure_future(self._call(seat.actor.place)): seat for seat in self._seats}
        begun, said = time.monotonic(), False
        waiting = set(starts)
        try:
            while waiting:
                left = places.START_SECONDS - (time.monotonic() - begun)
                if left <= 0:
                    raise DtoError(places.late(len(waiting), self.size, self._needs, free, _free()))
                wait = left if said else min(SAY_SECONDS, left)
                done, waiting = await asyncio.wait(
                    waiting, timeout=wait, return_when=asyncio.FIRST_COMPLETED
                )
                for start in done:
                    starts[start].share.node = start.result()
                if waiting and not said and time.monotonic() - begun >= SAY_SECONDS:
                    said = True
                    logger.warning(
                        "ray       %d of %d actors start, or wait for %s each, of which %s is free",
                        len(waiting), self.size, places.shown(self._needs),
                        places.shown({name: _free().get(name, 0) for name in self._needs}),
                    )  # fmt: skip
        except RayError as error:
            raise DtoError(self._unable("start", error)) from None
        finally:
            await _ended(starts)

    def _unable(self, what: str, error: BaseException, seat: Seat | None = None) -> str:
        """The error for an actor that cannot start or open its engine: asked for, there, why."""
        where = f" on {seat.share.node}" if seat and seat.share.node else ""
        there = places.described(self._needs, places.nodes())
        asked = f"{self.size} actors with {places.shown(self._needs)} each were asked for"
        return (
            f"ray: an actor{where} could not {what}: {places.reason(error)}. {asked}, and there is "
            f"{there}: fewer actors (--ray) or a smaller model need less, and every node needs dto "
            "with the packages of the recipe"
        )

    async def __aexit__(self, *exc: object) -> None:
        if self._stage is not None and self._directory.is_dir():
            await asyncio.to_thread(self._note)
        await self._quiet()
        if exc[0] is None:
            ends = (self._call(seat.actor.end) for seat in self.alive)
            await asyncio.gather(*ends, return_exceptions=True)
        await self._kill()

    async def _quiet(self) -> None:
        """End the tasks that talk to actors."""
        await _ended([seat.task for seat in self._seats if seat.task is not None])

    async def _kill(self) -> None:
        import ray

        await self._quiet()
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats = []

    async def open(self, stage: Stage, model: str, directory: Path) -> None:
        """Open the engines for a stage and model, before any group is sent.

        Raises DtoError if an actor cannot open its engine, or dies twice in doing so. One whose
        node has died is not waited for if another has opened its engine: it joins when it is back.
        """
        if directory != self._directory or self._stage is None:
            self._directory = directory
            self._past = await asyncio.to_thread(read_notes, directory)
            for seat in self._seats:
                seat.share = Share(seat.share.node)
        self._stage = stage, model
        for seat in self.alive:
            if seat.task is not None:
                seat.task.cancel()
        every = {asyncio.create_task(self._begin(seat)): seat for seat in self.alive}
        opening = set(every)
        begun = said = time.monotonic()
        try:
            while opening:
                done, opening = await asyncio.wait(
                    opening, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
                if len(opening) < len(every) and all(every[task].homeless for task in opening):
                    break  # their node died: the others go on without them
                if time.monotonic() - said > 6 * SAY_SECONDS:
                    said = time.monotonic()
                    logger.info(
                        "%-9s %d actors are opening their engines, for %.0f s",
                        stage.name, len(opening), said - begun,
                    )  # fmt: skip
        finally:
            await _ended(every)
        for task in opening:
            every[task].task = asyncio.create_task(self._again(every[task]))

    def close(self) -> None:
        """End a stage: no more notes are written of it."""
        self._stage = None

    async def _begin(self, seat: Seat) -> None:
        """Open the engine of an actor, twice if it dies, and start to talk to it."""
        from ray.exceptions import RayActorError, RayError

        assert self._stage is not None
        for last in (False, True):
            stage, model = self._stage
            self._terms += 1
            term = self._terms
            try:
                await self._call(seat.actor.begin, stage.name, model, term)
            except DtoError as error:
                given = f"on {seat.share.node}, with {places.shown(self._needs)}"
                raise type(error)(f"{error} (stage {stage.name}, {given})") from None
            except RayError as error:
                self._died(seat, error)
                if last or not isinstance(error, RayActorError):
                    opening = f"open the engine for stage {stage.name}"
                    raise DtoError(self._unable(opening, error, seat)) from None
                await self._back(seat)
            else:
                break
        if self._stage != (stage, model):  # another stage has begun meanwhile
            return await self._begin(seat)
        seat.fail(None)  # groups that an error has left behind
        seat.alive = True
        seat.task = asyncio.create_task(self._serve(seat, term))
        self._changed.set()

    async def _serve(self, seat: Seat, term: int) -> None:
        """Give an actor its groups and take their results, until it dies."""
        from ray.exceptions import RayError

        async def give() -> None:
            while True:
                await seat.given.wait()
                seat.given.clear()
                tickets, seat.waiting = seat.waiting, []
                if tickets:
                    await self._call(seat.actor.give, term, tickets)

        async def take() -> None:
            while (results := await self._call(seat.actor.take, term)) is not None:
                for number, entry in results:
                    self._received(seat, number, entry)
                if time.monotonic() - self._noted > NOTE_SECONDS:
                    self._noted = time.monotonic()
                    await asyncio.to_thread(self._note)

        try:
            talks = [asyncio.create_task(give()), asyncio.create_task(take())]
            try:
                done, _ = await asyncio.wait(talks, return_when=asyncio.FIRST_COMPLETED)
                for talk in done:
                    talk.result()
            finally:
                for talk in talks:
                    talk.cancel()
            error: Exception = EngineError("it was started anew")
        except RayError as died:
            error = died
        except DtoError as wrong:
            seat.fail(wrong)
            return
        self._died(seat, error)
        seat.fail(None)
        seat.task = asyncio.create_task(self._again(seat))

    def _received(self, seat: Seat, number: int, entry: Entry | DtoError) -> None:
        future = seat.done(number)
        if future is None:  # its group is processed elsewhere, or the stage has failed
            return
        if isinstance(entry, DtoError):
            future.set_exception(entry)
            return
        seat.share.groups += 1
        seat.share.usage.add(entry.usage)
        seat.share.judge.add(entry.judge)
        future.set_result(entry)

    def _died(self, seat: Seat, error: Exception) -> None:
        self._reason = places.reason(error)
        seat.share.deaths += 1
        seat.alive = False
        logger.warning(
            "ray       an actor on %s died with %d groups in progress: %s",
            seat.share.node, len(seat.under_way), self._reason,
        )  # fmt: skip

    async def _again(self, seat: Seat) -> None:
        """Use an actor again when Ray has started it anew; it stays out if that fails."""
        try:
            await self._back(seat)
            await self._begin(seat)
        except DtoError as error:
            self._reason = str(error)
            seat.task = None
            left = len(self.alive)
            logger.warning("ray       an actor stays out, %d are left: %s", left, error)
            self._changed.set()

    async def _back(self, seat: Seat) -> None:
        """Wait until Ray has started a dead actor again.

        Raises DtoError if it cannot, and if no actor is left and no node has room for one.
        """
        from ray.exceptions import ActorUnavailableError, RayError

        said, alone = False, 0.0
        call: asyncio.Future[str] | None = None
        while True:
            call = call or asyncio.ensure_future(self._call(seat.actor.place))
            await asyncio.wait({call}, timeout=1.0)  # a dead node answers late
            try:
                if call.done():
                    seat.share.node = call.result()
                    seat.homeless = False
                    return
            except ActorUnavailableError:  # Ray has not started it yet
                call = None
            except RayError as error:
                raise DtoError(self._unable("start again", error, seat)) from None
            left = len(self.alive)
            nodes = await asyncio.to_thread(places.nodes)
            room = places.room(self._needs, [node["Resources"] for node in nodes])
            seat.homeless = room <= left
            if seat.homeless and not said:
                said = True
                logger.warning(
                    "ray       a dead actor waits for a node with %s: there is %s, where %d actors "
                    "are alive",
                    places.shown(self._needs), places.described(self._needs, nodes), left,
                )  # fmt: skip
            alone = 0.0 if left else alone or time.monotonic()
            if not left and (not room or time.monotonic() - alone > places.START_SECONDS):
                raise DtoError(
                    f"it asks for {places.shown(self._needs)}, and there is "
                    f"{places.described(self._needs, nodes)}"
                )
            await asyncio.sleep(0.2)

    async def attempt(self, group: Group) -> Entry:
        """Process a group on the least busy actor, and elsewhere if it dies.

        A group whose actors died `MAX_DEATHS` times is dropped with reason `error`. The last of
        them is sent where no other such group is, so that one bad row drops no other. Raises
        DtoError as the stage's work does, and if no actor is left.
        """
        for deaths in range(MAX_DEATHS):
            apart = deaths == MAX_DEATHS - 1
            seat = await self._choose(apart)
            seat.suspect |= apart
            self._numbers += 1
            try:
                if (entry := await seat.put(self._numbers, group)) is not None:
                    return entry
            finally:
                if apart:
                    seat.suspect = False
                    self._changed.set()
        detail = f"the actors that processed it died {MAX_DEATHS} times, the last: {self._reason}"
        return Entry(group.key, dropped=[Dropped(group.key, "error", detail)])

    async def _choose(self, apart: bool) -> Seat:
        """The least busy actor that is alive; waits for one if all are being started again.

        `apart`: one without a suspect.
        """
        while not (free := [seat for seat in self.alive if not (apart and seat.suspect)]):
            if all(seat.task is None for seat in self._seats):
                raise DtoError(
                    f"ray: all actors have died, the last: {self._reason}; finished rows are kept, "
                    "and the same command goes on"
                )
            self._changed.clear()
            await self._changed.wait()
        return min(free, key=lambda seat: len(seat.under_way))

    def _note(self) -> None:
        """Write what the actors did beside the stage's journal, for a session that goes on."""
        with disk_errors(self._directory):
            manifest.write_text(self._directory / NOTES, json.dumps(self.shared()))

    async def _call(self, method: Any, *arguments: Any) -> Any:
        """Await a call of an actor; its DtoErrors are raised as they are."""
        from ray.exceptions import RayTaskError

        try:
            call = method.remote(*arguments)
        except (TypeError, AttributeError, PicklingError) as error:  # rows of an extension
            raise DtoError(f"ray: a row cannot be sent to an actor: {error}") from None
        try:
            return await call
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, DtoError):
                raise type(cause)(str(cause)) from None
            raise EngineError(f"an actor failed: {type(cause).__name__}: {cause}") from None


async def _ended(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks that are not done, and wait until they end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _free() -> dict[str, float]:
    import ray

    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free
