"""Report of a comparison: tables, a picture and the grid.

Files in RUN/compare: `methods.csv` and `methods.parquet` (a row per method), `grid.csv` and
`grid.parquet` (a row per training), `compare.html` (a page to share), `compare.png`, `compare.svg`,
`compare.json`.

All methods answer the same problems with the same seeds. Differences are taken on the problems to
which every method has graded responses (methods without any are skipped and have no figures), with
a paired bootstrap over problems and Holm's correction over all pairs of methods.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.figure import Figure

from dto import statistics
from dto.compare.compare import BASE, method_names
from dto.errors import DtoError
from dto.reporting.evaluation import Arm, minus, too_many_failed
from dto.reporting.funnel import judging_accuracy
from dto.reporting.page import Headline, Section, make_figure, render_page
from dto.reporting.pictures import COLOURS, INK, MARKERS, error_bars, legend, save, style_axes
from dto.reporting.table import Cell, Table, write_json
from dto.reporting.write import reproduce_section
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.statistics import Difference, Estimate, shown

LEAST_PROBLEMS = 100
"""With fewer problems methods are not ranked."""
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class MethodRow:
    """Figures of one method over all seeds.

    Intervals are 95 %, for this method only. `policy_tokens` is the mean over the trainings of its
    grid; `charged` of these were generated for its data. `cpu_seconds` covers the whole method.
    `gain` (accuracy) and `tokens_change` are differences from the reference over problems, with
    p-values after Holm's correction. `accuracy_rank` is 1 + the number of methods shown to be more
    accurate, `tokens_rank` 1 + the number shown to use fewer tokens; None with too few problems or
    too many failures. `picked` is the choice on dev for each seed; empty for the base model.
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
class Judging:
    """Share of right letters in judging held-out chains, for one training.

    `training` names the point of the grid. `before` is the base, `after` the end of the training,
    picked or not. `unreadable` counts judgements after training without a letter, which are wrong.
    """

    method: str
    seed: int
    training: str
    before: Estimate
    after: Estimate
    unreadable: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures of a comparison; `str()` gives the tables for the terminal.

    `judging` has all trainings of methods that use labelled chains.
    """

    name: str
    reference: str
    seeds: tuple[int, ...]
    problems: int
    samples: int
    budget: int
    rows: tuple[MethodRow, ...]
    judging: tuple[Judging, ...] = ()

    def __str__(self) -> str:
        tables = (table.text() for table in self.tables())
        return "\n\n".join([self.title, *tables, *(fill(note, 100) for note in self.notes())])

    @property
    def title(self) -> str:
        """Name, number of problems, samples and seeds."""
        seeds = f", seeds {', '.join(map(str, self.seeds))}" if len(self.seeds) > 1 else ""
        samples = f"{self.samples} sample{'' if self.samples == 1 else 's'}"
        return f"{self.name}: {self.problems:,} test problems × {samples}{seeds}"

    def tables(self) -> tuple[Table, ...]:
        """Build the tables: accuracy, tokens, cost and choice, and judging."""
        return (
            Table.of("Accuracy", self.rows, {
                "method": (lambda row: row.method, ""),
                "accuracy % (95 %)": (lambda row: row.accuracy, "%"),
                f"Δ vs {self.reference}, points (95 %)": (self._unless_reference("gain"), "+z%"),
                "p": (self._unless_reference("gain_p"), ".4f"),
                "rank": (lambda row: row.accuracy_rank or "–", ""),
            }),
            Table.of("Tokens per question", self.rows, {
                "method": (lambda row: row.method, ""),
                "tokens (95 %)": (lambda row: row.tokens, ".1f"),
                f"Δ vs {self.reference} (95 %)": (self._unless_reference("tokens_change"), "+z.1f"),
                "p": (self._unless_reference("tokens_change_p"), ".4f"),
                "rank": (lambda row: row.tokens_rank or "–", ""),
            }),
            Table.of("Cost, and choice on dev", self.rows, {
                "method": (lambda row: row.method, ""),
                "policy tokens": (lambda row: row.policy_tokens, ",.0f"),
                "for data": (lambda row: row.charged, ""),
                "core seconds": (lambda row: row.cpu_seconds, ",.0f"),
                "truncated": (lambda row: row.truncated, ""),
                "failed": (lambda row: row.failed, ""),
                "picked on dev": (
                    lambda row: "; ".join(name or "none: base is kept" for name in row.picked), "",
                ),
            }, wide=True),
            *([self._judged()] if self.judging else []),
        )  # fmt: skip

    def _judged(self) -> Table:
        columns: dict[str, tuple[Callable[[Judging], Cell], str]] = {
            "method": (lambda row: row.method, ""),
            **({"seed": (lambda row: str(row.seed), "")} if len(self.seeds) > 1 else {}),
            "training": (lambda row: row.training, ""),
            "before, right %": (lambda row: row.before, "%"),
            "after, right %": (lambda row: row.after, "%"),
            "without a letter": (lambda row: row.unreadable, ""),
        }
        left = len(columns) - 3
        return Table.of("Judging held-out chains", self.judging, columns, left=left)

    def _unless_reference(self, name: str) -> Callable[[MethodRow], Cell]:
        return lambda row: None if row.method == self.reference else getattr(row, name)

    def notes(self) -> tuple[str, ...]:
        """Explain the figures and the ranking."""
        count = sum(not isnan(row.tokens.value) for row in self.rows)
        pairs = count * (count - 1) // 2
        ranking = "Rank: 1 + the number of methods shown to be better (p < 0.05)."
        if all(row.accuracy_rank is None for row in self.rows):
            ranking = f"{self.problems} problems are too few to rank methods."
        judging = (
            "Judging: share of right letters before training and at the end of each training, "
            "picked or not."
        )
        return (
            f"Δ vs {self.reference}: difference from {self.reference}, paired by problem. p: "
            "paired bootstrap over problems, with Holm's correction over the "
            f"{pairs} pairs of methods. {ranking}",
            f"Each training has a budget of {self.budget:,} policy tokens: tokens generated for "
            "its data plus tokens trained on. The table has the mean over the trainings of a "
            "method, and how many of these tokens were generated for the data.",
            *([judging] if self.judging else []),
        )


def compare_page(run: RunReader, result: Comparison) -> str:
    """Return the HTML of a comparison, styled like a run's report; `run` is one of its seeds."""
    section = reproduce_section(run)
    if others := ", ".join(str(seed) for seed in result.seeds if seed != run.recipe.seed):
        section = replace(
            section, text=(*section.text, f"Repeat it with --set seed=… for {others}.")
        )
    points = "; ".join(
        f"{row.method}: {shown(row.accuracy.value, '%')} % at "
        f"{shown(row.tokens.value, ',.0f')} tokens"
        for row in result.rows
    )
    methods = Section(
        "methods",
        "Accuracy and tokens",
        ("Up and to the left is better.",),
        make_figure("methods", f"Accuracy against tokens. {points}", front, result.rows),
        result.tables(),
        notes=result.notes(),
    )
    subtitle = result.title.removeprefix(f"{result.name}: ")
    return render_page(result.name, subtitle, _cards(result), [methods, section])


