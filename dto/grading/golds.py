"""Gold answers, before any model runs: can an answer be compared with them at all?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dto.concurrency import gather_bounded
from dto.grading.compare import decidable
from dto.grading.grader import Grader
from dto.records import Dropped, Problem

REASON = "unreadable_gold"
AT_ONCE = 256
SHOWN = 100  # characters of a gold answer in a message


def unreadable_golds(problems: Sequence[Problem]) -> dict[str, Dropped]:
    """The problems whose gold answer `Grader.check_gold` finds fault with, by id.

    An answer to one of them could be right only as an equal string, and every other one would leave
    the denominator. Blocks until all are checked: numbers and letters at once, in milliseconds for
    thousands; the rest by child processes, some milliseconds of CPU time each.
    """
    slow = [row for row in problems if not decidable(row.answer.strip(), row.answer_kind)]
    if not slow:
        return {}
    # In a thread of its own: this is called with and without an event loop.
    with ThreadPoolExecutor(1, "dto-golds") as thread:
        faults = thread.submit(asyncio.run, _check(slow)).result()
    return {
        row.id: Dropped(row.id, REASON, _detail(row, fault))
        for row, fault in zip(slow, faults, strict=True)
        if fault
    }


async def _check(problems: Sequence[Problem]) -> list[str]:
    async with Grader() as grader:
        jobs = (grader.check_gold(row.answer, row.answer_kind, row.question) for row in problems)
        return await gather_bounded(jobs, AT_ONCE)


def _detail(problem: Problem, fault: str) -> str:
    gold = problem.answer
    shown = gold if len(gold) <= SHOWN else f"{gold[:SHOWN]}…"
    why = fault.removeprefix(REASON).lstrip(": ")
    if why == "grader_timeout":
        why = "comparing it with a number takes too long"
    elif why == "grader_memory":
        why = "comparing it with a number takes too much memory"
    return f"{problem.task}: gold answer {shown!r}: {why or 'math-verify finds no answer in it'}"
