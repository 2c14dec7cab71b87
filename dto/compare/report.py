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
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.figure import Figure

from dto import statistics, tables
from dto.compare.methods import BASE, label
from dto.errors import DtoError
from dto.recipe import Recipe, load_recipe
from dto.reporting.accounts import reproduce_section
from dto.reporting.comparison import MAX_FAILED
from dto.reporting.page import Section, drawn, render_page
from dto.reporting.picture import COLOURS, INK, MARKERS, legend_marks, plain, save
from dto.reporting.report import without_nan
from dto.reporting.table import Table, aligned
from dto.runs import manifest
from dto.statistics import Difference


def compare_page(run: Path, recipe: Recipe, result: Comparison) -> str:
    """The HTML of a comparison; `run` is one of its seeds."""
    seeds = ", ".join(map(str, result.seeds))
    subtitle = (
        f"{len(result.rows)} methods on {result.problems:,} test problems × {result.samples} "
        f"samples, seed{'s' if len(result.seeds) > 1 else ''} {seeds}"
    )
    again = reproduce_section(run, recipe)
    if others := ", ".join(str(seed) for seed in result.seeds if seed != recipe.seed):
        again = replace(again, text=(*again.text, f"The same with --set seed=… for {others}."))
    sections = [_methods(result), _spent(result), again]
    return render_page(result.name, subtitle, (), sections)


def _methods(result: Comparison) -> Section:
    reference = result.reference
    pairs = len(result.rows) * (len(result.rows) - 1) // 2
    notes = [
        f"In brackets are 95 % intervals, each for itself. Differences from {reference} are paired "
        f"by problem; p is of a paired bootstrap over problems, with Holm's correction over the "
        f"{pairs} pairs of methods: what it does not let stand is not shown, though an interval "
        "may exclude 0."
    ]
    if all(row.accuracy_rank is None for row in result.rows):
        notes.append(f"{result.problems} problems are too few to rank methods: none is ranked.")
    else:
        notes.append("Rank: 1 + the number of methods that are shown to be better (p < 0.05).")
    says = "; ".join(
        f"{row.method}: {100 * row.accuracy:.1f} % at {row.tokens:,.0f} tokens"
        for row in result.rows
    )
    return Section(
        "methods",
        "Accuracy and tokens",
        ("Up and to the left is better.",),
        drawn("methods", f"Accuracy against tokens. {says}", front, result.rows),
        (
            Table(
                "Accuracy",
                ("method", "accuracy %", f"less {reference}, points", "p", "rank"),
                tuple(_accuracy(row, reference) for row in result.rows),
            ),
            Table(
                "Tokens of a question",
                ("method", "tokens", f"less {reference}", "p", "rank"),
                tuple(_tokens(row, reference) for row in result.rows),
            ),
        ),
        notes=tuple(notes),
    )


def _accuracy(row: MethodRow, reference: str) -> tuple[str, ...]:
    gain = change(100 * row.gain, 100 * row.gain_low, 100 * row.gain_high)
    own = row.method == reference
    return (
        row.method,
        span(100 * row.accuracy, 100 * row.accuracy_low, 100 * row.accuracy_high),
        "–" if own else gain,
        "–" if own else p_value(row.gain_p),
        rank(row.accuracy_rank),
    )


def _tokens(row: MethodRow, reference: str) -> tuple[str, ...]:
    own = row.method == reference
    saved = change(row.tokens_change, row.tokens_change_low, row.tokens_change_high)
    return (
        row.method,
        span(row.tokens, row.tokens_low, row.tokens_high),
        "–" if own else saved,
        "–" if own else p_value(row.tokens_change_p),
        rank(row.tokens_rank),
    )


def _spent(result: Comparison) -> Section:
    rows = tuple(
        (
            row.method, f"{row.policy_tokens:,.0f}", f"{row.charged:,}", f"{row.cpu_seconds:,.0f}",
            f"{row.truncated:,}", f"{row.failed:,}", picked(row),
        )
        for row in result.rows
    )  # fmt: skip
    return Section(
        "budget",
        "What each may spend, and what dev picked",
        (
            f"Each training has {result.budget:,} policy tokens: what was generated for its data, "
            "and what it is trained on. Policy tokens are what a training of the method used, on "
            "average; for data, what of that was generated before it. Core seconds are all that "
            "the method took.",
        ),
        tables=(
            Table(
                "",
                ("method", "policy tokens", "for data", "core seconds", "trun\u00adcated", "failed",
                 "picked on dev"),
                rows,
                wide=True,
            ),
        ),
    )  # fmt: skip


