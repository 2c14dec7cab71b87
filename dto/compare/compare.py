"""Every method from the same samples, under the same budget, through the same grid, side by side.

The stages that methods share are computed once. Then each method is tuned and evaluated in a child
process (`dto.compare.tune`), `compare.processes` of them at a time, each with one thread; the
base model goes first, as its dev score is what all are measured against.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from dto.compare.methods import BASE, OWN, charged, grid, methods
from dto.compare.report import Comparison, report
from dto.concurrency import end_children
from dto.errors import DtoError, disk_errors
from dto.pipeline import STAGES, needed, run_stages, write_run_manifest
from dto.recipe import Recipe
from dto.records import content_id
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.runs.run import ASIDE, Consent, Run, Stale, refuse, settings_of

logger = logging.getLogger("dto")

FOLDER = "compare"
POLL_SECONDS = 0.1


def compare(run: Run, recompute: Consent = refuse) -> Comparison:
    """All of a comparison; what is finished is not done again.

    Writes below RUN/compare a directory for each method, and what `dto.compare.report` says.
    `recompute` is told which methods have changed. Raises DtoError naming the methods that failed,
    when all others are done.
    """
    recipes = methods(run.recipe)
    begun = time.perf_counter()
    run_stages(run, shared_stages(run.recipe, recipes))
    set_aside(run, recipes, recompute)
    places = {name: prepare(run, name, recipe) for name, recipe in recipes.items()}
    budget = run.recipe.compare.policy_tokens
    logger.info("compare   %s policy tokens for each training", f"{budget:,}")
    for name, place in places.items():
        tokens = charged(RunReader(place), recipes[name])
        if tokens and not (place / "done.json").exists():
            logger.info("%-9s %s of them went into its data", name, f"{tokens:,}")
    _work(run, recipes, places)
    shutil.rmtree(run / ASIDE / FOLDER, ignore_errors=True)
    write_run_manifest(run)
    logger.info("compare   %.0f s", time.perf_counter() - begun)
    result = report([run.path])
    logger.info("compare   %s", run / FOLDER / "compare.html")
    return result


def shared_stages(shared: Recipe, recipes: Mapping[str, Recipe]) -> list[str]:
    """The stages that are computed once, in order, of those that the methods' trainings read."""
    wanted = {"problems"}
    for recipe in recipes.values():
        if recipe.train.method != "none":
            wanted |= {name for name in needed(recipe, "train") if _shares(shared, recipe, name)}
    return [stage for stage in STAGES if stage in wanted]


def _shares(shared: Recipe, recipe: Recipe, stage: str) -> bool:
    if stage in ("optimize", "prune"):
        same = shared.optimize == recipe.optimize
        return same and (stage == "optimize" or shared.prune == recipe.prune)
    return stage not in OWN


def set_aside(run: Run, recipes: Mapping[str, Recipe], recompute: Consent) -> None:
    """Move methods that were computed from something else aside, until all methods are done.

    Raises what `recompute` raises, and nothing is moved then.
    """
    stale = {name: _stale(run, name, recipe) for name, recipe in recipes.items()}
    changed = {name: found for name, found in stale.items() if found is not None}
    if changed:
        recompute(run.path, list(changed.values()))
    for name in changed:
        number, place = 1, run / ASIDE / FOLDER / name
        while place.exists():
            number += 1
            place = place.with_name(f"{name}.{number}")
        with disk_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            (run / FOLDER / name).rename(place)


def _stale(run: Run, name: str, recipe: Recipe) -> Stale | None:
    place = RunReader(run / FOLDER / name)
    marker = place / "digest"
    stages = shared_stages(run.recipe, {name: recipe})
    if not marker.exists() or marker.read_text("utf-8") == _digest(run, recipe, stages):
        return None
    points = [json.loads(path.read_text("utf-8")) for path in place.path.glob("grid/*/point.json")]
    evaluated = place.manifest("evaluate") or {}
    return Stale(
        f"{FOLDER}/{name}",
        "its recipe or its data changed",
        evaluated.get("rows", 0),
        evaluated.get("usage", {}).get("generated", 0) + sum(p["policy_tokens"] for p in points),
        evaluated.get("seconds", 0.0) + sum(point["seconds"] for point in points),
    )


def prepare(run: Run, name: str, recipe: Recipe) -> Path:
    """The directory of a method: its recipe, and links to the stages that it shares."""
    place = run / FOLDER / name
    marker = place / "digest"
    if not marker.exists():
        shutil.rmtree(place, ignore_errors=True)  # killed while it was made
        place.mkdir(parents=True)
        data = recipe.model_dump(mode="json", exclude_unset=True)
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        manifest.write_text(place / "recipe.yaml", text)
        stages = shared_stages(run.recipe, {name: recipe})
        for stage in stages:
            (place / stage).symlink_to(Path("..") / ".." / stage, target_is_directory=True)
        manifest.write_text(marker, _digest(run, recipe, stages))
    return place


def _digest(run: Run, recipe: Recipe, stages: Sequence[str]) -> str:
    """All that decides what comes of a method; `stages` are those that it shares."""
    settings = json.dumps(settings_of(recipe), sort_keys=True)
    tables = [(run.manifest(stage) or {}).get("digest", "") for stage in stages]
    weights = str(manifest.of_model(recipe.model.name))
    return content_id(settings, weights, manifest.of_prompts(recipe.model.family), *tables)


def _work(run: Run, recipes: Mapping[str, Recipe], places: Mapping[str, Path]) -> None:
    dev = places[BASE] / "dev.json"
    pending = [name for name, place in places.items() if not _is_done(place)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: dict[str, str] = {}
    try:
        while pending or running:
            while pending and len(running) < run.recipe.compare.processes:
                if pending[0] != BASE and not dev.exists():
                    break  # the base model's score comes first
                name = pending.pop(0)
                running[name] = _start(places[name], dev)
            time.sleep(POLL_SECONDS)
            for name, child in list(running.items()):
                code = child.poll()
                if code is None:
                    continue
                del running[name]
                if code == 0 and _is_done(places[name]):
                    _tell(name, recipes[name], places[name])
                    continue
                failed[name] = _last_line(places[name])
                logger.info("%-9s failed: %s", name, failed[name])
                if name == BASE and not dev.exists():
                    raise DtoError(f"compare: {failed[name]}")
    finally:
        end_children(running.values())
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise DtoError(f"compare: {reasons}; what was computed is kept, run again")


def _start(place: Path, dev: Path) -> subprocess.Popen[bytes]:
    digest = (place / "digest").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "dto.compare.tune"]
    command += [str(place), str(dev), digest, str(os.getpid())]
    one = {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | one)


def _is_done(place: Path) -> bool:
    try:
        done = json.loads((place / "done.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(done["digest"] == (place / "digest").read_text(encoding="utf-8"))


def _last_line(place: Path) -> str:
    lines = (place / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{last.removeprefix('error: ')} ({place / 'log.txt'})"


def _tell(name: str, recipe: Recipe, place: Path) -> None:
    done = json.loads((place / "done.json").read_text(encoding="utf-8"))
    took = f"{done['seconds']:.0f} s, {done['cpu_seconds']:.0f} s of a core"
    points = len(grid(recipe))
    logger.info("%-9s %s%s", name, f"{points} points, " if points else "", took)
