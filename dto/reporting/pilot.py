"""The papers' pilot studies on your own model: how much of the thinking comes after the answer?

Figures come from the tables of sample, segment, estimate, prune (or optimize) and pilot. Intervals
are 95 %, clustered by problem. Failed rows leave the denominators and are counted.

- Pearls (2504.15895 section 2): responses with an early exit that answers right. In the paper one
  induced answer decides. Here the boundary must be `above` the threshold of the stage estimate, so
  that a lucky answer is no pearl.
- Static exits (same section): thinking is cut at fixed shares. `kept` is the share of right answers
  that stay right, `corrected` the share of other answers that become right.
- Savings by optimizing (2505.21765 section 4): attention FLOPs saved on right responses, and the
  share of other responses that are repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from textwrap import fill

import polars as pl

from dto import statistics
from dto.errors import DtoError
from dto.reporting.evaluation import minus
from dto.reporting.page import Headline, Section, render_page
from dto.reporting.table import Table, write_json
from dto.reporting.write import reproduce_section
from dto.runs.manifest import write_text
from dto.runs.reader import RunReader
from dto.statistics import Estimate, shown

PEARLS: Mapping[str, str] = {
    "of_all": "of all responses",
    "of_right": "of right responses",
    "of_others": "of other responses",
    "before_half": "in the first half of the thinking",
    "position": "mean thinking before a pearl",
}
"""Shares of responses with a pearl, and the mean share of the thinking before it."""
SAVINGS: Mapping[str, str] = {
    "flops": "attention FLOPs saved, right responses",
    "flops_optimized": "the same, optimized ones only",
    "tokens": "tokens saved, right responses",
    "repaired": "other responses repaired",
    "gained": "all responses repaired",
}
"""Effects of optimizing. A right response without an optimized version saves nothing."""


@dataclass(frozen=True, slots=True)
class StaticRow:
    """Figures of all responses cut after `fraction` of their thinking.

    `tokens` counts thinking and answer.
    """

    fraction: float
    kept: Estimate
    corrected: Estimate
    accuracy: Estimate
    tokens: Estimate
    failed: int


@dataclass(frozen=True, slots=True)
class PilotStudy:
    """The content of `pilot.json`; `str()` gives the tables for the terminal.

    `pearls` and `savings` map the names in PEARLS and SAVINGS to estimates; they are empty if the
    run lacks the tables. `left_out` counts graded responses without an estimated boundary.
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
        return "\n\n".join(
            [head, *(table.text() for table in self.tables()), fill(self.sentence, 100)]
        )

    def tables(self) -> list[Table]:
        """The tables that have rows: pearls, static exits, savings."""
        pearl = f"Pearls: early exits that answer right, p > {self.threshold:g}"
        left_out = f"{self.left_out:,} responses without an estimate do not count."
        notes = (left_out,) if self.left_out else ()
        tables = [
            _shares(pearl, "share with a pearl", PEARLS, self.pearls, notes),
            self._static_table(),
            _shares("Savings by optimizing", "", SAVINGS, self.savings),
        ]
        return [table for table in tables if table.rows]

    @property
    def sentence(self) -> str:
        """What the study found, in a few sentences."""
        if not self.responses:
            return (
                "Nothing can be said: no response has a grade. Every problem needs a gold answer."
            )
        parts = [f"The model is right in {self.accuracy:%} % of its responses"]
        if (pearl := self.pearls.get("of_all")) is not None:
            position = shown(self.pearls["position"].value, ".0%")
            parts.append(
                f"Of all responses, {pearl:%} % have an early exit that answers right, on average "
                f"after {position} % of the thinking"
            )
        if (tokens := self.savings.get("tokens")) is not None:
            parts.append(
                f"Optimizing saves {tokens:%} % of the tokens of right responses and repairs "
                f"{self.savings['repaired']:%} % of the others"
            )
        return "".join(f"{part}. " for part in parts).strip()

    def _static_table(self) -> Table:
        rows = [
            (f"{row.fraction:.0%}", row.kept, row.corrected, row.accuracy, row.tokens.value)
            for row in self.static
        ]
        return Table(
            "Static exits: thinking cut at a fixed share",
            ("thinking", "right kept %", "others corrected %", "accuracy %", "tokens"),
            (*rows, ("whole", None, None, self.accuracy, self.tokens.value)),
            formats=("", "%", "%", "%", ",.1f"),
        )


def _shares(
    title: str,
    heading: str,
    names: Mapping[str, str],
    estimates: Mapping[str, Estimate],
    notes: tuple[str, ...] = (),
) -> Table:
    rows = tuple((names[key], share, share.samples) for key, share in estimates.items())
    return Table(title, (heading, "% (95 %)", "responses"), rows, notes, formats=("", "%", ""))


