"""What became of the rows on their way: nothing is dropped in silence."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from dto.records import GIVEN_UP, STAYS, VerdictKind
from dto.runs import manifest
from dto.statistics import cohen_kappa, proportion
from dto.tasks.load import NEAR_DUPLICATE

KINDS: tuple[VerdictKind, ...] = ("keep", "redundant", "meaningless", "harmful", "unjudged")


def verdicts(run: Path) -> dict[str, dict[str, int]]:
    """Patterns by verdict; of those that were to go, how many are gone or had to be restored."""
    table = run / "prune" / "rows.parquet"
    if not table.is_file():
        return {}
    found = _exploded(pl.scan_parquet(table), "verdicts")
    counted = {
        (kind, pruned): n for kind, pruned, n in found.group_by("verdict", "pruned").len()
        .collect().iter_rows()
    }  # fmt: skip
    kinds = {kind: counted.get((kind, True), 0) + counted.get((kind, False), 0) for kind in KINDS}
    fates = {
        fate: sum(counted.get((kind, gone), 0) for kind in KINDS if kind not in STAYS)
        for fate, gone in (("verified", True), ("restored", False))
    }
    return {
        "verdicts": {kind: count for kind, count in kinds.items() if count},
        "prunes": {fate: count for fate, count in fates.items() if count},
    }


def agreement(run: Path) -> dict[str, Any] | None:
    """How far the llm judge agrees with the counterfactual estimate; None where none was made.

    Over the patterns of which both gave a verdict, whether it may go: the share of equal answers
    and Cohen's kappa, with intervals clustered by problem, since trajectories of a problem are
    alike. `table` counts all their verdicts.
    """
    table = run / "prune" / "rows.parquet"
    if not table.is_file():
        return None
    rows = pl.scan_parquet(table)
    if "counterfactual" not in rows.collect_schema().names():
        return None
    both = (
        _exploded(rows, "verdicts")
        .join(_exploded(rows, "counterfactual"), on=("problem_id", "id", "segment"), suffix="_too")
        .filter(pl.col("verdict") != "unjudged", pl.col("verdict_too") != "unjudged")
        .select("problem_id", "id", "verdict", "verdict_too")
        .sort("id")
        .collect()
    )
    if both.is_empty():
        return None
    first, second, problems = (
        both[name].to_list() for name in ("verdict", "verdict_too", "problem_id")
    )
    goes, goes_too = (["stays" if kind == "keep" else "goes" for kind in kinds]
                      for kinds in (first, second))  # fmt: skip
    rate = proportion([a == b for a, b in zip(goes, goes_too, strict=True)], problems)
    kappa = cohen_kappa(goes, goes_too, problems)
    counted = both.group_by("verdict", "verdict_too").len()
    return {
        "patterns": len(both),
        "trajectories": both["id"].n_unique(),
        "rate": rate.value,
        "rate_low": rate.low,
        "rate_high": rate.high,
        "kappa": kappa.value,
        "kappa_low": kappa.low,
        "kappa_high": kappa.high,
        "table": {
            kind: {other: n for _, other, n in sorted(counted.filter(verdict=kind).rows())}
            for kind in KINDS
            if kind in first
        },
    }


def _exploded(rows: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """One row for each verdict, without its reason."""
    each = rows.select("problem_id", "id", column).explode(column).drop_nulls(column)
    fields = ("segment", "verdict", "pruned")
    return each.select("problem_id", "id", *(pl.col(column).struct.field(f) for f in fields))


STAGES = (
    "problems", "sample", "batch", "segment", "estimate", "optimize", "prune", "pair", "chain",
    "label", "test", "evaluate",
)  # fmt: skip
_SLUG = re.compile(
    r"(?:grader|sandbox|unreadable|no)_\w+(?:: \w+)*"
)  # what an engine says is longer


def funnel(run: Path) -> dict[str, Any]:
    """Counts of rows by stage, by grade and outcome, and of dropped rows by reason."""
    rows: dict[str, int] = {}
    dropped: dict[str, dict[str, int]] = {}
    for stage in STAGES:
        done = manifest.read(run / stage)
        if done is None:
            continue
        rows[stage] = int(done["rows"])
        if done.get("dropped"):
            dropped[stage] = dict(done["dropped"])
    given_up = {stage: found for stage in STAGES if (found := _given_up(run / stage))}
    if reasons := _dropped_in_training(run):
        dropped["train"] = reasons
    return {
        "rows": rows,
        "trajectories": _counts(run / "sample", "grade"),
        "given_up": dict(sorted(sum(map(Counter, given_up.values()), Counter[str]()).items())),
        "given_up_at": given_up,
        "ungraded": _ungraded(run),
        "boundaries": _counts(run / "estimate", "decision"),
        **verdicts(run),
        "agreement": agreement(run),
        "optimized": _counts(run / "prune", "outcome") or _counts(run / "optimize", "outcome"),
        "pairs": _counts(run / "pair", "rejected_from"),
        "dropped": dropped,
        "near_duplicates": _near_duplicates(run),
    }


def training(run: Path) -> dict[str, Any] | None:
    """How training went: dev scores of the base and of what was kept, and why that one."""
    done = manifest.read(run / "train")
    try:
        history = json_lines(run / "train" / "history.jsonl")
    except FileNotFoundError:
        return None
    if done is None or not history:
        return None
    kept_step = int(done.get("kept_step", 0))
    kept = next((score for score in history if score["step"] == kept_step), history[0])
    return {
        "base": history[0],
        "kept": kept,
        "steps": int(done.get("steps", 0)),
        "collapsed": bool(done.get("collapsed", False)),
        "reason": str(done.get("reason", "")),
        "judging": done.get("judging"),
        "groups": done.get("groups"),
    }


def _dropped_in_training(run: Path) -> dict[str, int]:
    """Training counts its drops in its manifest, and gives their reasons in a file."""
    path = run / "train" / "dropped.jsonl"
    if manifest.read(run / "train") is None or not path.is_file():
        return {}
    reasons = Counter(str(line["reason"]) for line in json_lines(path))
    return dict(sorted(reasons.items()))


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line.

    A line ends at a line feed alone, not at U+2028, U+2029 or U+0085 as for `splitlines`: a text
    may hold these.
    """
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _near_duplicates(run: Path) -> dict[str, int]:
    """By split, the problems that are near copies of those of another."""
    tables = [run / stage / "rows.parquet" for stage in ("problems", "test")]
    frames = [
        pl.scan_parquet(table)
        .filter(pl.col("metadata").str.contains(f'"{NEAR_DUPLICATE}":', literal=True))
        .select("split")
        for table in tables
        if table.is_file()
    ]
    if not frames:
        return {}
    return dict(pl.concat(frames).collect()["split"].value_counts().sort("split").iter_rows())


