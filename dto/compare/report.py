"""What a comparison amounts to: one table, one picture, the grid behind it.

Below RUN/compare: `methods.csv` and `methods.parquet` (a row a method), `grid.csv` and
`grid.parquet` (a row a training), `compare.html` (a page to send around), `compare.png`,
`compare.svg`, `compare.json`.

All methods answer the same problems with the same seeds. Accuracy and tokens are the mean over the
problems that every method has graded responses to; differences are those of two methods on a
problem, under a paired bootstrap over problems, with Holm's correction over all pairs of methods.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.figure import Figure

from dto import statistics
from dto.compare.methods import BASE, label
from dto.errors import DtoError
from dto.recipe import Recipe
from dto.reporting.evaluation import MAX_FAILED
from dto.reporting.page import Section, drawn, render_page
from dto.reporting.pictures import COLOURS, INK, MARKERS, error_bars, legend, plain, save
from dto.reporting.table import Cell, Table, write_json
from dto.reporting.write import reproduce_section
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.statistics import Difference, Estimate

LEAST_PROBLEMS = 100
"""With fewer problems intervals are shown, and no ranking."""
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method, over all seeds.

    Intervals are 95 %, of this method alone. `policy_tokens` is the mean over the trainings of its
    grid, of which `charged` went into its data; `cpu_seconds` is all that it took. `gain` and
    `tokens_change` are differences from the reference (accuracy; tokens), over problems, each with
    its p-value after Holm's correction. `accuracy_rank` is 1 + the number of methods that are
    shown to be more accurate, `tokens_rank` 1 + the number shown to be shorter (None: too few
    problems, or too many failed). `picked` is what dev chose, for each seed; empty: the base model.
    """

    method: str
    picked: tuple[str, ...]
    accuracy: Estimate
    tokens: Estimate
    gain: Estimate
    gain_p: float
    tokens_change: Estimate
    tokens_change_p: float
    accuracy_rank: int | None
    tokens_rank: int | None
    truncated: int
    failed: int
    policy_tokens: float
    charged: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison; `str()` gives the tables for the terminal.

    `judging` has, by method, the share of right judgements of held-out chains before a training,
    and then after each training of the grid.
    """

    name: str
    reference: str
    seeds: tuple[int, ...]
    problems: int
    samples: int
    budget: int
    rows: tuple[MethodRow, ...]
    judging: Mapping[str, tuple[Estimate, ...]]

    @property
    def pairs(self) -> int:
        """How many pairs of methods there are."""
        return len(self.rows) * (len(self.rows) - 1) // 2

    def __str__(self) -> str:
        seeds = f", seeds {', '.join(map(str, self.seeds))}" if len(self.seeds) > 1 else ""
        lines = [
            f"{self.name}: {self.problems:,} test problems × {self.samples} samples{seeds}",
            "",
            methods_table(self).text(),
            "",
            f"Budget: {self.budget:,} policy tokens for each training, generated for it or trained "
            "on. Means used, and of them generated for its data:",
            _columns(spent_table(self), 0, 1, 2, 3).text(),
        ]
        if self.judging:
            lines += ["", "Right judgements of held-out chains, %:", judging_table(self).text()]
        corrected = f"Holm's correction over the {self.pairs} pairs of methods."
        lines += ["", f"p: paired bootstrap over problems, {corrected}", ranking(self)]
        return "\n".join(lines)


def ranking(result: Comparison) -> str:
    """How methods are ranked, or why none is."""
    if all(row.accuracy_rank is None for row in result.rows):
        return f"{result.problems} problems are too few to rank methods: none is ranked."
    return "rank: 1 + the number of methods shown to be better (p < 0.05)."


def methods_table(result: Comparison) -> Table:
    """Accuracy and tokens of each method, and their differences from the reference."""
    reference = f"Δ {result.reference}"
    rows: list[tuple[Cell, ...]] = []
    for row in result.rows:
        gain: tuple[Cell, ...] = (row.gain, _p_value(row.gain_p))
        change: tuple[Cell, ...] = (row.tokens_change, _p_value(row.tokens_change_p))
        if row.method == result.reference:
            gain = change = (None, None)
        accurate, short = row.accuracy_rank or "–", row.tokens_rank or "–"
        rows.append(
            (row.method, row.accuracy, *gain, accurate, row.tokens, *change, short, _choice(row))
        )
    return Table(
        "",
        ("method", "accuracy % (95 %)", f"{reference}, points (95 %)", "p", "rank",
         "tokens (95 %)", f"{reference} (95 %)", "p", "rank", "picked on dev"),
        tuple(rows),
        formats=("", "%", "+z%", "", "", ".1f", "+z.1f", "", "", ""),
    )  # fmt: skip


def spent_table(result: Comparison) -> Table:
    """Tokens and seconds that each method took, its failures, and what dev picked."""
    return Table(
        "",
        ("method", "policy tokens", "data", "core seconds", "trun\u00adcated", "failed",
         "picked on dev"),
        tuple(
            (row.method, row.policy_tokens, row.charged, row.cpu_seconds, row.truncated,
             row.failed, _choice(row))
            for row in result.rows
        ),
        formats=("", ",.0f", "", ",.0f", "", "", ""),
        wide=True,
    )  # fmt: skip


def judging_table(result: Comparison) -> Table:
    """How well held-out chains are judged, of the methods that are trained on labelled ones."""
    rows = tuple(
        (method, before, ", ".join(format(score, "%") for score in after))
        for method, (before, *after) in result.judging.items()
    )
    head = ("method", "before (95 %)", "after, at each point of its grid")
    return Table("", head, rows, formats=("", "%", ""), left=3)


def _columns(table: Table, *places: int) -> Table:
    return replace(
        table,
        head=tuple(table.head[place] for place in places),
        rows=tuple(tuple(row[place] for place in places) for row in table.rows),
        formats=tuple(table.formats[place] for place in places),
    )


def _choice(row: MethodRow) -> str:
    return "; ".join(picked or "none: base is kept" for picked in row.picked)


def _p_value(value: float) -> str | None:
    if isnan(value):
        return None
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def compare_page(run: Path, recipe: Recipe, result: Comparison) -> str:
    """The HTML of a comparison, of the same make as a run's report; `run` is one of its seeds."""
    seeds = ", ".join(map(str, result.seeds))
    subtitle = (
        f"{len(result.rows)} methods on {result.problems:,} test problems × {result.samples} "
        f"samples, seed{'s' if len(result.seeds) > 1 else ''} {seeds}"
    )
    again = reproduce_section(RunReader(run, recipe))
    if others := ", ".join(str(seed) for seed in result.seeds if seed != recipe.seed):
        again = replace(again, text=(*again.text, f"The same with --set seed=… for {others}."))
    says = "; ".join(
        f"{row.method}: {100 * row.accuracy.value:.1f} % at {row.tokens.value:,.0f} tokens"
        for row in result.rows
    )
    table = methods_table(result)
    methods = Section(
        "methods",
        "Accuracy and tokens",
        ("Up and to the left is better.",),
        drawn("methods", f"Accuracy against tokens. {says}", front, result.rows),
        (
            replace(_columns(table, 0, 1, 2, 3, 4), title="Accuracy"),
            replace(_columns(table, 0, 5, 6, 7, 8), title="Tokens of a question"),
        ),
        notes=(
            f"In brackets are 95 % intervals, each for itself. Differences from {result.reference} "
            "are paired by problem; p is of a paired bootstrap over problems, with Holm's "
            f"correction over the {result.pairs} pairs of methods: what it does not let stand is "
            "not shown, though an interval may exclude 0.",
            ranking(result),
        ),
    )
    spent = Section(
        "budget",
        "What each may spend, and what dev picked",
        (
            f"Each training has {result.budget:,} policy tokens: what was generated for its data, "
            "and what it is trained on. Policy tokens are what a training of the method used, on "
            "average; data, what of that was generated before it. Core seconds are all that the "
            "method took.",
        ),
        tables=(spent_table(result),),
    )
    return render_page(result.name, subtitle, (), [methods, spent, again])


