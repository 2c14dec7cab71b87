r"""Is a dataset fit to measure with? Asked before any model runs.

Every gold answer is graded against itself, as the conclusion `\boxed{gold}`, or as the reference
solution where it is a program, and must come out correct. That alone would pass any text, for
equal strings are equal, so an answer of kind math must also be one that the grader can compare with
others: a number, words, or mathematics that its parser reads. What fails is listed, never repaired.

The other way round, near misses of the gold answers (`dto.tasks.nearmiss`) should be graded
wrong: those that are not say how far the grades of this dataset can be trusted. They are reported,
and do not fail it.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
from dto.records import Dropped, Problem, Split
from dto.tasks.load import WORDS, Found, Index, read_problems, same_as, words
from dto.tasks.nearmiss import GoldKind, NearMiss, NearMissKind, near_misses

WINDOW = 256  # rows under way at once
SHOWN = 100  # characters of an answer in a message
MOST_WORDS = 5  # an answer of more is prose
MOST_CHARACTERS = 20  # the same in Chinese
MOST_GOLDS = 500  # gold answers of a kind whose near misses are tried
SAME = 0.1  # share of n-grams from which two questions are taken for versions of one

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textrm|textit)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LATIN = re.compile(r"[A-Za-z]{2,}")
_ONLY_WORDS = re.compile(r"[^\W\d_]+(?:(?:\s+|['’-])[^\W\d_]+)*")


class Finding(NamedTuple):
    """Something about one row: `where` names it, `reason` is a slug."""

    where: str
    reason: str
    detail: str


class Letters(NamedTuple):
    """How often each letter is the gold answer, and how often it would be by chance alone.

    `shuffled`: the options were, so that balance is our doing.
    """

    counts: dict[str, int]
    expected: dict[str, float]
    shuffled: bool


class TakenForRight(NamedTuple):
    """A near miss that is graded correct, and the row whose gold answer it was made from."""

    where: str
    gold: str
    near_miss: NearMiss


class NearMisses(NamedTuple):
    """What the grader says of small changes of the gold answers.

    `golds` counts different gold answers by kind, `sampled` those that were tried; all of a kind
    where there are at most that many, else a random sample that is always the same. `tried` counts
    their near misses by kind, `right` lists those that were graded correct.
    """

    golds: Counter[GoldKind]
    sampled: Counter[GoldKind]
    tried: Counter[NearMissKind]
    right: list[TakenForRight]


class Report(NamedTuple):
    """What was found; `unexplained` must be empty for a dataset to pass.

    `counts` holds, for each split, rows under `rows`, problems under their kind of answer,
    `duplicates`, `overlaps` and `unexplained`. `duplicates` and `overlaps` explain themselves: each
    names the other row. `phrases` are overlaps of less than a tenth of the shorter question, and
    `words` the answers that are words, in order.
    """

    counts: dict[Split | None, Counter[str]]
    unexplained: list[Finding]
    duplicates: list[Finding]
    overlaps: list[Finding]
    phrases: list[Finding]
    words: dict[str, None]
    letters: Letters | None
    near_misses: NearMisses | None = None


async def validate(
    settings: ProblemSettings,
    grader: Grader,
    against: Sequence[ProblemSettings] = (),
    n: int = WORDS,
    most_golds: int = MOST_GOLDS,
) -> Report:
    """Grade all gold answers of the sources in `settings`, and look for questions that are shared.

    Near misses are tried of at most `most_golds` gold answers of each kind. Rows of train and dev
    are compared with those of test, and all rows with those of `against`, by n-grams of words.
    Raises DtoError as `read_problems` does, and for a source without rows.
    """
    report = Report({}, [], [], [], [], {}, None)
    others, own_tests = Index(n), Index(n)
    for other in against:
        for found in read_problems(other):
            if isinstance(found.row, Problem):
                others.add(found.where, found.row.question)
    known: dict[str, tuple[str, str]] = {}
    letters: Counter[tuple[str, int, bool]] = Counter()
    golds: dict[GoldKind, dict[str, tuple[str, Problem]]] = {}
    rows = read_problems(settings)
    while window := list(islice(rows, WINDOW)):
        judged = await gather_bounded(_judged(found, grader) for found in window)
        for found, verdict in zip(window, judged, strict=True):
            counts = report.counts.setdefault(found.split, Counter())
            counts["rows"] += 1
            if isinstance(verdict, Finding):
                counts["unexplained"] += 1
                report.unexplained.append(verdict)
            else:
                counts[verdict] += 1
            if not isinstance(found.row, Problem):
                continue
            if not isinstance(verdict, Finding):
                same_kind = golds.setdefault(verdict, {})
                same_kind.setdefault(found.row.answer, (found.where, found.row))
            if verdict == "words":
                report.words[found.row.answer] = None
            if "permutation" in found.row.metadata:
                options = len(found.row.metadata["permutation"].split())
                letters[found.row.answer, options, "options_seed" in found.row.metadata] += 1
            key = same_as(found.row.question)
            if key in known:
                counts["duplicates"] += 1
                await _compare_duplicate(found, known[key], grader, report)
                continue
            known[key] = (found.where, found.row.answer)
            for index in (others, *([own_tests] if found.split in ("train", "dev") else [])):
                _look_for_overlap(found, index, report)
            if found.split == "test":
                own_tests.add(found.where, found.row.question)
    if not report.counts:
        raise DtoError(f"{settings.source} has no rows: there is nothing to validate")
    tried = await _try_near_misses(golds, grader, most_golds)
    return report._replace(letters=_letters(letters), near_misses=tried)


async def _try_near_misses(
    golds: Mapping[GoldKind, Mapping[str, tuple[str, Problem]]], grader: Grader, most: int
) -> NearMisses:
    result = NearMisses(Counter(), Counter(), Counter(), [])

    async def one(where: str, row: Problem, near_miss: NearMiss) -> None:
        graded = await grader.grade_conclusion(
            rf"\boxed{{{near_miss.answer}}}", row.answer, row.answer_kind, row.question
        )
        result.tried[near_miss.kind] += 1
        if graded.grade == "correct":
            result.right.append(TakenForRight(where, row.answer, near_miss))

    for kind, rows in golds.items():
        sample = random.Random(kind).sample(list(rows.values()), min(most, len(rows)))
        result.golds[kind], result.sampled[kind] = len(rows), len(sample)
        changed = (
            (*found, each) for found in sample for each in near_misses(found[1].answer, kind)
        )
        await gather_bounded(one(*each) for each in changed)
    return result


async def _judged(found: Found, grader: Grader) -> GoldKind | Finding:
    """The kind of answer that a row has, or why it is none."""
    row = found.row
    if isinstance(row, Dropped):
        return Finding(found.where, row.reason, row.detail.removeprefix(found.where).strip())
    if row.answer_kind == "code":
        reference = row.metadata.get("canonical_solution", "")
        if not reference:
            return Finding(found.where, "no_reference", "has no canonical_solution to be run")
        program = json.loads(row.answer)["prompt"] + reference
        conclusion = f"```python\n{program.rstrip()}\n```"
    else:
        conclusion = rf"\boxed{{{row.answer}}}"
    graded = await grader.grade_conclusion(conclusion, row.answer, row.answer_kind)
    whole = row.answer_kind == "math" and graded.answer == row.answer.strip()
    if graded.grade != "correct" and not (whole and graded.reason.startswith(UNREADABLE_GOLD)):
        why = f"{graded.grade}, {graded.reason}" if graded.reason else graded.grade
        shown = "its reference solution" if row.answer_kind == "code" else _shown(row.answer)
        return Finding(found.where, "not_itself", f"{shown} is graded {why} against itself")
    if row.answer_kind == "code":
        return "program"
    if row.answer_kind == "choice":
        letter = row.answer.strip("() .")
        if len(letter) == 1 and letter in ascii_uppercase:
            return "letter"
        return Finding(found.where, "no_letter", f"{_shown(row.answer)} is no letter of an option")
    return await _kind_of_mathematics(found, row, grader)


def _shown(answer: str) -> str:
    return repr(answer if len(answer) <= SHOWN else f"{answer[:SHOWN]}…")


async def _kind_of_mathematics(found: Found, row: Problem, grader: Grader) -> GoldKind | Finding:
    where, gold = found.where, row.answer
    bare = _TEXT.sub(r" \1 ", gold).strip(" $")
    if len(_LATIN.findall(_COMMAND.sub(" ", bare))) > MOST_WORDS:
        return Finding(
            where, "prose", f"{_shown(gold)} is prose: nothing but the same words equals it"
        )
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


async def _compare_duplicate(
    found: Found, known: tuple[str, str], grader: Grader, report: Report
) -> None:
    where, answer = known
    assert isinstance(found.row, Problem)
    row = found.row
    report.duplicates.append(Finding(found.where, "duplicate", f"the question of {where}"))
    if row.answer == answer or row.answer_kind == "code":
        return
    graded = await grader.grade_conclusion(rf"\boxed{{{row.answer}}}", answer, row.answer_kind)
    if graded.grade != "correct":
        detail = f"the question of {where}, where the answer is {_shown(answer)}"
        detail += f", not {_shown(row.answer)}"
        report.counts[found.split]["unexplained"] += 1
        report.unexplained.append(Finding(found.where, "two_answers", detail))


def _look_for_overlap(found: Found, index: Index, report: Report) -> None:
    assert isinstance(found.row, Problem)
    hit = index.find(found.row.question)
    if hit is None:
        return
    detail = f"{hit.share:.0%} of {hit.where}"
    detail += f": {hit.phrase!r}" if hit.share < 1 else ""
    if hit.share < SAME:
        report.phrases.append(Finding(found.where, "phrase", detail))
        return
    report.counts[found.split]["overlaps"] += 1
    report.overlaps.append(Finding(found.where, "overlap", detail))


def _letters(rows: Counter[tuple[str, int, bool]]) -> Letters | None:
    """The letters of rows by (gold letter, number of options, shuffled); None without any."""
    if not rows:
        return None
    counts: Counter[str] = Counter()
    expected: defaultdict[str, float] = defaultdict(float)
    for (letter, options, _), count in rows.items():
        counts[letter] += count
        for each in ascii_uppercase[:options]:
            expected[each] += count / options
    ordered = dict(sorted(expected.items()))
    shuffled = all(shuffled for *_, shuffled in rows)
    return Letters({letter: counts[letter] for letter in ordered}, ordered, shuffled)
