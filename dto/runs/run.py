"""A run that this process works on: what its stages are computed from, and which of them hold.

Nothing is deleted by a word. What a change of settings computes again is listed, with what was
spent on it, and moved to `RUN/.aside` until the stage is done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from dto.errors import DtoError, RunConflictError, disk_errors
from dto.prompts import JUDGE
from dto.recipe import Recipe
from dto.records import NOT_RUN
from dto.runs import manifest
from dto.runs.arms import keep_arms, lost_arms
from dto.runs.journal import read_entries, read_head
from dto.runs.reader import RunReader
from dto.runs.stage import Stage
from dto.usage import Usage

ASIDE = ".aside"
"""Where a run keeps what is being computed again, until it is."""
_HOW_SERVED = (
    "slots", "cache_bytes", "kv_bytes", "device", "gpu_memory", "tensor_parallel", "server",
    "api_key", "concurrency", "retries", "timeout",
)  # fmt: skip
_HOW_NOT_WHAT = (
    "name", "window", *(f"{group}.{key}" for group in ("model", "judge") for key in _HOW_SERVED),
    "judge.prompt_price", "judge.generated_price", "compare.processes",
)  # fmt: skip
"""Settings that decide how something is computed, never what comes out."""
_ENGINES = ("model.engine", "judge.engine")
"""A finished stage holds on another engine too; its manifest says which it was computed on."""
_PULLED = frozenset({"rows.parquet", "dropped.jsonl"})
"""What a stage has whose test questions were not published, before it is computed."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A stage that would be computed again, why, and what was spent on it."""

    stage: str
    why: str
    rows: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        spent = f"{self.rows:,} rows, {self.tokens:,} tokens, {self.seconds:,.0f} s"
        return f"{self.stage} ({spent}): {self.why}"


Consent = Callable[[Path, Sequence[Stale]], None]
"""Told what would be computed again; returns, or raises RunConflictError."""


def refuse(path: Path, stale: Sequence[Stale]) -> None:
    """Compute nothing again: raises RunConflictError, which names what would be."""
    raise RunConflictError(
        f"{path} would compute again {'; '.join(map(str, stale))}: --recompute does that, --out "
        "takes another directory"
    )


def agree(path: Path, stale: Sequence[Stale]) -> None:
    """Compute it again."""


