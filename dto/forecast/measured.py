"""What a pilot took: by stage and problem, and the seconds of its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dto.forecast.extrapolate import Column
from dto.recipe import Recipe
from dto.reporting.cost import BACKWARD
from dto.runs import manifest
from dto.usage import ModelShape, attention_flops

ENGINE = ("sample", "estimate", "optimize", "prune", "evaluate")
"""Stages whose work is requests to an engine."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall seconds of a stage: what it takes however few rows there are, and the rest.

    `fixed` is what passed outside the work on rows (an engine or processes that start, tables that
    are written), `busy` the rest. `in_flight` rows were under way at a time, in the mean over
    `busy`.
    """

    fixed: float
    busy: float
    in_flight: float


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens generated and attention FLOPs by problem of a stratum (nan where not known).

    `again` are the FLOPs that would come on top if no prefix were found in the cache: each is then
    computed once a call (the requests of one call share it in any case).
    """

    tokens: Column
    flops: Column
    again: Column


@dataclass(frozen=True, slots=True)
class Training:
    """What training took, and what it trained on, by training problem, over all epochs.

    `pairs` counts them, `tokens` are read, `flops` are of forward and backward passes. A method
    that trains on something else has no pairs: its tokens are shared out as the sampled ones are.
    """

    pairs: Column
    tokens: Column
    flops: Column
    points: int  # dev evaluations
    tokens_trained: int
    dev_tokens: int
    start_seconds: float
    train_seconds: float
    dev_seconds: float


def problem_ids(run: Path, recipe: Recipe) -> dict[str, list[str]]:
    """The pilot's problems by stratum: `train`, `dev`, and `test` with its task."""
    columns = ("id", "task", "split")
    rows = pl.read_parquet(run / "problems" / "rows.parquet", columns=list(columns))
    if recipe.evaluate.tasks:
        tests = pl.read_parquet(run / "test" / "rows.parquet", columns=list(columns))
        rows = pl.concat([rows.filter(pl.col("split") != "test"), tests])
    found: dict[str, list[str]] = {}
    for id, task, split in rows.iter_rows():
        found.setdefault(f"test {task}" if split == "test" else split, []).append(id)
    return found


def spent(run: Path, stage: str, ids: Sequence[str], width: int) -> Spent:
    """What a stage took for each of the problems; what has no row took nothing.

    A call made `width` requests.
    """
    return _by_problem(_usage(run, stage), ids, _shape(run), width)


def spent_by_arm(run: Path, ids: Sequence[str]) -> dict[tuple[str, str], Spent]:
    """What the evaluation took for each of the problems, by model and exit."""
    parts = _usage(run, "evaluate").partition_by("model", "exit", as_dict=True)
    shape = _shape(run)
    return {
        (str(model), str(exit)): _by_problem(part, ids, shape, 1)
        for (model, exit), part in parts.items()
    }


def _usage(run: Path, stage: str) -> pl.DataFrame:
    frame = pl.read_parquet(
        run / stage / "usage.parquet",
        columns=["key", "requests", "cached", "generated", "attention_flops"],
    )
    parts = pl.col("key").str.split("/")
    if stage != "evaluate":
        return frame.with_columns(problem=parts.list.first())
    # model / exit / problem, and the model may be a path
    return frame.with_columns(
        problem=parts.list.last(),
        exit=parts.list.get(-2),
        model=parts.list.head(parts.list.len() - 2).list.join("/"),
    )


def _by_problem(
    frame: pl.DataFrame, ids: Sequence[str], shape: ModelShape | None, width: int
) -> Spent:
    again = [
        requests / width * attention_flops(shape, 0, round(cached / requests)) if requests else 0.0
        for requests, cached in frame.select("requests", "cached").iter_rows()
    ]
    sums = (
        frame.with_columns(again=pl.Series(again, dtype=pl.Float64))
        .group_by("problem")
        .agg(pl.col("generated", "attention_flops", "again").cast(pl.Float64).sum())
    )
    rows = pl.DataFrame({"problem": ids}).join(
        sums, on="problem", how="left", maintain_order="left"
    )
    rows = rows.fill_null(0.0)
    return Spent(*(rows[name].to_numpy() for name in ("generated", "attention_flops", "again")))


