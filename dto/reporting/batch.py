"""What asking k questions at once does to one of them: tokens and accuracy against k (2508.17803).

k = 1 is the question asked alone. A response's tokens count in equal parts for its questions, so
nothing depends on how well it can be cut up. The questions of a response share its fate, and the
responses to a question its difficulty: intervals are clustered by whichever makes them wider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from dto import statistics
from dto.drqa.probe import BOUND, Probe, format_probe, length_accuracy, length_probe, with_interval
from dto.records import derive
from dto.reporting.evaluation import Arm, Figures, by_difficulty, too_many_failed
from dto.reporting.funnel import right
from dto.reporting.page import Section, drawn
from dto.reporting.pictures import INK, error_bars, plain
from dto.reporting.table import Table, arms_table, counted
from dto.runs.reader import RunReader
from dto.statistics import Estimate

MOST = 1000
"""Chains of each kind that a probe looks at."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What the labels are, and what their chains give away.

    `counts` is by split and verdict. `format` and `length` tell concise chains from verbose ones by
    these alone, and `length_accuracy` is how often the length gives the right verdict of three.
    """

    counts: dict[str, dict[str, int]]
    format: Probe
    length: Probe
    length_accuracy: Estimate
    missing_languages: tuple[str, ...] = ()
    """Files that the recipe names and that are gone; the format was read without them."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """All of it.

    The responses of a row are answers, and `tokens` those of one of them. Gain and ratio are
    against k = 1 on the same problems; None for k = 1, and where too many requests failed. `more`
    has the `requests` that the answers stand in and, by reason, the `faults`: answers that cannot
    be told apart.
    """

    rows: tuple[Figures, ...]
    difficulty: tuple[Figures, ...]
    labels: Labels | None


def batch_report(run: RunReader) -> BatchReport | None:
    """The figures of a run; None where it asked nothing together and labelled nothing."""
    rows: tuple[Figures, ...] = ()
    difficulty: tuple[Figures, ...] = ()
    if run.recipe.batch.k and run.manifest("batch") and run.manifest("sample"):
        asked = answers(run)
        rows = tuple(_rows(asked, _lost(run)))
        difficulty = tuple(_difficulty(asked))
    labels = _labels(run) if run.manifest("label") else None
    if not rows and labels is None:
        return None
    return BatchReport(rows, difficulty, labels)


def answers(run: RunReader) -> pl.DataFrame:
    """One row for each answer: k, problem_id, sample, response, grade, fault, tokens."""
    columns = ("k", "problem_id", "sample", "response", "grade", "fault", "tokens")
    alone = run.frame("sample").select(
        "problem_id", "sample", "grade", k=pl.lit(1, pl.Int64), response="id", fault=pl.lit(""),
        tokens=pl.col("token_ids").list.len().cast(pl.Float64),
    )  # fmt: skip
    together = (
        run.frame("batch")
        .select(
            "k", "sample", "problem_ids", "grades", "faults", response="id",
            tokens=pl.col("token_ids").list.len() / pl.col("k"),
        )
        .explode("problem_ids", "grades", "faults")
        .rename({"problem_ids": "problem_id", "grades": "grade", "faults": "fault"})
    )  # fmt: skip
    both = pl.concat([alone.select(columns), together.select(columns)])
    return both.collect().sort("k", "problem_id", "sample")


def _lost(run: RunReader) -> Counter[int]:
    """By k, the answers that an error kept out of the table."""
    lost = Counter({1: sum(1 for _ in run.dropped("sample"))})
    for row in run.dropped("batch"):
        k = int(row.id.partition("/")[0])
        if row.reason not in ("left_over", "no_short_answer"):
            lost[k] += k
    return lost


def _rows(asked: pl.DataFrame, lost: Counter[int]) -> list[Figures]:
    alone = asked.filter(pl.col("k") == 1, pl.col("grade") != "failed")
    rows = []
    for (k,), part in asked.group_by("k", maintain_order=True):
        assert isinstance(k, int)
        arm = Arm("base", f"k = {k}", part, len(part) + lost[k])
        gain = ratio = None
        if k > 1 and not too_many_failed(arm):
            gain, ratio = _against(arm.graded, alone)
        faults = Counter(filter(None, arm.graded["fault"].to_list()))
        more = {
            "requests": arm.graded["response"].n_unique(),
            "faults": dict(sorted(faults.items())),
        }
        verdict = "base" if k == 1 else ""
        row = arm.figures(gain=gain, ratio=ratio, verdict=verdict, k=k, more=more)
        by_response = part.with_columns(problem_id="response")
        other = Arm(arm.model, arm.exit, by_response, arm.expected).figures()
        accuracy, tokens = _wider(row.accuracy, other.accuracy), _wider(row.tokens, other.tokens)
        rows.append(replace(row, accuracy=accuracy, tokens=tokens))
    return rows


def _wider(first: Estimate, second: Estimate) -> Estimate:
    """The first, with the interval of the second where that is wider."""
    lows = [low for low in (first.low, second.low) if low == low]
    highs = [high for high in (first.high, second.high) if high == high]
    return replace(first, low=min(lows, default=nan), high=max(highs, default=nan))


def _against(together: pl.DataFrame, alone: pl.DataFrame) -> tuple[Estimate, Estimate]:
    """Gain and ratio of tokens against the same problems asked alone."""
    right = (pl.col("grade") == "correct").mean()
    base = alone.group_by("problem_id").agg(right_1=right, tokens_1=pl.col("tokens").mean())
    joined = together.join(base, on="problem_id")
    estimates = []
    for unit in ("problem_id", "response"):
        units = joined.group_by(unit).agg(
            right=right, right_1=pl.col("right_1").mean(),
            tokens=pl.col("tokens").sum(), tokens_1=pl.col("tokens_1").sum(),
        ).sort(unit)  # fmt: skip
        names = units[unit].to_list()
        gain = statistics.mean((units["right"] - units["right_1"]).to_numpy(), names)
        ratio = statistics.ratio(units.select("tokens", "tokens_1").to_numpy())
        if len(units) == 1:
            ratio = replace(ratio, low=nan, high=nan)
        estimates.append((gain, ratio))
    (gain, ratio), (gain_r, ratio_r) = estimates
    return _wider(gain, gain_r), _wider(ratio, ratio_r)


def _difficulty(asked: pl.DataFrame) -> list[Figures]:
    """The same by the pass rate of k = 1 (`dto.reporting.evaluation`).

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
    rows = by_difficulty(arms, base) if base is not None else []
    return [replace(row, k=int(row.exit.removeprefix("k = "))) for row in rows]


