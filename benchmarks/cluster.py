"""Measure what --ray costs, and how far one driver reaches.

    python -m benchmarks.cluster actors            two actors against two processes by hand
    python -m benchmarks.cluster overhead [ROWS]   the driver's time for each row
    python -m benchmarks.cluster scaling           simulated engines at 1, 2, 4 and 8 actors

`actors` runs `sample` of the quickstart on nano: once with two actors, and once in two processes
that each have half as many problems, drawn alike. The times begin with the first request, so
starting Python, Ray and the engines is left out on both sides.

`overhead` sends rows of 200 tokens through a stage whose work is to return them, so that the time
is that of reading, sending, receiving and writing.

`scaling` has engines that sleep: a request takes a latency and its tokens at a rate, with a fixed
number of requests at a time for each actor. The ideal is one engine's rows per second times the
actors. All actors are on this machine, so beyond its cores the figures are a lower bound.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # as the processes by hand have

from dto.cluster import Fleet, Ray
from dto.recipe import make_recipe
from dto.records import Span, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import Group, Runner, Stage, always
from dto.usage import Usage, charge

TOKENS = 200
LATENCY, RATE, SLOTS = 0.2, 100.0, 64
"""A simulated engine: seconds to the first token, tokens per second, requests at once."""
GOAL = 0.85


def trajectory(key: str) -> Trajectory:
    ids = tuple(range(1_000, 1_000 + TOKENS))
    text = "So the next step gives 12. " * (TOKENS // 8)
    return Trajectory(
        id=key, problem_id=key, model="base", sample=0, seed=1, prompt_ids=ids[:40], token_ids=ids,
        ids_from="sampled", text=text, thinking=Span(0, 300), conclusion=Span(300, len(text)),
        thinking_tokens=Span(0, 100), finish_reason="stop", grade="correct", answer="12",
    )  # fmt: skip


async def at_once(key: str, row: Trajectory, ctx: Any) -> Trajectory:
    charge(Usage(requests=1, generated=TOKENS))
    return row


async def simulated(key: str, row: Trajectory, ctx: Any) -> Trajectory:
    """A request to an engine that sleeps; the engine of an actor has SLOTS places."""
    global _slots
    _slots = _slots or asyncio.Semaphore(SLOTS)
    async with _slots:
        await asyncio.sleep(LATENCY + TOKENS / RATE)
    return await at_once(key, row, ctx)


_slots: asyncio.Semaphore | None = None


def stage(work: Any) -> Stage:
    return Stage(
        name="sample", about="", amount=lambda recipe: "", record=Trajectory, reads=always(),
        settings=always(), work=work, needs="nothing",
    )  # fmt: skip


def groups(count: int) -> Iterator[Group]:
    for number in range(count):
        key = f"{number:08d}"
        yield Group(key, (key, trajectory(key)))


async def feed(made: Stage, count: int, actors: int) -> tuple[float, float]:
    """Wall and CPU seconds of the driver for so many rows, without Ray for no actors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "recipe.yaml").write_text("name: r\n", encoding="utf-8")
        run = RunReader(path, make_recipe({"name": "r", "model": {"name": "nano"}}, {}, ""))
        with Runner(path / "sample", Trajectory, {"c": 1}) as runner:
            if not actors:
                start, cpu = time.perf_counter(), time.process_time()
                await runner.feed(groups(count), lambda *rows: made.work(*rows, None), window=512)
                return time.perf_counter() - start, time.process_time() - cpu
            async with Fleet(Ray(None, actors), run, False, (made,)) as fleet:
                await fleet.open(made, "base", path / "sample")
                start, cpu = time.perf_counter(), time.process_time()
                await runner.feed(
                    groups(count), made.work, window=512 * actors, elsewhere=fleet.attempt
                )
                return time.perf_counter() - start, time.process_time() - cpu


