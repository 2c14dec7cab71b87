"""A run that this process writes: the configuration of each stage, and which stages are current.

Nothing is deleted without consent. Stages that a change of settings invalidates are listed with
their cost, and moved to `RUN/.aside` until they have been computed again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from filelock import FileLock

from dto import tables
from dto.errors import DtoError, RunConflictError, disk_errors
from dto.languages import DEFAULT
from dto.prompts import JUDGE
from dto.recipe import Recipe
from dto.records import GIVEN_UP, NOT_RUN, RULE_FAILED, EvaluationRow
from dto.runs import manifest
from dto.runs.journal import Entry, GroupUsage, Journal, Timing, read_entries, read_head
from dto.runs.reader import RunReader
from dto.runs.stage import Stage
from dto.usage import Usage, counted_as


def keep_arms(
    old: Path, new: Path, config: Mapping[str, Any], problems: Collection[str] | None = None
) -> None:
    """Start an evaluation with `config` in `new`, and keep the rows of `old` that remain valid.

    `problems` are the ids of its problems; None: the same as before. The seconds spent on `old` are
    carried over. A kill at any time leaves `old` unchanged.
    """
    done = manifest.read(old)
    before = (done or read_head(old / "journal") or {})["config"]
    now, then = _arms(config), _arms(before)
    kept = {arm for arm in now if now[arm] == then.get(arm)}
    if not kept:
        return
    with disk_errors(new):
        journal = Journal(new / "journal", EvaluationRow, {"config": dict(config)})
        journal.elapsed = float(done["seconds"]) if done else 0.0
        entries = _entries(old) if done else read_entries(old / "journal", EvaluationRow)
        for entry in entries:
            arm, _, problem = entry.key.rpartition("/")
            wanted = problems is None or problem in problems
            journal.elapsed = max(journal.elapsed, entry.elapsed)
            if entry.rows and arm in kept and wanted:
                journal.append(entry)
        journal.close()


def _arms(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    apart = (
        "evaluate.exits", "evaluate.models", "evaluate.tasks", "evaluate.limit", "digest of test",
        "digest of train",
    )  # fmt: skip
    shared = {
        key: value
        for key, value in config.items()
        if key not in apart and not key.startswith("weights") and value is not None
    }
    weights = {"base": config["weights"], "trained": config.get("digest of train")}
    return {
        f"{model}/{exit['name']}": shared
        | {"exit": exit, "weights": weights.get(model, config.get(f"weights of {model}"))}
        for model in config["evaluate.models"]
        for exit in config["evaluate.exits"]
    }


def _entries(directory: Path) -> Iterator[Entry]:
    """The groups of a finished evaluation, in the form of journal entries."""

    def parent(row: EvaluationRow | Timing) -> str:
        return row.id.rpartition("/")[0]

    merged = tables.merge(
        tables.read(directory / "usage.parquet", GroupUsage),
        (tables.read(directory / "rows.parquet", EvaluationRow), parent),
        (tables.read(directory / "timings.parquet", Timing), parent),
        key=lambda group: group.key,
    )
    for group, rows, timings in merged:
        yield Entry(
            key=group.key,
            rows=rows,
            usage=Usage(**{name: getattr(group, name) for name in Usage.__slots__}),
            seconds={timing.id: timing.seconds for timing in timings},
            wasted={timing.id: timing.wasted for timing in timings if timing.wasted},
            given_up=Counter(
                counted_as(row.reason)
                for row in rows
                if row.reason.startswith(GIVEN_UP if row.grade == "wrong" else RULE_FAILED)
            ),
        )


ASIDE = ".aside"
"""The folder of a run for old stages, until they have been computed again."""
_HOW_SERVED = (
    "slots", "cache_bytes", "kv_bytes", "device", "gpu_memory", "tensor_parallel", "server",
    "api_key", "concurrency", "retries", "timeout",
)  # fmt: skip
_HOW_NOT_WHAT = (
    "name", "window", "compare.processes", "evaluate.server",
    "train.processes", "train.accelerate", "train.engine_gpus", "train.report_to",
    *(f"{group}.{key}" for group in ("model", "judge", "batch.teacher") for key in _HOW_SERVED),
    *(f"{group}.{key}_price" for group in ("judge", "batch.teacher")
      for key in ("prompt", "generated")),
)  # fmt: skip
"""Settings that affect speed or cost, never the rows."""
_ENGINES = tuple(
    f"{group}.engine" for group in ("model", "judge", "batch.teacher", "train", "evaluate")
)
"""A finished stage stays valid on another engine; its manifest names the engine it used."""
_PULLED = frozenset({"rows.parquet", "dropped.jsonl"})
"""The files of a pulled stage whose test questions were not published."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A stage that would be computed again, the reason, and its cost so far."""

    stage: str
    why: str
    rows: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        spent = f"{self.rows:,} rows, {self.tokens:,} tokens, {self.seconds:,.0f} s"
        return f"{self.stage} ({spent}): {self.why}"


