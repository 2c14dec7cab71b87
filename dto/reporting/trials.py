"""The trial answers of an evaluation: is their confidence the chance that they are right?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from dto.calibration.reliability import Reliability, reliability
from dto.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrialReliability:
    """The trials of one model under one exit.

    Unless the exit is in `shadow` mode a path that is left makes no further trials, so that early
    trials, and doubtful ones, are more than their share of a whole path would be.
    """

    model: str
    exit: str
    shadow: bool
    reliability: Reliability


def trial_reliability(run: Path, recipe: Recipe) -> tuple[TrialReliability, ...]:
    """By model and exit, over all tasks; without the exits that made no graded trials."""
    table = run / "evaluate" / "rows.parquet"
    if not table.is_file():
        return ()
    trials = (
        pl.scan_parquet(table)
        .select("model", "exit", "problem_id", "trials")
        .filter(pl.col("trials").list.len() > 0)
        .explode("trials")
        .select(
            "model",
            "exit",
            "problem_id",
            confidence=pl.col("trials").struct.field("confidence"),
            grade=pl.col("trials").struct.field("grade"),
        )
        .filter((pl.col("grade") != "failed") & pl.col("confidence").is_between(0.0, 1.0))
        .with_columns(right=pl.col("grade") == "correct")
        .collect(engine="streaming")
    )
    found = []
    for model in recipe.evaluate.models:
        for exit in recipe.evaluate.exits:
            part = trials.filter(model=model, exit=exit.name)
            if part.is_empty():
                continue
            rows = part.select("confidence", "right", "problem_id").sort("problem_id").rows()
            reliable = reliability(exit.monitor, exit.inducer, exit.confidence, rows)
            found.append(TrialReliability(model, exit.name, exit.shadow, reliable))
    return tuple(found)
