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
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from dto import statistics, tables
from dto.baselines.methods import BASE, label
from dto.baselines.page import compare_page
from dto.baselines.picture import draw
from dto.baselines.records import Comparison, MethodRow
from dto.errors import DtoError
from dto.recipe import load_recipe
from dto.reporting.evaluation import MAX_FAILED
from dto.reporting.report import without_nan
from dto.runs import manifest
from dto.statistics import Difference

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
