"""What became of the rows on their way: nothing is dropped in silence."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from dto.problems import NEAR_DUPLICATE
from dto.reporting.agreement import agreement, verdicts
from dto.runs import manifest

STAGES = (
    "problems", "sample", "batch", "segment", "estimate", "optimize", "prune", "pair", "chain",
    "label", "test", "evaluate",
)  # fmt: skip


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
    if reasons := _dropped_in_training(run):
        dropped["train"] = reasons
    return {
        "rows": rows,
        "trajectories": _counts(run / "sample", "grade"),
        "given_up": _given_up(run),
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


def _given_up(run: Path) -> dict[str, int]:
    """Answers that are wrong because comparing them exceeded a limit, by its reason."""
    reasons: Counter[str] = Counter()
    for stage in ("sample", "evaluate"):
        table = run / stage / "rows.parquet"
        if table.is_file():
            found = pl.scan_parquet(table).filter(
                (pl.col("grade") == "wrong") & pl.col("reason").str.starts_with("grader_")
            )
            reasons.update(dict(found.group_by("reason").len().collect().iter_rows()))
    return dict(sorted(reasons.items()))


def _counts(stage: Path, column: str) -> dict[str, int]:
    table = stage / "rows.parquet"
    if not table.is_file():
        return {}
    counted = pl.scan_parquet(table).group_by(column).len().sort(column).collect()
    return dict(counted.iter_rows())
