"""Every method from the same samples, under the same budget, through the same grid, side by side.

The stages that methods share are computed once. Then each method is tuned and evaluated in a child
process (`dto.compare.tune`), `compare.processes` of them at a time, each with one thread; the
base model goes first, as its dev score is what all are measured against.

Every trained method gets the same grid: `compare.learning_rates` (or, where that is empty, its own
rate) times the values of one parameter of its own. One that trains nothing has only the latter.
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

from dto.concurrency import end_children
from dto.errors import DtoError, RecipeError
from dto.pipeline import STAGES, needed, run_stages, write_run_manifest
from dto.prompts import resource
from dto.recipe import Recipe, load_recipe, make_recipe
from dto.records import content_id
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.runs.run import ASIDE, Consent, OpenRun, Stale, refuse, settings_of

FILES = (".yaml", ".yml")
BASE = "base"
"""The model as it is: not tuned, and in every comparison."""
OWN = tuple(name for name, stage in STAGES.items() if stage.of_method)
"""Groups of settings of which a method's recipe may set some; stages without any are shared."""

Change = dict[str, Any]


def method_names(recipe: Recipe) -> list[str]:
    """The methods of a comparison, the base model first; one that is a file has its stem."""
    names = recipe.compare.methods
    return [BASE, *(Path(name).stem if name.endswith(FILES) else name for name in names)]


def find(name: str) -> Path:
    """The recipe of a method: a file, or one of `pipelines/baselines`."""
    if name.endswith(FILES):
        return Path(name)
    folder = Path(str(resource("pipelines"))) / "baselines"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob("*.yaml")))
        raise RecipeError(f"compare.methods: no method {name!r}; there are {known}, or give a file")
    return path


def methods(shared: Recipe) -> dict[str, Recipe]:
    """The recipe of each method, by the name of its file, the base model first."""
    found = {BASE: _merged(shared, None, BASE)}
    for each in shared.compare.methods:
        path = find(each)
        if path.stem in found:
            raise RecipeError(f"compare.methods: {path.stem!r} stands there twice")
        found[path.stem] = _merged(shared, load_recipe(path), path.stem)
    if shared.compare.reference not in found:
        raise RecipeError(
            f"compare.reference = {shared.compare.reference!r}: no method of {', '.join(found)}"
        )
    return found


def _merged(shared: Recipe, own: Recipe | None, name: str) -> Recipe:
    """What both say: models, problems, sampling and evaluation of the one, the method's of its own.

    Of the method's `train` the size of the training is left out, which is the same for all.
    """
    data = shared.model_dump(mode="json", exclude_unset=True)
    data["name"] = name
    comparing = shared.compare.model_dump(mode="json") | {"methods": [], "reference": BASE}
    trained = own is not None and own.train.method != "none"
    if own is not None:
        for group in OWN:
            settings = getattr(own, group).model_dump(mode="json", exclude_unset=True)
            data[group] = {**data.get(group, {}), **settings}
        tried = own.compare.values[: shared.compare.own_values]
        comparing |= {"own": own.compare.own, "values": list(tried)}
        if not comparing["own"] or not comparing["values"]:
            raise RecipeError(f"method {name}: compare.own and compare.values say what is tuned")
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
    """The points that a method is tuned over, as changes of its recipe."""
    settings = recipe.compare
    if not settings.own:
        return []
    if recipe.train.method == "none":
        return [{settings.own: value} for value in settings.values]
    rates = settings.learning_rates or (recipe.train.learning_rate,)
    points = product(rates, settings.values)
    return [{"train.learning_rate": rate, settings.own: value} for rate, value in points]


def changed(recipe: Recipe, change: Change) -> Recipe:
    """The recipe at a point of the grid."""
    data = recipe.model_dump(mode="json", exclude_unset=True)
    return make_recipe(data, change, f"method {recipe.name}")


def charged(run: RunReader, recipe: Recipe) -> int:
    """Policy tokens that were generated for what a method trains on: its samples, its rollouts.

    Of the responses to batch prompts those count that its labels are made of.
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
    if labels.source != "batch" or not run.table("batch").exists():
        return 0
    frame = run.frame("batch", "k", "token_ids")
    if labels.k:
        frame = frame.filter(pl.col("k").is_in(labels.k))
    return int(frame.select(pl.col("token_ids").list.len().sum()).collect().item())


logger = logging.getLogger("dto")

FOLDER = "compare"
POLL_SECONDS = 0.1


def compare(run: OpenRun, recompute: Consent = refuse) -> None:
    """All of a comparison; what is finished is not done again.

    Writes below RUN/compare a directory for each method; `dto.compare.report` sums them up.
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
    _work(run, recipes, places)
    shutil.rmtree(run / ASIDE / FOLDER, ignore_errors=True)
    write_run_manifest(run)
    logger.info("compare   %.0f s", time.perf_counter() - begun)


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


def set_aside(run: OpenRun, recipes: Mapping[str, Recipe], recompute: Consent) -> None:
    """Move methods that were computed from something else aside, until all methods are done.

    Raises what `recompute` raises, and nothing is moved then.
    """
    stale = {name: _stale(run, name, recipe) for name, recipe in recipes.items()}
    changed = {name: found for name, found in stale.items() if found is not None}
    if changed:
        recompute(run.path, list(changed.values()))
    for name in changed:
        run.set_aside(f"{FOLDER}/{name}")


def _stale(run: OpenRun, name: str, recipe: Recipe) -> Stale | None:
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


def _digest(run: OpenRun, recipe: Recipe, stages: Sequence[str]) -> str:
    """All that decides what comes of a method; `stages` are those that it shares."""
    settings = json.dumps(settings_of(recipe), sort_keys=True)
    tables = [(run.manifest(stage) or {}).get("digest", "") for stage in stages]
    weights = str(manifest.of_model(recipe.model.name))
    return content_id(settings, weights, manifest.of_prompts(recipe.model.family), *tables)


def _work(run: OpenRun, recipes: Mapping[str, Recipe], places: Mapping[str, Path]) -> None:
    dev = places[BASE] / "dev.json"
    pending = [name for name, place in places.items() if _done(place) is None]
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
                done = _done(places[name])
                if code == 0 and done is not None:
                    took = f"{done['seconds']:.0f} s, {done['cpu_seconds']:.0f} s of a core"
                    points = len(grid(recipes[name]))
                    logger.info("%-9s %s points, %s", name, points, took)
                    continue
                failed[name] = _last_line(places[name])
                logger.info("%-9s failed: %s", name, failed[name])
                if name == BASE and not dev.exists():
                    raise DtoError(f"compare: {failed[name]}")
    finally:
        end_children(running.values())
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise DtoError(f"compare: {reasons}; finished rows are kept: run the same command again")


def _start(place: Path, dev: Path) -> subprocess.Popen[bytes]:
    digest = (place / "digest").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "dto.compare.tune"]
    command += [str(place), str(dev), digest, str(os.getpid())]
    one = {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | one)


def _done(place: Path) -> dict[str, Any] | None:
    """What a method that is done took; None where it is not, or was done from something else."""
    try:
        done: dict[str, Any] = json.loads((place / "done.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return done if done["digest"] == (place / "digest").read_text(encoding="utf-8") else None


def _last_line(place: Path) -> str:
    lines = (place / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{last.removeprefix('error: ')} ({place / 'log.txt'})"
