"""Grades: what the stages call, hundreds of thousands of times."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dto.concurrency import gather_bounded
from dto.grading.compare import (
    asks_for_percentage,
    compare,
    decidable,
    without_percent,
)
from dto.grading.extract import (
    MAX_ANSWER,
    final_answer,
    final_boxes,
    list_length,
    trial_answer,
)
from dto.grading.harness import last_block
from dto.grading.pool import UNREADABLE_GOLD, ComparisonError, WorkerPool
from dto.grading.sandbox import Limits, Sandbox, SandboxError
from dto.protocols import Graded
from dto.records import NOT_RUN, Dropped, Grade, Problem
from dto.text import MAX_TEXT
from dto.usage import give_up

logger = logging.getLogger("dto")


class _Key(NamedTuple):
    gold: str
    answer: str
    rule: str
    percent: bool = False  # the question asks for a percentage


_Result = tuple[Grade, str]
_COMPARISON = "dto.grading.algebra"
_NO_ANSWER = ""  # the key under which it is known whether a gold answer can be read


class Grader:
    r"""Decides whether answers equal gold answers. An async context manager.

    In this order: equal strings; the cache over (gold, prediction, rule); `dto.grading.compare`;
    math-verify in a child process. No child is started before a comparison needs one. A comparison
    that is under way is shared by all who ask for it, and goes on when one of them is cancelled.

    27% equals 0.27 and 27\%, and not 27, unless the question asks for a percentage
    (`dto.grading.compare.asks_for_percentage`): say what the question was.

    A gold answer of rule `code` is JSON: `prompt`, `test`, `entry_point`. Programs run in
    `dto.grading.sandbox`, which says what that covers, and only where `allow_code_execution` is
    set: the tests decide, and a program that exceeds a limit is wrong (`time_limit`,
    `memory_limit`).

    An answer is `wrong` where comparing it takes too much time or memory, or breaks the parser,
    though its gold answer alone does not (`grader_timeout`, `grader_memory`, `grader_error: …`): no
    right answer looks like that, and if it failed, expensive guesses would leave the denominator.
    How many there were is logged when the grader is left, and stands in the manifest of a stage.

    A grade is `failed` only for what the grader could not do: reason `no_gold_answer`,
    `unreadable_gold` (`check_gold`; nothing is guessed, and equal strings are not correct either),
    `no_code_execution`, `sandbox_…`, and for a child that was ended from outside `grader_crashed`
    or `grader_stuck`.

    Args:
        workers: most child processes; None: one per core, at most 8. Programs have as many more.
        time_limit: seconds of CPU time for one comparison.
        cache_size: comparisons remembered, the oldest forgotten first.
        allow_code_execution: run programs that a model wrote.
        code_limits: what each of them may use.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        time_limit: float = 5.0,
        cache_size: int = 200_000,
        allow_code_execution: bool = False,
        code_limits: Limits | None = None,
    ) -> None:
        self._workers = workers or min(8, os.cpu_count() or 1)
        self._time_limit = time_limit
        self._cache_size = cache_size
        self._cache: dict[_Key, _Result] = {}
        self._running: dict[_Key, asyncio.Task[_Result]] = {}
        self._pool: WorkerPool | None = None
        self._told = False
        self._given_up: Counter[str] = Counter()
        self._sandbox = Sandbox(self._workers, code_limits) if allow_code_execution else None

    async def grade_conclusion(
        self, conclusion: str, gold: str, rule: str, question: str = ""
    ) -> Graded:
        """Grade the text after `</think>`, and only that.

        The answer is found as `dto.grading.extract` says, a program as `dto.grading.harness` does;
        none is `wrong`. Where the gold answer is a list of as many parts as there are boxes that
        belong together, the boxes are one answer as well. Boxes linked by "or" must all be right.
        """
        if rule == "code":
            return await self._grade_program(conclusion, gold)
        graded = await self._grade(final_answer(conclusion, rule) or "", gold, rule, question)
        if rule == "choice" or graded.grade == "failed":
            return graded
        boxes = final_boxes(conclusion)
        if len(boxes.answers) < 2:
            return graded
        if graded.grade == "wrong" and list_length(gold) == len(boxes.answers):
            wanted = f"({gold})" if boxes.link == "ordered" else gold
            together = await self._grade(boxes.joined(), wanted, rule, question)
            return together if together.grade == "correct" else graded
        if graded.grade == "correct" and boxes.link in ("or", "list"):
            for answer in boxes.answers[:-1]:
                if (await self._grade(answer, gold, rule, question)).grade != "correct":
                    return Graded("wrong", boxes.joined()[:MAX_ANSWER])
        return graded

    async def grade_trial(self, text: str, gold: str, rule: str, question: str = "") -> Graded:
        r"""Grade a trial answer; `text` begins at the inducer's `\boxed` or at its brace.

        A brace that never closes is `truncated`, an empty answer `wrong`. What follows the closing
        brace is not looked at.
        """
        answer = trial_answer(text)
        if answer is None:
            return Graded("truncated", "")
        if rule == "code":
            return await self._grade_program(answer, gold)
        return await self._grade(answer, gold, rule, question)

    async def grade_answer(self, answer: str, gold: str, rule: str, question: str = "") -> Graded:
        """Grade an answer that has been extracted already."""
        return await self._grade(answer.strip(), gold, rule, question)

    @staticmethod
    def final_answer(text: str, rule: str) -> str | None:
        """The answer that a text boxes or states (`dto.grading.extract`); None: there is none."""
        return final_answer(text, rule)

    @staticmethod
    def same(answer: str, other: str, rule: str) -> bool:
        """Whether two answers are equal; those whose equality would take algebra are not."""
        return compare(answer, other, rule) is True

    async def check_gold(self, gold: str, rule: str, question: str = "") -> str:
        """Why no answer can be compared with a gold answer: `unreadable_gold…`; empty: any can.

        Numbers, letters and Chinese are decided at once. Else math-verify has to read the gold
        answer, and to compare it with a number within the limits of a comparison: one on which
        every comparison runs out of time would call all but equal strings wrong. A program's has
        to be JSON with `prompt`, `test` and `entry_point`.
        """
        gold = gold.strip()
        if rule == "code":
            return "" if _program(gold) else UNREADABLE_GOLD
        if not gold:
            return "no_gold_answer"
        return await self._fault(_Key(gold, _NO_ANSWER, rule, asks_for_percentage(question)))

    async def __aenter__(self) -> Grader:
        """Nothing is started yet."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End the children; comparisons under way are cancelled."""
        if self._given_up:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._given_up.items())
            logger.warning(
                "%s answers are graded wrong because the comparison exceeded its limits (%s)",
                f"{self._given_up.total():,}", reasons,
            )  # fmt: skip
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    async def _grade(self, answer: str, gold: str, rule: str, question: str = "") -> Graded:
        gold = gold.strip()
        shown = answer[:MAX_ANSWER]
        if rule == "code":
            return await self._grade_program(answer, gold)
        if not gold:
            return Graded("failed", shown, "no_gold_answer")
        if answer == gold and decidable(gold, rule):
            return Graded("correct", shown)
        key = _Key(gold, answer, rule, asks_for_percentage(question))
        equal: bool | None = answer == gold
        known: _Result | None = None
        looked_at = not equal and answer and len(answer) <= max(MAX_ANSWER, 2 * len(gold))
        if looked_at:
            known = self._cache.get(key)
            equal = compare(gold, answer, rule, percent=key.percent) if known is None else None
        if known is None and equal is not None:
            # Equal strings say nothing where every other answer would fail.
            fault = await self._fault(key)
            grade: Grade = "failed" if fault else "correct" if equal else "wrong"
            known = (grade, fault)
            if looked_at and not fault:
                self._remember(key, grade)
        if known is None:
            known = await self._shared(key)
        if known[0] == "wrong" and known[1]:
            self._given_up[known[1]] += 1
            give_up(known[1])
        return Graded(known[0], shown, known[1])

    async def _grade_program(self, response: str, gold: str) -> Graded:
        response = response[-MAX_TEXT:]
        shown = last_block(response).strip()[:MAX_ANSWER]
        if self._sandbox is None:
            if not self._told:
                logger.warning(
                    "programs are not run, and so graded failed: --allow-code-execution (in the "
                    "library Grader(allow_code_execution=True)) runs them in a sandbox"
                )
            self._told = True
            return Graded("failed", shown, NOT_RUN)
        if not response.strip():
            return Graded("wrong", shown)
        key = _Key(gold, response, "code")
        known = self._cache.get(key) or await self._shared(key)
        return Graded(known[0], shown, known[1])

    async def _fault(self, key: _Key) -> str:
        """What `check_gold` says of the key's gold answer."""
        if decidable(key.gold, key.rule):
            return ""
        key = key._replace(answer=_NO_ANSWER)
        return (self._cache.get(key) or await self._shared(key))[1]

    async def _shared(self, key: _Key) -> _Result:
        """What one task finds out for all who ask."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._run(key) if key.rule == "code" else self._verify(key))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _verify(self, key: _Key) -> _Result:
        if self._pool is None:
            self._pool = WorkerPool(self._workers, self._time_limit, _COMPARISON)
        pair = [key.gold, key.answer]
        if key.percent:
            pair = [without_percent(text) for text in pair]
        gold_alone = key.answer == _NO_ANSWER
        try:
            equal = await self._pool.equal(pair[0], None if gold_alone else pair[1])
        except ComparisonError as error:
            reason = str(error)
            if reason == UNREADABLE_GOLD:
                return self._remember(key, "failed", reason)
            if not error.expensive:
                return "failed", reason  # not remembered: another time it may go well
            if gold_alone:
                return self._remember(key, "failed", f"{UNREADABLE_GOLD}: {reason}")
            if fault := await self._fault(key):
                return "failed", fault
            return self._remember(key, "wrong", reason)
        return self._remember(key, "correct" if equal or gold_alone else "wrong")

    async def _run(self, key: _Key) -> _Result:
        assert self._sandbox is not None
        problem = _program(key.gold)
        if problem is None:
            return self._remember(key, "failed", UNREADABLE_GOLD)
        try:
            passed, reason = await self._sandbox.run(key.answer, *problem)
        except SandboxError as error:
            return self._remember(key, "failed", str(error))
        return self._remember(key, "correct" if passed else "wrong", reason)

    def _remember(self, key: _Key, grade: Grade, reason: str = "") -> _Result:
        while len(self._cache) >= self._cache_size:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = (grade, reason)
        return grade, reason


def _program(gold: str) -> list[str] | None:
    """Prompt, test and entry point of a gold answer of rule `code`; None where they are not it."""
    try:
        fields = json.loads(gold)
        return [str(fields[name]) for name in ("prompt", "test", "entry_point")]
    except (ValueError, KeyError, TypeError):
        return None


_AT_ONCE = 256
_SHOWN = 100  # characters of a gold answer in a message


def unreadable_golds(problems: Sequence[Problem]) -> dict[str, Dropped]:
    """The problems whose gold answer `Grader.check_gold` finds fault with, by id.

    An answer to one of them could be right only as an equal string, and every other one would leave
    the denominator. Blocks until all are checked: numbers and letters at once, in milliseconds for
    thousands; the rest by child processes, some milliseconds of CPU time each.
    """
    slow = [row for row in problems if not decidable(row.answer.strip(), row.rule)]
    if not slow:
        return {}
    # In a thread of its own: this is called with and without an event loop.
    with ThreadPoolExecutor(1, "dto-golds") as thread:
        faults = thread.submit(asyncio.run, _check_all(slow)).result()
    return {
        row.id: Dropped(row.id, UNREADABLE_GOLD, _detail(row, fault))
        for row, fault in zip(slow, faults, strict=True)
        if fault
    }


async def _check_all(problems: Sequence[Problem]) -> list[str]:
    async with Grader() as grader:
        jobs = (grader.check_gold(row.answer, row.rule, row.question) for row in problems)
        return await gather_bounded(jobs, _AT_ONCE)


def _detail(problem: Problem, fault: str) -> str:
    gold = problem.answer
    shown = gold if len(gold) <= _SHOWN else f"{gold[:_SHOWN]}…"
    why = fault.removeprefix(UNREADABLE_GOLD).lstrip(": ")
    if why == "grader_timeout":
        why = "comparing it with a number takes too long"
    elif why == "grader_memory":
        why = "comparing it with a number takes too much memory"
    return f"{problem.task}: gold answer {shown!r}: {why or 'math-verify finds no answer in it'}"
