"""Agreement of two judges, against values worked out by hand and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto import tables
from dto.recipe import Recipe
from dto.records import OptimizedTrajectory, Span, Verdict, VerdictKind
from dto.reporting.funnel import agreement, funnel, funnel_section, verdict_counts
from dto.runs.reader import RunReader
from dto.statistics import cohen_kappa

RATINGS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)


def ratings(counts: dict[tuple[str, str], int]) -> tuple[list[str], list[str], list[str]]:
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs], [str(i) for i in range(len(pairs))]


def test_kappa_by_hand() -> None:
    # 35 of 50 agree; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5 would
    found = cohen_kappa(
        *ratings({("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}),
    )
    assert found.value == pytest.approx(0.4)
    assert 0 < found.low < 0.4 < found.high < 1
    assert (found.samples, found.problems) == (50, 50)


def test_kappa_of_three_categories_by_hand() -> None:
    # the example of Cohen 1960, as counts of 200: p = 0.70, e = 0.41
    table = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
    counts = {("abc"[i], "abc"[j]): table[i][j] for i in range(3) for j in range(3)}
    assert cohen_kappa(*ratings(counts)).value == pytest.approx((0.70 - 0.41) / (1 - 0.41))


@given(RATINGS)
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[str, str]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    one = cohen_kappa(first, second, ["p"] * len(pairs))
    other = cohen_kappa(second, first, ["p"] * len(pairs))
    assert one.value == pytest.approx(other.value, nan_ok=True)
    assert math.isnan(one.low)  # one problem says nothing of others
    if len({*first, *second}) == 1:
        assert math.isnan(one.value)
    elif first == second:
        assert one.value == pytest.approx(1.0)
    else:
        assert -1.0 <= one.value < 1.0


def test_kappa_of_nothing_and_of_unequal_lengths() -> None:
    assert math.isnan(cohen_kappa([], [], []).value)
    with pytest.raises(ValueError, match="2, 1 ratings of 2 items"):
        cohen_kappa(["a", "b"], ["a"], ["p", "q"])


@pytest.mark.slow
def test_independent_raters_have_no_kappa_and_the_interval_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        first = rng.choice(["y", "n"], 300, p=[0.8, 0.2]).tolist()
        second = rng.choice(["y", "n"], 300, p=[0.6, 0.4]).tolist()
        found = cohen_kappa(first, second, [str(i // 3) for i in range(300)])
        covered += found.low <= 0.0 <= found.high
    assert covered >= 34


def test_patterns_of_a_problem_that_are_alike_count_once() -> None:
    first, second, problems = ratings({("y", "y"): 20, ("y", "n"): 9, ("n", "y"): 5, ("n", "n"): 9})
    once = cohen_kappa(first, second, problems)
    four = cohen_kappa(first * 4, second * 4, problems * 4)
    assert (four.value, four.low, four.high) == pytest.approx((once.value, once.low, once.high))


def optimized(
    number: int, llm: dict[int, tuple[VerdictKind, bool]], rollouts: dict[int, VerdictKind]
) -> OptimizedTrajectory:
    name = f"{number // 2:03d}/{number % 2:03d}"
    return OptimizedTrajectory(
        id=name,
        trajectory_id=name,
        problem_id=f"{number // 2:03d}",
        exit=5,
        kept=(0, 5),
        token_ids=(1,),
        text="",
        thinking=Span(0, 0),
        thinking_tokens=Span(0, 0),
        answer="",
        pass_rate=1.0,
        tokens_before=2,
        tokens_after=1,
        attention_flops_before=2.0,
        attention_flops_after=1.0,
        outcome="shortened",
        verdicts=tuple(Verdict(n, kind, 0.0, gone) for n, (kind, gone) in llm.items()),
        counterfactual=tuple(Verdict(n, kind, 0.0, False) for n, kind in rollouts.items()),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twenty trajectories of ten problems; of half of them both judges had something to say."""
    llm: dict[int, tuple[VerdictKind, bool]] = {
        1: ("redundant", True),
        2: ("keep", False),
        3: ("meaningless", False),
        4: ("unjudged", False),
    }
    rollouts: dict[int, VerdictKind] = {1: "harmful", 2: "keep", 3: "keep", 4: "redundant"}
    rows = [optimized(n, llm, rollouts if n % 2 else {}) for n in range(20)]
    rows[1] = replace(rows[1], counterfactual=(Verdict(1, "unjudged", 0.0, False),))
    (tmp_path / "prune").mkdir()
    tables.write(tmp_path / "prune" / "rows.parquet", OptimizedTrajectory, rows)
    return tmp_path


def test_only_patterns_that_both_judged_are_compared(run: Path) -> None:
    found = agreement(RunReader(run))
    assert found is not None
    assert (found["patterns"], found["trajectories"]) == (27, 9)
    assert found["rate"].value == pytest.approx(2 / 3)
    # llm lets 2 of 3 go, the rollouts 1 of 3: by chance 2/9 + 2/9 agree
    assert found["kappa"].value == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert found["table"] == {
        "keep": {"keep": 9}, "redundant": {"harmful": 9}, "meaningless": {"keep": 9},
    }  # fmt: skip
    assert verdict_counts(RunReader(run)) == {
        "verdicts": {"keep": 20, "redundant": 20, "meaningless": 20, "unjudged": 20},
        "prunes": {"verified": 20, "restored": 20},
    }


def test_the_report_shows_rate_kappa_and_table(run: Path) -> None:
    text = str(funnel_section(funnel(RunReader(run)), Recipe(name="toy")))
    lines = text.splitlines()
    assert "20 keep, 20 redundant, 20 meaningless, 20 unjudged" in text
    assert "20 verified, 20 restored" in text and max(map(len, lines)) <= 100
    words = " ".join(text.split())
    assert "Both judges saw 27 patterns of 9 trajectories." in words
    assert "On 66.7 (" in words and "Cohen's kappa is 0.40 (" in words
    cells = [line.split() for line in lines]
    assert ["redundant", "9", "0"] in cells and ["keep", "0", "9"] in cells


def test_nothing_to_compare_is_not_shown(tmp_path: Path) -> None:
    assert agreement(RunReader(tmp_path)) is None and verdict_counts(RunReader(tmp_path)) == {}
    (tmp_path / "prune").mkdir()
    rows = [optimized(0, {1: ("keep", False)}, {})]
    tables.write(tmp_path / "prune" / "rows.parquet", OptimizedTrajectory, rows)
    assert agreement(RunReader(tmp_path)) is None and verdict_counts(RunReader(tmp_path)) == {
        "verdicts": {"keep": 1},
        "prunes": {},
    }
