"""The grader and its children: what is graded, what fails, and what goes on regardless."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from dto.errors import DtoError
from dto.grading import Graded, Grader
from dto.grading.grader import _COMPARISON
from dto.grading.pool import _CHILD, WorkerPool

HANGS = r"\boxed{9^{9^{9^{9}}}}"
ROOT = Path(__file__).parents[2]


def children():
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize(
    ("text", "gold", "rule", "graded"),
    [
        (r"\boxed{6}", "6", "math", Graded("correct", "6")),
        (r"\boxed{6}", " 6 ", "math", Graded("correct", "6")),
        (r"\boxed{5}", "6", "math", Graded("wrong", "5")),
        (r"\boxed{}", "6", "math", Graded("wrong", "")),
        ("no answer here", "6", "math", Graded("wrong", "")),
        ("", "6", "math", Graded("wrong", "")),
        (r"\boxed{(C)}", "C", "choice", Graded("correct", "(C)")),
        (r"\boxed{6}", "", "math", Graded("failed", "6", "no_gold_answer")),
        ("```\n6\n```", "6", "code", Graded("failed", "6", "no_code_execution")),
        (r"\boxed{1" + "0" * 5000 + "}", "6", "math", Graded("wrong", "1" + "0" * 1999)),
    ],
)
async def test_conclusions(text, gold, rule, graded):
    before = children()
    async with Grader() as grader:
        assert await grader.grade_conclusion(text, gold, rule) == graded
        assert children() == before, "what the fast path decides needs no child"


@pytest.mark.parametrize(
    ("text", "graded"),
    [
        ("{6} and on", Graded("correct", "6")),
        (r"\boxed{6}", Graded("correct", "6")),
        ("{5}", Graded("wrong", "5")),
        ("{}", Graded("wrong", "")),
        ("{6", Graded("truncated", "")),
        ("", Graded("truncated", "")),
    ],
)
async def test_trials(text, graded):
    async with Grader() as grader:
        assert await grader.grade_trial(text, "6", "math") == graded


@pytest.mark.slow
async def test_a_hanging_answer_costs_only_itself():
    before = children()
    async with Grader(workers=2, time_limit=0.7) as grader:
        texts = [HANGS, *(rf"\boxed{{{i}+x}}" for i in range(20))]
        graded = await asyncio.gather(
            *(grader.grade_conclusion(text, "x+7", "math") for text in texts)
        )
        assert graded[0][::2] == ("wrong", "grader_timeout")
        assert [i for i, one in enumerate(graded[1:]) if one.grade == "correct"] == [7]
        assert {one.grade for one in graded[1:]} == {"correct", "wrong"}
        assert len(children() - before) <= 2
    assert children() == before


TIME, NO_REASON = "grader_timeout", ""
UNREADABLE, TOO_EXPENSIVE = "unreadable_gold", "unreadable_gold: grader_timeout"
INTEGRAL = r"\int_0^1 e^{x^2}\sin(x^3)dx"


EXPENSIVE = [
    ("5", "9^{9^{9^{9}}}", ("wrong", TIME)),
    ("5", "10^{10^{10}}", ("wrong", TIME)),
    ("5", "3000000!", ("wrong", TIME)),
    ("5", r"\binom{10^7}{5000000}", ("wrong", TIME)),
    (r"x^{500}", r"\left(x+y+z\right)^{500}", ("wrong", NO_REASON)),  # no longer expanded
    ("5", "(x+y+z)^{500}", ("wrong", NO_REASON)),
    ("12", INTEGRAL, ("wrong", TIME)),
    ("1/2", r"\frac{12345678!}{12345677!}", ("wrong", TIME)),
    ("x+7", "9^{9^{9^{9}}}", ("wrong", TIME)),
    (r"\text{east}", "9^{9^{9^{9}}}", ("wrong", NO_REASON)),
    # what looks expensive and is not
    ("120", "5!", ("correct", NO_REASON)),
    ("1024", "2^{10}", ("correct", NO_REASON)),
    ("252", r"\binom{10}{5}", ("correct", NO_REASON)),
    (r"\frac{1}{3}", r"\int_0^1 x^2 dx", ("correct", NO_REASON)),
    ("2^{100}", "4^{50}", ("correct", NO_REASON)),
    ("121", "5!", ("wrong", NO_REASON)),
    # a gold answer that nothing can be compared with, whatever the answer
    (INTEGRAL, "12", ("failed", TOO_EXPENSIVE)),
    (INTEGRAL, INTEGRAL, ("failed", TOO_EXPENSIVE)),
    (INTEGRAL, "9^{9^{9^{9}}}", ("failed", TOO_EXPENSIVE)),
    ("9^{9^{9^{9}}}", "5", ("failed", TOO_EXPENSIVE)),
    (r"\neg p", "4", ("failed", UNREADABLE)),
    (r"\neg p", r"\neg p", ("failed", UNREADABLE)),
    (r"\neg p", r"\neg {p}.", ("failed", UNREADABLE)),
    (r"\neg p", "", ("failed", UNREADABLE)),
    (r"\{n^2 | n > 2\}", r"\{n^2 | n > 2\}", ("failed", UNREADABLE)),
    # and one that can
    ("x>2", "x>2", ("correct", NO_REASON)),
    ("x>2", "x>3", ("wrong", NO_REASON)),
    ("{x|x>2}", r"\{x | x > 2\}", ("correct", NO_REASON)),
    (r"\{x | x > 2\}", "x", ("wrong", NO_REASON)),
    (r"x \equiv 3 \pmod 7", r"x \equiv 3 \pmod {7}.", ("correct", NO_REASON)),
    (r"x \equiv 3 \pmod 7", "4", ("wrong", NO_REASON)),
    (r"\text{east}", r"\text{east}", ("correct", NO_REASON)),
]


@pytest.fixture(scope="module")
def twice_graded() -> list[tuple[Graded, Graded]]:
    """Each answer graded two times, all by one grader: starting its children takes longest."""

    async def grade(answer: str, gold: str, grader: Grader) -> tuple[Graded, Graded]:
        first = await grader.grade_answer(answer, gold, "math")
        return first, await grader.grade_answer(answer, gold, "math")

    async def grade_all() -> list[tuple[Graded, Graded]]:
        async with Grader(workers=1, time_limit=0.7) as grader:
            return [await grade(answer, gold, grader) for gold, answer, _ in EXPENSIVE]

    return asyncio.run(grade_all())


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(EXPENSIVE)), ids=lambda place: str(EXPENSIVE[place]))
def test_an_expensive_answer_is_wrong_and_an_expensive_gold_fails(place, twice_graded):
    for graded in twice_graded[place]:
        assert graded[::2] == EXPENSIVE[place][2]


@pytest.mark.slow
async def test_too_much_memory_is_the_answers_doing(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("dto.grading.grader._COMPARISON", "greedy")
    for act in ("raise MemoryError", "os.kill(os.getpid(), signal.SIGABRT)"):
        (tmp_path / "greedy.py").write_text(
            "import os, signal\nfrom dto.grading import algebra\n"
            "def equal(gold, prediction):\n"
            f"    if prediction == 'x+1+y':\n        {act}\n"
            "    return algebra.equal(gold, prediction)\n"
        )
        async with Grader(workers=1) as grader:
            graded = await grader.grade_answer("x+1+y", "x+7", "math")
            assert graded == Graded("wrong", "x+1+y", "grader_memory")
            assert (await grader.grade_answer("7+x", "x+7", "math")).grade == "correct"


@pytest.mark.slow
async def test_answers_given_up_are_counted_in_the_log(caplog):
    async with Grader(workers=1, time_limit=1.0) as grader:
        for text in ("{9^{9^{9^{9}}}}", "{9^{9^{9^{9}}}}", "{6}", "{7}"):
            await grader.grade_trial(text, "7", "math")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("2 answers are graded wrong") and "2 grader_timeout" in line
    caplog.clear()
    async with Grader() as grader:
        await grader.grade_trial("{6}", "7", "math")
    assert not caplog.records


@pytest.mark.slow
async def test_a_killed_child_is_replaced():
    before = children()
    async with Grader(workers=1, time_limit=60.0) as grader:
        assert (await grader.grade_conclusion(r"\boxed{2+x}", "x+2", "math")).grade == "correct"
        (started,) = children() - before
        task = asyncio.create_task(grader.grade_conclusion(HANGS, "7", "math"))
        await asyncio.sleep(0.2)
        os.kill(started, signal.SIGKILL)
        assert await task == Graded("failed", "9^{9^{9^{9}}}", "grader_crashed")
        assert (await grader.grade_conclusion(r"\boxed{1+x}", "x+1", "math")).grade == "correct"


@pytest.mark.slow
async def test_answers_nested_beyond_reason_are_not_right():
    deep = r"\boxed{" + "(" * 400 + "7" + ")" * 400 + "}"
    async with Grader(workers=1, time_limit=0.5) as grader:
        graded = await grader.grade_conclusion(deep, "7", "math")
        assert graded.grade in ("wrong", "failed")
        assert (await grader.grade_conclusion(r"\boxed{1+x}", "x+1", "math")).grade == "correct"


class CountingPool(WorkerPool):
    asked = 0
    go = asyncio.Event()

    async def equal(self, gold, prediction):
        type(self).asked += 1
        await self.go.wait()
        return True


@pytest.fixture
def counting(monkeypatch):
    CountingPool.asked, CountingPool.go = 0, asyncio.Event()
    monkeypatch.setattr("dto.grading.grader.WorkerPool", CountingPool)
    return CountingPool


async def test_one_comparison_serves_all_who_ask_and_survives_a_cancelled_one(counting):
    async with Grader() as grader:
        tasks = [
            asyncio.create_task(grader.grade_conclusion(r"\boxed{1+x}", "x+1", "math"))
            for _ in range(50)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        counting.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert set(results[1:]) == {Graded("correct", "1+x")}
        await grader.grade_conclusion(r"\boxed{1+x}", "x+1", "math")
        assert counting.asked == 1


async def test_the_cache_is_bounded_and_keeps_the_kind_apart(counting):
    counting.go.set()
    async with Grader(cache_size=2) as grader:
        for text in ("1+x", "2+x", "3+x", "1+x", "3+x"):
            await grader.grade_conclusion(rf"\boxed{{{text}}}", "x", "math")
        assert counting.asked == 4
        assert (await grader.grade_conclusion(r"\boxed{3+x}", "x", "choice")).grade == "wrong"


async def test_leaving_while_a_comparison_is_under_way_ends_it():
    before = children()
    async with Grader(time_limit=60.0) as grader:
        task = asyncio.create_task(grader.grade_conclusion(HANGS, "7", "math"))
        while not children() - before:
            await asyncio.sleep(0.01)
    assert children() == before
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_worker_that_cannot_start_is_one_clear_error(monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("dto.grading.grader._COMPARISON", "broken")
    async with Grader() as grader:
        with pytest.raises(DtoError, match="math-verify"):
            await grader.grade_conclusion(r"\boxed{1+x}", "x+1", "math")


@pytest.mark.slow
def test_the_worker_imports_nothing_that_is_slow():
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-c", _CHILD, _COMPARISON, "5"],
        input='{"gold": "x+1", "prediction": "1+x"}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ['{"ready": true}', '{"equal": true}']
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "sympy" in imported
    assert not imported & {"torch", "transformers", "spacy", "datasets", "polars", "pydantic"}


@pytest.mark.slow
def test_children_die_with_a_killed_parent():
    script = textwrap.dedent(
        f"""
        import asyncio, psutil, sys
        from dto.grading import Grader

        async def main():
            async with Grader(workers=1, time_limit=600.0) as grader:
                await grader.grade_conclusion("\\\\boxed{{1+x}}", "x+1", "math")
                print(psutil.Process().children()[0].pid, flush=True)
                await grader.grade_conclusion({HANGS!r}, "7", "math")

        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        used = child.cpu_times().user
        while child.cpu_times().user < used + 0.3:  # until it is at the hanging answer
            time.sleep(0.05)
        parent.kill()
    for _ in range(400):
        if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError(f"child {child.pid} outlives its parent")
