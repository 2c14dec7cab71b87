"""A run's directory: which recipe it was begun with, and which of its stages still hold."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dto.errors import DtoError, RunConflictError, disk_errors
from dto.prompts import JUDGE
from dto.recipe import Recipe, load_recipe
from dto.records import NOT_RUN
from dto.runs import manifest
from dto.runs.graph import STAGES, asks_model, before, settings_of, settings_read, test_stage


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory that is held by this process, with its recipe."""

    path: Path
    recipe: Recipe
    resume: bool
    lock: int
    allow_code_execution: bool = False

    def __truediv__(self, stage: str) -> Path:
        """The directory of a stage."""
        return self.path / stage

    def table(self, stage: str) -> Path:
        """The table of a stage."""
        return self.path / stage / "rows.parquet"

    def config(self, stage: str) -> dict[str, Any]:
        """All that decides what a stage computes: settings, prompts, weights, upstream digests.

        Raises DtoError when a stage before it is not finished.
        """
        recipe, imported = self.recipe, self.recipe.sample.imported
        config = settings_read(recipe, stage)
        if stage == "problems":
            source, test_source = recipe.problems.source, recipe.problems.test_source
            config |= self._contents(stage, source, test_source, imported)
        if stage == "test":
            config |= self._contents(stage, *recipe.evaluate.tasks)
        if stage == "sample" and imported:
            config |= self._contents(stage, imported)
        if asks_model(recipe, stage):
            config["weights"] = self._weights(stage, recipe.model.name, "weights")
        if asks_model(recipe, stage) or stage in ("sample", "label"):
            config["prompts"] = manifest.of_prompts(recipe.model.family)
        if stage == "prune" and recipe.prune.judge == "llm":
            config["prompts of the judge"] = manifest.of_prompts(JUDGE)
            if recipe.judge is not None:
                key = "weights of the judge"
                config[key] = self._weights(stage, recipe.judge.name, key)
        if stage == "evaluate":
            further = [name for name in recipe.evaluate.models if name not in ("base", "trained")]
            for name in further:
                config[f"weights of {name}"] = self._weights(stage, name, f"weights of {name}")
        for upstream in before(recipe, stage):
            done = manifest.read(self / upstream)
            if done is None:
                raise DtoError(
                    f"stage {stage} needs {upstream}, which is not finished in {self.path}: "
                    f"start `dto {upstream} {self.path}` first, or `dto run {self.path}`"
                )
            config[f"digest of {upstream}"] = done["digest"]
        return config

    def _contents(self, stage: str, *sources: str | None) -> dict[str, str]:
        """What sources hold; of one that is no longer there, what the stage was begun with."""
        begun = self._begun(stage) or {"config": {}}
        found = {
            f"content of {source}": manifest.of_path(Path(source))
            or begun["config"].get(f"content of {source}")
            for source in sources
            if source is not None
        }
        return {key: value for key, value in found.items() if value is not None}

    def _weights(self, stage: str, name: str, key: str) -> str | None:
        """What a model's folder holds; of one that is not here, what the stage was begun with."""
        begun = self._begun(stage) or {"config": {}}
        known: str | None = manifest.of_model(name) or begun["config"].get(key)
        return known

    def _begun(self, stage: str) -> dict[str, Any] | None:
        from dto.runs.journal import read_head

        return manifest.read(self / stage) or read_head(self / stage / "journal")

    def finished(self, stage: str, config: Mapping[str, Any]) -> bool:
        """Whether a stage need not be computed; clears away what another configuration left.

        Of an evaluation the arms that still hold are kept. Raises RunConflictError, which names
        what differs, unless the run was opened to resume.
        """
        begun = self._begun(stage)
        if begun is None:
            return False
        differing = manifest.differences(begun["config"], config)
        unrun = self._programs_not_run(stage)
        if not differing and not unrun:
            return manifest.read(self / stage) is not None
        if not _holds_anything(self / stage, _PULLED):  # begun in vain: without the file it reads
            (self / stage / "journal").unlink()
            return False
        if unrun and not self.resume:
            raise RunConflictError(
                f"{self / stage} holds {unrun:,} programs that were not run; --resume computes the "
                "stage again and runs them"
            )
        if not self.resume:
            raise RunConflictError(
                f"{self / stage} was computed with other settings: {', '.join(differing)}; "
                "--resume computes it again and goes on, --overwrite begins the run anew"
            )
        if stage == "evaluate" and not unrun:
            from dto.runs.arms import keep_arms

            # A change of the run's own problems changes what all arms share: nothing is kept then.
            problems = _test_ids(self) if self.recipe.evaluate.tasks else None
            keep_arms(self / stage, config, problems)
        else:
            self.clear(stage)
        return False

    def _programs_not_run(self, stage: str) -> int:
        """How many answers of a finished stage are failed for want of what this run now allows."""
        if not self.allow_code_execution or stage not in ("sample", "evaluate"):
            return 0
        from dto import tables

        path = self.table(stage)
        return tables.count(path, reason=NOT_RUN) if path.exists() else 0

    def clear(self, stage: str) -> None:
        """Forget a stage; those after it are computed again when something else comes out."""
        with disk_errors(self / stage):
            if (self / stage).exists():
                shutil.rmtree(self / stage)

    def close(self) -> None:
        """Let others have the directory."""
        os.close(self.lock)


