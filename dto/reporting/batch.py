"""What asking k questions at once does to one of them: tokens and accuracy against k (2508.17803).

k = 1 is the question asked alone. A response's tokens count in equal parts for its questions, so
nothing depends on how well it can be cut up. The questions of a response share its fate, and the
responses to a question its difficulty: intervals are clustered by whichever makes them wider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import polars as pl

from dto import statistics
from dto.drqa.probe import Probe, format_probe, length_accuracy, length_probe
from dto.recipe import Recipe
from dto.reporting.comparison import MAX_FAILED, Arm
from dto.reporting.difficulty import DifficultyRow, by_difficulty
from dto.reporting.funnel import json_lines
from dto.runs import manifest
from dto.seeds import derive
from dto.statistics import Estimate

MOST = 1000
"""Chains of each kind that a probe looks at."""


@dataclass(frozen=True, slots=True)
class BatchRow:
    """Questions that were asked k at a time.

    `answers` are those with a grade, `responses` what they stand in. `gain` is accuracy less that
    of k = 1 on the same problems, `ratio` tokens over those of k = 1; nan for k = 1 itself, and
    where too many requests failed. `faults` counts answers that cannot be told, by their reason.
    """

    k: int
    problems: int
    answers: int
    responses: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    tokens: float
    tokens_low: float
    tokens_high: float
    gain: float
    gain_low: float
    gain_high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    truncated: int
    failed: int
    faults: dict[str, int]


@dataclass(frozen=True, slots=True)
class Labels:
    """What the labels are, and what their chains give away.

    `counts` is by split and verdict, `letters` by the letter that is right. `format` tells concise
    chains from verbose ones by format, `format_right` all right batch chains from right vanilla
    ones; `length` tells the former by length, and `length_accuracy` is how often the length alone
    gives the right verdict of three.
    """

    counts: dict[str, dict[str, int]]
    letters: dict[str, int]
    format: Probe
    format_right: Probe
    length: Probe
    length_accuracy: Estimate


@dataclass(frozen=True, slots=True)
class BatchReport:
    """All of it. `dropped` counts chains that could not be made, by k and reason."""

    rows: tuple[BatchRow, ...]
    difficulty: tuple[DifficultyRow, ...]
    dropped: dict[str, dict[str, int]]
    labels: Labels | None


def batch_report(run: Path, recipe: Recipe) -> BatchReport | None:
    """The figures of a run; None where it asked nothing together and labelled nothing."""
    rows: tuple[BatchRow, ...] = ()
    difficulty: tuple[DifficultyRow, ...] = ()
    if recipe.batch.k and manifest.read(run / "batch") and manifest.read(run / "sample"):
        asked = answers(run)
        rows = tuple(_rows(asked, _expected(run, recipe)))
        difficulty = tuple(_difficulty(asked))
    labels = _labels(run, recipe.seed) if manifest.read(run / "label") else None
    if not rows and labels is None:
        return None
    return BatchReport(rows, difficulty, _dropped(run), labels)


def answers(run: Path) -> pl.DataFrame:
    """One row for each answer: k, problem_id, sample, response, grade, fault, tokens."""
    columns = ("k", "problem_id", "sample", "response", "grade", "fault", "tokens")
    alone = pl.scan_parquet(run / "sample" / "rows.parquet").select(
        "problem_id", "sample", "grade", k=pl.lit(1, pl.Int64), response="id", fault=pl.lit(""),
        tokens=pl.col("token_ids").list.len().cast(pl.Float64),
    )  # fmt: skip
    together = (
        pl.scan_parquet(run / "batch" / "rows.parquet")
        .select(
            "k", "sample", "problem_ids", "grades", "faults", response="id",
            tokens=pl.col("token_ids").list.len() / pl.col("k"),
        )
        .explode("problem_ids", "grades", "faults")
        .rename({"problem_ids": "problem_id", "grades": "grade", "faults": "fault"})
    )  # fmt: skip
    both = pl.concat([alone.select(columns), together.select(columns)])
    return both.collect().sort("k", "problem_id", "sample")


def _expected(run: Path, recipe: Recipe) -> dict[int, int]:
    """How many answers were asked for: those in the table and those that an error kept out."""
    expected = Counter({1: _lost(run / "sample")})
    for line in _dropped_lines(run / "batch"):
        k = int(str(line["id"]).partition("/")[0])
        if line["reason"] not in ("left_over", "no_short_answer"):
            expected[k] += k
    return dict(expected)


def _lost(stage: Path) -> int:
    return sum(1 for _ in _dropped_lines(stage))


def _rows(asked: pl.DataFrame, lost: dict[int, int]) -> list[BatchRow]:
    alone = asked.filter(pl.col("k") == 1, pl.col("grade") != "failed")
    rows = []
    for (k,), part in asked.group_by("k", maintain_order=True):
        assert isinstance(k, int)
        graded = part.filter(pl.col("grade") != "failed")
        failed = len(part) - len(graded) + lost.get(k, 0)
        right = (graded["grade"] == "correct").cast(pl.Float64).to_numpy()
        accuracy = _wider(graded, partial(statistics.proportion, right))
        tokens = _wider(graded, partial(statistics.mean, graded["tokens"].to_numpy()))
        gain = ratio = Estimate(nan, nan, nan, 0, 0)
        if k > 1 and failed <= MAX_FAILED * (len(part) + lost.get(k, 0)):
            gain, ratio = _against(graded, alone)
        rows.append(
            BatchRow(
                k, accuracy.problems, len(graded), graded["response"].n_unique(),
                accuracy.value, accuracy.low, accuracy.high,
                tokens.value, tokens.low, tokens.high,
                gain.value, gain.low, gain.high, ratio.value, ratio.low, ratio.high,
                len(graded.filter(grade="truncated")), failed,
                dict(sorted(Counter(filter(None, graded["fault"].to_list())).items())),
            )
        )  # fmt: skip
    return rows


def _wider(frame: pl.DataFrame, estimate: Callable[[list[str]], Estimate]) -> Estimate:
    """The estimate by problem, with the interval of clusters of responses where that is wider."""
    by_problem = estimate(frame["problem_id"].to_list())
    return _joined(by_problem, estimate(frame["response"].to_list()))


def _joined(first: Estimate, second: Estimate) -> Estimate:
    lows = [low for low in (first.low, second.low) if low == low]
    highs = [high for high in (first.high, second.high) if high == high]
    return replace(first, low=min(lows, default=nan), high=max(highs, default=nan))


def _against(together: pl.DataFrame, alone: pl.DataFrame) -> tuple[Estimate, Estimate]:
    """Gain and ratio of tokens against the same problems asked alone."""
    right = (pl.col("grade") == "correct").mean()
    own = alone.group_by("problem_id").agg(right_1=right, tokens_1=pl.col("tokens").mean())
    joined = together.join(own, on="problem_id")
    found = []
    for unit in ("problem_id", "response"):
        units = joined.group_by(unit).agg(
            right=right, right_1=pl.col("right_1").mean(),
            tokens=pl.col("tokens").sum(), tokens_1=pl.col("tokens_1").sum(),
        ).sort(unit)  # fmt: skip
        names = units[unit].to_list()
        gain = statistics.mean((units["right"] - units["right_1"]).to_numpy(), names)
        sums_PX = units.select("tokens", "tokens_1").to_numpy()
        total, total_1 = sums_PX.sum(0)
        low = high = nan
        if len(units) > 1:
            low, high = statistics.bootstrap(sums_PX, lambda sums: sums[:, 0] / sums[:, 1])
        ratio = Estimate(float(total / total_1) if total_1 else nan, low, high, 0, len(units))
        found.append((gain, ratio))
    (gain, ratio), (gain_r, ratio_r) = found
    return _joined(gain, gain_r), _joined(ratio, ratio_r)


def _difficulty(asked: pl.DataFrame) -> list[DifficultyRow]:
    """The same by the pass rate of k = 1 (`dto.reporting.difficulty`).

    An answer of a batch prompt has no seed in common with a sample: it stands in the bins that
    both halves of the samples give, half as much in each. Intervals are clustered by problem alone.
    """
    arms = []
    for (k,), part in asked.group_by("k", maintain_order=True):
        if k != 1:
            halves = [part.with_columns(sample=pl.lit(half, pl.Int64)) for half in (0, 1)]
            part = pl.concat(halves)
        arms.append(Arm("base", f"k = {k}", part, len(part)))
    base = next((arm for arm in arms if arm.exit == "k = 1"), None)
    return by_difficulty(arms, base) if base is not None else []


def _dropped_lines(stage: Path) -> list[dict[str, Any]]:
    path = stage / "dropped.jsonl"
    return json_lines(path) if path.is_file() else []


def _dropped(run: Path) -> dict[str, dict[str, int]]:
    """By k, `1` for vanilla, and reason: the chains that there are not."""
    counts: Counter[tuple[int, str]] = Counter()
    for line in _dropped_lines(run / "chain"):
        parts = str(line["id"]).split("/")
        counts[int(parts[-2]), str(line["reason"])] += 1
    found: dict[str, dict[str, int]] = {}
    for (k, reason), count in sorted(counts.items()):
        found.setdefault(str(k), {})[reason] = count
    return found


def _labels(run: Path, seed: int) -> Labels:
    table = pl.scan_parquet(run / "label" / "rows.parquet")
    light = table.select("problem_id", "split", "verdict", "label", "length").collect()
    counts: dict[str, dict[str, int]] = {}
    for split, verdict, count in light.group_by("split", "verdict").len().sort(
        "split", "verdict", descending=[True, False]
    ).iter_rows():  # fmt: skip
        counts.setdefault(split, {})[verdict] = count
    judged = _some(table, "verdict", ("concise", "verbose"), seed)
    chains = pl.scan_parquet(run / "chain" / "rows.parquet").filter(grade="correct")
    right = _some(chains.rename({"text": "chain"}), "origin", ("batch", "vanilla"), seed)
    return Labels(
        counts=counts,
        letters=dict(light["label"].value_counts().sort("label").iter_rows()),
        format=_format(judged, "verdict", "concise"),
        format_right=_format(right, "origin", "batch"),
        length=length_probe(
            judged["length"].to_list(), *_told_apart(judged, "verdict", "concise")
        ),
        length_accuracy=length_accuracy(
            light["length"].to_list(), light["verdict"].to_list(), light["problem_id"].to_list()
        ),
    )  # fmt: skip


def _some(table: pl.LazyFrame, column: str, values: Sequence[str], seed: int) -> pl.DataFrame:
    """At most `MOST` chains with each value, drawn by their ids."""
    light = table.select("id", column).collect()
    chosen: list[str] = []
    for value in values:
        ids = light.filter(pl.col(column) == value)["id"].to_list()
        chosen += sorted(ids, key=lambda row_id: derive(seed, row_id, "probe"))[:MOST]
    wanted = table.filter(pl.col("id").is_in(chosen))
    return wanted.select("id", "problem_id", column, "chain", "length").collect().sort("id")


def _format(chains: pl.DataFrame, column: str, positive: str) -> Probe:
    return format_probe(chains["chain"].to_list(), *_told_apart(chains, column, positive))


def _told_apart(chains: pl.DataFrame, column: str, value: str) -> tuple[list[bool], list[str]]:
    return (chains[column] == value).to_list(), chains["problem_id"].to_list()
