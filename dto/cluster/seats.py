"""What the driver knows of each actor: its groups on the way, and what it did."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto.cluster.worker import Ticket, Worker
from dto.runs.journal import Entry
from dto.runs.stage import Group
from dto.usage import Usage

if TYPE_CHECKING:
    from ray.actor import ActorHandle

NOTES = "actors.json"
"""What the actors of a stage did, beside its journal; the manifest takes it over."""


@dataclass(slots=True)
class Share:
    """What one actor did in a stage. `seconds` is the time in which it had groups to process."""

    node: str = ""
    groups: int = 0
    deaths: int = 0
    seconds: float = 0.0
    usage: Usage = field(default_factory=Usage)
    judge: Usage = field(default_factory=Usage)

    def as_json(self, session: int, gpus: float) -> dict[str, Any]:
        """The entry of the manifest: amounts of one session, and their cost."""
        spent = self.usage.as_json()
        return {
            "session": session,
            "node": self.node,
            "groups": self.groups,
            "deaths": self.deaths,
            "seconds": round(self.seconds, 3),
            "gpu_seconds": round(self.seconds * gpus, 3),
            **{name: spent[name] for name in ("prompt", "generated", "model_flops")},
            **({"judge_generated": self.judge.generated} if self.judge.requests else {}),
        }


@dataclass(slots=True, eq=False)
class Seat:
    """The driver's side of one actor, whose process may be started several times."""

    actor: ActorHandle[Worker]
    share: Share = field(default_factory=Share)
    alive: bool = True
    waiting: list[Ticket] = field(default_factory=list)  # not sent yet
    under_way: dict[int, asyncio.Future[Entry | None]] = field(default_factory=dict)
    given: asyncio.Event = field(default_factory=asyncio.Event)
    homeless: bool = False  # whether it is dead, and no node has room for it
    suspect: bool = False  # whether it has a group that may have killed others
    task: asyncio.Task[None] | None = None  # talks to the actor, or waits until it is back
    since: float = 0.0  # when it got work

    def put(self, number: int, group: Group) -> asyncio.Future[Entry | None]:
        """Send a group. The future is None if the actor dies."""
        if not self.under_way:
            self.since = time.perf_counter()
        future = self.under_way[number] = asyncio.get_running_loop().create_future()
        self.waiting.append(Ticket(number, group))
        self.given.set()
        return future

    def done(self, number: int) -> asyncio.Future[Entry | None] | None:
        """Take a group off; None if it is not expected from this actor."""
        future = self.under_way.pop(number, None)
        if future is not None and not self.under_way:
            self.share.seconds += time.perf_counter() - self.since
        return future if future is not None and not future.done() else None

    def fail(self, error: Exception | None) -> None:
        """End all groups with an error, or with None if the actor died."""
        self.waiting.clear()
        for number in list(self.under_way):
            if (future := self.done(number)) is not None:
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)


def read_notes(directory: Path) -> list[dict[str, Any]]:
    """What actors did for an unfinished stage in earlier sessions."""
    try:
        notes = json.loads((directory / NOTES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return notes if isinstance(notes, list) else []


def forget_notes(directory: Path) -> None:
    """Remove the notes of a stage, since its manifest has them."""
    (directory / NOTES).unlink(missing_ok=True)