def _given_up(stage: Path) -> dict[str, int]:
    """Answers that are wrong because comparing them exceeded a limit, by its reason.

    A stage counts them in its manifest, those of rollouts and trials too; where an earlier version
    wrote that, the rows with a reason of their own are counted.
    """
    done = manifest.read(stage) or {}
    if "given_up" in done:
        return dict(done["given_up"])
    return _reasons(stage, pl.col("grade") == "wrong", pl.col("reason").str.starts_with(GIVEN_UP))


def _ungraded(run: Path) -> dict[str, int]:
    """Responses graded `failed`, by the grader's reason; `engine` is any of an engine's own."""
    counts: Counter[str] = Counter()
    for stage in ("sample", "evaluate"):
        for reason, count in _reasons(run / stage, pl.col("grade") == "failed").items():
            counts[reason if _SLUG.fullmatch(reason) else "engine"] += count
    return dict(sorted(counts.items()))


def _reasons(stage: Path, *conditions: pl.Expr) -> dict[str, int]:
    table = stage / "rows.parquet"
    if not table.is_file() or not {"grade", "reason"} <= set(pl.read_parquet_schema(table)):
        return {}
    found = pl.scan_parquet(table).filter(*conditions).group_by("reason").len().collect()
    return dict(sorted(found.iter_rows()))


def _counts(stage: Path, column: str) -> dict[str, int]:
    table = stage / "rows.parquet"
    if not table.is_file():
        return {}
    counted = pl.scan_parquet(table).group_by(column).len().sort(column).collect()
    return dict(counted.iter_rows())
