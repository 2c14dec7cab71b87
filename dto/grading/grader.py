"""Grade answers. Stages call this hundreds of thousands of times."""

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
from dto.records import GIVEN_UP, NOT_RUN, RULE_FAILED, RULES, Dropped, Grade, Problem
from dto.text import MAX_TEXT
from dto.usage import counted_as, give_up

logger = logging.getLogger("dto")


class _Key(NamedTuple):
    gold: str
    answer: str
    rule: str
    percent: bool = False  # the question asks for a percentage


_Result = tuple[Grade, str]
_COMPARISON = "dto.grading.algebra"
_NO_ANSWER = ""  # key of the result for a gold answer alone: whether it can be read


class Grader:
    r"""Decides whether answers equal gold answers. An async context manager.

    The steps of rules `math` and `choice`, in this order: equal strings; the cache over (gold,
    prediction, rule); `dto.grading.compare`; math-verify in a child process. No child is started
    before a comparison needs one. All callers that ask for the same comparison share it, and it
    continues when one of them is cancelled.

    27% equals 0.27 and 27\%, and not 27, unless the question asks for a percentage
    (`dto.grading.compare.asks_for_percentage`): pass the question.

    A gold answer of rule `code` is JSON: `prompt`, `test`, `entry_point`. Programs run in
    `dto.grading.sandbox`, which describes its limits, and only with `allow_code_execution`: the
    tests decide, and a program that exceeds a limit is wrong (`time_limit`, `memory_limit`).

    Any other rule is one of another package, named by import path (`dto.grading.pool.load_rule`).
    The answer is extracted as under `math`. The rule compares it in a child process, under the same
    limits, and alone decides: equal strings are not assumed to be right, no gold answer counts as
    unreadable, and the question is not considered. No answer, and one longer than 2,000 characters
    and twice its gold answer, is wrong without asking the rule. A rule that raises, exceeds a limit
    or returns no bool gives the grade `failed`: `rule_error: …`, `rule_timeout`, `rule_memory`,
    `rule_stuck`, `rule_crashed`.

    An answer is `wrong` if comparing it takes too much time or memory, or breaks the parser,
    although its gold answer alone does not (`grader_timeout`, `grader_memory`, `grader_error: …`):
    no right answer looks like that, and if it failed, expensive guesses would leave the
    denominator. Their number is logged when the grader is left, and is in the manifest of a stage.

    Under built-in rules a grade is `failed` only when the grader itself could not decide: reason
    `no_gold_answer`, `unreadable_gold` (`check_gold`; equal strings are not correct then, either),
    `no_code_execution`, `sandbox_…`, and for a child that was killed from outside `grader_crashed`
    or `grader_stuck`.

    Args:
        workers: most child processes of one rule; None: one per core, at most 8. Programs have as
            many more.
        time_limit: seconds of CPU time for one comparison.
        cache_size: results kept; the oldest are forgotten first.
        allow_code_execution: run programs that a model wrote.
        code_limits: limits of each program.
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
        self._pools: dict[str, WorkerPool] = {}
        self._warned_of_programs = False
        self._given_up: Counter[str] = Counter()
        self._sandbox = Sandbox(self._workers, code_limits) if allow_code_execution else None

    async def grade_conclusion(
        self, conclusion: str, gold: str, rule: str, question: str = ""
    ) -> Graded:
        """Grade the text after `</think>`.

        `dto.grading.extract` finds the answer, `dto.grading.harness` a program; no answer is
        `wrong`. If the gold answer is a list of as many parts as there are boxes that belong
        together, the boxes are one answer as well. Boxes linked by "or" must all be right.
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
            whole_gold = f"({gold})" if boxes.link == "ordered" else gold
            together = await self._grade(boxes.joined(), whole_gold, rule, question)
            return together if together.grade == "correct" else graded
        if graded.grade == "correct" and boxes.link in ("or", "list"):
            for answer in boxes.answers[:-1]:
                other = await self._grade(answer, gold, rule, question)
                if other.grade != "correct":
                    failed = other.reason.startswith(RULE_FAILED)
                    return other if failed else Graded("wrong", boxes.joined()[:MAX_ANSWER])
        return graded

    async def grade_trial(self, text: str, gold: str, rule: str, question: str = "") -> Graded:
        r"""Grade a trial answer; `text` begins at the inducer's `\boxed` or at its brace.

        A brace that never closes is `truncated`, an empty answer `wrong`. Text behind the closing
        brace is ignored.
        """
        answer = trial_answer(text)
        if answer is None:
            return Graded("truncated", "")
        if rule == "code":
            return await self._grade_program(answer, gold)
        return await self._grade(answer, gold, rule, question)

    async def grade_answer(self, answer: str, gold: str, rule: str, question: str = "") -> Graded:
        """Grade an extracted answer."""
        return await self._grade(answer.strip(), gold, rule, question)

    @staticmethod
    def final_answer(text: str, rule: str) -> str | None:
        """Extract the answer that a text boxes or states (`dto.grading.extract`), or None."""
        return final_answer(text, rule)

    @staticmethod
    def same(answer: str, other: str, rule: str) -> bool:
        """Whether two answers are equal, without algebra.

        Under a rule of another package: whether they are equal strings, without white space at
        the ends.
        """
        if rule not in RULES:
            return answer.strip() == other.strip()
        return compare(answer, other, rule) is True

    async def check_gold(self, gold: str, rule: str, question: str = "") -> str:
        """Why no answer can be compared with a gold answer: `unreadable_gold…`; empty if one can.

        Numbers, letters and Chinese are decided at once. Otherwise math-verify has to read the gold
        answer, and to compare it with a number within the limits of a comparison: if every
        comparison ran out of time, all answers but equal strings would be wrong. The gold answer of
        a program has to be JSON with `prompt`, `test` and `entry_point`. A rule of another package
        can use any gold answer but an empty one.
        """
        gold = gold.strip()
        if rule == "code":
            return "" if _program(gold) else UNREADABLE_GOLD
        if not gold:
            return "no_gold_answer"
        if rule not in RULES:
            return ""
        return await self._fault(_Key(gold, _NO_ANSWER, rule, asks_for_percentage(question)))

    async def __aenter__(self) -> Grader:
        """Start nothing yet."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Cancel running comparisons and end the children."""
        for prefix, message in (
            (GIVEN_UP, "answers are graded wrong because the comparison exceeded its limits"),
            (RULE_FAILED, "answers have no grade because their answer rule failed"),
        ):
            counts = {key: n for key, n in self._given_up.items() if key.startswith(prefix)}
            if counts:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
                logger.warning("%s %s (%s)", f"{sum(counts.values()):,}", message, reasons)
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for pool in self._pools.values():
            await pool.close()
        self._pools.clear()

    async def _grade(self, answer: str, gold: str, rule: str, question: str = "") -> Graded:
        gold = gold.strip()
        shown = answer[:MAX_ANSWER]
        if rule == "code":
            return await self._grade_program(answer, gold)
        if not gold:
            return Graded("failed", shown, "no_gold_answer")
        built_in = rule in RULES
        if built_in and answer == gold and decidable(gold, rule):
            return Graded("correct", shown)
        key = _Key(gold, answer, rule, built_in and asks_for_percentage(question))
        comparable = answer and len(answer) <= max(MAX_ANSWER, 2 * len(gold))
        if built_in:
            result = await self._compare(key, bool(comparable))
        elif comparable:
            result = self._cache.get(key) or await self._shared(key)
        else:
            result = "wrong", ""
        grade, reason = result
        if reason and (grade == "wrong" or reason.startswith(RULE_FAILED)):
            self._given_up[counted_as(reason)] += 1
            give_up(reason)
        return Graded(grade, shown, reason)

    async def _compare(self, key: _Key, comparable: bool) -> _Result:
        """The result under a built-in rule; an answer that is not `comparable` is not compared."""
        equal: bool | None = key.answer == key.gold
        comparable = comparable and not equal
        if comparable:
            if (cached := self._cache.get(key)) is not None:
                return cached
            equal = compare(key.gold, key.answer, key.rule, percent=key.percent)
        if equal is None:
            return await self._shared(key)
        # Equal strings are not correct if no other answer could be compared.
        fault = await self._fault(key)
        grade: Grade = "failed" if fault else "correct" if equal else "wrong"
        if comparable and not fault:
            self._remember(key, grade)
        return grade, fault

    async def _grade_program(self, response: str, gold: str) -> Graded:
        response = response[-MAX_TEXT:]
        shown = last_block(response).strip()[:MAX_ANSWER]
        if self._sandbox is None:
            if not self._warned_of_programs:
                logger.warning(
                    "programs are not run, and so graded failed: --allow-code-execution (in the "
                    "library Grader(allow_code_execution=True)) runs them in a sandbox"
                )
            self._warned_of_programs = True
            return Graded("failed", shown, NOT_RUN)
        if not response.strip():
            return Graded("wrong", shown)
        key = _Key(gold, response, "code")
        grade, reason = self._cache.get(key) or await self._shared(key)
        return Graded(grade, shown, reason)

    async def _fault(self, key: _Key) -> str:
        """The result of `check_gold` for the key's gold answer."""
        if decidable(key.gold, key.rule):
            return ""
        key = key._replace(answer=_NO_ANSWER)
        return (self._cache.get(key) or await self._shared(key))[1]

    async def _shared(self, key: _Key) -> _Result:
        """The result of one task that all callers with this key share."""
        task = self._running.get(key)
        if task is None:
            if key.rule == "code":
                work = self._run(key)
            else:
                work = self._verify(key) if key.rule in RULES else self._ask_rule(key)
            task = asyncio.create_task(work)
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _verify(self, key: _Key) -> _Result:
        pair = [key.gold, key.answer]
        if key.percent:
            pair = [without_percent(text) for text in pair]
        gold_alone = key.answer == _NO_ANSWER
        try:
            equal = await self._pool(_COMPARISON).equal(pair[0], None if gold_alone else pair[1])
        except ComparisonError as error:
            reason = str(error)
            if reason == UNREADABLE_GOLD:
                return self._remember(key, "failed", reason)
            if not error.repeatable:
                return "failed", reason  # not remembered: it may succeed another time
            if gold_alone:
                return self._remember(key, "failed", f"{UNREADABLE_GOLD}: {reason}")
            if fault := await self._fault(key):
                return "failed", fault
            return self._remember(key, "wrong", reason)
        return self._remember(key, "correct" if equal or gold_alone else "wrong")

    async def _ask_rule(self, key: _Key) -> _Result:
        try:
            accepted = await self._pool(key.rule).equal(key.gold, key.answer)
        except ComparisonError as error:
            if not error.repeatable:
                return "failed", str(error)
            return self._remember(key, "failed", str(error))
        return self._remember(key, "correct" if accepted else "wrong")

    def _pool(self, comparison: str) -> WorkerPool:
        if comparison not in self._pools:
            self._pools[comparison] = WorkerPool(self._workers, self._time_limit, comparison)
        return self._pools[comparison]

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
    """Prompt, test and entry point of a gold answer of rule `code`; None if one is missing."""
    try:
        fields = json.loads(gold)
        return [str(fields[name]) for name in ("prompt", "test", "entry_point")]
    except (ValueError, KeyError, TypeError):
        return None


