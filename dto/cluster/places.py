"""Where actors run, the resources that each asks for, and the errors if they are not there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dto.errors import DtoError
from dto.recipe import Recipe

START_SECONDS = 300.0
"""How long an actor may wait for its resources and start before it is reported."""


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


Amounts = Mapping[str, float]
"""Amounts of Ray's resources, such as CPU and GPU."""


def resources(recipe: Recipe) -> dict[str, float]:
    """What one actor asks Ray for: a core, and the GPUs of its engine."""
    model = recipe.model
    gpus = model.tensor_parallel if model.engine == "vllm" and model.device != "cpu" else 0
    return {"CPU": 1, **({"GPU": gpus} if gpus else {})}


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster that are alive, as Ray describes them."""
    import ray

    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in every if node["Alive"]]


def room(needs: Amounts, amounts: Sequence[Amounts]) -> int:
    """The number of actors for which these nodes have room. An actor never spans two nodes."""
    return sum(
        int(min(node.get(name, 0) // amount for name, amount in needs.items())) for node in amounts
    )


def shown(amounts: Amounts) -> str:
    """Amounts in words: `1 CPU and 2 GPU`."""
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items())


def described(needs: Amounts, every: Sequence[Mapping[str, Any]]) -> str:
    """The nodes of a cluster with what an actor needs of them, and their memory."""
    texts = [] if every else ["no node"]
    for node in every:
        there = {name: node["Resources"].get(name, 0) for name in {"CPU": 1, "GPU": 0, **needs}}
        memory = node["Resources"].get("memory", 0) / 2**30
        texts.append(f"{node['NodeManagerHostname']} with {shown(there)} and {memory:.0f} GiB")
    more = f" and {len(texts) - 4} more nodes" if len(texts) > 4 else ""
    return ", ".join(texts[:4]) + more


def lacking(count: int, needs: Amounts, every: Sequence[Mapping[str, Any]]) -> str:
    """The error if the nodes have no room for so many actors."""
    there = {name: sum(node["Resources"].get(name, 0) for node in every) for name in needs}
    whole = room(needs, [there]) >= (count or 1)  # enough, but no node has all of an actor's
    apart = f" on {len(every)} nodes, and an actor needs its own on one" if whole else ""
    return (
        f"ray: {count or 1} actors with {shown(needs)} each were asked for, and there is "
        f"{shown(there)}{apart}: lower --ray, model.tensor_parallel, or name a larger cluster"
    )


def late(waiting: int, count: int, needs: Amounts, before: Amounts, after: Amounts) -> str:
    """The error for actors that have not begun, by what was free before and after the wait."""
    begun = f"ray: {waiting} of {count} actors have not begun in {START_SECONDS:g} s"
    if room(needs, [before]) < count and not room(needs, [after]):
        return (
            f"{begun}: they wait for {shown(needs)} each, which others on the cluster use: lower "
            "--ray, or try again when those have ended"
        )
    return (
        f"{begun}, although there is {shown(needs)} for each: their nodes are slow to start dto. "
        "The same command tries again; the logs of Ray on those nodes have the reason"
    )


def reason(error: BaseException) -> str:
    """Why an actor died, in a line: the exception that its process raised, or how it ended."""
    text = " ".join(str(error).split())
    raised = re.findall(r"^\s*(?:\w+\.)*\w+(?:Error|Exception): .*", str(error), re.MULTILINE)
    if raised:
        return str(raised[-1]).strip()[:400]
    if re.search(r"Socket closed|End of file|SIGKILL|restarted|Connection|connect to", text):
        return "its process or node ended (killed, or out of memory)"
    return text[:400]


def cores() -> int:
    """The cores of this machine."""
    return os.cpu_count() or 1
