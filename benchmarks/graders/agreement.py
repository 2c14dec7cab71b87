"""Do graders agree? The answers of a run or a file, graded by several rules."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain, combinations, islice
from math import nan
from pathlib import Path
from typing import NamedTuple

from benchmarks.graders.published import RULES, PublishedGrader, Rules
from dto import tables
from dto.errors import DtoError, disk_errors
from dto.grading.extract import final_answer
from dto.grading.grader import Grader
from dto.grading.pool import UNREADABLE_GOLD
from dto.protocols import Graded
from dto.records import Dropped, EvaluationRow, Problem, Trajectory
from dto.runs import manifest
from dto.source import Source
from dto.statistics import kappa
from dto.tasks.files import read_source
from dto.tasks.task import FieldError, text

AT_ONCE = 256
SHOWN = 10
GOLD = ("gold", "gold_answer", "ground_truth", "answer")
PREDICTION = ("prediction", "answer_given", "response", "completion", "output")
QUESTION = ("question", "problem", "prompt")


class Item(NamedTuple):
    """One answer, as it was extracted, and what it is held against."""

    id: str
    gold: str
    answer: str
    rule: str
    question: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts over the answers that were graded, and where they were written.

    `correct` and `failed` by rules; `pairs` by two rules: the counts of (first correct, second
    correct) over the answers that neither failed on. `unreadable`: gold answers that ours could not
    read, with the number of answers held against them. `skipped`: rows without an answer, and
    programs.
    """

    rules: tuple[Rules, ...]
    answers: int
    skipped: int
    correct: dict[Rules, int]
    failed: dict[Rules, int]
    pairs: dict[tuple[Rules, Rules], Counter[tuple[bool, bool]]]
    unreadable: dict[str, int]
    disagreements: int
    shown: tuple[str, ...]
    path: Path

    def __str__(self) -> str:
        """Tables for people."""
        lines = [f"{self.answers:,} answers, {self.skipped:,} rows skipped", ""]
        for rule in self.rules:
            counted = self.answers - self.failed[rule]
            share = f"{self.correct[rule] / counted:7.1%}" if counted else "      –"
            lines.append(f"{rule:<12} correct {share}   failed {self.failed[rule]:,}")
        if self.pairs:
            lines += ["", f"{'pair':<26} {'agree':>7} {'kappa':>7} {'only 1st':>9} {'only 2nd':>9}"]
        for pair, counts in self.pairs.items():
            agree, beyond = agreement(counts)
            only = counts[True, False], counts[False, True]
            name = " / ".join(pair)
            lines.append(f"{name:<26} {agree:7.1%} {beyond:7.3f} {only[0]:9,} {only[1]:9,}")
        if self.unreadable:
            lines += ["", "gold answers that cannot be read (nothing is guessed):"]
            lines += [f"  {gold!r}: {count:,} answers" for gold, count in self.unreadable.items()]
        if self.pairs:
            lines += ["", f"{self.disagreements:,} disagreements, all in {self.path}", *self.shown]
        return "\n".join(lines)


def agreement(counts: Counter[tuple[bool, bool]]) -> tuple[float, float]:
    """Share of equal grades and Cohen's kappa; nan where they are not defined."""
    total = counts.total()
    equal = (counts[True, True] + counts[False, False]) / total if total else nan
    return equal, kappa([[counts[a, b] for b in (True, False)] for a in (True, False)])


def agree(source: str, rules: Sequence[str], out: Path) -> Agreement:
    """Grade the answers of a run, or of a file or dataset, by each of the rules.

    A run: the answers of its evaluation, or of its trajectories where it has none. A file's rows
    have a gold answer (`gold`, `answer`, …) and a `prediction` or `response`, from which the answer
    is taken, may have a `question`, and are of rule math unless `rule` says otherwise. All
    disagreements go to `out/disagreements.jsonl`, the counts to `out/agreement.json`. Raises
    DtoError for unknown rules, and for a source that has no rows or cannot be read.
    """
    known = [rule for rule in RULES if rule in rules]
    unknown = set(rules) - set(known)
    if unknown or not known:
        what = f"there is no grader {min(unknown)!r}" if unknown else "no grader is named"
        raise DtoError(f"grade: {what}: choose one or more of {', '.join(RULES)}")
    run = Path(source)
    items = _of_run(run) if (run / "recipe.yaml").is_file() else _of_file(source)
    first = list(islice(items, 1))  # what cannot be read leaves no folder behind
    if not first:
        raise DtoError(f"grade: {source} has no rows")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_agree(chain(first, items), tuple(known), out))


