"""Answer rules of another package: what they decide, how they fail, and where they are loaded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dto.errors import DtoError
from dto.extension import imported
from dto.grading import Graded, Grader
from dto.grading.grader import unreadable_golds
from dto.grading.pool import load_rule, row_rule
from dto.records import Dropped, Problem
from dto.redact import failure_kind
from dto.usage import counting_given_up

MODULE = """
import operator, os, signal, sys, time
import dto

equal = operator.eq

def caseless(answer: str, gold: str) -> bool:
    return answer.casefold() == gold.casefold()

def never(answer, gold):
    return False

def contains(answer, gold):
    return gold in answer.split(", ")

class Near(dto.extension.Settings):
    tolerance: float = 0.5

    def __call__(self, answer: str, gold: str) -> bool:
        return abs(float(answer) - float(gold)) <= self.tolerance

def unfit(answer, gold):
    if answer == "raise":
        raise ValueError("cannot be compared\\nsecond line")
    if answer == "exit":
        sys.exit(3)
    if answer == "text":
        return "yes"
    if answer == "nothing":
        return None
    if answer == "deep":
        return unfit(answer, gold)
    if answer == "spin":
        while True:
            pass
    if answer == "sleep":
        time.sleep(1000)
    if answer == "memory":
        return len(bytearray(3 * 2**30)) > 0
    if answer == "abort":
        os.abort()
    if answer == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if answer == "print":
        print("a line that is no reply")
        sys.stdout.flush()
        os.write(1, b"another\\n")
    if answer == "read":
        return sys.stdin.read() == ""
    return True

def one(answer):
    return True

