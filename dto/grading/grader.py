"""Grades: what the stages call, hundreds of thousands of times."""

from __future__ import annotations

import asyncio
import os
from typing import NamedTuple

from dto.grading.compare import clean, compare
from dto.grading.extract import MAX_ANSWER, final_answer, trial_answer
from dto.grading.pool import ComparisonError, WorkerPool
from dto.records import AnswerKind, Grade


class Graded(NamedTuple):
    """A grade, the answer it was given for, and, where the grade is `failed`, why.

    `answer` is empty where there was none, and cut at 2,000 characters.
    """

    grade: Grade
    answer: str
    reason: str = ""


class Grader:
    """Decides whether answers equal gold answers. An async context manager.

    In this order: equal strings; the cache over (gold, prediction, kind); `dto.grading.compare`;
    math-verify in a child process. No child is started before a comparison needs one. A comparison
    that is under way is shared by all who ask for it, and goes on when one of them is cancelled.

    A grade is `failed` only for what the grader could not do (reason `no_gold_answer`,
    `no_code_execution`, `grader_timeout`, `grader_memory`, `grader_crashed`, `grader_error: …`).

    Args:
        workers: most child processes; None: one per core, at most 8.
        time_limit: seconds of CPU time for one comparison.
        cache_size: comparisons remembered, the oldest forgotten first.
    """

    def __init__(
        self, *, workers: int | None = None, time_limit: float = 5.0, cache_size: int = 200_000
    ) -> None:
        self._workers = workers or min(8, os.cpu_count() or 1)
        self._time_limit = time_limit
        self._cache_size = cache_size
        self._cache: dict[tuple[str, str, AnswerKind], tuple[Grade, str]] = {}
        self._running: dict[tuple[str, str, AnswerKind], asyncio.Task[tuple[Grade, str]]] = {}
        self._pool: WorkerPool | None = None

    async def grade_conclusion(self, conclusion: str, gold: str, kind: AnswerKind) -> Graded:
        """Grade the text after `</think>`, and only that.

        The answer is found as `dto.grading.extract` says; none is `wrong`.
        """
        return await self._grade(final_answer(conclusion) or "", gold, kind)

    async def grade_trial(self, text: str, gold: str, kind: AnswerKind) -> Graded:
        r"""Grade a trial answer; `text` begins at the inducer's `\boxed` or at its brace.

        A brace that never closes is `truncated`, an empty answer `wrong`. What follows the closing
        brace is not looked at.
        """
        answer = trial_answer(text)
        if answer is None:
            return Graded("truncated", "")
        return await self._grade(answer, gold, kind)

    async def __aenter__(self) -> Grader:
        """Nothing is started yet."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End the children; comparisons under way are cancelled."""
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    async def _grade(self, answer: str, gold: str, kind: AnswerKind) -> Graded:
        gold = gold.strip()
        shown = answer[:MAX_ANSWER]
        if kind == "code":
            return Graded("failed", shown, "no_code_execution")
        if not gold:
            return Graded("failed", shown, "no_gold_answer")
        if answer == gold:
            return Graded("correct", shown)
        if not answer or len(answer) > max(MAX_ANSWER, 2 * len(gold)):
            return Graded("wrong", shown)
        key = (gold, answer, kind)
        known = self._cache.get(key)
        if known is None:
            equal = compare(gold, answer, kind)
            known = (
                await self._verified(key)
                if equal is None
                else self._remember(key, "correct" if equal else "wrong")
            )
        return Graded(known[0], shown, known[1])

    async def _verified(self, key: tuple[str, str, AnswerKind]) -> tuple[Grade, str]:
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._verify(key))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _verify(self, key: tuple[str, str, AnswerKind]) -> tuple[Grade, str]:
        if self._pool is None:
            self._pool = WorkerPool(self._workers, self._time_limit)
        try:
            equal = await self._pool.equal(clean(key[0]), clean(key[1]))
        except ComparisonError as error:
            return self._remember(key, "failed", str(error))
        return self._remember(key, "correct" if equal else "wrong")

    def _remember(
        self, key: tuple[str, str, AnswerKind], grade: Grade, reason: str = ""
    ) -> tuple[Grade, str]:
        while len(self._cache) >= self._cache_size:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = (grade, reason)
        return grade, reason
