"""What became of the rows on their way: nothing is dropped in silence."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

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
    }


def training(run: Path) -> dict[str, Any] | None:
    """How training went: dev scores of the base and of what was kept, and why that one."""
    done = manifest.read(run / "train")
    try:
        lines = (run / "train" / "history.jsonl").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return None
    history = [json.loads(line) for line in lines if line.strip()]
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
    lines = path.read_text("utf-8").splitlines()
    reasons = Counter(str(json.loads(line)["reason"]) for line in lines if line.strip())
    return dict(sorted(reasons.items()))


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