def study(directory: Path) -> PilotStudy:
    """Compute the study of a run and write it to `RUN/pilot/pilot.json`.

    Raises DtoError if the tables of sample or pilot are missing.
    """
    for stage in ("sample", "pilot"):
        if not (directory / stage / "rows.parquet").is_file():
            raise DtoError(
                f"the pilot study needs {directory}/{stage}: run "
                f"`dto pilot {quote(str(directory))}`"
            )
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
    write_text(run / "pilot" / "pilot.html", pilot_page(run, result))
    return result


def pilot_page(run: RunReader, result: PilotStudy) -> str:
    """Return the HTML of a study, styled like a run's report."""
    head, *_ = str(result).splitlines()
    cards = {
        "responses with a right early exit": result.pearls.get("of_all"),
        "tokens saved by optimizing, right responses": result.savings.get("tokens"),
        "other responses repaired": result.savings.get("repaired"),
    }
    headlines = [
        Headline(title, f"{share:%} %", "", f"of {share.samples:,} responses")
        for title, share in cards.items()
        if share is not None
    ]
    section = Section("pilot", "How much of the thinking comes after the answer?",
                      (result.sentence,), tables=tuple(result.tables()),
                      notes=("Brackets hold 95 % intervals.",))  # fmt: skip
    subtitle = head.removeprefix(f"{result.name}: ")
    return render_page(
        f"{result.name}: pilot study", subtitle, headlines, [section, reproduce_section(run)]
    )


def _sampled(run: RunReader) -> pl.DataFrame:
    """Return one row per response, with lengths in place of token ids."""
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
    """Return the estimates of PEARLS and the number of responses without an estimate."""
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
    estimated = rows.filter(
        (pl.col("length") == 0)  # no thinking to exit from
        | pl.col("pearl")
        | (pl.col("pearl").is_not_null() & ~pl.col("failed"))
    ).with_columns(
        pl.col("pearl").fill_null(False),
        position=(pl.col("exit") - pl.col("start")) / pl.col("length"),
    )
    early = estimated.with_columns(early=pl.col("position").fill_null(1) < 0.5)
    shares = {
        "of_all": _proportion(estimated, "pearl"),
        "of_right": _proportion(estimated.filter("right"), "pearl"),
        "of_others": _proportion(estimated.filter(~pl.col("right")), "pearl"),
        "before_half": _proportion(early, "early"),
        "position": _mean(estimated.filter("pearl"), "position"),
    }
    return shares, len(graded) - len(estimated)


def _static(run: RunReader, graded: pl.DataFrame) -> list[StaticRow]:
    columns = ("trajectory_id", "fraction", "position", "grade", "answer_tokens")
    responses = graded.select("id", "problem_id", "right")
    rows = run.frame("pilot", *columns).collect()
    rows = rows.join(responses, left_on="trajectory_id", right_on="id").sort("trajectory_id")
    static = []
    for (fraction,), part in sorted(rows.group_by(["fraction"]), key=lambda pair: pair[0]):
        graded_part = part.filter(pl.col("grade") != "failed").with_columns(
            now=pl.col("grade") == "correct", tokens=pl.col("position") + pl.col("answer_tokens")
        )
        static.append(
            StaticRow(
                float(str(fraction)),
                _proportion(graded_part.filter("right"), "now"),
                _proportion(graded_part.filter(~pl.col("right")), "now"),
                _proportion(graded_part, "now"),
                _mean(graded_part, "tokens"),
                len(part) - len(graded_part),
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
    """Attention FLOPs up to a constant of the model: n tokens attend to n (n + 1) / 2 keys."""
    length = pl.col("prompt") + pl.col(tokens)
    return length * (length + 1)


def _saved_share(rows: pl.DataFrame, cost: Callable[[str], pl.Expr]) -> Estimate:
    """Compute 1 - sum of cost after / sum of cost before; bootstrap over problems."""
    sums = (
        rows.group_by("problem_id", maintain_order=True)
        .agg(after=cost("after").sum(), before=cost("tokens").sum())
        .select("after", "before")
    )
    return minus(1.0, statistics.ratio(sums.to_numpy(), len(rows)))


def _mean(rows: pl.DataFrame, column: str) -> Estimate:
    return statistics.mean(rows[column].to_numpy(), rows["problem_id"].to_list())


def _proportion(rows: pl.DataFrame, column: str) -> Estimate:
    return statistics.proportion(rows[column].to_numpy(), rows["problem_id"].to_list())