def draw(rows: Sequence[MethodRow], directory: Path, title: str) -> list[Path]:
    """Write `compare.png` and `compare.svg`; the same rows give the same bytes."""
    return save(lambda: front(rows, title), directory, "compare")


def front(rows: Sequence[MethodRow], title: str = "") -> Figure:
    """A point a method."""
    figure = Figure(figsize=(8.6, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        axes.errorbar(
            row.tokens,
            100 * row.accuracy,
            xerr=[[row.tokens - row.tokens_low], [row.tokens_high - row.tokens]],
            yerr=[
                [100 * (row.accuracy - row.accuracy_low)],
                [100 * (row.accuracy_high - row.accuracy)],
            ],
            fmt=MARKERS[index % len(MARKERS)],
            markersize=6,
            label=row.method,
            color=COLOURS[index % len(COLOURS)],
            elinewidth=0.9,
            capsize=2,
        )
    axes.set_xlim(0, 1.12 * max(row.tokens_high for row in rows))
    axes.set_xlabel("tokens per question", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    plain(axes)
    marks = legend_marks(axes)
    figure.legend(list(marks.values()), list(marks), loc="outside right upper", frameon=False,
                  fontsize=8.5, labelcolor="linecolor")  # fmt: skip
    return figure


def lines_of(result: Comparison) -> list[str]:
    """The head, a line a method, and what they have in common."""
    seeds = f", seeds {', '.join(map(str, result.seeds))}" if len(result.seeds) > 1 else ""
    lines = [
        f"{result.name}: {result.problems:,} test problems × {result.samples} samples{seeds}",
        "",
    ]
    own = f"Δ {result.reference}"
    cells: list[tuple[str, ...]] = [
        ("method", "accuracy % (95 %)", f"{own}, points (95 %)", "p", "rank",
         "tokens (95 %)", f"{own} (95 %)", "p", "rank", "picked on dev")
    ]  # fmt: skip
    for row in result.rows:
        reference = row.method == result.reference
        cells.append(
            (
                row.method,
                span(100 * row.accuracy, 100 * row.accuracy_low, 100 * row.accuracy_high),
                "" if reference else change(
                    100 * row.gain, 100 * row.gain_low, 100 * row.gain_high),
                "" if reference else p_value(row.gain_p),
                rank(row.accuracy_rank),
                span(row.tokens, row.tokens_low, row.tokens_high),
                "" if reference else change(
                    row.tokens_change, row.tokens_change_low, row.tokens_change_high),
                "" if reference else p_value(row.tokens_change_p),
                rank(row.tokens_rank),
                picked(row),
            )
        )  # fmt: skip
    lines += aligned(cells, left=1)
    lines += [
        "",
        f"Budget: {result.budget:,} policy tokens for each training, generated for it or trained "
        "on. Means used, and of them generated for its data:",
    ]
    lines += aligned(
        [
            ("method", "policy tokens", "data", "core seconds"),
            *(
                (
                    row.method, f"{row.policy_tokens:,.0f}", f"{row.charged:,}",
                    f"{row.cpu_seconds:,.0f}",
                )
                for row in result.rows
            ),
        ],
        left=1,
    )  # fmt: skip
    lines += _judging_lines(result)
    lines.append("")
    pairs = len(result.rows) * (len(result.rows) - 1) // 2
    lines.append(
        f"p: paired bootstrap over problems, Holm's correction over the {pairs} pairs of methods."
    )
    if all(row.accuracy_rank is None for row in result.rows):
        lines.append(f"{result.problems} problems are too few to rank methods: none is ranked.")
    else:
        lines.append("rank: 1 + the number of methods shown to be better (p < 0.05).")
    return lines


def _judging_lines(result: Comparison) -> list[str]:
    """How well held-out chains are judged, of the methods that are trained on labelled ones."""
    if not result.judging:
        return []
    cells = [("method", "before (95 %)", "after, at each point of its grid")]
    for method, (before, *after) in result.judging.items():
        shown = [span(*(100 * each for each in figures)) for figures in (before, *after)]
        cells.append((method, shown[0], ", ".join(shown[1:])))
    return ["", "Right judgements of held-out chains, %:", *aligned(cells, left=3)]


def picked(row: MethodRow) -> str:
    """What dev chose, for each seed; empty for a method that has no grid."""
    if not row.picked:
        return ""
    return "; ".join(each or "none: base is kept" for each in row.picked)


def span(value: float, low: float, high: float) -> str:
    """A figure with its interval."""
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def change(value: float, low: float, high: float) -> str:
    """A difference with its interval."""
    return "{:+.1f} ({:+.1f}…{:+.1f})".format(
        *(round(each, 1) + 0.0 for each in (value, low, high))
    )


def p_value(value: float) -> str:
    """A p-value to three digits; empty for none."""
    return "" if isnan(value) else f"{value:.3f}" if value >= 0.001 else "<0.001"


def rank(value: int | None) -> str:
    """A rank; a dash for none."""
    return "–" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method, over all seeds.

    Intervals are 95 %, of this method alone. `policy_tokens` is the mean over the trainings of its
    grid, of which `charged` went into its data; `cpu_seconds` is all that it took. `gain` and
    `tokens_change` are differences from the reference (accuracy; tokens), each with its interval
    and its p-value after Holm's correction. `accuracy_rank` is 1 + the number of methods that are
    shown to be more accurate, `tokens_rank` 1 + the number shown to be shorter (None: too few
    problems, or too many failed). `picked` is what dev chose, for each seed; empty: the base model.
    """

    method: str
    picked: tuple[str, ...]
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    tokens: float
    tokens_low: float
    tokens_high: float
    gain: float
    gain_low: float
    gain_high: float
    gain_p: float
    tokens_change: float
    tokens_change_low: float
    tokens_change_high: float
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
    """A comparison; `str()` gives the table for the terminal.

    `judging` has, by method, the judging of held-out chains (share, low, high) before a training,
    and then after each training of the grid.
    """

    name: str
    reference: str
    seeds: tuple[int, ...]
    problems: int
    samples: int
    budget: int
    rows: tuple[MethodRow, ...]
    judging: Mapping[str, tuple[tuple[float, float, float], ...]]

    def __str__(self) -> str:
        return "\n".join(lines_of(self))


LEAST_PROBLEMS = 100
"""With fewer problems intervals are shown, and no ranking."""
SIGNIFICANT = 0.05


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
    recipes = [load_recipe(run / "recipe.yaml") for run in runs]
    names = [BASE, *map(label, recipes[0].compare.methods)]
    found = {name: _read(name, runs) for name in names}
    directory.mkdir(parents=True, exist_ok=True)
    reference = recipes[0].compare.reference
    values_PM = {
        what: _by_problem([found[name].responses for name in names], what)
        for what in ("correct", "tokens")
    }
    accuracy_P, tokens_P = values_PM["correct"], values_PM["tokens"]
    gains, gain_ps = _pairs(accuracy_P)
    saved, saved_ps = _pairs(tokens_P)
    enough = len(accuracy_P) >= LEAST_PROBLEMS
    rows = []
    for index, name in enumerate(names):
        method = found[name]
        own = method.responses
        problems = own["problem"].to_list()
        accuracy = statistics.proportion(own["correct"].to_numpy(), problems)
        tokens = statistics.mean(own["tokens"].to_numpy(), problems)
        other = names.index(reference)
        failed = method.expected - len(own)
        ranked = enough and failed <= MAX_FAILED * method.expected
        points = [point for grid in method.grids for point in grid["points"]]
        rows.append(
            MethodRow(
                name,
                tuple(_shown(grid) for grid in method.grids),
                accuracy.value, accuracy.low, accuracy.high,
                tokens.value, tokens.low, tokens.high,
                *gains[index, other][:3], gain_ps[index, other],
                *saved[index, other][:3], saved_ps[index, other],
                _rank(index, names, gains, gain_ps, 1) if ranked else None,
                _rank(index, names, saved, saved_ps, -1) if ranked else None,
                int((own["grade"] == "truncated").sum()),
                failed,
                float(np.mean([point["policy_tokens"] for point in points])) if points else 0.0,
                max((int(grid["charged"]) for grid in method.grids), default=0),
                method.cpu_seconds,
            )
        )  # fmt: skip
    first = found[names[0]].responses
    per_problem = int(first.group_by("problem").len()["len"].max() or 0)  # type: ignore[arg-type]
    result = Comparison(
        name=recipes[0].name,
        reference=reference,
        seeds=tuple(recipe.seed for recipe in recipes),
        problems=len(accuracy_P),
        samples=per_problem,
        budget=recipes[0].compare.policy_tokens,
        rows=tuple(rows),
        judging={name: judged for name in names if (judged := _judging(found[name]))},
    )
    _write(directory, result, found)
    page = compare_page(runs[0], recipes[0], result)
    manifest.write_text(directory / "compare.html", page)
    return result


def _read(name: str, runs: Sequence[Path]) -> _Method:
    frames, grids, expected, cpu = [], [], 0, 0.0
    for number, run in enumerate(runs):
        place = run / "compare" / name
        table, done = place / "evaluate" / "rows.parquet", place / "done.json"
        if not (table.is_file() and done.is_file()):
            raise DtoError(f"compare: method {name} is not finished in {run}: `dto run {run}`")
        recipe = load_recipe(place / "recipe.yaml")
        rows = pl.read_parquet(table, columns=["problem_id", "grade", "tokens"])
        problem = pl.lit(f"{number}/") + pl.col("problem_id")
        frames.append(
            rows.filter(pl.col("grade") != "failed").select(
                problem=problem,
                grade="grade",
                correct=(pl.col("grade") == "correct").cast(pl.Float64),
                tokens=pl.col("tokens").cast(pl.Float64),
            )
        )
        asked = place / "test" if recipe.evaluate.tasks else run / "problems"
        count = tables.count(asked / "rows.parquet", split="test")
        expected += count * recipe.evaluate.samples
        cpu += float(json.loads(done.read_text("utf-8"))["cpu_seconds"])
        grid = place / "grid.json"
        if grid.is_file():
            grids.append(json.loads(grid.read_text("utf-8")))
    return _Method(pl.concat(frames), grids, expected, cpu)


def _judging(method: _Method) -> tuple[tuple[float, float, float], ...]:
    found = [
        point["judging"]
        for grid in method.grids
        for point in grid["points"]
        if point.get("judging")
    ]
    scores = [each["after"] for each in found]
    if found:
        scores.insert(0, found[0]["before"])
    return tuple((each["accuracy"], each["low"], each["high"]) for each in scores)


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


Pairs = dict[tuple[int, int], Difference]


def _pairs(values_PM: npt.NDArray[np.float64]) -> tuple[Pairs, dict[tuple[int, int], float]]:
    """The difference of any two methods, both ways, and its corrected p-value."""
    count = values_PM.shape[1]
    pairs = list(combinations(range(count), 2))
    columns = [values_PM[:, a] - values_PM[:, b] for a, b in pairs]
    differences_PK = np.stack(columns, axis=1) if columns else np.zeros((len(values_PM), 0))
    found = statistics.bootstrap_differences(differences_PK)
    adjusted = statistics.holm([each.p for each in found])
    differences: Pairs = {(own, own): Difference(0.0, 0.0, 0.0, 1.0) for own in range(count)}
    ps = {(own, own): nan for own in range(count)}
    for (a, b), each, p in zip(pairs, found, adjusted, strict=True):
        differences[a, b] = each
        differences[b, a] = Difference(0.0 - each.value, 0.0 - each.high, 0.0 - each.low, each.p)
        ps[a, b] = ps[b, a] = p
    return differences, ps


def _rank(
    own: int,
    names: Sequence[str],
    differences: Pairs,
    ps: dict[tuple[int, int], float],
    better: int,
) -> int:
    """1 + how many methods are shown to be better; `better` is the sign of a better difference."""
    return 1 + sum(
        differences[other, own].value * better > 0 and ps[other, own] < SIGNIFICANT
        for other in range(len(names))
        if other != own
    )


def _shown(grid: dict[str, Any]) -> str:
    if grid["picked"] is None:
        return ""
    change = grid["points"][grid["picked"]]["change"]
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in change.items())


def _write(directory: Path, result: Comparison, found: dict[str, _Method]) -> None:
    text = json.dumps(without_nan(asdict(result)), indent=2, ensure_ascii=False, allow_nan=False)
    manifest.write_text(directory / "compare.json", text + "\n")
    rows = [{**asdict(row), "picked": "; ".join(row.picked)} for row in result.rows]
    _tables(directory / "methods", rows)
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
        for name, method in found.items()
        for number, grid in enumerate(method.grids)
        for index, point in enumerate(grid["points"])
    ]
    if points:
        _tables(directory / "grid", points)
    draw(result.rows, directory, str(result).splitlines()[0])


def _tables(path: Path, rows: list[dict[str, Any]]) -> None:
    frame = pl.DataFrame(rows, infer_schema_length=None)
    frame.write_csv(path.with_suffix(".csv"))
    frame.write_parquet(path.with_suffix(".parquet"))
