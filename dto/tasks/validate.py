r"""Check whether a dataset is fit to measure with, before any model runs.

Every gold answer is graded against itself, as the conclusion `\boxed{gold}` or, for a program, as
its reference solution, and must be correct. Equal strings alone would pass any text, so an answer
under rule `math` must also be one that the grader can compare with others: a number, words, or
mathematics that its parser reads. Rows that fail are listed, never repaired.

Near misses of the gold answers (`dto.tasks.nearmiss`) should be graded wrong. Those that are graded
correct limit how far the grades of this dataset can be trusted. They are reported, and do not fail
the dataset. Under a rule of another package no near misses are tried: only that rule knows which
changes matter.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from string import ascii_uppercase
from typing import NamedTuple

from dto.concurrency import gather_bounded
from dto.errors import DtoError
from dto.grading import Grader
from dto.grading.notation import clean
from dto.grading.pool import UNREADABLE_GOLD
from dto.grading.quantity import quantity
from dto.recipe import ProblemSettings
from dto.records import RULES, Dropped, Problem, Split
from dto.tasks.load import read_problems
from dto.tasks.nearmiss import GoldKind, NearMiss, NearMissKind, near_misses
from dto.tasks.overlap import WORDS, Index, same_as, words

WINDOW = 256  # rows graded at once
SHOWN = 100  # characters of an answer in a message
MOST_WORDS = 5  # a longer answer is prose
MOST_CHARACTERS = 20  # the same in Chinese
MOST_GOLDS = 500  # gold answers of each kind whose near misses are tried
SAME = 0.1  # least share of n-grams that makes two questions versions of one

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textrm|textit)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LATIN = re.compile(r"[A-Za-z]{2,}")
_ONLY_WORDS = re.compile(r"[^\W\d_]+(?:(?:\s+|['’-])[^\W\d_]+)*")


class Finding(NamedTuple):
    """A finding about one row, which `where` names; `reason` is a slug."""

    where: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """The findings; a dataset passes if `unexplained` is empty.

    `counts` has, for each split, the number of rows (`rows`), of problems by the kind of their gold
    answer, of `duplicates`, `overlaps` and `unexplained`. `duplicates` and `overlaps` each name the
    other row. `tried` counts near misses by their kind. `right` lists those that were graded
    correct, with their kind as the reason. `letters` counts gold answers that are single letters.
    """

    counts: dict[Split | None, Counter[str]] = field(default_factory=dict)
    unexplained: list[Finding] = field(default_factory=list)
    duplicates: list[Finding] = field(default_factory=list)
    overlaps: list[Finding] = field(default_factory=list)
    tried: Counter[NearMissKind] = field(default_factory=Counter)
    right: list[Finding] = field(default_factory=list)
    letters: Counter[str] = field(default_factory=Counter)


async def validate(
    settings: ProblemSettings,
    grader: Grader,
    against: Sequence[ProblemSettings] = (),
    n: int = WORDS,
    most_golds: int = MOST_GOLDS,
) -> Report:
    """Grade all gold answers of the sources in `settings`, and find shared questions.

    Near misses are tried of at most `most_golds` gold answers of each kind, a random sample that is
    always the same. Rows of train and dev are compared with those of test, and all rows with those
    of `against`, by n-grams of words. Raises DtoError as `read_problems` does, and for a source
    without rows.
    """
    report = Report()
    others, tests = Index(n), Index(n)
    for source in against:
        for _, where, row in read_problems(source):
            if isinstance(row, Problem):
                others.add(where, row.question)
    questions: dict[str, tuple[str, str]] = {}
    golds: dict[GoldKind, dict[str, tuple[str, Problem]]] = {}
    rows = read_problems(settings)
    while window := list(islice(rows, WINDOW)):
        verdicts = await gather_bounded(_judged(where, row, grader) for _, where, row in window)
        for (split, where, row), verdict in zip(window, verdicts, strict=True):
            counts = report.counts.setdefault(split, Counter())
            counts["rows"] += 1
            if isinstance(verdict, Finding):
                counts["unexplained"] += 1
                report.unexplained.append(verdict)
            else:
                counts[verdict] += 1
            if not isinstance(row, Problem):
                continue
            if verdict == "letter":
                report.letters[row.answer.strip("() .")] += 1
            if not isinstance(verdict, Finding):
                golds.setdefault(verdict, {}).setdefault(row.answer, (where, row))
            key = same_as(row.question)
            if key in questions:
                counts["duplicates"] += 1
                report.duplicates.append(
                    Finding(where, "duplicate", f"the question of {questions[key][0]}")
                )
                if twin := await _other_answer(where, row, questions[key], grader):
                    counts["unexplained"] += 1
                    report.unexplained.append(twin)
                continue
            questions[key] = (where, row.answer)
            for index in (others, *([tests] if split in ("train", "dev") else [])):
                hit = index.find(row.question)
                if hit is not None and hit.share >= SAME:
                    counts["overlaps"] += 1
                    detail = f"{hit.share:.0%} of {hit.where}"
                    detail += f": {hit.phrase!r}" if hit.share < 1 else ""
                    report.overlaps.append(Finding(where, "overlap", detail))
            if split == "test":
                tests.add(where, row.question)
    if not report.counts:
        raise DtoError(f"{settings.source} has no rows to validate: check the source")
    for kind, rows_of_kind in golds.items():
        sample = list(rows_of_kind.values())
        if len(sample) > most_golds:
            sample = random.Random(kind).sample(sample, most_golds)
        tries = [
            (where, row, miss) for where, row in sample for miss in near_misses(row.answer, kind)
        ]
        report.tried.update(miss.kind for *_, miss in tries)
        findings = await gather_bounded(_graded_correct(*attempt, grader) for attempt in tries)
        report.right.extend(finding for finding in findings if finding is not None)
    return report


async def _graded_correct(
    where: str, row: Problem, near_miss: NearMiss, grader: Grader
) -> Finding | None:
    kind, answer = near_miss
    conclusion = rf"\boxed{{{answer}}}"
    graded = await grader.grade_conclusion(conclusion, row.answer, row.rule, row.question)
    if graded.grade != "correct":
        return None
    return Finding(where, kind, f"{_shown(answer)} for {_shown(row.answer)}")


async def _judged(where: str, row: Problem | Dropped, grader: Grader) -> GoldKind | Finding:
    """The kind of a row's gold answer, or the reason why it has none."""
    if isinstance(row, Dropped):
        return Finding(where, row.reason, row.detail.removeprefix(where).strip())
    if row.rule == "code":
        reference = row.metadata.get("canonical_solution", "")
        if not reference:
            return Finding(where, "no_reference", "has no canonical_solution to run")
        program = json.loads(row.answer)["prompt"] + reference
        conclusion = f"```python\n{program.rstrip()}\n```"
    else:
        conclusion = rf"\boxed{{{row.answer}}}"
    graded = await grader.grade_conclusion(conclusion, row.answer, row.rule)
    whole = row.rule == "math" and graded.answer == row.answer.strip()
    if graded.grade != "correct" and not (whole and graded.reason.startswith(UNREADABLE_GOLD)):
        why = f"{graded.grade}, {graded.reason}" if graded.reason else graded.grade
        shown = "its reference solution" if row.rule == "code" else _shown(row.answer)
        return Finding(where, "not_itself", f"{shown} is graded {why} against itself")
    if row.rule not in RULES:
        return "other_rule"
    if row.rule == "code":
        return "program"
    if row.rule == "choice":
        letter = row.answer.strip("() .")
        if len(letter) == 1 and letter in ascii_uppercase:
            return "letter"
        return Finding(where, "no_letter", f"{_shown(row.answer)} is not the letter of an option")
    return await _kind_of_mathematics(where, row, grader)


