"""Tokens and accuracy per question against k, the number of questions in a prompt (2508.17803).

k = 1 is a question asked alone. The tokens of a response are divided equally among its questions,
so the figures do not depend on how well the response can be split. Answers in one response are
correlated, and so are answers to one question: intervals are clustered by response or by problem,
whichever is wider.
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
from dto.redact import public_names
from dto.reporting.evaluation import Arm, Figures, by_difficulty, too_many_failed
from dto.reporting.funnel import judging_accuracy
from dto.reporting.page import Section, make_figure
from dto.reporting.pictures import INK, error_bars, style_axes
from dto.reporting.table import Table, arms_table, join_counts
from dto.runs.reader import RunReader
from dto.statistics import Estimate

MAX_CHAINS = 1000
"""Chains of each kind that a probe reads."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Labelled chains, and how well a judge could guess their labels without reading them.

    `counts` is by split and verdict. `format` and `length` are classifiers of concise against
    verbose chains that see only the format or only the length. `length_accuracy` is the share of
    verdicts (of three) that the length alone gets right.
    """

    counts: dict[str, dict[str, int]]
    format: Probe
    length: Probe
    length_accuracy: Estimate
    missing_languages: tuple[str, ...] = ()
    """Files that the recipe names and that are gone; the format was read without them."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Figures by k, by k and difficulty, and of the labelled chains.

    In a row, `responses` counts answers and `tokens` is per answer. Gain and ratio are against
    k = 1 on the same problems; None for k = 1 and where too many requests failed. `more` has the
    number of `requests` and, by reason, the `faults`: answers that could not be separated.
    """

    rows: tuple[Figures, ...]
    difficulty: tuple[Figures, ...]
    labels: Labels | None
    teacher: str = ""
    """Says who wrote the responses and chains, if that is not the model that is trained."""


def batch_report(run: RunReader) -> BatchReport | None:
    """Compute the figures of a run; None for a run without batch prompts and labels."""
    rows: tuple[Figures, ...] = ()
    difficulty: tuple[Figures, ...] = ()
    teacher = _teacher(run)
    if run.recipe.batch.k and run.manifest("batch") and (teacher or run.manifest("sample")):
        frame = answers(run)
        rows = tuple(_rows(frame, _failed_answers(run)))
        difficulty = tuple(_difficulty(frame))
    labels = _labels(run) if run.manifest("label") else None
    if not rows and labels is None:
        return None
    return BatchReport(rows, difficulty, labels, teacher)


def _teacher(run: RunReader) -> str:
    """The sentence on the teacher; empty without one."""
    teacher = run.recipe.batch.teacher
    if teacher is None or not run.manifest("batch"):
        return ""
    name, total = public_names([teacher.name])[teacher.name], run.count("batch")
    encoded = run.count("batch", ids_from="encoded")
    ids = (
        "Their token ids are the sampled ones."
        if not encoded
        else f"{encoded:,} of {total:,} were encoded again with the model's own tokenizer."
    )
    return (
        f"The responses and chains, also of questions asked alone, were written by a teacher, "
        f"{name} on {teacher.engine}, not by the model that is trained. {ids}"
    )


def answers(run: RunReader) -> pl.DataFrame:
    """One row for each answer: k, problem_id, sample, response, grade, fault, tokens.

    The rows of k = 1 are the samples; with a teacher, its own answers to single questions.
    """
    columns = ("k", "problem_id", "sample", "response", "grade", "fault", "tokens")
    together = (
        run.frame("batch")
        .select(
            "k", "sample", "problem_ids", "grades", "faults", response="id",
            tokens=pl.col("token_ids").list.len() / pl.col("k"),
        )
        .explode("problem_ids", "grades", "faults")
        .rename({"problem_ids": "problem_id", "grades": "grade", "faults": "fault"})
    )  # fmt: skip
    frames = [together.select(columns)]
    if run.recipe.batch.teacher is None:  # else the table has k = 1 too
        alone = run.frame("sample").select(
            "problem_id", "sample", "grade", k=pl.lit(1, pl.Int64), response="id",
            fault=pl.lit(""), tokens=pl.col("token_ids").list.len().cast(pl.Float64),
        )  # fmt: skip
        frames.insert(0, alone.select(columns))
    return pl.concat(frames).collect().sort("k", "problem_id", "sample")


def _failed_answers(run: RunReader) -> Counter[int]:
    """Count by k the answers missing from the table because of an error."""
    taught = run.recipe.batch.teacher is not None
    failed = Counter({1: 0 if taught else sum(1 for _ in run.dropped("sample"))})
    for row in run.dropped("batch"):
        k = int(row.id.partition("/")[0])
        if row.reason not in ("left_over", "no_short_answer"):
            failed[k] += k
    return failed


def _rows(answers: pl.DataFrame, failed: Counter[int]) -> list[Figures]:
    alone = answers.filter(pl.col("k") == 1, pl.col("grade") != "failed")
    rows = []
    for (k,), part in answers.group_by("k", maintain_order=True):
        assert isinstance(k, int)
        arm = Arm("base", f"k = {k}", part, len(part) + failed[k])
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
        clustered = Arm(arm.model, arm.exit, by_response, arm.expected).figures()
        accuracy = _wider(row.accuracy, clustered.accuracy)
        tokens = _wider(row.tokens, clustered.tokens)
        rows.append(replace(row, accuracy=accuracy, tokens=tokens))
    return rows


def _wider(first: Estimate, second: Estimate) -> Estimate:
    """Widen the interval of the first estimate to include that of the second."""
    lows = [low for low in (first.low, second.low) if low == low]
    highs = [high for high in (first.high, second.high) if high == high]
    return replace(first, low=min(lows, default=nan), high=max(highs, default=nan))


def _against(together: pl.DataFrame, alone: pl.DataFrame) -> tuple[Estimate, Estimate]:
    """Compute gain and token ratio against the same problems asked alone."""
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


def _difficulty(answers: pl.DataFrame) -> list[Figures]:
    """Compute the figures by k and by the pass rate of k = 1 (`dto.reporting.evaluation`).

    An answer to a batch prompt shares no seed with a sample. It counts in the bins of both halves
    of the samples, with half its weight in each. Intervals are clustered by problem only.
    """
    arms = []
    for (k,), part in answers.group_by("k", maintain_order=True):
        if k != 1:
            halves = [part.with_columns(sample=pl.lit(half, pl.Int64)) for half in (0, 1)]
            part = pl.concat(halves)
        arms.append(Arm("base", f"k = {k}", part, len(part)))
    base = next((arm for arm in arms if arm.exit == "k = 1"), None)
    rows = by_difficulty(arms, base) if base is not None else []
    return [replace(row, k=int(row.exit.removeprefix("k = "))) for row in rows]


def _labels(run: RunReader) -> Labels:
    table = run.frame("label")
    verdicts = table.select("id", "problem_id", "split", "verdict", "length").collect()
    counts: dict[str, dict[str, int]] = {}
    for split, verdict, count in verdicts.group_by("split", "verdict").len().sort(
        "split", "verdict", descending=[True, False]
    ).iter_rows():  # fmt: skip
        counts.setdefault(split, {})[verdict] = count
    chosen: list[str] = []
    for kind in ("concise", "verbose"):
        ids = verdicts.filter(verdict=kind)["id"].to_list()
        ids.sort(key=lambda row_id: derive(run.recipe.seed, row_id, "probe"))
        chosen += ids[:MAX_CHAINS]
    judged = table.filter(pl.col("id").is_in(chosen)).sort("id").collect()
    concise, problems = (judged["verdict"] == "concise").to_list(), judged["problem_id"].to_list()
    missing = tuple(name for name in run.recipe.language_files if not Path(name).is_file())
    languages = tuple(name for name in run.recipe.languages if name not in missing)
    return Labels(
        counts=counts,
        format=format_probe(judged["chain"].to_list(), concise, problems, languages),
        length=length_probe(judged["length"].to_list(), concise, problems),
        length_accuracy=length_accuracy(
            *(verdicts[name].to_list() for name in ("length", "verdict", "problem_id"))
        ),
        missing_languages=missing,
    )


def batch_figure(batch: BatchReport) -> Figure:
    """Plot tokens and accuracy against k, with intervals."""
    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    tokens, accuracy = figure.subplots(1, 2)
    ks = [row.k for row in batch.rows]
    style: dict[str, Any] = {"fmt": "o-", "color": INK, "capsize": 3, "linewidth": 1.8}
    error_bars(tokens, ks, [row.tokens for row in batch.rows], **style)
    error_bars(accuracy, ks, [row.accuracy for row in batch.rows], scale=100, **style)
    for axes, label in ((tokens, "tokens per question"), (accuracy, "accuracy, %")):
        axes.set_xticks(ks)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("questions in one prompt", color=INK)
        axes.set_ylabel(label, color=INK)
        style_axes(axes)
    return figure


def batch_section(batch: BatchReport | None, training: Mapping[str, Any] | None) -> Section | None:
    """Build the section on batch prompts, labels and judging; None for a run without these."""
    judging = (training or {}).get("judging")
    if batch is None and not judging:
        return None
    text: list[str] = []
    tables: list[Table] = []
    facts: list[str] = [batch.teacher] if batch is not None and batch.teacher else []
    notes: list[str] = []
    figure = None
    if batch is not None and batch.rows:
        text.append("Each prompt holds k questions; k = 1 is a question asked alone. The tokens of "
                    "a response are divided equally among its questions. Gains and shares are "
                    "against the same questions asked alone.")  # fmt: skip
        columns = {
            "k": "k", "answers": "responses", "accuracy %": "accuracy", "gain": "gain",
            "tokens": "tokens", "% of k = 1": "ratio", "truncated": "truncated",
            "failed": "failed",
        }  # fmt: skip
        tables.append(arms_table(batch.rows, columns))
        columns = {
            "pass rate": "bin", "k": "k", "problems": "problems", "acc. %": "accuracy alone",
            "gain": "gain", "tokens": "tokens alone", "% of k = 1": "ratio",
        }  # fmt: skip
        tables.append(arms_table(batch.difficulty, columns, "By difficulty", left=2))
        facts += [
            f"Answers that could not be separated, k = {row.k}: {join_counts(row.more['faults'])}."
            for row in batch.rows
            if row.more["faults"]
        ]
        description = "Tokens and accuracy against k; the table below has the figures."
        figure = make_figure("batch", description, batch_figure, batch)
    if batch is not None and batch.labels is not None:
        tables.append(_counts(batch.labels.counts))
        facts += _probe_sentences(batch.labels)
        notes.append("AUC is the probability that a classifier ranks a concise chain above a "
                     "verbose one: 0.5 is chance.")  # fmt: skip
    if judging:
        tables.append(_judging(judging))
    title = "Several questions in one prompt" if figure else "Judging of chains"
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


def _probe_sentences(labels: Labels) -> list[str]:
    above = f" Above {BOUND} the format may reveal the origin." if labels.format.predicts else ""
    if labels.missing_languages:
        above += f" Without the missing language files {', '.join(labels.missing_languages)}."
    return [
        f"Classifier that sees only the format (not the length) of a chain: AUC "
        f"{with_interval(labels.format)}, {labels.format.positive:,} + "
        f"{labels.format.negative:,} chains.{above}",
        f"Classifier that sees only the length: AUC {with_interval(labels.length)}, the right "
        f"verdict (of three) for {labels.length_accuracy:%} % of the chains.",
    ]


def _judging(judging: Mapping[str, Any]) -> Table:
    scores = [("before", judging["before"]), ("kept checkpoint", judging["kept"])]
    names = sorted({name for _, score in scores for name in score["recall"]})
    return Table(
        "",
        ("judging held-out chains", "step", "right %", *(f"{name} %" for name in names),
         "without a letter", "judgements", "tokens"),
        tuple(
            (when, score["step"], judging_accuracy(score),
             *(score["recall"].get(name) for name in names),
             score["unreadable"], score["responses"], score["tokens_mean"])
            for when, score in scores
        ),
        formats=("", "", "%", *("%" for _ in names), "", "", ",.1f"),
    )  # fmt: skip
