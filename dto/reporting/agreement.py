"""What the judge of `prune` said, what became of it, and whether the rollouts say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from dto.records import STAYS, VerdictKind
from dto.statistics import cohen_kappa, proportion

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
