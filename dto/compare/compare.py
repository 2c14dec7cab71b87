"""Run all methods of a comparison from the same samples, with the same token budget and grid.

Shared stages are computed once. Then each method is tuned and evaluated in a child process
(`dto.compare.tune`) with one thread, `compare.processes` of them at a time. The base model goes
first, since checkpoints are chosen against its dev score.

Every trained method has the same grid: `compare.learning_rates` (if empty, the method's own rate)
times the values of one parameter of its own. A method without training has only the latter.
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
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from dto.errors import DtoError, RecipeError
from dto.pipeline import STAGES, needed, run_stages, write_run_manifest
from dto.processes import end_children
from dto.prompts import resource
from dto.recipe import Recipe, load_recipe, make_recipe
from dto.records import content_id
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.runs.run import ASIDE, Consent, OpenRun, Stale, refuse, settings_of

FILES = (".yaml", ".yml")
BASE = "base"
"""Name of the untrained model, which is part of every comparison and not tuned."""
OWN = tuple(name for name, stage in STAGES.items() if stage.of_method)
"""Groups of settings that a method's recipe can change; all other stages are shared."""

Change = dict[str, Any]


def method_names(recipe: Recipe) -> list[str]:
    """List the methods of a comparison, the base model first; a recipe file goes by its stem."""
    names = recipe.compare.methods
    return [BASE, *(Path(name).stem if name.endswith(FILES) else name for name in names)]


def find(name: str) -> Path:
    """Return the path of a method's recipe: a file, or a name in `pipelines/baselines`."""
    if name.endswith(FILES):
        return Path(name)
    folder = Path(str(resource("pipelines"))) / "baselines"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise RecipeError(
            f"compare.methods: unknown method {name!r}; choose from {names}, or give a recipe file"
        )
    return path


def methods(shared: Recipe) -> dict[str, Recipe]:
    """Return the recipe of each method by name, the base model first."""
    if (shared.train.processes or 1) > 1:
        raise RecipeError(
            f"train.processes = {shared.train.processes}: a comparison trains each method in one "
            "process: unset it"
        )
    recipes = {BASE: _merged(shared, None, BASE)}
    for name in shared.compare.methods:
        path = find(name)
        if path.stem in recipes:
            raise RecipeError(f"compare.methods: {path.stem!r} is listed twice: remove one")
        recipes[path.stem] = _merged(shared, load_recipe(path), path.stem)
    if shared.compare.reference not in recipes:
        raise RecipeError(
            f"compare.reference = {shared.compare.reference!r}: choose from {', '.join(recipes)}"
        )
    return recipes


def _merged(shared: Recipe, method: Recipe | None, name: str) -> Recipe:
    """Merge the shared recipe with the groups `OWN` of a method's recipe.

    Settings of `train` that fix the amount of training come from the shared recipe.
    """
    data = shared.model_dump(mode="json", exclude_unset=True)
    data["name"] = name
    comparing = shared.compare.model_dump(mode="json") | {"methods": [], "reference": BASE}
    trained = method is not None and method.train.method != "none"
    if method is not None:
        for group in OWN:
            settings = getattr(method, group).model_dump(mode="json", exclude_unset=True)
            data[group] = {**data.get(group, {}), **settings}
        values = method.compare.values[: shared.compare.own_values]
        comparing |= {"own": method.compare.own, "values": list(values)}
        if not comparing["own"] or not comparing["values"]:
            raise RecipeError(f"method {name}: set compare.own and compare.values, which are tuned")
    else:
        data.setdefault("train", {})["method"] = "none"
    for key in ("evaluations", "dev_samples", "collapse_points", "collapse_truncated", "keep"):
        data["train"][key] = getattr(shared.train, key)
    data["train"]["policy_tokens"] = None
    evaluate = data.setdefault("evaluate", {})
    evaluate["models"] = ["trained"] if trained else ["base"]
    evaluate["exits"] = [{"name": "none"}]
    data["compare"] = comparing
    return make_recipe(data, origin=f"method {name}")


def grid(recipe: Recipe) -> list[Change]:
    """Return the grid of a method, each point as changes of its recipe."""
    settings = recipe.compare
    if not settings.own:
        return []
    if recipe.train.method == "none":
        return [{settings.own: value} for value in settings.values]
    rates = settings.learning_rates or (recipe.train.learning_rate,)
    points = product(rates, settings.values)
    return [{"train.learning_rate": rate, settings.own: value} for rate, value in points]


def at_point(recipe: Recipe, change: Change) -> Recipe:
    """Apply a point of the grid to a recipe."""
    data = recipe.model_dump(mode="json", exclude_unset=True)
    return make_recipe(data, change, f"method {recipe.name}")


def charged_tokens(run: RunReader, recipe: Recipe) -> int:
    """Count the policy tokens generated for a method's training data, such as samples and rollouts.

    Of the responses to batch prompts only those used for its labels count.
    """
    tokens = 0
    for stage in needed(recipe, "train"):
        if stage == "batch":
            tokens += _batch_tokens(run, recipe)
        elif STAGES[stage].spends and stage != "train":
            done = run.manifest(stage) or {}
            tokens += int(done.get("usage", {}).get("generated", 0))
    return tokens


