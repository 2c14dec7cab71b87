"""What asking k questions at once does to one of them: tokens and accuracy against k (2508.17803).

k = 1 is the question asked alone. A response's tokens count in equal parts for its questions, so
nothing depends on how well it can be cut up. The questions of a response share its fate, and the
responses to a question its difficulty: intervals are clustered by whichever makes them wider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from matplotlib.figure import Figure

from dto import statistics
from dto.drqa.probe import BOUND, Probe, format_probe, length_accuracy, length_probe, told
from dto.recipe import Recipe
from dto.reporting.evaluation import MAX_FAILED, Arm, DifficultyRow, by_difficulty
from dto.reporting.funnel import json_lines
from dto.reporting.page import Section, drawn
from dto.reporting.pictures import COLOURS, INK, MARKERS, plain, save
from dto.reporting.table import Table, aligned, interval, number, percent, points
from dto.runs import manifest
from dto.seeds import derive
from dto.statistics import Estimate

if TYPE_CHECKING:
    from dto.reporting.report import Report

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


def batch_lines(found: BatchReport) -> list[str]:
    """Accuracy and tokens against k, by difficulty, then the labels."""
    lines: list[str] = []
    if found.rows:
        lines += ["questions in one prompt (k) against each asked alone", *_k_lines(found.rows)]
        faults = [f"k = {row.k}: " + _counted(row.faults) for row in found.rows if row.faults]
        lines += [f"answers that cannot be told, {each}" for each in faults]
    if found.difficulty:
        lines += ["", "by difficulty: the pass rate of one half of the samples asked alone"]
        lines += _difficulty_lines(found.difficulty)
    for k, reasons in found.dropped.items():
        lines.append(f"no chain, k = {k}: {_counted(reasons)}")
    if found.labels is not None:
        lines += ["", *_label_lines(found.labels)] if lines else _label_lines(found.labels)
    return lines


def _k_lines(rows: Sequence[BatchRow]) -> list[str]:
    cells: list[tuple[str, ...]] = [
        ("k", "n", "accuracy % (95 %)", "gain (95 %)", "tokens (95 %)", "% of k=1 (95 %)", "trunc",
         "fail")
    ]  # fmt: skip
    for row in rows:
        tokens = number(row.tokens, 1)
        if not isnan(row.tokens_low):
            tokens += f" ({number(row.tokens_low, 0)}–{number(row.tokens_high, 0)})"
        alone = isnan(row.ratio)
        cells.append(
            (
                str(row.k), f"{row.answers:,}",
                interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                "" if alone else points(row.gain, row.gain_low, row.gain_high), tokens,
                "" if alone else interval(row.ratio, row.ratio_low, row.ratio_high),
                f"{row.truncated:,}", f"{row.failed:,}",
            )
        )  # fmt: skip
    return aligned(cells, left=1)


def _difficulty_lines(rows: Sequence[DifficultyRow]) -> list[str]:
    cells = [("right alone", "k", "n", "acc. %", "gain (95 %)", "tokens", "% of k = 1 (95 %)")]
    for row in rows:
        alone = isnan(row.gain)
        cells.append(
            (
                row.bin, row.exit.removeprefix("k = "), f"{row.problems:,}", percent(row.accuracy),
                "" if alone else points(row.gain, row.gain_low, row.gain_high),
                number(row.tokens_mean, 1),
                "" if alone
                else interval(row.tokens_ratio, row.tokens_ratio_low, row.tokens_ratio_high),
            )
        )  # fmt: skip
    return aligned(cells, left=2)


def _label_lines(labels: Labels) -> list[str]:
    lines = [f"labels, {split}: {_counted(counts)}" for split, counts in labels.counts.items()]
    lines.append(f"right letters: {_counted(labels.letters)}")
    lines.append(
        f"AUC of concise against verbose chains by format, without length: {_auc(labels.format)}"
        + (f"; above {BOUND}: the format may tell the origin" if labels.format.tells else "")
    )
    lines.append(f"… of all right batch chains against vanilla ones: {_auc(labels.format_right)}")
    base = labels.length_accuracy
    lines.append(
        f"by length alone: AUC {_auc(labels.length)}, right verdict of three "
        f"{interval(base.value, base.low, base.high)} %"
    )
    return lines


def _auc(probe: Probe) -> str:
    if isnan(probe.auc):
        return "–"
    counts = f"{probe.positive:,} + {probe.negative:,} chains"
    return f"{probe.auc:.3f} ({probe.low:.3f}–{probe.high:.3f}; {counts})"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def draw_batch(found: BatchReport, directory: Path, title: str) -> list[Path]:
    """Write `batch.png` and `batch.svg`; nothing without figures."""
    if not found.rows:
        return []
    return save(lambda: batch_figure(found, title), directory, "batch")


def batch_figure(found: BatchReport, title: str = "") -> Figure:
    """Tokens and accuracy against k.

    The line of all questions has its intervals; those of each difficulty are thin.
    """
    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    tokens, accuracy = figure.subplots(1, 2)
    rows = found.rows
    ks = [row.k for row in rows]
    figures = (
        (tokens, 1.0, [(row.tokens, row.tokens_low, row.tokens_high) for row in rows]),
        (accuracy, 100.0, [(row.accuracy, row.accuracy_low, row.accuracy_high) for row in rows]),
    )
    for axes, scale, by_k in figures:
        axes.errorbar(
            ks,
            [scale * value for value, _, _ in by_k],
            yerr=[
                [scale * max(0.0, value - low) for value, low, _ in by_k],
                [scale * max(0.0, high - value) for value, _, high in by_k],
            ],
            fmt="o-", color=INK, capsize=3, linewidth=1.8, label="all questions",
        )  # fmt: skip
    bins = list(dict.fromkeys(row.bin for row in found.difficulty))
    for place, bin in enumerate(bins):
        part = [row for row in found.difficulty if row.bin == bin]
        own_ks = [int(row.exit.removeprefix("k = ")) for row in part]
        style = {"color": COLOURS[(place + 1) % len(COLOURS)], "linewidth": 0.9, "markersize": 4}
        label = f"right alone: {bin}"
        marker = f"{MARKERS[(place + 1) % len(MARKERS)]}-"
        tokens.plot(own_ks, [row.tokens_mean for row in part], marker, label=label, **style)
        shares = [100 * row.accuracy for row in part]
        accuracy.plot(own_ks, shares, marker, label=label, **style)
    for axes, what in ((tokens, "tokens per question"), (accuracy, "accuracy, %")):
        axes.set_xticks(ks)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("questions in one prompt", color=INK)
        axes.set_ylabel(what, color=INK)
        plain(axes)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    handles, names = tokens.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=8.5,
                  labelcolor=INK)  # fmt: skip
    return figure


def batch_section(report: Report) -> Section | None:
    """Questions asked together, labels and judging; None for a run that has none of these."""
    found, judging = report.batch, (report.training or {}).get("judging")
    if found is None and not judging:
        return None
    text, tables, notes = [], [], []
    if found is not None and found.rows:
        text.append("k questions stand in one prompt; k = 1 is each asked alone. Tokens of a "
                    "response count in equal parts for its questions; gains and shares are "
                    "against the same questions asked alone. Coloured lines are questions by how "
                    "often they are right alone, on the other half of the samples.")  # fmt: skip
        tables.append(_by_k(found.rows))
    if found is not None and found.labels is not None:
        tables.append(_counts(found.labels))
        notes += _told_by(found.labels)
    if judging:
        tables.append(_judging(judging))
    if groups := (report.training or {}).get("groups"):
        share = groups["flat"] / groups["groups"] if groups["groups"] else float("nan")
        notes.append(f"Of {groups['groups']:,} groups of responses {percent(share)} % had no "
                     "advantage: all of their rewards were equal.")  # fmt: skip
    if found is not None and found.dropped:
        tables.append(_dropped_table(found))
    figure = None
    if found is not None and found.rows:
        says = "; ".join(
            f"k = {row.k}: {number(row.tokens, 0)} tokens, {percent(row.accuracy)} % right"
            for row in found.rows
        )
        figure = drawn("batch", f"Questions in one prompt. {says}", batch_figure, found)
    title = "Questions asked together" if figure else "Chains that are judged"
    return Section("batch", title, tuple(text), figure, tuple(tables), notes=tuple(notes))


def _by_k(rows: Sequence[BatchRow]) -> Table:
    return Table(
        "", ("k", "answers", "accuracy %", "gain, points", "tokens", "% of k = 1", "truncated",
         "failed"),
        tuple(
            (
                str(row.k), f"{row.answers:,}",
                interval(row.accuracy, row.accuracy_low, row.accuracy_high),
                "–" if isnan(row.gain) else points(row.gain, row.gain_low, row.gain_high),
                _tokens(row),
                "–" if isnan(row.ratio) else interval(row.ratio, row.ratio_low, row.ratio_high),
                f"{row.truncated:,}", f"{row.failed:,}",
            )
            for row in rows
        ),
    )  # fmt: skip


def _tokens(row: BatchRow) -> str:
    ends = "" if isnan(row.tokens_low) else (
        f" ({number(row.tokens_low, 1)}–{number(row.tokens_high, 1)})"
    )  # fmt: skip
    return number(row.tokens, 1) + ends


def _counts(labels: Labels) -> Table:
    verdicts = list(dict.fromkeys(name for counts in labels.counts.values() for name in counts))
    return Table(
        "", ("labelled chains", *verdicts),
        tuple(
            ({"dev": "held out"}.get(split, split),
             *(f"{counts.get(name, 0):,}" for name in verdicts))
            for split, counts in labels.counts.items()
        ),
    )  # fmt: skip


def _told_by(labels: Labels) -> list[str]:
    base = labels.length_accuracy
    above = f" Above {BOUND} the format may tell the origin." if labels.format.tells else ""
    return [
        f"AUC of concise against verbose chains, by their format without length: "
        f"{told(labels.format)}, {labels.format.positive:,} + {labels.format.negative:,} chains; "
        f"of all right batch chains against vanilla ones: {told(labels.format_right)}.{above} "
        "AUC is the chance that a classifier puts a chain of the first kind above one of the "
        "other: 0.5 tells nothing.",
        f"A judge that sees the length alone: AUC {told(labels.length)}, the right verdict of "
        f"three on {interval(base.value, base.low, base.high)} %.",
    ]


def _judging(judging: Mapping[str, Any]) -> Table:
    names = sorted({name for each in judging.values() for name in each["recall"]})
    return Table(
        "", ("judging held-out chains", "step", "right %", *(f"{name} %" for name in names),
         "without a letter", "judgements", "tokens"),
        tuple(
            (
                when, f"{each['step']:,}", interval(each["accuracy"], each["low"], each["high"]),
                *(percent(each["recall"].get(name)) for name in names),
                f"{each['unreadable']:,}", f"{each['responses']:,}",
                number(each["tokens_mean"], 1),
            )
            for when, each in (("before", judging["before"]), ("of what is kept", judging["kept"]))
        ),
    )  # fmt: skip


def _dropped_table(found: BatchReport) -> Table:
    return Table(
        "Questions without a chain", ("k", "no chain", "why"),
        tuple(
            (k, f"{sum(reasons.values()):,}",
             "; ".join(f"{count:,} {reason}" for reason, count in reasons.items()))
            for k, reasons in found.dropped.items()
        ),
        folded=True,
        wide=True,
    )  # fmt: skip