def _labels(run: RunReader) -> Labels:
    table = run.frame("label")
    light = table.select("id", "problem_id", "split", "verdict", "length").collect()
    counts: dict[str, dict[str, int]] = {}
    for split, verdict, count in light.group_by("split", "verdict").len().sort(
        "split", "verdict", descending=[True, False]
    ).iter_rows():  # fmt: skip
        counts.setdefault(split, {})[verdict] = count
    chosen: list[str] = []
    for kind in ("concise", "verbose"):
        ids = light.filter(verdict=kind)["id"].to_list()
        chosen += sorted(ids, key=lambda row_id: derive(run.recipe.seed, row_id, "probe"))[:MOST]
    judged = table.filter(pl.col("id").is_in(chosen)).sort("id").collect()
    concise, problems = (judged["verdict"] == "concise").to_list(), judged["problem_id"].to_list()
    missing = tuple(name for name in run.recipe.language_files if not Path(name).is_file())
    languages = tuple(name for name in run.recipe.languages if name not in missing)
    return Labels(
        counts=counts,
        format=format_probe(judged["chain"].to_list(), concise, problems, languages),
        length=length_probe(judged["length"].to_list(), concise, problems),
        length_accuracy=length_accuracy(
            light["length"].to_list(), light["verdict"].to_list(), light["problem_id"].to_list()
        ),
        missing_languages=missing,
    )