Consent = Callable[[Path, Sequence[Stale]], None]
"""Called with the stages that would be computed again; returns to agree, or raises
RunConflictError."""


def refuse(path: Path, stale: Sequence[Stale]) -> None:
    """Raise RunConflictError, naming the stages that would be computed again."""
    raise RunConflictError(
        f"{path} would compute again {'; '.join(map(str, stale))}: use --recompute to do so, or "
        "--out for another directory"
    )


def agree(path: Path, stale: Sequence[Stale]) -> None:
    """Agree to compute the stages again."""


class OpenRun(RunReader):
    """A run directory that this process has locked, with the recipe to follow."""

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
        self.agreed: set[str] = set()  # stages that may be computed again
        self.closing = ExitStack()
        self.closing.callback(lock.release)

    def config(self, stage: Stage) -> dict[str, Any]:
        """Everything that decides a stage's rows: settings, prompts, weights, upstream digests.

        Raises DtoError if a stage that it reads is not finished.
        """
        config = self._own_config(stage)
        for upstream in stage.reads(self.recipe):
            finished = self.manifest(upstream)
            if finished is None:
                place = quote(str(self.path))
                raise DtoError(
                    f"stage {stage.name} needs {upstream}, which is not finished in {self.path}: "
                    f"run `dto {upstream} {place}` first, or `dto run {place}`"
                )
            config[f"digest of {upstream}"] = finished["digest"]
        return config

    def _own_config(self, stage: Stage) -> dict[str, Any]:
        recipe = self.recipe
        config = settings_read(recipe, stage)
        # If a file or model is gone, assume that it has not changed since the stage started.
        before = (self._begun(stage.name) or {"config": {}})["config"]
        for source in stage.files(recipe):
            key = f"content of {source}"
            content = manifest.of_path(Path(source)) or before.get(key)
            config |= {} if content is None else {key: content}
        models = {
            f"weights of {model}": model
            for model in stage.models(recipe)
            if model not in ("base", "trained")
        }
        asks_model = stage.decided_by_model(recipe)
        if asks_model:
            models["weights"] = recipe.model.name
        if asks_model or stage.renders or stage.name == "sample":
            config["prompts"] = manifest.of_prompts(recipe.model.family)
        if stage.asks_judge(recipe):
            config["prompts of the judge"] = manifest.of_prompts(JUDGE)
            if recipe.judge is not None:
                models["weights of the judge"] = recipe.judge.name
        for key, model in models.items():
            config[key] = manifest.of_model(model) or before.get(key)
        return config

    def _begun(self, stage: str) -> dict[str, Any] | None:
        return manifest.read(self / stage) or read_head(self / stage / "journal")

    def stale(self, stages: Sequence[Stage], again: Sequence[str] = ()) -> list[Stale]:
        """The stages that the recipe would compute again, in order.

        Includes every stage that reads one of them, since its rows may change. Excludes stages that
        have no rows yet.
        """
        stale: dict[str, Stale] = {}
        for stage in stages:
            begun = self._begun(stage.name)
            if begun is None or not _has_results(self / stage.name):
                continue
            own = self._own_config(stage)
            reads = stage.reads(self.recipe)
            for upstream in reads:
                key, finished = f"digest of {upstream}", self.manifest(upstream)
                # The digest of an unfinished stage is unknown; assume that it stays the same.
                own[key] = begun["config"].get(key) if finished is None else finished["digest"]
            unrun = self._programs_not_run(stage.name)
            why = unrun or self._differences(stage.name, begun["config"], own)
            if stage.name in again:
                why = "requested"
            elif not unrun and (before := [name for name in reads if name in stale]):
                why = f"follows {' and '.join(before)}"
            if stage.name == "evaluate" and why and not unrun and stage.name not in again:
                why = self._lost_answers(begun["config"], own, stale)
            if why:
                stale[stage.name] = Stale(stage.name, why, *_spent(self, stage.name))
        return list(stale.values())

    def _lost_answers(
        self, before: Mapping[str, Any], now: Mapping[str, Any], stale: Mapping[str, Stale]
    ) -> str:
        """The part of an evaluation that is lost; empty if exits or tasks are only added."""
        if "problems" in stale:
            return "follows problems"
        arms = _arms({**now, "digest of train": None} if "train" in stale else now)
        lost = [arm for arm, settings in _arms(before).items() if arms.get(arm) != settings]
        lost += [task for task in before["evaluate.tasks"] if task not in now["evaluate.tasks"]]
        return f"{', '.join(lost)} changed or removed; the rest is kept" if lost else ""

    def _differences(self, stage: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        if self.manifest(stage) is not None:
            now = {key: now[key] for key in now if not key.startswith(_ENGINES)}
            now |= {key: before[key] for key in before if key.startswith(_ENGINES)}
        return "; ".join(manifest.differences(before, now))

    def finished(self, stage: Stage, config: Mapping[str, Any]) -> bool:
        """Whether a stage is complete and current; if it is outdated, move it aside.

        An outdated evaluation keeps the arms (model and exit) that remain valid.
        """
        name = stage.name
        begun = self._begun(name)
        if begun is None:
            return False
        unrun = self._programs_not_run(name)
        differing = self._differences(name, begun["config"], config)
        if not unrun and not differing:
            return self.manifest(name) is not None
        if not _has_results(self / name):  # it stopped before its first row
            (self / name / "journal").unlink()
            return False
        if stage.needs != "nothing" and name not in self.agreed:
            self._recompute(self.path, [Stale(name, differing or unrun, *_spent(self, name))])
        old = self.set_aside(name)
        if name == "evaluate" and not unrun:
            # If the run's own problems changed, `config` differs for every arm and none is kept.
            test_ids = (row.id for row in self.problems("test", self.test_stage))
            problems = set(test_ids) if self.recipe.evaluate.tasks else None
            keep_arms(old, self / name, config, problems)
        return False

    def _programs_not_run(self, stage: str) -> str:
        """A message if programs that this run allows were not run before; else empty."""
        programs = self.allow_code_execution and stage in ("sample", "evaluate")
        if not programs or not self.table(stage).exists():
            return ""
        unrun = self.count(stage, reason=NOT_RUN)
        return f"{unrun:,} programs were not run" if unrun else ""

    def set_aside(self, stage: str) -> Path:
        """Move a stage to RUN/.aside until it has been computed again."""
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
        """Delete the old versions of a stage."""
        aside = self.path / ASIDE
        with disk_errors(aside):
            for place in [aside / stage, *aside.glob(f"{stage}-*")]:
                shutil.rmtree(place, ignore_errors=True)
            if aside.is_dir() and not any(aside.iterdir()):
                aside.rmdir()

    def following(self, recipe: Recipe) -> OpenRun:
        """The same locked directory with another recipe."""
        return OpenRun(
            self.path,
            recipe,
            self._lock,
            recompute=self._recompute,
            allow_code_execution=self.allow_code_execution,
        )

    def agree(self, stages: Sequence[Stage], again: Sequence[str], overwrite: bool) -> None:
        """Ask for consent to compute stages again, and set aside those requested explicitly."""
        anew = [stage.name for stage in stages] if overwrite else []
        stale = self.stale(stages, anew)
        if again and not stale:
            stale, anew = self.stale(stages, again), [*again]
        costly = {stage.name for stage in stages if stage.needs != "nothing"}
        if any(outdated.stage in costly for outdated in stale):
            self._recompute(self.path, stale)
        self.agreed = {outdated.stage for outdated in stale}
        for name in anew:
            if (self / name).is_dir():
                self.set_aside(name)

    def close(self) -> None:
        """Unlock the directory, and end its log."""
        self.closing.close()


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """All settings that can affect rows, by their dotted keys."""
    flat = manifest.flatten(recipe.model_dump(mode="json"))
    if recipe.languages == DEFAULT:  # runs from before a key was there stay whole
        del flat["languages"]
    return {key: value for key, value in flat.items() if key not in _HOW_NOT_WHAT}


def settings_read(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The settings that decide a stage's rows, without those of earlier stages.

    Earlier stages are covered by their digests.
    """
    keys = ("seed", *stage.settings(recipe))
    if stage.decided_by_model(recipe):
        keys += ("model.",)
    return {key: value for key, value in settings_of(recipe).items() if key.startswith(keys)}


def _spent(run: RunReader, stage: str) -> tuple[int, int, float]:
    """Rows, tokens (generated or trained on) and seconds of a finished or unfinished stage."""
    finished = run.manifest(stage)
    if finished is None:
        usage, rows, seconds = Usage(), 0, 0.0
        for entry in read_entries(run / stage / "journal", None):
            usage.add(entry.usage)
            rows += 1
            seconds = max(seconds, entry.elapsed)
        return rows, usage.generated, seconds
    counted = finished.get("rows", 0)
    rows = counted if isinstance(counted, int) else int(max(counted.values(), default=0))
    generated = finished.get("usage", {}).get("generated", 0) + finished.get("tokens_trained", 0)
    return rows, generated, float(finished.get("seconds", 0.0))


def _has_results(stage: Path) -> bool:
    """Whether a stage has more than the head of its journal and pulled files."""
    names = {file.name for file in stage.iterdir()} - _PULLED
    if names != {"journal"}:
        return bool(names)
    with (stage / "journal").open("rb") as lines:
        next(lines, b"")  # its head
        return bool(next(lines, b""))
