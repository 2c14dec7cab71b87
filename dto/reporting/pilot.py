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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from dto import statistics
from dto.errors import DtoError
from dto.reporting.evaluation import less
from dto.reporting.table import Table, write_json
from dto.runs.reader import RunReader
from dto.statistics import Estimate

PEARLS: Mapping[str, str] = {
    "of_all": "of all responses",
    "of_right": "of those right",
    "of_others": "of the others",
    "before_half": "before half of the thinking",
    "position": "thinking before a pearl",
}
"""Shares of responses with a pearl, and the mean share of the thinking that comes before it."""
SAVINGS: Mapping[str, str] = {
    "flops": "attention FLOPs saved on those right",
    "flops_optimized": "the same, of those optimized",
    "tokens": "tokens saved on those right",
    "repaired": "repaired of the others",
    "gained": "repaired of all",
}
"""What optimizing does. A right response without an optimized version saves nothing."""


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
class PilotStudy:
    """The content of `pilot.json`; `str()` gives the tables for the terminal.

    `pearls` and `savings` have the estimates that PEARLS and SAVINGS explain, by name, and are
    empty where the run has no such tables. `left_out` responses have a grade, but no boundary that
    could be estimated.
    """

    name: str
    problems: int
    responses: int
    right: int
    failed: int
    accuracy: Estimate
    tokens: Estimate
    threshold: float
    left_out: int
    pearls: Mapping[str, Estimate]
    static: tuple[StaticRow, ...]
    savings: Mapping[str, Estimate]

    def __str__(self) -> str:
        head = (
            f"{self.name}: {self.responses:,} responses to {self.problems:,} problems, "
            f"{self.right:,} right" + (f", {self.failed:,} failed" if self.failed else "")
        )
        pearl = f"a pearl: an exit before the end that answers right, p > {self.threshold:g}"
        left_out = f"{self.left_out:,} responses have no estimate and are left out."
        notes = (left_out,) if self.left_out else ()
        tables = [
            _shares(pearl, "pearls", PEARLS, self.pearls, notes),
            self._static_table(),
            _shares("", "optimized", SAVINGS, self.savings),
        ]
        return "\n\n".join([head, *(table.text() for table in tables if table.rows)])

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


def _shares(
    title: str,
    what: str,
    names: Mapping[str, str],
    estimates: Mapping[str, Estimate],
    notes: tuple[str, ...] = (),
) -> Table:
    rows = tuple((names[key], each, each.samples) for key, each in estimates.items())
    return Table(title, (what, "% (95 %)", "responses"), rows, notes, formats=("", "%", ""))


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
    pearls, left_out = _pearls(run, graded)
    result = PilotStudy(
        name=run.recipe.name,
        problems=graded["problem_id"].n_unique(),
        responses=len(graded),
        right=int(graded["right"].sum()),
        failed=len(sampled) - len(graded),
        accuracy=_proportion(graded, "right"),
        tokens=_mean(graded, "tokens"),
        threshold=run.recipe.estimate.threshold,
        left_out=left_out,
        pearls=pearls,
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


def _pearls(run: RunReader, graded: pl.DataFrame) -> tuple[dict[str, Estimate], int]:
    """PEARLS, and the number of responses without an estimate."""
    if not (run.table("segment").is_file() and run.table("estimate").is_file()):
        return {}, 0
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
    early = known.with_columns(early=pl.col("position").fill_null(1) < 0.5)
    shares = {
        "of_all": _proportion(known, "pearl"),
        "of_right": _proportion(known.filter("right"), "pearl"),
        "of_others": _proportion(known.filter(~pl.col("right")), "pearl"),
        "before_half": _proportion(early, "early"),
        "position": _mean(known.filter("pearl"), "position"),
    }
    return shares, len(graded) - len(known)


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
        static.append(
            StaticRow(
                float(str(fraction)),
                _proportion(done.filter("right"), "now"),
                _proportion(done.filter(~pl.col("right")), "now"),
                _proportion(done, "now"),
                _mean(done, "tokens"),
                len(part) - len(done),
            )
        )
    return static


def _savings(run: RunReader, graded: pl.DataFrame) -> dict[str, Estimate]:
    last = next((stage for stage in ("prune", "optimize") if run.table(stage).is_file()), None)
    if last is None:
        return {}
    after = run.frame(last, "id", "tokens_after", "outcome").collect()
    rows = graded.join(after, on="id", how="left").with_columns(
        after=pl.col("tokens_after").fill_null(pl.col("tokens")),
        repaired=(pl.col("outcome") == "repaired").fill_null(False),
    )
    right = rows.filter("right")
    optimized = right.filter(pl.col("outcome").is_not_null())
    return {
        "flops": _saved_share(right, _flops),
        "flops_optimized": _saved_share(optimized, _flops),
        "tokens": _saved_share(right, pl.col),
        "repaired": _proportion(rows.filter(~pl.col("right")), "repaired"),
        "gained": _proportion(rows, "repaired"),
    }


def _flops(tokens: str) -> pl.Expr:
    """Of the attention, up to a factor that is the model's: n tokens look at n (n + 1) / 2 keys."""
    length = pl.col("prompt") + pl.col(tokens)
    return length * (length + 1)


def _saved_share(rows: pl.DataFrame, cost: Callable[[str], pl.Expr]) -> Estimate:
    """1 - cost after / cost before, a quotient of sums, with a bootstrap over problems."""
    sums = (
        rows.group_by("problem_id", maintain_order=True)
        .agg(after=cost("after").sum(), before=cost("tokens").sum())
        .select("after", "before")
    )
    return less(1.0, statistics.ratio(sums.to_numpy(), len(rows)))


def _mean(rows: pl.DataFrame, column: str) -> Estimate:
    return statistics.mean(rows[column].to_numpy(), rows["problem_id"].to_list())


def _proportion(rows: pl.DataFrame, column: str) -> Estimate:
    return statistics.proportion(rows[column].to_numpy(), rows["problem_id"].to_list())