def _cards(result: Comparison) -> list[Headline]:
    """Build the cards: the reference against the base, the most accurate, the fewest tokens."""
    rows = {row.method: row for row in result.rows if not isnan(row.tokens.value)}
    reference, base = rows.get(result.reference), rows.get(BASE)
    if reference is None:
        return []
    cards = []
    if base is not None and base is not reference:
        fewer = 100 * (1 - reference.tokens.value / base.tokens.value)
        gain = minus(0.0, base.gain)
        verdict, mood = _verdict(gain, base.gain_p)
        cards.append(
            Headline(
                f"{reference.method} against {BASE}",
                f"{abs(fewer):.0f} % {'fewer' if fewer >= 0 else 'more'} tokens",
                f"accuracy {shown(base.accuracy.value, '%')} → "
                f"{shown(reference.accuracy.value, '%')} %: {gain:+%} points, {verdict}",
                f"{reference.tokens:,.0f} tokens, {base.tokens:,.0f} of the base",
                mood,
            )
        )
    best = max(rows.values(), key=lambda row: row.accuracy.value)
    shortest = min(rows.values(), key=lambda row: row.tokens.value)
    for title, row in (("most accurate", best), ("fewest tokens", shortest)):
        claim, mood = "the reference", "open"
        if row is not reference:
            verdict, mood = _verdict(row.gain, row.gain_p)
            claim = f"Δ vs {result.reference}: {row.gain:+%} points, {verdict}"
        detail = f"{row.accuracy:%} % at {row.tokens:,.0f} tokens"
        cards.append(Headline(title, row.method, claim, detail, mood))
    return cards


