"""The papers' pilot studies on one's own model: how much of the thinking comes after the answer?

Read from the tables of sample, segment, estimate, prune (or optimize) and pilot; intervals are 95 %
and clustered by problem. Rows that failed leave the denominators and are counted.

- Pearls (2504.15895 section 2): responses with an exit before their end that answers right. There
  one induced answer decides; here the boundary has to be `above` the threshold of the stage
  estimate, so that a lucky answer is no pearl.
- Static exits (same place): of the answers right in full, the share still right when the thinking
  is cut (kept); of those not right, the share now right (corrected).
- What optimizing saves (2505.21765 section 4): attention FLOPs of responses that were right, and
  the share of the others that is repaired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from dto import statistics
from dto.errors import DtoError
from dto.reporting.table import Table, write_json
from dto.runs.reader import RunReader
from dto.statistics import Estimate
from dto.usage import ModelShape, attention_flops

UNIT = ModelShape(1, 1, 1)
"""FLOPs are compared within one model: its shape cancels."""


@dataclass(frozen=True, slots=True)
class Pearls:
    """Shares of responses with a pearl: of all, of those right, of those not; and where it lies.

    `before_half` is the share of all responses whose pearl lies before half of their thinking;
    `position` the mean share of the thinking that comes before a pearl, where there is one.
    `left_out` have a grade, but no boundary that could be estimated.
    """

    threshold: float
    of_all: Estimate
    of_right: Estimate
    of_others: Estimate
    before_half: Estimate
    position: Estimate
    left_out: int


@dataclass(frozen=True, slots=True)
class StaticRow:
    """All responses cut after `fraction` of their thinking; tokens of thinking and answer."""

    fraction: float
    kept: Estimate
    corrected: Estimate
    accuracy: Estimate
    tokens: Estimate
    failed: int


@dataclass(frozen=True, slots=True)
class Savings:
    """What optimizing does to the sampled responses.

    `flops` and `tokens` are shares saved on responses that were right, where one without an
    optimized version saves nothing; `flops_optimized` is over those that have one. `repaired` is a
    share of the responses that were not right, `gained` of all.
    """

    flops: Estimate
    tokens: Estimate
    flops_optimized: Estimate
    repaired: Estimate
    gained: Estimate


@dataclass(frozen=True, slots=True)
class PilotStudy:
    """The content of `pilot.json`; `str()` gives the tables for the terminal."""

    name: str
    problems: int
    responses: int
    right: int
    failed: int
    accuracy: Estimate
    tokens: Estimate
    pearls: Pearls | None
    static: tuple[StaticRow, ...]
    savings: Savings | None

    def __str__(self) -> str:
        head = (
            f"{self.name}: {self.responses:,} responses to {self.problems:,} problems, "
            f"{self.right:,} right" + (f", {self.failed:,} failed" if self.failed else "")
        )
        tables = [_pearl_table(self.pearls), self._static_table(), _savings_table(self.savings)]
        return "\n\n".join([head, *(table.text() for table in tables if table is not None)])

    def _static_table(self) -> Table:
        rows = [
            (f"{row.fraction:.0%}", row.kept, row.corrected, row.accuracy, row.tokens.value)
            for row in self.static
        ]
        return Table(
            "static exits: the thinking is cut",
            ("thinking", "kept of right %", "corrected of others %", "accuracy %", "tokens"),
            (*rows, ("whole", None, None, self.accuracy, self.tokens.value)),
            formats=("", "%", "%", "%", ",.1f"),
        )


def study(directory: Path) -> PilotStudy:
    """The study of a run, also written to `RUN/pilot/pilot.json`.

    Raises DtoError without the tables of sample and pilot.
    """
    for stage in ("sample", "pilot"):
        if not (directory / stage / "rows.parquet").is_file():
            raise DtoError(f"pilot study needs {directory}/{stage}: start `dto pilot {directory}`")
    run = RunReader(directory)
    sampled = _sampled(run)
    graded = sampled.filter(pl.col("grade") != "failed")
    problems = graded["problem_id"].to_list()
    result = PilotStudy(
        name=run.recipe.name,
        problems=graded["problem_id"].n_unique(),
        responses=len(graded),
        right=int(graded["right"].sum()),
        failed=len(sampled) - len(graded),
        accuracy=statistics.proportion(graded["right"].to_numpy(), problems),
        tokens=statistics.mean(graded["tokens"].to_numpy(), problems),
        pearls=_pearls(run, graded, run.recipe.estimate.threshold),
        static=tuple(_static(run, graded)),
        savings=_savings(run, graded),
    )
    write_json(run / "pilot" / "pilot.json", result)
    return result


def _sampled(run: RunReader) -> pl.DataFrame:
    """One row a response: lengths, not tokens."""
    thinking = pl.col("thinking_tokens").struct
    return (
        run.frame("sample")
        .select(
            "id",
            "problem_id",
            "grade",
            right=pl.col("grade") == "correct",
            prompt=pl.col("prompt_ids").list.len().cast(pl.Int64),
            tokens=pl.col("token_ids").list.len().cast(pl.Int64),
            start=thinking.field("start").cast(pl.Int64),
            length=(thinking.field("end") - thinking.field("start")).cast(pl.Int64),
        )
        .collect(engine="streaming")
    )


def _pearls(run: RunReader, graded: pl.DataFrame, threshold: float) -> Pearls | None:
    if not (run.table("segment").is_file() and run.table("estimate").is_file()):
        return None
    segments = run.frame("segment", "id", "trajectory_id", "index", "exit")
    last = segments.group_by("trajectory_id").agg(last=pl.col("index").max())
    tests = run.frame("estimate", "id", "trajectory_id", "boundary", "decision", "reason")
    scans = (
        tests.join(segments.select("id", "exit"), on="id")
        .join(last, on="trajectory_id")
        .with_columns(pearl=(pl.col("decision") == "above") & (pl.col("boundary") < pl.col("last")))
        .group_by("trajectory_id")
        .agg(
            pearl=pl.col("pearl").any(),
            exit=pl.col("exit").filter(pl.col("pearl")).min(),
            failed=((pl.col("decision") == "undecided") & (pl.col("reason") != "")).any(),
        )
        .collect()
    )
    rows = graded.join(scans, left_on="id", right_on="trajectory_id", how="left")
    known = rows.filter(
        (pl.col("length") == 0)  # nothing to leave
        | pl.col("pearl")
        | (pl.col("pearl").is_not_null() & ~pl.col("failed"))
    ).with_columns(
        pl.col("pearl").fill_null(False),
        position=(pl.col("exit") - pl.col("start")) / pl.col("length"),
    )
    held = known.filter("pearl")
    return Pearls(
        threshold,
        _proportion(known, "pearl"),
        _proportion(known.filter("right"), "pearl"),
        _proportion(known.filter(~pl.col("right")), "pearl"),
        _proportion(known.with_columns(early=pl.col("position").fill_null(1) < 0.5), "early"),
        statistics.mean(held["position"].to_numpy(), held["problem_id"].to_list()),
        len(graded) - len(known),
    )


def _static(run: RunReader, graded: pl.DataFrame) -> list[StaticRow]:
    columns = ("trajectory_id", "fraction", "position", "grade", "answer_tokens")
    responses = graded.select("id", "problem_id", "right")
    rows = run.frame("pilot", *columns).collect()
    rows = rows.join(responses, left_on="trajectory_id", right_on="id").sort("trajectory_id")
    static = []
    for (fraction,), part in sorted(rows.group_by(["fraction"]), key=lambda pair: pair[0]):
        done = part.filter(pl.col("grade") != "failed").with_columns(
            now=pl.col("grade") == "correct", tokens=pl.col("position") + pl.col("answer_tokens")
        )
        tokens = statistics.mean(done["tokens"].to_numpy(), done["problem_id"].to_list())
        static.append(
            StaticRow(
                float(str(fraction)),
                _proportion(done.filter("right"), "now"),
                _proportion(done.filter(~pl.col("right")), "now"),
                _proportion(done, "now"),
                tokens,
                len(part) - len(done),
            )
        )
    return static


def _savings(run: RunReader, graded: pl.DataFrame) -> Savings | None:
    last = next((stage for stage in ("prune", "optimize") if run.table(stage).is_file()), None)
    if last is None:
        return None
    after = run.frame(last, "id", "tokens_after", "outcome").collect()
    rows = graded.join(after, on="id", how="left").with_columns(
        after=pl.col("tokens_after").fill_null(pl.col("tokens")),
        repaired=(pl.col("outcome") == "repaired").fill_null(False),
    )
    right = rows.filter("right")
    optimized = right.filter(pl.col("outcome").is_not_null())
    return Savings(
        flops=_saved_share(right, _flops),
        tokens=_saved_share(right, lambda prompt, tokens: float(tokens)),
        flops_optimized=_saved_share(optimized, _flops),
        repaired=_proportion(rows.filter(~pl.col("right")), "repaired"),
        gained=_proportion(rows, "repaired"),
    )


def _flops(prompt: int, tokens: int) -> float:
    return attention_flops(UNIT, 0, prompt + tokens)


def _saved_share(rows: pl.DataFrame, cost: Any) -> Estimate:
    """1 - cost after / cost before, a quotient of sums, with a bootstrap over problems."""
    costs = pl.DataFrame(
        {
            "problem_id": rows["problem_id"],
            "before": [cost(*each) for each in rows.select("prompt", "tokens").iter_rows()],
            "after": [cost(*each) for each in rows.select("prompt", "after").iter_rows()],
        }
    )
    sums = costs.group_by("problem_id", maintain_order=True).sum().select("after", "before")
    left = statistics.ratio(sums.to_numpy(), len(rows))
    return replace(left, value=1 - left.value, low=1 - left.high, high=1 - left.low)


def _proportion(rows: pl.DataFrame, column: str) -> Estimate:
    return statistics.proportion(rows[column].to_numpy(), rows["problem_id"].to_list())


def _pearl_table(pearls: Pearls | None) -> Table | None:
    if pearls is None:
        return None
    notes: tuple[str, ...] = ()
    if pearls.left_out:
        notes = (f"{pearls.left_out:,} responses have no estimate and are left out.",)
    rows = [
        ("of all responses", pearls.of_all),
        ("of those right", pearls.of_right),
        ("of the others", pearls.of_others),
        ("before half of the thinking", pearls.before_half),
        ("thinking before a pearl", pearls.position),
    ]
    title = f"a pearl: an exit before the end that answers right, p > {pearls.threshold:g}"
    return _shares(title, "pearls", rows, notes)


def _savings_table(savings: Savings | None) -> Table | None:
    if savings is None:
        return None
    rows = [
        ("attention FLOPs saved on those right", savings.flops),
        ("the same, of those optimized", savings.flops_optimized),
        ("tokens saved on those right", savings.tokens),
        ("repaired of the others", savings.repaired),
        ("repaired of all", savings.gained),
    ]
    return _shares("", "optimized", rows)


def _shares(
    title: str, what: str, rows: Sequence[tuple[str, Estimate]], notes: tuple[str, ...] = ()
) -> Table:
    cells = tuple((name, share, share.samples) for name, share in rows)
    return Table(title, (what, "% (95 %)", "responses"), cells, notes, formats=("", "%", ""))