class Run(RunReader):
    """A run directory that this process holds, with the recipe that it is to follow."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        lock: FileLock,
        *,
        recompute: Consent,
        allow_code_execution: bool = False,
    ) -> None:
        super().__init__(path, recipe)
        self.allow_code_execution = allow_code_execution
        self._lock = lock
        self._recompute = recompute
        self._agreed: set[str] = set()  # stages that may be computed again

    def config(self, stage: Stage) -> dict[str, Any]:
        """All that decides what a stage computes: settings, prompts, weights, upstream digests.

        Raises DtoError when a stage before it is not finished.
        """
        config = self._own_config(stage)
        for upstream in stage.reads(self.recipe):
            done = self.manifest(upstream)
            if done is None:
                raise DtoError(
                    f"stage {stage.name} needs {upstream}, which is not finished in {self.path}: "
                    f"start `dto {upstream} {self.path}` first, or `dto run {self.path}`"
                )
            config[f"digest of {upstream}"] = done["digest"]
        return config

    def _own_config(self, stage: Stage) -> dict[str, Any]:
        recipe, name = self.recipe, stage.name
        config = settings_read(recipe, stage)
        for source in stage.files(recipe):
            key = f"content of {source}"
            content = manifest.of_path(Path(source)) or self._begun_with(name, key)
            config |= {} if content is None else {key: content}
        asks_model = stage.decided_by_model(recipe)
        if asks_model:
            config["weights"] = self._weights(name, recipe.model.name, "weights")
        if asks_model or stage.renders or name == "sample":
            config["prompts"] = manifest.of_prompts(recipe.model.family)
        if stage.asks_judge(recipe):
            config["prompts of the judge"] = manifest.of_prompts(JUDGE)
            if recipe.judge is not None:
                key = "weights of the judge"
                config[key] = self._weights(name, recipe.judge.name, key)
        for model in stage.models(recipe):
            if model not in ("base", "trained"):
                config[f"weights of {model}"] = self._weights(name, model, f"weights of {model}")
        return config

    def _weights(self, stage: str, model: str, key: str) -> str | None:
        return manifest.of_model(model) or self._begun_with(stage, key)

    def _begun_with(self, stage: str, key: str) -> str | None:
        """What a stage was begun with: a file or model may no longer be there."""
        begun = self._begun(stage)
        value: str | None = begun["config"].get(key) if begun else None
        return value

    def _begun(self, stage: str) -> dict[str, Any] | None:
        return manifest.read(self / stage) or read_head(self / stage / "journal")

    def stale(self, stages: Sequence[Stage], again: Sequence[str] = ()) -> list[Stale]:
        """Those of the stages, in their order, that the recipe would compute again.

        A stage that reads one of them is among them: something else may come out. Stages that hold
        nothing, or only the head of a journal, are not.
        """
        found: dict[str, Stale] = {}
        for stage in stages:
            begun = self._begun(stage.name)
            if begun is None or not _holds_anything(self / stage.name, _PULLED):
                continue
            own = self._own_config(stage)
            reads = stage.reads(self.recipe)
            for upstream in reads:
                key, done = f"digest of {upstream}", self.manifest(upstream)
                # What comes of one that is not finished is not known; it may be the same.
                own[key] = begun["config"].get(key) if done is None else done["digest"]
            why = "; ".join(self._differences(stage.name, begun["config"], own))
            unrun = self._programs_not_run(stage.name)
            if stage.name in again:
                why = "asked for"
            elif unrun:
                why = f"{unrun:,} programs were not run"
            elif before := [name for name in reads if name in found]:
                why = f"follows {' and '.join(before)}"
            if stage.name == "evaluate" and why and not unrun and stage.name not in again:
                why = self._lost_answers(begun["config"], own, found)
            if why:
                found[stage.name] = Stale(stage.name, why, *_spent(self, stage.name))
        return list(found.values())

    def _lost_answers(
        self, before: Mapping[str, Any], now: Mapping[str, Any], stale: Mapping[str, Stale]
    ) -> str:
        """What of an evaluation is lost; empty where it only goes on: a new exit, a new task."""
        if "problems" in stale:
            return "follows problems"
        lost = lost_arms(before, {**now, "digest of train": None} if "train" in stale else now)
        lost += [task for task in before["evaluate.tasks"] if task not in now["evaluate.tasks"]]
        return f"{', '.join(lost)} changed, or are asked no more; the rest is kept" if lost else ""

    def _differences(
        self, stage: str, before: Mapping[str, Any], now: Mapping[str, Any]
    ) -> list[str]:
        if self.manifest(stage) is not None:
            kept = {key: before[key] for key in _ENGINES if key in before and key in now}
            now = {**now, **kept}
        return manifest.differences(before, now)

    def finished(self, stage: Stage, config: Mapping[str, Any]) -> bool:
        """Whether a stage need not be computed; moves aside what another configuration left.

        Of an evaluation the arms that still hold are kept.
        """
        name = stage.name
        begun = self._begun(name)
        if begun is None:
            return False
        unrun = self._programs_not_run(name)
        differing = self._differences(name, begun["config"], config)
        if not unrun and not differing:
            return self.manifest(name) is not None
        if not _holds_anything(self / name, _PULLED):  # begun in vain: without the file it reads
            (self / name / "journal").unlink()
            return False
        if stage.needs != "nothing" and name not in self._agreed:
            why = "; ".join(differing) or f"{unrun:,} programs were not run"
            self._recompute(self.path, [Stale(name, why, *_spent(self, name))])
        old = self.set_aside(name)
        if name == "evaluate" and not unrun:
            # A change of the run's own problems changes what all arms share: nothing is kept then.
            problems = self._test_ids() if self.recipe.evaluate.tasks else None
            keep_arms(old, self / name, config, problems)
        return False

    def _programs_not_run(self, stage: str) -> int:
        """How many answers of a stage are failed for want of what this run now allows."""
        if not self.allow_code_execution or stage not in ("sample", "evaluate"):
            return 0
        return self.count(stage, reason=NOT_RUN) if self.table(stage).exists() else 0

    def _test_ids(self) -> set[str]:
        """The ids of the problems to evaluate on."""
        return {row.id for row in self.problems("test", self.test_stage)}

    def set_aside(self, stage: str) -> Path:
        """Move a stage out of the way, to where it stays until it is done again."""
        place = self.path / ASIDE / stage
        number = 1
        while place.exists():
            number += 1
            place = self.path / ASIDE / f"{stage}-{number}"
        with disk_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            (self / stage).rename(place)
        return place

    def done(self, stage: str) -> None:
        """Delete what was set aside for a stage."""
        aside = self.path / ASIDE
        with disk_errors(aside):
            for place in [aside / stage, *aside.glob(f"{stage}-*")]:
                shutil.rmtree(place, ignore_errors=True)
            if aside.is_dir() and not any(aside.iterdir()):
                aside.rmdir()

    def following(self, recipe: Recipe) -> Run:
        """The same directory, held by the same process, with another recipe."""
        return Run(
            self.path,
            recipe,
            self._lock,
            recompute=self._recompute,
            allow_code_execution=self.allow_code_execution,
        )

    def agree(self, stages: Sequence[Stage], again: Sequence[str], overwrite: bool) -> None:
        """Ask for what the recipe would compute again; set aside what is to be in any case."""
        anew = [stage.name for stage in stages] if overwrite else []
        stale = self.stale(stages, anew)
        if again and not stale:
            stale, anew = self.stale(stages, again), [*again]
        costly = {stage.name for stage in stages if stage.needs != "nothing"}
        if any(each.stage in costly for each in stale):
            self._recompute(self.path, stale)
        self._agreed = {each.stage for each in stale}
        for name in anew:
            if (self / name).is_dir():
                self.set_aside(name)

    def close(self) -> None:
        """Let others have the directory."""
        self._lock.release()


def open_run(
    path: Path,
    recipe: Recipe,
    stages: Sequence[Stage],
    *,
    recompute: Consent = refuse,
    again: Sequence[str] = (),
    overwrite: bool = False,
    allow_code_execution: bool = False,
) -> Run:
    """Begin a run, or go on with the one that is there, with this recipe.

    What the recipe, or `again`, would compute again is told to `recompute`, which raises or
    returns; stages that cost nothing (problems) need no consent. Settings that decide only how
    something is computed (a server, slots, prices) change nothing, and a finished stage holds on
    another engine too. `overwrite` sets everything aside and begins anew; that takes consent, too.
    `allow_code_execution`: programs that answer problems are run (`dto.grading.sandbox`); that is
    nothing a recipe could ask for.

    Raises RunConflictError for a run that another process is at work on, and for a directory that
    holds something else.
    """
    begun = path / "recipe.yaml"
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not begun.exists())):
        raise RunConflictError(f"{path} holds something that is no run: give another --out")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise RunConflictError(
                f"{path} is in use by another process: wait for it to end"
            ) from None
    run = Run(path, recipe, lock, recompute=recompute, allow_code_execution=allow_code_execution)
    try:
        run.agree(stages, again, overwrite)
        with disk_errors(begun):
            data = recipe.model_dump(mode="json")
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
            manifest.write_text(begun, text)
    except BaseException:
        run.close()
        raise
    return run


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """All settings that decide what is computed, by their dotted keys."""
    flat = manifest.flatten(recipe.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in _HOW_NOT_WHAT}


def settings_read(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Those of the settings that decide a stage's rows.

    What a stage before it reads is left out: its digest says so.
    """
    keys = ("seed", *stage.settings(recipe))
    if stage.decided_by_model(recipe):
        keys += ("model.",)
    return {key: value for key, value in settings_of(recipe).items() if key.startswith(keys)}


def _spent(run: RunReader, stage: str) -> tuple[int, int, float]:
    """Rows, tokens generated or trained on, and seconds, of a stage that is finished or begun."""
    done = run.manifest(stage)
    if done is None:
        usage, rows, seconds = Usage(), 0, 0.0
        for entry in read_entries(run / stage / "journal", None):
            usage.add(entry.usage)
            rows += 1
            seconds = max(seconds, entry.elapsed)
        return rows, usage.generated, seconds
    counted = done.get("rows", 0)
    rows = counted if isinstance(counted, int) else int(max(counted.values(), default=0))
    generated = done.get("usage", {}).get("generated", 0) + done.get("tokens_trained", 0)
    return rows, generated, float(done.get("seconds", 0.0))


def _holds_anything(stage: Path, apart: frozenset[str] = frozenset()) -> bool:
    """Whether a stage holds more than the head of its journal, files `apart` not counted."""
    names = {each.name for each in stage.iterdir()} - apart
    if names - {"journal"}:
        return True
    if not names:
        return False
    with (stage / "journal").open("rb") as lines:
        next(lines, b"")  # its head
        return bool(next(lines, b""))
