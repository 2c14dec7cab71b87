"""The split by difficulty on answers whose true pass rates are known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dto import statistics
from dto.reporting.evaluation import PASS_RATES, Arm, Figures, by_difficulty, difficulty
from dto.statistics import Estimate


def arm(exit: str, rates_P: np.ndarray, samples: int, seed: int, task: str = "toy") -> Arm:
    """Answers of one arm: problem p is right with probability rates_P[p], in 100 tokens."""
    rng = np.random.default_rng(seed)
    problems, numbers = np.divmod(np.arange(len(rates_P) * samples), samples)
    right = rng.random(len(problems)) < rates_P[problems]
    rows = pl.DataFrame(
        {
            "problem_id": [f"{task}{p:04d}" for p in problems],
            "sample": numbers,
            "grade": np.where(right, "correct", "wrong"),
            "tokens": np.full(len(problems), 100),
        }
    )
    return Arm("base", exit, rows, len(rows), task)


def rates(problems: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.8, 0.8, problems)


def gains(rows: list[Figures], exit: str) -> dict[str, Estimate | None]:
    return {row.bin: row.gain for row in rows if row.exit == exit}


def naive(base: Arm, other: Arm, bin_all_right: bool) -> float:
    """The gain on problems that are binned by the very samples that are compared."""
    means = [
        side.all.group_by("problem_id").agg(p=(pl.col("grade") == "correct").mean())
        for side in (base, other)
    ]
    joined = means[0].join(means[1], on="problem_id", suffix="_other")
    part = joined.filter(pl.col("p") == float(bin_all_right))
    return float((part["p_other"] - part["p"]).mean())  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("samples", [2, 4, 5])
def test_where_nothing_differs_no_bin_shows_a_gain(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mean over 25 evaluations of 200 problems; the naive split shows what is not there."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 500)
    naively: list[tuple[float, float]] = []
    found: dict[str, list[Estimate]] = {}
    for seed in range(25):
        rates_P = rates(200, seed=1000 + seed)
        base, other = (arm(name, rates_P, samples, 2 * seed + k) for k, name in enumerate("ab"))
        naively.append((naive(base, other, False), naive(base, other, True)))
        for bin, gain in gains(by_difficulty([base, other], base), "b").items():
            assert gain is not None
            found.setdefault(bin, []).append(gain)
    hard, easy = np.mean(naively, axis=0)
    assert hard > 0.05 and easy < -0.05, "the trap is there"
    assert set(found) == {PASS_RATES[0], PASS_RATES[3]} | set(
        PASS_RATES[: {2: 1, 4: 2, 5: 3}[samples]]
    )
    for rows in found.values():
        gain_R = np.array([gain.value for gain in rows])
        assert abs(gain_R.mean()) < 3 * gain_R.std() / 5
    covered = [gain.low <= 0 <= gain.high for rows in found.values() for gain in rows]
    assert 0.9 <= np.mean(covered) <= 0.99


def test_a_true_gain_on_hard_problems_is_found_there() -> None:
    rates_P = rates(400, seed=4)
    base = arm("none", rates_P, 4, 5)
    other = arm("deer", np.where(rates_P < 0.3, rates_P + 0.4, rates_P), 4, 6)
    found = gains(by_difficulty([base, other], base), "deer")
    hard, easy = found[PASS_RATES[0]], found[PASS_RATES[3]]
    assert hard is not None and easy is not None
    assert hard.low > 0.05
    assert easy.low <= 0 <= easy.high


def test_each_half_is_looked_at_once() -> None:
    base = arm("none", rates(50, seed=7), 4, 8)
    rows = by_difficulty([base], base)
    assert sum(row.responses for row in rows) == 200
    assert all((row.gain, row.ratio) == (None, None) for row in rows)
    easy = next(row for row in rows if row.bin == PASS_RATES[3])
    assert easy.accuracy.value < 1, "what set the bin is not what is shown"


def test_one_sample_gives_no_split() -> None:
    base = arm("none", rates(50, seed=9), 1, 10)
    assert by_difficulty([base], base) == []


def test_failed_rows_of_a_bin_claim_nothing() -> None:
    rates_P = np.repeat([0.0, 1.0], 20)
    base, other = arm("none", rates_P, 2, 1), arm("deer", rates_P, 2, 1)
    rows = other.all.with_columns(
        grade=pl.when(pl.col("problem_id") == "toy0000").then(pl.lit("failed"))
        .otherwise(pl.col("grade"))
    )  # fmt: skip
    figures = by_difficulty([base, Arm("base", "deer", rows, len(rows), "toy")], base)
    found = {row.bin: row for row in figures if row.exit == "deer"}
    hard, easy = found[PASS_RATES[0]], found[PASS_RATES[3]]
    assert (hard.gain, hard.responses, hard.failed) == (None, 38, 2)
    assert easy.gain is not None and easy.gain.value == 0


def test_tasks_together() -> None:
    arms = [
        arm(exit, rates(30, seed=11), 2, seed, task)
        for seed, (task, exit) in enumerate(
            [("a", "none"), ("a", "deer"), ("b", "none"), ("b", "deer")]
        )
    ]
    rows = difficulty(arms, ("base", "none"))
    assert sum(row.responses for row in rows if row.exit == "deer") == 120
    assert difficulty(arms, ("base", "other")) == []