async def _agree(items: Iterator[Item | None], rules: tuple[Rules, ...], out: Path) -> Agreement:
    path = out / "disagreements.jsonl"
    answers = skipped = disagreements = 0
    correct: dict[Rules, int] = dict.fromkeys(rules, 0)
    failed = correct.copy()
    pairs: dict[tuple[Rules, Rules], Counter[tuple[bool, bool]]] = {
        pair: Counter() for pair in combinations(rules, 2)
    }
    unreadable: Counter[str] = Counter()
    shown: list[str] = []
    async with AsyncExitStack() as opened:
        with disk_errors(path):
            lines = opened.enter_context(path.open("w", encoding="utf-8"))
        graders: dict[Rules, Grader | PublishedGrader] = {}
        for rule in rules:
            grader = Grader() if rule == "ours" else PublishedGrader(rule, os.cpu_count() or 1)
            graders[rule] = await opened.enter_async_context(grader)
        while batch := list(islice(items, AT_ONCE)):
            wanted = [item for item in batch if item is not None]
            skipped += len(batch) - len(wanted)
            answers += len(wanted)
            for item, graded in zip(wanted, await _grade(wanted, graders), strict=True):
                grades = {rule: each.grade for rule, each in graded.items()}
                for rule, grade in grades.items():
                    correct[rule] += grade == "correct"
                    failed[rule] += grade == "failed"
                    if rule == "ours" and graded[rule].reason.startswith(UNREADABLE_GOLD):
                        unreadable[item.gold] += 1
                for (one, other), counts in pairs.items():
                    if "failed" not in (grades[one], grades[other]):
                        counts[grades[one] == "correct", grades[other] == "correct"] += 1
                if len(set(grades.values())) > 1:
                    disagreements += 1
                    with disk_errors(path):
                        row = {"id": item.id, "gold": item.gold, "answer": item.answer}
                        row |= {str(rule): grade for rule, grade in grades.items()}
                        lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                    if len(shown) < SHOWN:
                        right = [rule for rule, grade in grades.items() if grade == "correct"]
                        said = f"{item.gold[:60]!r}, answer {item.answer[:60]!r}"
                        shown.append(f"  gold {said}: correct to {', '.join(right) or 'none'}")
    found = Agreement(
        rules, answers, skipped, correct, failed, pairs, dict(unreadable), disagreements,
        tuple(shown), path,
    )  # fmt: skip
    _write(found, out / "agreement.json")
    return found


async def _grade(
    items: Sequence[Item], graders: dict[Rules, Grader | PublishedGrader]
) -> list[dict[Rules, Graded]]:
    """Grades by rules for each item; each grader's children bound what is under way."""
    found: list[dict[Rules, Graded]] = [{} for _ in items]
    for rule, grader in graders.items():
        grades = await asyncio.gather(*(_one(each, grader) for each in items))
        for into, grade in zip(found, grades, strict=True):
            into[rule] = grade
    return found


async def _one(item: Item, grader: Grader | PublishedGrader) -> Graded:
    if isinstance(grader, PublishedGrader):
        return await grader.grade_answer(item.answer, item.gold)
    return await grader.grade_answer(item.answer, item.gold, item.rule, item.question)


def _write(found: Agreement, path: Path) -> None:
    pairs = [
        {"graders": pair, "answers": counts.total(), "agree": agree, "kappa": beyond}
        for pair, counts in found.pairs.items()
        for agree, beyond in [agreement(counts)]
    ]
    content = {
        "answers": found.answers,
        "skipped": found.skipped,
        "correct": found.correct,
        "failed": found.failed,
        "pairs": pairs,
        "unreadable": found.unreadable,
        "disagreements": found.disagreements,
    }
    with disk_errors(path):
        manifest.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _of_run(run: Path) -> Iterator[Item | None]:
    table = next(
        (
            (path, record)
            for stage, record in (("evaluate", EvaluationRow), ("sample", Trajectory))
            if (path := run / stage / "rows.parquet").is_file()
        ),
        None,
    )
    if table is None:
        raise DtoError(f"grade: {run} has neither evaluate nor sample: run one of these stages")
    path, record = table
    asked = tables.read(run / "problems" / "rows.parquet", Problem)
    of_tasks = run / "test" / "rows.parquet"
    if of_tasks.is_file():
        asked = chain(asked, tables.read(of_tasks, Problem))
    problems = {row.id: row for row in asked}
    rows: Iterator[EvaluationRow | Trajectory] = tables.read(path, record)
    for row in rows:
        problem = problems.get(row.problem_id)
        # Of a run that was pulled the gold answers of others' test sets are not there yet.
        if problem is None or problem.rule == "code" or not row.answer or not problem.answer:
            yield None
            continue
        yield Item(row.id, problem.answer, row.answer, problem.rule, problem.question)


def _of_file(source: str) -> Iterator[Item | None]:
    rows = chain.from_iterable(read_source(Source.parse(source)).values())
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if isinstance(row, Dropped):
            yield None
            continue
        try:
            gold, prediction = (
                text(row, next((name for name in names if name in row), names[0]))
                for names in (GOLD, PREDICTION)
            )
        except FieldError as error:
            raise DtoError(f"{where} {error}") from None
        question = next((str(row[name]) for name in QUESTION if name in row), "")
        rule = row.get("rule", "math")
        answer = final_answer(prediction, rule)
        if "prediction" in row and "boxed" not in prediction:
            answer = prediction
        if rule not in ("math", "choice") or not answer or not gold:
            yield None
            continue
        yield Item(str(row.get("id", number)), gold, answer, rule, question)