def clock(run: Path, stage: str) -> Clock:
    """How a stage spent its time.

    Stages without an engine start their processes with the first row: the time to the first result
    is fixed for them.
    """
    done = _manifest(run, stage)
    seconds = float(done["seconds"])
    busy = min(seconds, float(done.get("fed_seconds", 0.0)))
    took = pl.read_parquet(run / stage / "timings.parquet", columns=["seconds"])["seconds"]
    if stage not in ENGINE and len(took):
        busy = max(0.0, busy - float(took.min()))  # type: ignore[arg-type]
    in_flight = float(took.sum()) / busy if busy > 0 else 0.0
    return Clock(seconds - busy, busy, in_flight)


def judge_usage(run: Path) -> dict[str, Any] | None:
    """What the judge of `prune` took; None where none was asked."""
    usage: dict[str, Any] | None = _manifest(run, "prune").get("judge_usage")
    return usage


def training(run: Path, ids: Sequence[str], epochs: float, sampled: Spent) -> Training:
    """What training took."""
    done = _manifest(run, "train")
    held_PX = _trained_on(run, ids) * epochs
    if not (run / "pair" / "rows.parquet").is_file():
        share_P = sampled.tokens / max(1.0, float(sampled.tokens.sum()))
        held_PX[:, 1] = share_P * int(done["tokens_trained"])
        held_PX[:, 2] = np.nan
    train_seconds, dev_seconds = float(done["train_seconds"]), float(done["dev_seconds"])
    path = run / "train" / "history.jsonl"
    history = path.read_text(encoding="utf-8") if path.is_file() else ""
    return Training(
        pairs=held_PX[:, 0],
        tokens=held_PX[:, 1],
        flops=held_PX[:, 2],
        points=sum(bool(line.strip()) for line in history.splitlines()),
        tokens_trained=int(done["tokens_trained"]),
        dev_tokens=int(done["usage"]["generated"]),
        start_seconds=max(0.0, float(done["seconds"]) - train_seconds - dev_seconds),
        train_seconds=train_seconds,
        dev_seconds=dev_seconds,
    )


def _trained_on(run: Path, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Pairs, tokens and FLOPs of one pass over the pairs, by problem."""
    held_PX = np.zeros((len(ids), 3))
    path = run / "pair" / "rows.parquet"
    if not path.is_file():
        return held_PX
    columns = ["problem_id", "prompt_tokens", "chosen_tokens", "rejected_tokens"]
    shape, place = _shape(run), {id: number for number, id in enumerate(ids)}
    for problem, prompt, chosen, rejected in pl.read_parquet(path, columns=columns).iter_rows():
        flops = sum(attention_flops(shape, 0, prompt + side) for side in (chosen, rejected))
        tokens = 2 * prompt + chosen + rejected
        held_PX[place[problem]] += (1, tokens, BACKWARD * flops)
    return held_PX


def shortened(run: Path) -> float:
    """Tokens of the sampled responses as they are trained on, over those that they have.

    One without an optimized version counts as it is; at most 1. Where nothing is optimized nobody
    knows what training will shorten: 0.
    """
    if not (run / "prune" / "rows.parquet").is_file():
        return 0.0
    tokens = pl.col("token_ids").list.len().cast(pl.Int64)
    before = pl.scan_parquet(run / "sample" / "rows.parquet").select("id", before=tokens)
    after = pl.scan_parquet(run / "prune" / "rows.parquet").select("id", "tokens_after")
    rows = before.join(after, on="id", how="left").collect(engine="streaming")
    kept = rows["tokens_after"].fill_null(rows["before"])
    total = int(rows["before"].sum())
    return min(1.0, float(kept.sum()) / total) if total else 1.0


def _shape(run: Path) -> ModelShape | None:
    config = run / "train" / "model" / "config.json"
    if not config.is_file():
        return None
    data: Mapping[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    return ModelShape.from_config(SimpleNamespace(**data))


def _manifest(run: Path, stage: str) -> dict[str, Any]:
    done = manifest.read(run / stage)
    assert done is not None, f"the pilot in {run} has finished {stage}"
    return done