def _batch_tokens(run: RunReader, recipe: Recipe) -> int:
    import polars as pl

    labels = recipe.label
    taught = recipe.batch.teacher is not None  # then the tokens are not the policy's
    if taught or labels.source != "batch" or not run.table("batch").exists():
        return 0
    frame = run.frame("batch", "k", "token_ids")
    if labels.k:
        frame = frame.filter(pl.col("k").is_in(labels.k))
    return int(frame.select(pl.col("token_ids").list.len().sum()).collect().item())


logger = logging.getLogger("dto")

FOLDER = "compare"
POLL_SECONDS = 0.1


def compare(run: OpenRun, recompute: Consent = refuse) -> None:
    """Run a comparison and skip finished parts.

    Each method has a directory in RUN/compare; `dto.compare.report` summarizes them. `recompute`
    is called with the methods whose recipe or data changed. When all other methods are finished,
    raises DtoError with the names of the failed ones.
    """
    recipes = methods(run.recipe)
    start = time.perf_counter()
    run_stages(run, shared_stages(run.recipe, recipes), may_be_empty=True)
    set_aside(run, recipes, recompute)
    places = {name: prepare(run, name, recipe) for name, recipe in recipes.items()}
    budget = run.recipe.compare.policy_tokens
    logger.info("compare   %s policy tokens for each training", f"{budget:,}")
    _work(run, recipes, places)
    shutil.rmtree(run / ASIDE / FOLDER, ignore_errors=True)
    write_run_manifest(run)
    logger.info("compare   %.0f s", time.perf_counter() - start)


def shared_stages(shared: Recipe, recipes: Mapping[str, Recipe]) -> list[str]:
    """List in order the stages that several trainings read and that are computed once."""
    stages = {"problems"}
    for recipe in recipes.values():
        if recipe.train.method != "none":
            stages |= {name for name in needed(recipe, "train") if _shares(shared, recipe, name)}
    return [stage for stage in STAGES if stage in stages]


def _shares(shared: Recipe, recipe: Recipe, stage: str) -> bool:
    if stage in ("optimize", "prune"):
        same = shared.optimize == recipe.optimize
        return same and (stage == "optimize" or shared.prune == recipe.prune)
    return stage not in OWN


def set_aside(run: OpenRun, recipes: Mapping[str, Recipe], recompute: Consent) -> None:
    """Move outdated methods aside until all methods are finished.

    If `recompute` raises, nothing is moved.
    """
    stale = {name: _stale_method(run, name, recipe) for name, recipe in recipes.items()}
    changed = {name: state for name, state in stale.items() if state is not None}
    if changed:
        recompute(run.path, list(changed.values()))
    for name in changed:
        run.set_aside(f"{FOLDER}/{name}")


def _stale_method(run: OpenRun, name: str, recipe: Recipe) -> Stale | None:
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


def prepare(run: OpenRun, name: str, recipe: Recipe) -> Path:
    """Create the directory of a method with its recipe and links to the shared stages."""
    place = run / FOLDER / name
    marker = place / "digest"
    if not marker.exists():
        shutil.rmtree(place, ignore_errors=True)  # left by a run that was killed here
        place.mkdir(parents=True)
        data = recipe.model_dump(mode="json", exclude_unset=True)
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        manifest.write_text(place / "recipe.yaml", text)
        stages = shared_stages(run.recipe, {name: recipe})
        for stage in stages:
            (place / stage).symlink_to(Path("..") / ".." / stage, target_is_directory=True)
        manifest.write_text(marker, _digest(run, recipe, stages))
    return place


def _digest(run: OpenRun, recipe: Recipe, stages: Sequence[str]) -> str:
    """Hash everything that determines a method's result; `stages` are its shared stages."""
    settings = json.dumps(settings_of(recipe), sort_keys=True)
    tables = [(run.manifest(stage) or {}).get("digest", "") for stage in stages]
    weights = str(manifest.of_model(recipe.model.name))
    return content_id(settings, weights, manifest.of_prompts(recipe.model.family), *tables)


def _work(run: OpenRun, recipes: Mapping[str, Recipe], places: Mapping[str, Path]) -> None:
    dev = places[BASE] / "dev.json"
    pending = [name for name, place in places.items() if _result(place) is None]
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
                done = _result(places[name])
                if code == 0 and done is not None:
                    took = f"{done['seconds']:.0f} s ({done['cpu_seconds']:.0f} CPU seconds)"
                    points = len(grid(recipes[name]))
                    logger.info("%-9s %s settings tried, %s", name, points, took)
                    continue
                failed[name] = _last_line(places[name])
                logger.info("%-9s failed: %s", name, failed[name])
                if name == BASE and not dev.exists():
                    raise DtoError(f"compare: {failed[name]}")
    finally:
        end_children(running.values())
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise DtoError(f"compare: {reasons}; finished parts are kept, run the same command again")


def _start(place: Path, dev: Path) -> subprocess.Popen[bytes]:
    digest = (place / "digest").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "dto.compare.tune"]
    command += [str(place), str(dev), digest, str(os.getpid())]
    one = {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | one)


def _result(place: Path) -> dict[str, Any] | None:
    """Read time and digest of a finished method; None if it is unfinished or outdated."""
    try:
        done: dict[str, Any] = json.loads((place / "done.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return done if done["digest"] == (place / "digest").read_text(encoding="utf-8") else None


def _last_line(place: Path) -> str:
    lines = (place / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"{last.removeprefix('error: ')} ({place / 'log.txt'})"