def batch_figure(batch: BatchReport) -> Figure:
    """Tokens and accuracy against k, with intervals."""
    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    tokens, accuracy = figure.subplots(1, 2)
    ks = [row.k for row in batch.rows]
    style: dict[str, Any] = {"fmt": "o-", "color": INK, "capsize": 3, "linewidth": 1.8}
    error_bars(tokens, ks, [row.tokens for row in batch.rows], **style)
    error_bars(accuracy, ks, [row.accuracy for row in batch.rows], scale=100, **style)
    for axes, what in ((tokens, "tokens per question"), (accuracy, "accuracy, %")):
        axes.set_xticks(ks)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("questions in one prompt", color=INK)
        axes.set_ylabel(what, color=INK)
        plain(axes)
    return figure


def batch_section(batch: BatchReport | None, training: Mapping[str, Any] | None) -> Section | None:
    """Questions asked together, labels and judging; None without any of these."""
    judging = (training or {}).get("judging")
    if batch is None and not judging:
        return None
    text: list[str] = []
    tables: list[Table] = []
    facts: list[str] = []
    notes: list[str] = []
    figure = None
    if batch is not None and batch.rows:
        text.append("k questions stand in one prompt; k = 1 is each asked alone. Tokens of a "
                    "response count in equal parts for its questions; gains and shares are "
                    "against the same questions asked alone.")  # fmt: skip
        columns = {
            "k": "k", "answers": "responses", "accuracy %": "accuracy", "gain": "gain",
            "tokens": "tokens", "% of k = 1": "ratio", "truncated": "truncated",
            "failed": "failed",
        }  # fmt: skip
        tables.append(arms_table(batch.rows, columns))
        columns = {
            "right alone": "bin", "k": "k", "problems": "problems", "acc. %": "accuracy alone",
            "gain": "gain", "tokens": "tokens alone", "% of k = 1": "ratio",
        }  # fmt: skip
        tables.append(arms_table(batch.difficulty, columns, "By difficulty", left=2))
        facts += [
            f"Answers that cannot be told apart, k = {row.k}: {counted(row.more['faults'])}."
            for row in batch.rows
            if row.more["faults"]
        ]
        says = "Tokens and accuracy against k; the table below has the figures."
        figure = drawn("batch", says, batch_figure, batch)
    if batch is not None and batch.labels is not None:
        tables.append(_counts(batch.labels.counts))
        facts += _told_by(batch.labels)
        notes.append("AUC is the chance that a classifier puts a chain of the first kind above one "
                     "of the other: 0.5 tells nothing.")  # fmt: skip
    if judging:
        tables.append(_judging(judging))
    title = "Questions asked together" if figure else "Chains that are judged"
    return Section("batch", title, tuple(text), figure, tuple(tables), tuple(facts), tuple(notes))


def _counts(counts: Mapping[str, Mapping[str, int]]) -> Table:
    verdicts = list(dict.fromkeys(name for row in counts.values() for name in row))
    return Table(
        "", ("labelled chains", *verdicts),
        tuple(
            ({"dev": "held out"}.get(split, split), *(row.get(name, 0) for name in verdicts))
            for split, row in counts.items()
        ),
    )  # fmt: skip


def _told_by(labels: Labels) -> list[str]:
    above = f" Above {BOUND} the format may tell the origin." if labels.format.predicts else ""
    if labels.missing_languages:
        above += f" Without the missing files of languages {', '.join(labels.missing_languages)}."
    return [
        f"AUC of concise against verbose chains, by their format without length: "
        f"{with_interval(labels.format)}, {labels.format.positive:,} + "
        f"{labels.format.negative:,} chains.{above}",
        f"A judge that sees the length alone: AUC {with_interval(labels.length)}, the right "
        f"verdict of three on {labels.length_accuracy:%} %.",
    ]


def _judging(judging: Mapping[str, Any]) -> Table:
    scores = [("before", judging["before"]), ("of what is kept", judging["kept"])]
    names = sorted({name for _, score in scores for name in score["recall"]})
    return Table(
        "",
        ("judging held-out chains", "step", "right %", *(f"{name} %" for name in names),
         "without a letter", "judgements", "tokens"),
        tuple(
            (when, score["step"], right(score), *(score["recall"].get(name) for name in names),
             score["unreadable"], score["responses"], score["tokens_mean"])
            for when, score in scores
        ),
        formats=("", "", "%", *("%" for _ in names), "", "", ",.1f"),
    )  # fmt: skip