def _shown(answer: str) -> str:
    return repr(answer if len(answer) <= SHOWN else f"{answer[:SHOWN]}…")


async def _kind_of_mathematics(where: str, row: Problem, grader: Grader) -> GoldKind | Finding:
    gold = row.answer
    bare = _TEXT.sub(r" \1 ", gold).strip(" $")
    if len(_LATIN.findall(_COMMAND.sub(" ", bare))) > MOST_WORDS:
        return Finding(where, "prose", f"{_shown(gold)} is prose: only the same words equal it")
    if quantity(clean(gold)) is not None:
        return "number"
    if fault := await grader.check_gold(gold, "math", row.question):
        return Finding(where, "not_parsed", f"{_shown(gold)}: {fault}")
    marked = bare != gold or len(bare) > 3  # xy is a product
    named = _CHINESE.search(bare) or (marked and _LATIN.search(bare))
    if named and _ONLY_WORDS.fullmatch(bare) and len(words(bare)) <= MOST_CHARACTERS:
        return "words"
    if _CHINESE.search(gold):
        return Finding(where, "not_parsed", f"{_shown(gold)} mixes Chinese with mathematics")
    return "mathematics"


async def _other_answer(
    where: str, row: Problem, earlier: tuple[str, str], grader: Grader
) -> Finding | None:
    """A finding if a question was read before with a gold answer that is not equal to this one."""
    before, answer = earlier
    if row.answer == answer or row.rule == "code":
        return None
    graded = await grader.grade_conclusion(rf"\boxed{{{row.answer}}}", answer, row.rule)
    if graded.grade == "correct":
        return None
    detail = f"the question of {before}, where the answer is {_shown(answer)}"
    return Finding(where, "two_answers", f"{detail}, not {_shown(row.answer)}")
