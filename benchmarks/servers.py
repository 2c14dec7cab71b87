"""Do several servers work as one that is as fast as their sum, and are prefixes still cached?

    python -m benchmarks.servers [--seconds 20]

The servers are simulated, since two cores cannot hold several models; all else is the product: its
engine for `model.server: [URL, …]`, over HTTP on this machine. A simulated server runs at most
`BATCH` samples at a time, reads the blocks of a prompt that its prefix cache lacks at so many
seconds a token, and takes so many seconds for each token that it generates. Speeds differ in both.

The requests are those of `estimate`: rollouts at one boundary after another of each trajectory,
whose prefixes grow. Their number follows from the sum of the speeds, so that each row takes about
as long. `hits` is the share of the prompt tokens that were cached, of each trajectory at best
`(BOUNDARIES - 1) / (BOUNDARIES + 1)` and the siblings' share.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from dto.concurrency import gather_bounded
from dto.engines import open_engine
from dto.engines.servers import ServersEngine
from dto.protocols import Sampling
from dto.recipe import ModelSettings
from dto.usage import metered
from tests.engines.server import Request, Server

BATCH = 8
READ_SECONDS, TOKEN_SECONDS = 2e-4, 25e-3  # per token, at speed 1
BLOCK = 16
CACHED_BLOCKS = 4096
BOUNDARIES, SPACING, ROLLOUTS, TOKENS = 6, 80, 4, 24
WINDOW = 5  # trajectories under way, for each server
GOAL, HITS_GOAL = 1.8, 0.95
FLEETS: dict[str, tuple[float, ...]] = {
    "1 server": (1,),
    "1 server of speed 2": (2,),
    "speeds 1 and 1": (1, 1),
    "speeds 1 and 2": (1, 2),
    "speeds 1 and 4": (1, 4),
    "4 servers": (1,) * 4,
    "8 servers": (1,) * 8,
}


class Simulated(Server):
    """A server with a batch, a prefix cache, and a speed."""

    def __init__(self, tokenizer: Any, speed: float) -> None:
        super().__init__("vllm", tokenizer)
        self.answer = "0 1 2 3 4 5 6 7 8 9 " * 20
        self.models = {"data": [{"id": "nano", "max_model_len": 4096}]}
        self.speed = speed
        self.batch = asyncio.Semaphore(BATCH)
        self.cache: OrderedDict[int, None] = OrderedDict()

    async def answered(self, request: Request) -> tuple[int, Any]:
        """Answer after as long as a server of this speed would take."""
        status, reply = self.respond(request)
        if request.path != "/completions" or status != 200:
            return status, reply
        body = request.body
        prompt = body["prompt"] if isinstance(body["prompt"], list) else []
        async with self.batch:
            cached = self._read(prompt)
            await asyncio.sleep((len(prompt) - cached) * READ_SECONDS / self.speed)
        await asyncio.gather(*map(self._generate, reply["choices"]))
        reply["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
        return status, reply

    async def _generate(self, choice: dict[str, Any]) -> None:
        async with self.batch:
            await asyncio.sleep(len(choice["token_ids"]) * TOKEN_SECONDS / self.speed)

    def _read(self, prompt: Sequence[int]) -> int:
        """Put the blocks of a prompt into the cache; return how many tokens it had already."""
        known, cached = 0, 0
        for start in range(0, len(prompt) - BLOCK, BLOCK):
            known = hash((known, *prompt[start : start + BLOCK]))
            cached += BLOCK * (known in self.cache)
            self.cache[known] = None
            self.cache.move_to_end(known)
        while len(self.cache) > CACHED_BLOCKS:
            self.cache.popitem(last=False)
        return cached

    def events(self, body: dict[str, Any], reply: dict[str, Any]) -> list[Any]:
        """One event for each choice, then the usage."""
        events = [{"choices": [choice]} for choice in reply["choices"]]
        return [*events, {"choices": [], "usage": reply["usage"]}, "[DONE]"]


def serve(speeds: Sequence[float], urls: Any) -> None:
    """Serve until the process is ended; runs in a child."""
    from transformers import AutoTokenizer

    from dto.recipe import resolve

    async def run() -> None:
        tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
        servers = [Simulated(tokenizer, speed) for speed in speeds]
        for server in servers:
            await server.start()
        urls.put([server.url for server in servers])
        await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def served(speeds: Sequence[float]) -> Iterator[list[str]]:
    """The addresses of simulated servers in another process."""
    context = multiprocessing.get_context("spawn")
    urls = context.Queue()
    process = context.Process(target=serve, args=(speeds, urls), daemon=True)
    process.start()
    try:
        yield urls.get(timeout=60)
    finally:
        process.terminate()
        process.join()


class Row(NamedTuple):
    """What a fleet did."""

    speeds: tuple[float, ...]
    tokens: float  # generated a second
    hits: float
    shares: list[dict[str, Any]]


async def measure(speeds: tuple[float, ...], urls: list[str], seconds: float) -> Row:
    """Let a fleet do the rollouts of about so many seconds."""
    settings = ModelSettings.model_validate(
        {"engine": "openai", "name": "nano", "server": urls, "context": 4096}
    )
    per_second = sum(speeds) * BATCH / (TOKENS * TOKEN_SECONDS)
    count = round(seconds * per_second / (BOUNDARIES * ROLLOUTS))
    sampling = Sampling(max_tokens=TOKENS, temperature=1.0, top_p=1.0)
    engine = open_engine(settings)
    assert isinstance(engine, ServersEngine)

    async def trajectory(number: int) -> None:
        length = SPACING * (BOUNDARIES + 1)
        ids = [20 + (31 * number + place * (number % 97 + 1)) % 450 for place in range(length)]
        for boundary in range(2, BOUNDARIES + 2):
            await engine.complete(ids[: SPACING * boundary], sampling, ROLLOUTS)

    async with engine:
        engine.shared()
        start = time.perf_counter()
        with metered() as usage:
            await gather_bounded(map(trajectory, range(count)), WINDOW * len(urls))
        spent = time.perf_counter() - start
        assert usage.failed == 0
        return Row(speeds, usage.generated / spent, usage.cached / usage.prompt, engine.shared())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    rows = []
    for speeds in FLEETS.values():
        with served(speeds) as urls:
            rows.append(asyncio.run(measure(speeds, urls, seconds)))
    one = rows[0]
    print("| fleet | tokens / s | of the slowest alone | sum of speeds | share of the sum | hits |"
          " hits / one | shares of the requests |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name, row in zip(FLEETS, rows, strict=True):
        ratio, total = row.tokens / one.tokens, sum(row.speeds)
        requests = [share["requests"] for share in row.shares]
        shares = ", ".join(f"{each / sum(requests):.2f}" for each in requests)
        print(
            f"| {name} | {row.tokens:,.0f} | {ratio:.2f} | {total:g} | {ratio / total:.2f} | "
            f"{row.hits:.3f} | {row.hits / one.hits:.3f} | {shares} |"
        )
    failed = [
        name
        for name, row in zip(FLEETS, rows, strict=True)
        if row.hits < HITS_GOAL * one.hits
        or (sum(row.speeds) >= 2 and row.tokens < GOAL * one.tokens)
    ]
    raise SystemExit(f"below the goals: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