def _verdict(gain: Estimate, p: float) -> tuple[str, str]:
    """A difference in words, and the mood of its card."""
    if not p < SIGNIFICANT:
        return "no difference shown", "open"
    return ("a gain", "good") if gain.value > 0 else ("a loss", "bad")


def front(rows: Sequence[MethodRow], title: str = "") -> Figure:
    """Plot accuracy against tokens, a point per method, with intervals of both."""
    figure = Figure(figsize=(8.6, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        if isnan(row.tokens.value):
            continue
        error_bars(
            axes,
            [row.tokens],
            [row.accuracy],
            scale=100,
            fmt=MARKERS[index % len(MARKERS)],
            # A hollow ring around the point of a method whose model is the base.
            **(
                {"markersize": 11, "markerfacecolor": "none"}
                if row.method == BASE
                else {"markersize": 6}
            ),
            label=row.method,
            color=COLOURS[index % len(COLOURS)],
            elinewidth=0.9,
            capsize=2,
        )
    ends = [end for row in rows for end in (row.tokens.value, row.tokens.high) if not isnan(end)]
    axes.set_xlim(0, 1.12 * max(ends, default=1.0))
    axes.set_xlabel("tokens per question", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    style_axes(axes)
    legend(figure, "outside right upper")
    return figure


class _Method(NamedTuple):
    """Test responses of a method over all seeds, its grid per seed, and its total CPU time."""

    arm: Arm
    grids: list[dict[str, Any]]
    cpu_seconds: float


def report(runs: Sequence[Path], directory: Path | None = None) -> Comparison:
    """Summarize a comparison; several runs of the same recipe are its seeds.

    The files go to `directory`, by default compare/ of the first run. Raises DtoError if a method
    is unfinished in a run.
    """
    directory = directory or runs[0] / "compare"
    recipes = [RunReader(run).recipe for run in runs]
    names = method_names(recipes[0])
    methods = {name: _read(name, runs) for name in names}
    directory.mkdir(parents=True, exist_ok=True)
    reference = names.index(recipes[0].compare.reference)
    graded = [method.arm.graded for method in methods.values()]
    accuracy_PM = _by_problem(graded, pl.col("grade") == "correct")
    gains = _differences(accuracy_PM)
    changes = _differences(_by_problem(graded, pl.col("tokens")))
    problems = len(accuracy_PM)
    rows: list[MethodRow] = []
    for index, (name, method) in enumerate(methods.items()):
        arm = method.arm
        gain, change = gains[index, reference], changes[index, reference]
        ranked = problems >= LEAST_PROBLEMS and not too_many_failed(arm)
        points = [point for grid in method.grids for point in grid["points"]]
        rows.append(
            MethodRow(
                method=name,
                picked=tuple(map(_picked, method.grids)),
                accuracy=statistics.proportion(arm.correct, arm.problems),
                tokens=statistics.mean(arm.column("tokens"), arm.problems),
                gain=Estimate(*gain[:3], problems, problems),
                gain_p=gain.p,
                tokens_change=Estimate(*change[:3], problems, problems),
                tokens_change_p=change.p,
                accuracy_rank=_rank(index, gains, 1) if ranked else None,
                tokens_rank=_rank(index, changes, -1) if ranked else None,
                truncated=arm.truncated,
                failed=arm.failed,
                policy_tokens=float(np.mean([point["policy_tokens"] for point in points] or [0])),
                charged=max((int(grid["charged"]) for grid in method.grids), default=0),
                cpu_seconds=method.cpu_seconds,
            )
        )
    result = Comparison(
        name=recipes[0].name,
        reference=recipes[0].compare.reference,
        seeds=tuple(recipe.seed for recipe in recipes),
        problems=problems,
        samples=recipes[0].evaluate.samples,
        budget=recipes[0].compare.policy_tokens,
        rows=tuple(rows),
        judging=tuple(
            Judging(name, recipe.seed, _change(point), judging_accuracy(scores["before"]),
                    judging_accuracy(scores["after"]), scores["after"]["unreadable"])
            for name, method in methods.items()
            for recipe, grid in zip(recipes, method.grids, strict=False)
            for point in grid["points"]
            if (scores := point.get("judging"))
        ),
    )  # fmt: skip
    _write(directory, result, methods)
    page = compare_page(RunReader(runs[0]), result)
    manifest.write_text(directory / "compare.html", page)
    return result


def _read(name: str, runs: Sequence[Path]) -> _Method:
    frames, grids, expected, cpu = [], [], 0, 0.0
    for number, run in enumerate(runs):
        place = RunReader(run / "compare" / name)
        done_path = place / "done.json"
        if not (place.table("evaluate").is_file() and done_path.is_file()):
            raise DtoError(
                f"compare: method {name} is not finished in {run}: run `dto run {quote(str(run))}`"
            )
        rows = place.frame("evaluate", "problem_id", "grade", "tokens").collect()
        frames.append(rows.with_columns(problem_id=pl.lit(f"{number}/") + pl.col("problem_id")))
        tested = place if place.test_stage == "test" else RunReader(run)
        count = tested.count(place.test_stage, split="test")
        expected += count * place.recipe.evaluate.samples
        cpu += float(json.loads(done_path.read_text("utf-8"))["cpu_seconds"])
        grid = place / "grid.json"
        if grid.is_file():
            grids.append(json.loads(grid.read_text("utf-8")))
    return _Method(Arm(name, "none", pl.concat(frames), expected), grids, cpu)


def _by_problem(graded: Sequence[pl.DataFrame], value: pl.Expr) -> npt.NDArray[np.float64]:
    """Average each method (column) on each problem (row) that all methods have.

    A method without problems is nan everywhere and does not reduce the problems of the others.
    """
    rows = pl.concat(
        frame.select("problem_id", method=pl.lit(place), value=value.cast(pl.Float64))
        for place, frame in enumerate(graded)
    )
    table = rows.pivot("method", index="problem_id", values="value", aggregate_function="mean")
    methods = [str(place) for place in range(len(graded))]
    missing = {name: pl.lit(nan) for name in methods if name not in table.columns}
    shared = table.drop_nulls().with_columns(**missing).sort("problem_id")
    return shared.select(methods).to_numpy()


def _differences(values_PM: npt.NDArray[np.float64]) -> dict[tuple[int, int], Difference]:
    """Compute first minus second for all pairs of methods, with corrected p-values."""
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
    """Return 1 + the number of methods shown to be better; `better` is the sign of better."""
    return 1 + sum(
        difference.value * better > 0 and difference.p < SIGNIFICANT
        for (_, other), difference in differences.items()
        if other == method
    )


def _picked(grid: Mapping[str, Any]) -> str:
    if grid["picked"] is None:
        return ""
    return _change(grid["points"][grid["picked"]])


def _change(point: Mapping[str, Any]) -> str:
    """Format a point of the grid."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point["change"].items())


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
    paths = (directory / "compare.png", directory / "compare.svg")
    save(lambda: front(result.rows, result.title), *paths)


def _flat(row: MethodRow) -> dict[str, Any]:
    """Flatten a row: an estimate has three columns."""
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
