"""The wiring: which stages are computed, in what order and process, and what is told of them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from dto import tables
from dto.errors import DtoError, disk_errors
from dto.feeding import RECORDS, feed
from dto.recipe import Recipe
from dto.runs import manifest
from dto.runs.graph import test_stage
from dto.runs.run import Run, write_run_manifest
from dto.runs.runner import Stage
from dto.segmentation.lexicon import LOOP
from dto.serving import Serving
from dto.tags import FOREIGN

if TYPE_CHECKING:
    from dto.reporting.report import Report

logger = logging.getLogger("dto")


def run_stages(run: Run, stages: Sequence[str]) -> Report | None:
    """Compute the stages, in the order given, that are not finished yet; the report, if asked for.

    One engine serves consecutive stages; it is closed before training, which wants its memory.
    Raises what a stage raises; what was computed until then is kept.
    """
    _check_splits(run, stages)
    if "evaluate" in stages and test_stage(run.recipe) == "test":
        place = stages.index("evaluate")
        stages = (*stages[:place], "test", *stages[place:])
    summary: Report | None = None
    for apart, names in groupby(stages, key=lambda stage: stage in ("train", "report")):
        if not apart:
            asyncio.run(_compute(run, list(names)))
            continue
        for name in names:
            if name == "train":
                _train(run)
            else:
                from dto.reporting.write import report

                run.config(name)  # says what is missing
                summary = report(run.path)
                logger.info("%-9s %s", name, run / name / "report.html")
    write_run_manifest(run)
    return summary


def _check_splits(run: Run, stages: Sequence[str]) -> None:
    """Before hours of work: training and evaluation need problems of their own."""
    for stage, split, usual in (("train", "dev", 300), ("evaluate", "test", 400)):
        if split == "test" and run.recipe.evaluate.tasks:
            continue
        if stage in stages and not getattr(run.recipe.problems, split):
            raise DtoError(
                f"stage {stage} needs {split} problems, and the recipe asks for none: "
                f"`dto run {run.path} --resume --set problems.source=FILE|HUB "
                f"--set problems.{split}={usual}`, or start the stages before it one by one"
            )


def _train(run: Run) -> None:
    """Training is a process of its own; its journal holds only what it was begun with."""
    config = run.config("train")
    if run.finished("train", config):
        tell(run, "train", "done before")
        return
    from dto.training.train import train

    begun = time.perf_counter()
    directory = run / "train"
    with disk_errors(directory):
        directory.mkdir(exist_ok=True)
        manifest.write_text(directory / "journal", json.dumps({"head": {"config": config}}) + "\n")
    result = train(run.path, run.recipe, allow_code_execution=run.allow_code_execution)
    result["seconds"] = time.perf_counter() - begun
    with disk_errors(directory):
        weights = manifest.of_path(directory / "model")
        manifest.write(directory, manifest.finished("train", config, weights) | result)
        (directory / "journal").unlink()
    tell(run, "train")


async def _compute(run: Run, stages: Sequence[str]) -> None:
    allowed = run.allow_code_execution
    async with Serving(run.recipe, allow_code_execution=allowed) as serving:
        if "prune" in stages and not manifest.read(run / "prune"):
            await _check_judge(run.recipe, serving)
        for name in stages:
            config = run.config(name)
            if run.finished(name, config):
                tell(run, name, "done before")
                continue
            with Stage(run / name, RECORDS[name], config) as stage:
                await feed(run, stage, serving)
                await stage.finish()
            tell(run, name)


async def _check_judge(recipe: Recipe, serving: Serving) -> None:
    """Before hours of work: a judge on a server is there, and takes the key."""
    if recipe.prune.judge == "llm" and recipe.judge and recipe.judge.engine == "openai":
        await serving.judge()


def tell(run: Run, name: str, remark: str = "") -> None:
    """One line about a finished stage: nothing is dropped in silence."""
    done = manifest.read(run / name) or {}
    rows = done["rows"] if isinstance(done.get("rows"), int) else 0
    parts = [f"{rows:,} rows"] if isinstance(done.get("rows"), int) else []
    dropped = done.get("dropped")
    if isinstance(dropped, dict):
        parts += [f"{amount:,} dropped: {reason}" for reason, amount in dropped.items()]
    for reason, amount in (done.get("given_up") or {}).items():
        parts.append(f"{amount:,} answers graded wrong: {reason}")
    if name == "segment" and (loops := tables.count(run.table(name), kind=LOOP)):
        parts.append(f"repeated sentences cut as one segment: {loops:,} times")
    if failed := done.get("usage", {}).get("failed"):
        parts.append(f"{failed:,} requests failed")
    if judge := done.get("judge_usage"):
        if judge["failed"]:
            parts.append(f"{judge['failed']:,} requests to the judge failed")
        parts.append(f"judge {judge['prompt']:,} tokens read, {judge['generated']:,} generated")
    parts.append(remark or f"{done['usage']['generated']:,} tokens, {done['seconds']:.1f} s")
    logger.info("%-9s %s", name, ", ".join(parts))
    if isinstance(dropped, dict) and 2 * dropped.get(FOREIGN, 0) > sum(dropped.values()) + rows:
        logger.warning("%-9s most responses are not in the model's tags: %s", name, _why(run, name))


def _why(run: Run, name: str) -> str:
    """What the first row says that was dropped for its tags."""
    with (run / name / "dropped.jsonl").open(encoding="utf-8") as lines:
        found = (json.loads(line) for line in lines)
        return next((row["detail"] for row in found if row["reason"] == FOREIGN), FOREIGN)