def overhead(count: int) -> None:
    print(f"{count:,} rows of {TOKENS} tokens\n\n| | rows / s | driver, µs of CPU a row |")
    print("|---|---|---|")
    for actors in (0, 1, 2):
        wall, cpu = asyncio.run(feed(stage(at_once), count, actors))
        name = f"--ray {actors}" if actors else "without"
        print(f"| {name} | {count / wall:,.0f} | {1e6 * cpu / count:.0f} |", flush=True)


def scaling() -> None:
    import ray

    ideal = SLOTS / (LATENCY + TOKENS / RATE)
    print(f"An engine makes {ideal:.0f} rows / s\n")
    print("| actors | rows / s | of the ideal | driver, µs of CPU a row |")
    print("|---|---|---|---|")
    cost = 0.0
    for actors in (1, 2, 4, 8):
        count = SLOTS * actors * 8
        wall, cpu = asyncio.run(feed(stage(simulated), count, actors))
        ray.shutdown()
        cost = cpu / count
        share = count / wall / (ideal * actors)
        print(f"| {actors} | {count / wall:,.0f} | {share:.2f} | {1e6 * cost:.0f} |", flush=True)
    limit = 1 / cost
    print(f"\nA driver's core is used up at {limit:,.0f} rows / s or {limit / ideal:.0f} actors;")
    print(f"64 actors make {64 * ideal:,.0f} rows / s and take {64 * ideal * cost:.0%} of it.")


PROGRAM = """
import sys
from pathlib import Path
from dto.api import find_recipe
from dto.cluster import Ray
from dto.pipeline import open_run, run_stages, with_questions
import yaml
path, problems, seed, actors = Path(sys.argv[1]), *map(int, sys.argv[2:5])
changes = {"problems.train": problems, "problems.dev": 1, "problems.test": 1, "seed": seed}
recipe, _ = find_recipe("quickstart", changes)
run = open_run(path, recipe)
run_stages(run, with_questions(recipe, "sample"), ray=Ray(None, actors) if actors else None)
run.close()
"""


def sampled(path: Path, problems: int, seed: int, actors: int) -> subprocess.Popen[bytes]:
    arguments = [str(path), str(problems), str(seed), str(actors)]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments])


def speed(path: Path) -> tuple[int, float]:
    done = RunReader(path).manifest("sample") or {}
    return done["usage"]["generated"], busy(path, done)


def busy(path: Path, done: dict[str, Any]) -> float:
    """Seconds in which groups were processed: the longest of the actors, or of the rows."""
    if actors := done.get("actors"):
        return float(max(each["seconds"] for each in actors))
    import polars

    return float(polars.read_parquet(path / "sample" / "timings.parquet")["seconds"].max())


def actors(problems: int) -> int:
    print("| | tokens / s |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        ratios = []
        for seed in (0, 1, 2):
            hand = [Path(folder) / f"hand-{seed}-{half}" for half in (0, 1)]
            both = [sampled(path, problems // 2, 10 * seed + n, 0) for n, path in enumerate(hand)]
            assert [each.wait() for each in both] == [0, 0]
            spread = Path(folder) / f"ray-{seed}"
            assert sampled(spread, problems, seed, 2).wait() == 0
            parts = [speed(path) for path in hand]
            by_hand = sum(tokens for tokens, _ in parts) / max(seconds for _, seconds in parts)
            tokens, seconds = speed(spread)
            ratios.append(tokens / seconds / by_hand)
            print(f"| by hand | {by_hand:,.0f} |")
            print(f"| --ray 2 | {tokens / seconds:,.0f} |", flush=True)
    ratio = sum(ratios) / len(ratios)
    shown = ", ".join(f"{each:.2f}" for each in ratios)
    print(f"\nratios {shown}, mean {ratio:.2f} (goal {GOAL})")
    return int(ratio < GOAL)


def main() -> int:
    part, *rest = sys.argv[1:] or [""]
    match part:
        case "actors":
            return actors(int(rest[0]) if rest else 100)
        case "overhead":
            overhead(int(rest[0]) if rest else 100_000)
        case "scaling":
            scaling()
        case _:
            print(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
