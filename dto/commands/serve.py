"""`dto serve`: a model behind OpenAI's endpoints, with early exit."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from dto.api import find_recipe
from dto.commands import Changes, parse_changes
from dto.errors import DtoError, RecipeError
from dto.recipe import Recipe

KEY = "DTO_API_KEY"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
STOP_SECONDS = 30
"""How long requests may go on after a stop signal."""


def serve(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe, a run, a Hub id or a folder.")
    ] = "nano",
    exit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXIT",
            help="A policy (deer, …) or a file of `dto calibrate`; the first one is the default, "
            "requests can name the others.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 lets other machines in.")] = LOOPBACK[
        1
    ],
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    live: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 64,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more get 429.")] = 256,
    seconds: Annotated[float, typer.Option(min=1, help="Longest time for one request.")] = 600.0,
    changes: Changes = None,
) -> None:
    """Serve a model with early exit, over OpenAI's endpoints.

    If the environment has DTO_API_KEY, requests need it.
    """
    try:
        import uvicorn

        from dto.serving.app import Desk, Limits, app
        from dto.serving.model import Serving, policy_of
    except ImportError as error:
        raise DtoError(f"{error.name} is not installed: pip install 'dto[serve]'") from None

    recipe = _recipe(target, changes)
    chosen = [policy_of(name) for name in exit or []] or [*recipe.evaluate.exits]
    exits = {policy.name: policy for policy in chosen}
    key = os.environ.get(KEY, "")
    if host not in LOOPBACK and not key:
        raise DtoError(f"--host {host} lets other machines in: set {KEY} to a secret of yours")

    async def run() -> None:
        async with Serving(recipe) as serving:
            for policy in exits.values():
                policy.check(serving.ctx.engine)
            desk = Desk(serving, exits, Limits(live, queue, seconds=seconds), key)
            settings = uvicorn.Config(
                app(desk), host, port, log_level="warning", access_log=False,
                timeout_graceful_shutdown=STOP_SECONDS, h11_max_incomplete_event_size=64 * 2**10,
            )  # fmt: skip
            server = uvicorn.Server(settings)
            running = asyncio.create_task(server.serve())
            while not (server.started or running.done()):
                await asyncio.sleep(0.02)
            if server.started:
                place = server.servers[0].sockets[0].getsockname()[1]
                print(f"{serving.name} at http://{host}:{place}/v1, exits: {', '.join(exits)}")
            await running

    asyncio.run(run())


def _recipe(target: str, changes: list[str] | None) -> Recipe:
    """The recipe that a target names; else the recipe that serves the model of this name."""
    from dto.serving.model import serving_recipe

    given = parse_changes(changes)
    try:
        return find_recipe(target, given)[0]
    except RecipeError:
        if "/" in target or target.startswith("nano"):  # a Hub id or a folder
            return serving_recipe(target, given)
        raise