_CONCURRENT = 256
_SHOWN = 100  # characters of a gold answer in a message


def unreadable_golds(problems: Sequence[Problem]) -> dict[str, Dropped]:
    """The problems whose gold answer does not pass `Grader.check_gold`, by id.

    An answer to one of them could be right only as an equal string, and every other answer would
    leave the denominator. Problems under a rule of another package are not checked. Blocks until
    all are checked: numbers and letters at once, in milliseconds for thousands; the rest by child
    processes, some milliseconds of CPU time each.
    """
    slow = [
        row for row in problems if row.rule in RULES and not decidable(row.answer.strip(), row.rule)
    ]
    if not slow:
        return {}
    # In a separate thread: this is called with and without an event loop.
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
        return await gather_bounded(jobs, _CONCURRENT)


def _detail(problem: Problem, fault: str) -> str:
    gold = problem.answer
    shown = gold if len(gold) <= _SHOWN else f"{gold[:_SHOWN]}…"
    why = fault.removeprefix(UNREADABLE_GOLD).lstrip(": ")
    if why == "grader_timeout":
        why = "comparing it with a number takes too long"
    elif why == "grader_memory":
        why = "comparing it with a number takes too much memory"
    return f"{problem.task}: gold answer {shown!r}: {why or 'math-verify finds no answer in it'}"
