"""A run's directory: which recipe it was begun with, and which of its stages still hold."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dto.errors import DtoError, RunConflictError, disk_errors
from dto.prompts import resource
from dto.recipe import Recipe, load_recipe
from dto.runs import manifest
from dto.seeds import content_id

STAGES = (
    "problems", "sample", "segment", "estimate", "optimize", "prune", "pair", "train", "evaluate",
    "report",
)  # fmt: skip
_BEFORE = {
    "problems": (),
    "sample": ("problems",),
    "segment": ("sample",),
    "estimate": ("segment",),
    "optimize": ("estimate",),
    "prune": ("optimize",),
    "pair": ("prune",),
    "train": ("pair",),
    "report": ("evaluate",),
}
_WITH_MODEL = ("sample", "estimate", "optimize", "prune", "evaluate")
_HOW_NOT_WHAT = (
    "name", "window", "model.slots", "model.cache_bytes", "model.device",
)  # fmt: skip
"""Settings that decide how something is computed, never what comes out."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory that is held by this process, with its recipe."""

    path: Path
    recipe: Recipe
    resume: bool
    lock: int

    def __truediv__(self, stage: str) -> Path:
        """The directory of a stage."""
        return self.path / stage

    def table(self, stage: str) -> Path:
        """The table of a stage."""
        return self.path / stage / "rows.parquet"

    def before(self, stage: str) -> tuple[str, ...]:
        """The stages whose tables a stage reads (those upstream of them are implied)."""
        if stage == "evaluate":
            trained = "trained" in self.recipe.evaluate.models
            return ("problems", "train") if trained else ("problems",)
        return _BEFORE[stage]

    def config(self, stage: str) -> dict[str, Any]:
        """All that decides what a stage computes: settings, prompts, weights, upstream digests.

        Raises DtoError when a stage before it is not finished.
        """
        settings = _settings(self.recipe)
        own = (f"{stage}.", "model.") if stage in _WITH_MODEL else (f"{stage}.",)
        config = {key: value for key, value in settings.items() if key.startswith(own)}
        config["seed"] = self.recipe.seed
        if stage == "problems":
            for source in (self.recipe.problems.source, self.recipe.problems.test_source):
                if source is not None and Path(source).is_file():
                    config[f"content of {source}"] = _file_hash(Path(source))
        if stage in _WITH_MODEL:
            config["prompts"] = _prompts_hash(self.recipe.model.family)
            config["weights"] = _weights_hash(self.recipe.model.name)
        for upstream in self.before(stage):
            done = manifest.read(self / upstream)
            if done is None:
                raise DtoError(
                    f"stage {stage} needs {upstream}, which is not finished in {self.path}: "
                    f"start `dto {upstream} {self.path}` first, or `dto run {self.path}`"
                )
            config[f"digest of {upstream}"] = done["digest"]
        return config

    def finished(self, stage: str, config: Mapping[str, Any]) -> bool:
        """Whether a stage need not be computed; clears away what another configuration left.

        What was imported stands, whatever the recipe says. Raises RunConflictError, which names
        what differs, unless the run was opened to resume.
        """
        from dto.runs.journal import read_head

        done = manifest.read(self / stage)
        begun = done or read_head(self / stage / "journal")
        if begun is None:
            return False
        if begun["config"] == dict(config) or "imported" in begun["config"]:
            return done is not None
        if not self.resume:
            differing = ", ".join(manifest.differences(begun["config"], config))
            raise RunConflictError(
                f"{self / stage} was computed with other settings: {differing}; --resume computes "
                "it again and goes on, --overwrite begins the run anew"
            )
        shutil.rmtree(self / stage)
        return False

    def close(self) -> None:
        """Let others have the directory."""
        os.close(self.lock)


def open_run(path: Path, recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Run:
    """Begin a run, or go on with one of the same recipe.

    `resume` goes on with another recipe too: the stages that it changes are computed again.
    `overwrite` deletes the run that is there. Raises RunConflictError for a run with another recipe
    (the differing keys are named), for one that another process is at work on, and for a directory
    that holds something else.
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
        before, now = _settings(load_recipe(begun)), _settings(recipe)
        if before != now and not resume:
            os.close(lock)
            differing = ", ".join(manifest.differences(before, now))
            raise RunConflictError(
                f"{path} was begun with another recipe: {differing}; --resume computes again what "
                "that changes, --overwrite begins anew, --out takes another directory"
            )
    with disk_errors(begun):
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        manifest.write_text(begun, text)
    return Run(path, recipe, resume, lock)


def write_run_manifest(run: Run) -> dict[str, Any]:
    """The manifest of the whole run: the digests, counts and costs of its stages."""
    keys = ("digest", "rows", "dropped", "usage", "seconds", "peak_memory")
    stages = {
        stage: {key: done[key] for key in keys if key in done}
        for stage in STAGES
        if (done := manifest.read(run / stage)) is not None
    }
    whole = {"name": run.recipe.name, "seed": run.recipe.seed, "stages": stages}
    with disk_errors(run.path):
        manifest.write(run.path, whole | manifest.provenance())
    return whole


def _lock(path: Path) -> int:
    lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RunConflictError(f"{path} is in use by another process: wait for it to end") from None
    return lock


def _settings(recipe: Recipe) -> dict[str, Any]:
    flat = manifest.flatten(recipe.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in _HOW_NOT_WHAT}


def _prompts_hash(family: str) -> str:
    texts: list[str] = []
    for folder in ("default", family):
        place = resource("prompts") / folder
        if place.is_dir():
            found = sorted(place.iterdir(), key=lambda file: file.name)
            texts += [f"{folder}/{file.name}\n{file.read_text('utf-8')}" for file in found]
    return content_id(*texts)


@cache
def _weights_hash(model: str) -> str | None:
    """The content of weights in a local folder, which may change under the same name."""
    from dto.nano import resolve

    folder = Path(resolve(model))
    if not folder.is_dir():
        return None
    return content_id(*(_file_hash(path) for path in sorted(folder.glob("*.safetensors"))))


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


def count(run: Run, stage: str, **equals: str) -> int:
    """Rows of a stage's table, all or those whose column has the value given."""
    import polars as pl

    frame = pl.scan_parquet(run.table(stage))
    return int(frame.filter(**equals).select(pl.len()).collect().item())