def front(rows: Sequence[MethodRow], title: str = "") -> Figure:
    """Accuracy against tokens, a point a method, with intervals both ways."""
    figure = Figure(figsize=(8.6, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        error_bars(
            axes,
            [row.tokens],
            [row.accuracy],
            scale=100,
            fmt=MARKERS[index % len(MARKERS)],
            markersize=6,
            label=row.method,
            color=COLOURS[index % len(COLOURS)],
            elinewidth=0.9,
            capsize=2,
        )
    axes.set_xlim(0, 1.12 * max(row.tokens.high for row in rows))
    axes.set_xlabel("tokens per question", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    plain(axes)
    legend(figure, "outside right upper")
    return figure


class _Method(NamedTuple):
    """The test responses of a method over all seeds, and its grid in each."""

    responses: pl.DataFrame
    grids: list[dict[str, Any]]
    expected: int
    cpu_seconds: float


def report(runs: Sequence[Path], directory: Path | None = None) -> Comparison:
    """Sum up a comparison; several runs of the same recipe are several seeds of it.

    The files are written into `directory`, which is compare/ of the first run if none is given.
    Raises DtoError when a method is missing somewhere.
    """
    directory = directory or runs[0] / "compare"
    recipes = [RunReader(run).recipe for run in runs]
    names = [BASE, *map(label, recipes[0].compare.methods)]
    methods = {name: _read(name, runs) for name in names}
    directory.mkdir(parents=True, exist_ok=True)
    reference = names.index(recipes[0].compare.reference)
    frames = [method.responses for method in methods.values()]
    accuracy_PM, tokens_PM = _by_problem(frames, "correct"), _by_problem(frames, "tokens")
    gains, changes = _differences(accuracy_PM), _differences(tokens_PM)
    problems = len(accuracy_PM)
    rows = []
    for index, (name, method) in enumerate(methods.items()):
        responses, clusters = method.responses, method.responses["problem"].to_list()
        gain, change = gains[index, reference], changes[index, reference]
        failed = method.expected - len(responses)
        ranked = problems >= LEAST_PROBLEMS and failed <= MAX_FAILED * method.expected
        points = [point for grid in method.grids for point in grid["points"]]
        rows.append(
            MethodRow(
                method=name,
                picked=tuple(map(_picked, method.grids)),
                accuracy=statistics.proportion(responses["correct"].to_numpy(), clusters),
                tokens=statistics.mean(responses["tokens"].to_numpy(), clusters),
                gain=Estimate(*gain[:3], problems, problems),
                gain_p=gain.p,
                tokens_change=Estimate(*change[:3], problems, problems),
                tokens_change_p=change.p,
                accuracy_rank=_rank(index, gains, 1) if ranked else None,
                tokens_rank=_rank(index, changes, -1) if ranked else None,
                truncated=int((responses["grade"] == "truncated").sum()),
                failed=failed,
                policy_tokens=float(np.mean([point["policy_tokens"] for point in points] or [0])),
                charged=max((int(grid["charged"]) for grid in method.grids), default=0),
                cpu_seconds=method.cpu_seconds,
            )
        )
    per_problem = frames[0].group_by("problem").len()["len"].max() or 0
    result = Comparison(
        name=recipes[0].name,
        reference=recipes[0].compare.reference,
        seeds=tuple(recipe.seed for recipe in recipes),
        problems=problems,
        samples=int(per_problem),  # type: ignore[arg-type]
        budget=recipes[0].compare.policy_tokens,
        rows=tuple(rows),
        judging={name: scores for name in names if (scores := _judging(methods[name]))},
    )
    _write(directory, result, methods)
    page = compare_page(runs[0], recipes[0], result)
    manifest.write_text(directory / "compare.html", page)
    return result


def _read(name: str, runs: Sequence[Path]) -> _Method:
    frames, grids, expected, cpu = [], [], 0, 0.0
    for number, run in enumerate(runs):
        place = RunReader(run / "compare" / name)
        done = place / "done.json"
        if not (place.table("evaluate").is_file() and done.is_file()):
            raise DtoError(f"compare: method {name} is not finished in {run}: `dto run {run}`")
        graded = place.frame("evaluate").filter(pl.col("grade") != "failed")
        frames.append(
            graded.select(
                "grade",
                problem=pl.lit(f"{number}/") + pl.col("problem_id"),
                correct=(pl.col("grade") == "correct").cast(pl.Float64),
                tokens=pl.col("tokens").cast(pl.Float64),
            ).collect()
        )
        tested = place if place.test_stage == "test" else RunReader(run)
        count = tested.count(place.test_stage, split="test")
        expected += count * place.recipe.evaluate.samples
        cpu += float(json.loads(done.read_text("utf-8"))["cpu_seconds"])
        grid = place / "grid.json"
        if grid.is_file():
            grids.append(json.loads(grid.read_text("utf-8")))
    return _Method(pl.concat(frames), grids, expected, cpu)


def _judging(method: _Method) -> tuple[Estimate, ...]:
    points = [point for grid in method.grids for point in grid["points"] if point.get("judging")]
    scores = [point["judging"]["after"] for point in points]
    if points:
        scores.insert(0, points[0]["judging"]["before"])
    keys = ("accuracy", "low", "high", "responses", "problems")
    return tuple(Estimate(*(score[key] for key in keys)) for score in scores)


def _by_problem(frames: Sequence[pl.DataFrame], column: str) -> npt.NDArray[np.float64]:
    """The mean of each method (column) on each problem (row) that all of them have."""
    means = [
        table.group_by("problem").agg(pl.col(column).mean().alias(str(index)))
        for index, table in enumerate(frames)
    ]
    joined = means[0]
    for other in means[1:]:
        joined = joined.join(other, on="problem")
    return joined.sort("problem").drop("problem").to_numpy()


def _differences(values_PM: npt.NDArray[np.float64]) -> dict[tuple[int, int], Difference]:
    """The first method less the second, of any two, with its corrected p-value."""
    count = values_PM.shape[1]
    pairs = list(combinations(range(count), 2))
    pairs_K2 = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    raw = statistics.bootstrap_differences(
        values_PM[:, pairs_K2[:, 0]] - values_PM[:, pairs_K2[:, 1]]
    )
    differences = {(method, method): Difference(0.0, 0.0, 0.0, nan) for method in range(count)}
    adjusted = statistics.holm([difference.p for difference in raw])
    for (a, b), (value, low, high, _), p in zip(pairs, raw, adjusted, strict=True):
        differences[a, b] = Difference(value, low, high, p)
        differences[b, a] = Difference(0.0 - value, 0.0 - high, 0.0 - low, p)
    return differences


def _rank(method: int, differences: Mapping[tuple[int, int], Difference], better: int) -> int:
    """1 + how many methods are shown to be better; `better` is the sign of a better difference."""
    return 1 + sum(
        difference.value * better > 0 and difference.p < SIGNIFICANT
        for (_, other), difference in differences.items()
        if other == method
    )


def _picked(grid: Mapping[str, Any]) -> str:
    if grid["picked"] is None:
        return ""
    change = grid["points"][grid["picked"]]["change"]
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in change.items())


def _write(directory: Path, result: Comparison, methods: Mapping[str, _Method]) -> None:
    write_json(directory / "compare.json", result)
    _tables(directory / "methods", [_flat(row) for row in result.rows])
    points = [
        {
            "method": name,
            "seed": result.seeds[number],
            "point": index,
            "picked": index == grid["picked"],
            "learning_rate": point["change"].get("train.learning_rate"),
            "own": next(key for key in point["change"] if key != "train.learning_rate"),
            "value": str(next(v for k, v in point["change"].items() if k != "train.learning_rate")),
            "dev_accuracy": point["score"]["accuracy"],
            "dev_tokens": point["score"]["tokens_mean"],
            "kept_step": point["kept_step"],
            "collapsed": point["collapsed"],
            "policy_tokens": point["policy_tokens"],
            "charged": grid["charged"],
            "tokens_trained": point["tokens_trained"],
            "seconds": point["seconds"],
            "cpu_seconds": point["cpu_seconds"],
            "judging": (point.get("judging") or {}).get("after", {}).get("accuracy"),
        }
        for name, method in methods.items()
        for number, grid in enumerate(method.grids)
        for index, point in enumerate(grid["points"])
    ]
    if points:
        _tables(directory / "grid", points)
    title = str(result).splitlines()[0]
    save(lambda: front(result.rows, title), directory, "compare")


def _flat(row: MethodRow) -> dict[str, Any]:
    """A row of a table: an estimate has three columns."""
    columns: dict[str, Any] = {}
    for field in fields(row):
        name, value = field.name, getattr(row, field.name)
        columns[name] = value
        if isinstance(value, Estimate):
            columns |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return columns | {"picked": "; ".join(row.picked)}


def _tables(path: Path, rows: list[dict[str, Any]]) -> None:
    frame = pl.DataFrame(rows, infer_schema_length=None)
    frame.write_csv(path.with_suffix(".csv"))
    frame.write_parquet(path.with_suffix(".parquet"))
