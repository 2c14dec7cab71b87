"""Grading: answers/s of the fast path, of the pool, of programs; and what a hanging one costs.

    python -m benchmarks.grading [--answers 2000] [--workers 2]

Answers are all different, so that neither cache nor equal strings help. Easy answers of the pool
are sums with their terms exchanged, which the fast path leaves to math-verify. `per core` is by CPU
time of all processes, which a busy machine changes little; the ratio sets it beside math-verify
called in this process, without a limit on its time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import NamedTuple

import psutil
from math_verify import LatexExtractionConfig, parse, verify

from dto.grading import Graded, Grader
from dto.grading.sandbox import Sandbox

HANGS = "9^{9^{9^{9}}}"
GOLD = json.dumps({"prompt": "", "test": "def check(f):\n    assert f(1) == 2", "entry_point": "f"})
Pairs = Sequence[tuple[str, str]]


class Rate(NamedTuple):
    """Answers in a second by the clock, and in a second of CPU time of all processes."""

    wall: float
    core: float

    def __str__(self) -> str:
        """For the table."""
        return f"{self.wall:10,.0f}/s {self.core:10,.0f}/s per core"


def cpu() -> float:
    """Seconds of this process and of the children that live."""
    own = psutil.Process()
    times = [each.cpu_times() for each in (own, *own.children())]
    ended = own.cpu_times()
    return sum(each.user + each.system for each in times) + (
        ended.children_user + ended.children_system
    )


async def rate(jobs: Iterable[Awaitable[Graded]]) -> Rate:
    """How fast they are; all must come out correct."""
    wall, core = time.perf_counter(), cpu()
    graded = await asyncio.gather(*jobs)
    wall, core = time.perf_counter() - wall, cpu() - core
    assert {each.grade for each in graded} == {"correct"}, "the answers are right"
    return Rate(len(graded) / wall, len(graded) / core)


def answers(grader: Grader, pairs: Pairs) -> list[Awaitable[Graded]]:
    return [grader.grade_answer(answer, gold, "math") for gold, answer in pairs]


def alone(pairs: Pairs) -> float:
    """Answers in a second of CPU time by math-verify in this process."""
    config = [LatexExtractionConfig()]

    def read(text: str) -> list[object]:
        boxed = rf"\boxed{{{text}}}"
        return list(parse(boxed, config, fallback_mode="no_fallback", parsing_timeout=None))

    verify(read("1"), read("2"), timeout_seconds=None)
    begin = time.process_time()
    for gold, answer in pairs:
        assert verify(read(gold), read(answer), timeout_seconds=None)
    return len(pairs) / (time.process_time() - begin)


async def measure(count: int, workers: int) -> None:
    fast = [(rf"\frac{{{n}}}{{7}}", rf"\dfrac{{{2 * n}}}{{14}}") for n in range(count)]
    easy = [(f"x+{n}", f"{n}+x") for n in range(1, count + 1)]
    warm = [(f"y+{n}", f"{n}+y") for n in range(1, 50)]
    async with Grader(workers=workers, time_limit=1.0) as grader:
        print(f"fast path          {await rate(answers(grader, fast))}")
        await rate(answers(grader, warm))
        pool = await rate(answers(grader, easy))
        print(f"pool of {workers}          {pool}")
        single = alone(easy)
        print(f"math-verify alone                {single:10,.0f}/s per core")
        print(f"the pool has {pool.core / single:.2f} x that per core")
    async with Grader(workers=workers, time_limit=1.0) as grader:
        await rate(answers(grader, warm))
        hanging = asyncio.create_task(grader.grade_answer(HANGS, "7", "math"))
        await asyncio.sleep(0)
        beside = await rate(answers(grader, easy))
        assert (await hanging).reason == "grader_timeout"
        lost = count / beside.wall - count / pool.wall
        print(f"beside one that hangs until its limit of 1 s: {lost:+.2f} s for all {count:,}")
    async with Grader(workers=workers, allow_code_execution=True) as grader:
        mode = await Sandbox(1).mode()
        texts = [f"def f(x):\n    return x + 1 + 0 * {n}" for n in range(min(200, count) + 1)]
        await grader.grade_conclusion(texts.pop(), GOLD, "code")
        programs = await rate(grader.grade_conclusion(text, GOLD, "code") for text in texts)
        print(f"programs           {programs} ({mode})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # math-verify warns that it has no time limit here
    asyncio.run(measure(options.answers, options.workers))