text = "no function"
"""


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package in the working directory alone, which neither parent nor child searches first."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "own_rules").mkdir()
    (folder / "own_rules" / "rules.py").write_text(
        MODULE.replace("import dto\n", "import dto.extension\n"), encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend("")  # restores sys.path afterwards
        yield folder


def rule(name: str, **settings: object) -> str:
    return row_rule(f"own_rules.rules:{name}", settings)


def problem(answer: str, rule_: str) -> Problem:
    return Problem("a", "t", "train", "?", answer, rule_)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule_", "answer", "gold", "grade"),
    [
        (rule("caseless"), "PARIS", "Paris", "correct"),
        ("math", "Lyon", "Paris", "wrong"),
        (rule("caseless"), "Lyon", "Paris", "wrong"),
        (rule("caseless"), "", "Paris", "wrong"),  # no answer: the rule is not asked
        (rule("caseless"), "7", "", "failed"),  # no gold answer
        (rule("never"), "7", "7", "wrong"),  # equal strings are not assumed to be right
        (rule("equal"), "7", "7", "correct"),
        (rule("equal"), "7.0", "7", "wrong"),  # math would accept it
        (rule("equal"), r"\neg p", r"\neg p", "correct"),  # math cannot read it
        (rule("equal"), "x" * 2001, "x" * 2001, "correct"),
        (rule("contains"), "b", "b", "correct"),
        (rule("contains"), "a, b", "b", "correct"),
        (rule("contains"), "b", "a, b", "wrong"),  # answer first, gold second
        (rule("Near"), "7.4", "7", "correct"),
        (rule("Near"), "7.6", "7", "wrong"),
        (rule("Near", tolerance=1), "7.6", "7", "correct"),
        (rule("Near", tolerance=0.1), "7.4", "7", "wrong"),
        ("math", "7.4", "7", "wrong"),
    ],
)
async def test_the_rule_decides(rule_: str, answer: str, gold: str, grade: str) -> None:
    async with Grader(workers=1) as grader:
        assert (await grader.grade_answer(f" {answer} ", gold, rule_)).grade == grade
        if grade == "failed":
            return
        boxed = rf"So it is \boxed{{{answer}}}."
        assert (await grader.grade_conclusion(boxed, gold, rule_)).grade == grade
        assert (await grader.grade_trial(f"{{{answer}}} and on", gold, rule_)).grade == grade
        assert (await grader.grade_trial(f"{{{answer}", gold, rule_)).grade == "truncated"


@pytest.mark.slow
async def test_conclusions_are_read_as_under_math() -> None:
    async with Grader(workers=1) as grader:
        graded = await grader.grade_conclusion("The answer is PARIS.", "paris", rule("caseless"))
        assert graded == Graded("correct", "PARIS")
        or_ = r"\boxed{PARIS} or \boxed{Lyon}"
        assert (await grader.grade_conclusion(or_, "lyon", rule("caseless"))).grade == "wrong"
        failed = r"\boxed{raise} or \boxed{fine}"
        graded = await grader.grade_conclusion(failed, "lyon", rule("unfit"))
        assert graded.grade == "failed" and graded.reason.startswith("rule_error: ValueError")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("raise", "rule_error: ValueError: cannot be compared"),
        ("exit", "rule_error: SystemExit: 3"),
        ("text", "rule_error: TypeError: returned str, not bool"),
        ("nothing", "rule_error: TypeError: returned NoneType, not bool"),
        ("deep", "rule_error: RecursionError: maximum recursion depth exceeded"),
        ("spin", "rule_timeout"),
        ("sleep", "rule_stuck"),
        ("memory", "rule_memory"),
        ("abort", "rule_memory"),
        ("killed", "rule_crashed"),
    ],
)
async def test_a_rule_that_fails_is_a_failure_with_a_reason(
    answer: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dto.grading.pool._WALL_FACTOR", 4.0)
    async with Grader(workers=1, time_limit=0.5) as grader:
        with counting_given_up() as counts:
            graded = await grader.grade_trial(f"{{{answer}}}", "7", rule("unfit"))
        assert (graded.grade, graded.answer) == ("failed", answer)
        assert graded.reason.startswith(reason)
        assert sum(counts.values()) == 1 and all(key.count(": ") <= 1 for key in counts)
        assert failure_kind(graded.reason) == next(iter(counts))
        # the next comparison is not harmed
        assert (await grader.grade_trial("{8}", "7", rule("unfit"))).grade == "correct"


async def test_a_rule_may_print_and_read() -> None:
    async with Grader(workers=1) as grader:
        for answer in ("print", "read", "print", "8"):
            assert (
                await grader.grade_trial(f"{{{answer}}}", "7", rule("unfit"))
            ).grade == "correct"


async def test_failures_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with Grader(workers=1) as grader:
        for answer in ("raise", "raise", "text"):
            await grader.grade_trial(f"{{{answer}}}", "7", rule("unfit"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("3 answers have no grade because their answer rule failed")
    assert "2 rule_error: ValueError" in line and "1 rule_error: TypeError" in line


@pytest.mark.slow
async def test_a_comparison_is_shared_and_remembered() -> None:
    before = {child.pid for child in psutil.Process().children()}
    async with Grader(workers=2) as grader:
        near = rule("Near")
        jobs = (grader.grade_answer("7.4", "7", near) for _ in range(20))
        assert {graded.grade for graded in await asyncio.gather(*jobs)} == {"correct"}
        (child,) = {child.pid for child in psutil.Process().children()} - before
        psutil.Process(child).kill()
        assert (await grader.grade_answer("7.4", "7", near)).grade == "correct"
        # other settings are another rule
        assert (await grader.grade_answer("7.4", "7", rule("Near", tolerance=0.1))).grade == "wrong"


def test_answers_that_agree_are_equal_strings() -> None:
    assert Grader.same(" 7 ", "7", rule("caseless"))
    assert not Grader.same("7.0", "7", rule("caseless")) and Grader.same("7.0", "7", "math")
    assert not Grader.same("A", "a", rule("caseless"))


@pytest.mark.slow
async def test_no_gold_answer_is_unreadable() -> None:
    gold = r"\neg p"
    async with Grader(workers=1) as grader:
        assert await grader.check_gold(gold, "math") == "unreadable_gold"
        assert await grader.check_gold(gold, rule("equal")) == ""
        assert await grader.check_gold(" ", rule("equal")) == "no_gold_answer"
    rows = [problem(gold, rule("equal"))]
    assert unreadable_golds(rows) == {}
    assert isinstance(unreadable_golds([problem(gold, "math")])["a"], Dropped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule_", "message"),
    [
        ("no_such_package.rules:near", "'no_such_package' is not installed"),
        ("own_rules.rules:caselss", "defines no 'caselss' .did you mean 'caseless'"),
        (rule("Near", tolrance=1), "'tolrance'.*did you mean 'tolerance'"),
        (rule("Near", tolerance="far"), "tolerance"),
        (rule("caseless", tolerance=1), "takes none: drop tolerance"),
        (rule("one"), "cannot be called as rule.answer, gold."),
        (rule("text"), "cannot be called as rule"),
    ],
)
async def test_a_rule_that_cannot_be_loaded_is_one_clear_error(rule_: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as here:
        load_rule(rule_)
    assert "\n" not in str(here.value)
    async with Grader(workers=1) as grader:
        with pytest.raises(DtoError, match=f"cannot be loaded in a grading process.*{message}"):
            await grader.grade_answer("7", "7", rule_)


async def test_a_package_on_the_search_path_of_the_parent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text("def yes(answer, gold): return True")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert imported("elsewhere:yes")("7", "8")
    async with Grader(workers=1) as grader:
        assert (await grader.grade_answer("7", "8", "elsewhere:yes")).grade == "correct"


def test_a_rule_is_one_readable_string() -> None:
    assert row_rule("math", {}) == "math"
    assert row_rule("a.b:c", {}) == "a.b:c"
    assert row_rule("a.b:C", {"b": "ü", "a": 0.5}) == 'a.b:C {"a": 0.5, "b": "ü"}'
    path, _, settings = rule("Near", tolerance=2).partition(" ")
    assert path == "own_rules.rules:Near" and json.loads(settings) == {"tolerance": 2}
    assert load_rule(rule("Near", tolerance=2))("5", "7") is True