def open_run(
    path: Path,
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_code_execution: bool = False,
) -> Run:
    """Begin a run, or go on with one of the same recipe.

    `resume` goes on with another recipe too: the stages that it changes are computed again. A run
    that holds no more than problems takes any recipe.
    `overwrite` deletes the run that is there. `allow_code_execution`: programs that answer problems
    are run (`dto.grading.sandbox`); that is nothing a recipe could ask for.

    Raises RunConflictError for a run with another recipe (the differing keys are named), for one
    that another process is at work on, and for a directory that holds something else.
    """
    begun = path / "recipe.yaml"
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not begun.exists())):
        raise RunConflictError(f"{path} holds something that is no run: give another --out")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        if overwrite:
            for each in path.iterdir():
                if each.is_dir():
                    shutil.rmtree(each)
                elif each.name != ".lock":
                    each.unlink()
    if begun.exists():
        known, now = settings_of(load_recipe(begun)), settings_of(recipe)
        if known != now and not resume and not _holds_results(path):
            resume = True  # a mistake in the first command, such as a model that is not there
        if known != now and not resume:
            os.close(lock)
            differing = ", ".join(manifest.differences(known, now))
            raise RunConflictError(
                f"{path} was begun with another recipe: {differing}; --resume computes again what "
                "that changes, --overwrite begins anew, --out takes another directory"
            )
    with disk_errors(begun):
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        manifest.write_text(begun, text)
    return Run(path, recipe, resume, lock, allow_code_execution)


def write_run_manifest(run: Run) -> dict[str, Any]:
    """The manifest of the whole run: the digests, counts and costs of its stages."""
    keys = ("digest", "rows", "dropped", "given_up", "usage", "judge_usage", "seconds",
            "peak_memory")  # fmt: skip
    stages = {
        stage: {key: done[key] for key in keys if key in done}
        for stage in (*STAGES, "test", "trace", "pilot")
        if (done := manifest.read(run / stage)) is not None
    }
    whole = {"name": run.recipe.name, "seed": run.recipe.seed, "stages": stages}
    with disk_errors(run.path):
        manifest.write(run.path, whole | manifest.provenance())
    return whole


def _holds_results(path: Path) -> bool:
    """Whether a run holds more than its problems, which cost nothing, and journals just begun."""
    stages = (stage for stage in path.iterdir() if stage.is_dir())
    return any(_holds_anything(stage) for stage in stages if stage.name not in ("problems", "test"))


_PULLED = frozenset({"rows.parquet", "dropped.jsonl"})
"""What a stage has whose test questions were not published, before it is computed."""


def _holds_anything(stage: Path, apart: frozenset[str] = frozenset()) -> bool:
    """Whether a stage holds more than the head of its journal, and what stands `apart`."""
    names = {each.name for each in stage.iterdir()} - apart
    if names - {"journal"}:
        return True
    if not names:
        return False
    with (stage / "journal").open("rb") as lines:
        next(lines, b"")  # its head
        return bool(next(lines, b""))


def _lock(path: Path) -> int:
    lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RunConflictError(f"{path} is in use by another process: wait for it to end") from None
    return lock


def _test_ids(run: Run) -> set[str]:
    """The ids of the problems to evaluate on."""
    import polars as pl

    frame = pl.scan_parquet(run.table(test_stage(run.recipe))).filter(split="test").select("id")
    return set(frame.collect()["id"].to_list())
