"""Grading: agreement, near misses, answers/s against math-verify alone, what a hanging one costs.

    python -m benchmarks.grading [--answers 2000] [--workers 2] [--only agreement near mix pool]

Agreement is by list of the cases below `tests/grading` that there are. Near misses are those of
the shared gold answers (`../shared/data`), by kind of change; without that folder they and the mix
are left out.

The mix is like what models write for the shared problems: the solution that comes with a problem,
and behind it the gold answer in a box, in a box in another way, in a sentence, and in boxes two
wrong answers (one a near miss). The grader and math-verify alone (`parse` of the whole response
with its own settings, `verify`) grade it in turn, once to build the parsers and then five times,
the grader with an empty cache each time: the ratio is of CPU time, all processes counted.

Answers of the pool are all different, so that neither cache nor equal strings help: sums with their
terms exchanged, which the fast path leaves to math-verify. `per core` is by CPU time of all
processes, which a busy machine changes little; the ratio sets it beside math-verify called in this
process, without a limit on its time.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
from math_verify import LatexExtractionConfig, parse, verify

from benchmarks.nearmiss import near_misses
from dto.concurrency import gather_bounded
from dto.grading import Graded, Grader
from dto.grading.compare import asks_for_percentage
from dto.grading.sandbox import Sandbox

HANGS = "9^{9^{9^{9}}}"
GOLD = json.dumps({"prompt": "", "test": "def check(f):\n    assert f(1) == 2", "entry_point": "f"})
SHARED = Path(__file__).parents[1] / "../shared/data"
PUBLIC = ("gsm8k", "math500", "aime24", "aime25", "amc23")
WHOLE = ("examined", "examined_again", "unseen")  # their rows hold whole responses
CASES = ("corpus", "kinds", "responses", *WHOLE)  # modules of tests.grading
WINDOW = 64  # answers under way at once
ROUNDS = 5
PERCENT_QUESTION = "What percent of the balls are red?"
Pairs = Sequence[tuple[str, str]]


class Rate(NamedTuple):
    """Answers in a second by the clock, and in a second of CPU time of all processes."""

    wall: float
    core: float

    def __str__(self) -> str:
        """For the table."""
        return f"{self.wall:10,.0f}/s {self.core:10,.0f}/s per core"


class Answered(NamedTuple):
    """A question with its gold answer, and what a model wrote."""

    question: str
    gold: str
    text: str


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


def reader() -> Callable[[str], list[object]]:
    """What math-verify reads in an answer."""
    config = [LatexExtractionConfig()]

    def read(text: str) -> list[object]:
        boxed = rf"\boxed{{{text}}}"
        return list(parse(boxed, config, fallback_mode="no_fallback", parsing_timeout=None))

    verify(read("1"), read("2"), timeout_seconds=None)
    return read


def alone(pairs: Pairs) -> float:
    """Answers in a second of CPU time by math-verify in this process."""
    read = reader()
    begin = time.process_time()
    for gold, answer in pairs:
        assert verify(read(gold), read(answer), timeout_seconds=None)
    return len(pairs) / (time.process_time() - begin)


def case_lists() -> Iterator[tuple[str, str, list[Any]]]:
    """Module, name and rows of each list of cases; a list made of earlier ones is passed over."""
    for module in CASES:
        if importlib.util.find_spec(f"tests.grading.{module}") is None:
            continue
        seen: set[Any] = set()
        for name, value in vars(importlib.import_module(f"tests.grading.{module}")).items():
            lists = value if isinstance(value, dict) else {"": value}
            for part, rows in lists.items():
                if not name.isupper() or not isinstance(rows, list | tuple):
                    continue
                rows = [row for row in rows if isinstance(row, tuple) and len(row) >= 4]
                if not seen.issuperset(rows):
                    seen.update(rows)
                    yield module, f"{name} {part}".strip(), rows


async def grade_case(grader: Grader, module: str, name: str, row: Any) -> tuple[bool, bool]:
    """What a row expects, and what the grader says.

    Rows are (gold, answer, equal, why), for whole responses (gold, response, kind, right, why), or
    without a rule, which the list's name says.
    """
    rule: str
    if module in WHOLE:
        rule = "choice" if name.startswith("CHOICE") else "math"
        if name.startswith("CODE"):
            rule = "code"
        graded = await grader.grade_conclusion(row[1], row[0], rule)
        return row[2], graded.grade == "correct"
    if isinstance(row[2], bool):
        rule = "choice" if name.startswith("CHOICE") else "math"
        question = PERCENT_QUESTION if name == "PERCENT" else ""
        graded = await grader.grade_answer(row[1], row[0], rule, question)
        return row[2], graded.grade == "correct"
    graded = await grader.grade_conclusion(row[1], row[0], row[2])
    return bool(row[3]), graded.grade == "correct"


async def agreement(workers: int) -> None:
    """How many cases are graded as they say, by list."""
    print("agreement: cases graded as they say, of all; too strict, too lax")
    total: Counter[str] = Counter()
    async with Grader(workers=workers, allow_code_execution=True) as grader:
        for module, name, rows in case_lists():
            found = await gather_bounded(
                [grade_case(grader, module, name, row) for row in rows], WINDOW
            )
            same = sum(expected == given for expected, given in found)
            strict = sum(expected and not given for expected, given in found)
            lax = len(found) - same - strict
            total.update(same=same, rows=len(rows), strict=strict, lax=lax)
            print(f"  {module:<10} {name:<24} {same:>5,} of {len(rows):>5,} {strict:>4} {lax:>4}")
    share = total["same"] / max(1, total["rows"])
    print(
        f"  all {share:.1%}: {total['same']:,} of {total['rows']:,} "
        f"{total['strict']} {total['lax']}"
    )


def public_golds() -> list[tuple[str, str, str]]:
    """Questions, gold answers and solutions of the shared test sets."""
    found = []
    for name in PUBLIC:
        for line in (SHARED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                gold = row["answer"]
                gold = f"{gold:g}" if isinstance(gold, float) else str(gold)
                solution = re.sub(r"\\boxed\s*", "", row.get("solution") or row.get("cot") or "")
                question = str(row.get("problem") or row.get("question"))
                found.append((question, gold.strip(), re.sub(r"<<.*?>>", "", solution)))
    return found


async def public_near_misses(workers: int) -> None:
    """How many near misses of the shared gold answers are taken for right, by kind of change."""
    tried = [
        (question, gold, each)
        for question, gold, _ in public_golds()
        for each in near_misses(gold, percent=asks_for_percentage(question))
    ]
    count: Counter[str] = Counter(each.kind for _, _, each in tried)
    right: Counter[str] = Counter()
    slowest = (0.0, "", "")
    async with Grader(workers=workers) as grader:
        warm = [(f"y+{n}", f"{n}+y") for n in range(1, 50)]
        await asyncio.gather(*answers(grader, warm))

        async def one(question: str, gold: str, answer: str, kind: str) -> None:
            graded = await grader.grade_answer(answer, gold, "math", question)
            if graded.grade == "correct":
                right[kind] += 1
                print(f"  {kind}: {answer!r} is graded correct for {gold!r}")

        jobs = (one(question, gold, each.answer, each.kind) for question, gold, each in tried)
        await gather_bounded(jobs, WINDOW)
        for question, gold, each in {(q, g): (q, g, e) for q, g, e in tried}.values():
            begin = time.perf_counter()
            await grader.grade_answer(rf"{each.answer}\,", gold, "math", question)
            slowest = max(slowest, (time.perf_counter() - begin, gold, each.answer))
    print(f"near misses of shared gold answers: {right.total():,} of {count.total():,} "
          f"({right.total() / count.total():.2%}) graded correct")  # fmt: skip
    for kind, number in count.most_common():
        print(f"  {kind:<12} {right[kind]:>4,} of {number:>6,}")
    print(f"  slowest comparison, one at a time: {slowest[0]:.2f} s, {slowest[2]!r} "
          f"with {slowest[1]!r}")  # fmt: skip


def rewritten(gold: str) -> str:
    """A gold answer as another writer has it: equal, and no equal string."""
    if re.fullmatch(r"-?\d{4,}", gold):
        return f"{int(gold):,}"
    if re.fullmatch(r"-?\d+", gold):
        return rf"{gold}\text{{ units}}" if len(gold) % 2 else f"{gold}.0"
    if r"\frac" in gold:
        return gold.replace(r"\frac", r"\dfrac")
    return (
        rf"\left({gold}\right)" if re.fullmatch(r"[^,=()\[\]]+", gold) else gold.replace(",", ", ")
    )


def model_outputs(most: int) -> list[Answered]:
    """The mix: of each gold answer five responses, shuffled, at most `most` in all."""
    found = []
    for question, gold, solution in public_golds():
        draw = random.Random(gold + question)
        other = [each.answer for each in near_misses(gold)]
        wrong = draw.choice(other) if other else "0"
        guess = str(draw.randint(2, 999))
        found += [
            Answered(question, gold, f"{solution}\n\n{text}")
            for text in (
                rf"So the answer is $\boxed{{{gold}}}$.",
                rf"Adding both gives \[\boxed{{{rewritten(gold)}}}\]",
                f"The answer is ${rewritten(gold)}$.",
                rf"Therefore \boxed{{{wrong}}}",
                rf"We find $\boxed{{{guess}}}$.",
            )
        ]
    random.Random(0).shuffle(found)
    return found[:most]


async def mix(count: int, workers: int) -> None:
    """The grader against math-verify alone, in turn, on the same model outputs.

    Each round has its own, so that nothing is remembered of them.
    """
    written = model_outputs(count)
    right = [0, 0]
    ours: list[Rate] = []
    theirs: list[float] = []
    slowest = (0.0, "", "")
    async with Grader(workers=workers) as grader:
        for turn in range(ROUNDS + 1):
            outputs = written[turn :: ROUNDS + 1]
            wall, core = time.perf_counter(), cpu()
            graded = await gather_bounded(
                (
                    grader.grade_conclusion(each.text, each.gold, "math", each.question)
                    for each in outputs
                ),
                WINDOW,
            )
            took = Rate(len(outputs) / (time.perf_counter() - wall), len(outputs) / (cpu() - core))
            right[0] += sum(each.grade == "correct" for each in graded)
            core = time.process_time()
            for each in outputs:
                begin = time.process_time()
                given = parse(each.text, parsing_timeout=None)
                wanted = parse(f"${each.gold}$", parsing_timeout=None)
                right[1] += bool(verify(wanted, given, timeout_seconds=None))
                seconds = time.process_time() - begin
                slowest = max(slowest, (seconds * bool(turn), each.gold, each.text[-80:]))
            if turn:  # in the first both build their parsers
                ours.append(took)
                theirs.append(len(outputs) / (time.process_time() - core))
    rates = Rate(median(each.wall for each in ours), median(each.core for each in ours))
    print(f"model outputs      {rates}, {len(written):,} of them, {ROUNDS} rounds")
    print(f"math-verify alone                {median(theirs):10,.0f}/s per core")
    ratios = [one.core / other for one, other in zip(ours, theirs, strict=True)]
    print(
        f"CPU: {rates.core / median(theirs):.2f} x less than math-verify alone "
        f"({min(ratios):.2f}–{max(ratios):.2f}); graded correct {right[0]:,}, by it {right[1]:,}"
    )
    print(f"its slowest comparison: {slowest[0]:.2f} s, {slowest[2]!r} with {slowest[1]!r}")


async def pool(count: int, workers: int) -> None:
    """The fast path, the pool, a comparison that hangs, and programs."""
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


async def measure(count: int, workers: int, only: Sequence[str]) -> None:
    if "agreement" in only:
        await agreement(workers)
    if SHARED.is_dir() and "near" in only:
        await public_near_misses(workers)
    if SHARED.is_dir() and "mix" in only:
        await mix(count, workers)
    if "pool" in only:
        await pool(count, workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parts = ("agreement", "near", "mix", "pool")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # math-verify warns that it has no time limit here
    asyncio.run(measure(options.answers, options.workers, options.only))
