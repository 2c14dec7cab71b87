"""Tune and evaluate one method of a comparison in its own process.

    python -m dto.compare.tune RUN/compare/METHOD DEV DIGEST PARENT

DEV is the file with the dev score of the base model. DIGEST is written to done.json at the end. The
process exits when the process with id PARENT does. The directory is a run whose shared stages are
links:

    grid/POINT/          one training (dto.training.fit): history, result; dev score of base first
    grid.json            all points with their dev scores, and the picked one
    train/  evaluate/    the picked training and its test responses, as in any run
    done.json            written last

After a kill, it continues with the first point without a result.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dto.compare.compare import Change, at_point, charged_tokens, grid
from dto.errors import DtoError
from dto.pipeline import STAGES, needed, open_run, run_stages
from dto.processes import collect_rarely, die_with_parent
from dto.recipe import Recipe, load_recipe
from dto.runs import manifest
from dto.runs.run import OpenRun, agree, settings_of
from dto.training.beside import open_beside
from dto.training.checkpoints import Choice, choose
from dto.training.dev import BASE_STEP, DevScore, measure, summarize
from dto.training.fit import fit
from dto.training.process import guarded, quiet
from dto.training.train import json_lines
from dto.training.weights import load

logger = logging.getLogger("dto.train")


def work(place: Path, dev: Path) -> None:
    """Tune a method and evaluate the picked point; for the base model, write its dev score."""
    run = open_run(place, load_recipe(place / "recipe.yaml"), recompute=agree)
    try:
        points = grid(run.recipe)
        if not points:
            if not dev.exists():
                score = _measured(run, run.recipe, BASE_STEP)
                manifest.write_text(dev, json.dumps(asdict(score)) + "\n")
            run_stages(run, ("evaluate",))
        else:
            base = DevScore(**json.loads(dev.read_text(encoding="utf-8")))
            recipe = _tuned(run, points, base)
            run_stages(run.following(recipe), ("evaluate",))
    finally:
        run.close()


def _tuned(run: OpenRun, points: Sequence[Change], base: DevScore) -> Recipe:
    """Compute all points of the grid and store the picked model as the result of `train`.

    Returns the recipe of the picked point.
    """
    trains = run.recipe.train.method != "none"
    if trains:
        data = [stage for stage in needed(run.recipe, "train") if stage != "train"]
        own = [stage for stage in data if not (run / stage).is_symlink()]
        run_stages(run, own, may_be_empty=True)
    spent = charged_tokens(run, run.recipe) if trains else 0
    left = run.recipe.compare.policy_tokens - spent
    if trains and left <= 0:
        raise DtoError(
            f"method {run.recipe.name}: its data took {spent:,} policy tokens, the whole budget is "
            f"{run.recipe.compare.policy_tokens:,}: raise compare.policy_tokens"
        )
    budget = {"train.policy_tokens": left} if trains else {}
    recipes = [at_point(run.recipe, change | budget) for change in points]
    results = [_point(run, index, recipe, base, spent) for index, recipe in enumerate(recipes)]
    numbered = [
        replace(DevScore(**point["score"]), step=index + 1)
        for index, point in enumerate(results)
        if point["kept_step"] > BASE_STEP
    ]
    choice = choose([base, *numbered])
    logger.info("%s: point %s", run.recipe.name, choice.reason)
    if trains:
        _place(run, choice, len(results))
    summary = {
        "method": run.recipe.name,
        "picked": choice.step - 1 if choice.step > BASE_STEP else None,
        "reason": choice.reason,
        "charged": spent,
        "points": [
            {"change": change, **point} for change, point in zip(points, results, strict=True)
        ],
    }
    manifest.write_text(run.path / "grid.json", json.dumps(summary, indent=2) + "\n")
    if trains or choice.step == BASE_STEP:
        return run.recipe
    return recipes[choice.step - 1]


def _point(run: OpenRun, index: int, recipe: Recipe, base: DevScore, spent: int) -> dict[str, Any]:
    """Compute a point of the grid unless it exists: dev score of the kept checkpoint, and cost.

    `judging` has the scores on held-out chains, for methods that use labelled chains.
    """
    directory = run / "grid" / str(index)
    path = directory / "point.json"
    if path.exists():
        point: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if point.pop("settings") == settings_of(recipe):
            return point
    start, cpu = time.perf_counter(), time.process_time()
    if recipe.train.method == "none":
        score = _measured(run, recipe, index + 1)
        result: dict[str, Any] = {"kept_step": index + 1}
    else:
        result = fit(run.path, recipe, directory, base)
        scores = [DevScore(**row) for row in json_lines(directory / "history.jsonl")]
        # If the base is kept, report the last checkpoint, which is not picked.
        step = result["kept_step"] or scores[-1].step
        score = next(score for score in scores if score.step == step)
    point = {
        "score": asdict(score),
        "kept_step": int(result["kept_step"]),
        "policy_tokens": spent + int(result.get("policy_tokens", 0)),
        "tokens_trained": int(result.get("tokens_trained", 0)),
        "collapsed": bool(result.get("collapsed", False)),
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "judging": result.get("judging"),
    }
    directory.mkdir(parents=True, exist_ok=True)
    manifest.write_text(path, json.dumps(point | {"settings": settings_of(recipe)}) + "\n")
    return point


def _measured(run: OpenRun, recipe: Recipe, step: int) -> DevScore:
    model, tokenizer = load(recipe)
    with open_beside(recipe, model, run.path) as beside:
        responses, _ = measure(model, tokenizer, list(run.problems("dev")), recipe, beside=beside)
    return summarize(step, 0.0, responses)


def _place(run: OpenRun, choice: Choice, points: int) -> None:
    """Copy the picked point to the stage train and delete the weights of the grid."""
    if run.manifest("train") is not None:
        return
    target = run / "train"
    shutil.rmtree(target, ignore_errors=True)
    counts: dict[str, Any] = {"kept_step": 0, "reason": choice.reason, "steps": 0}
    if choice.step > BASE_STEP:
        source = run / "grid" / str(choice.step - 1)
        shutil.copytree(source / "model", target / "model")
        for name in ("history.jsonl", "steps.jsonl", "result.json"):
            if (source / name).exists():  # a point of an earlier version has no steps
                shutil.copy(source / name, target / name)
        counts = json.loads((target / "result.json").read_text(encoding="utf-8"))
    else:
        model, tokenizer = load(run.recipe)
        model.save_pretrained(target / "model")
        tokenizer.save_pretrained(target / "model")
    weights = manifest.of_path(target / "model")
    finished = manifest.finished("train", run.config(STAGES["train"]), weights)
    manifest.write(target, finished | counts)
    for index in range(points):
        shutil.rmtree(run / "grid" / str(index) / "model", ignore_errors=True)


def main() -> int:
    """Run a method; the exit code is that of `dto.training.process.guarded`."""
    place, dev, digest, parent = sys.argv[1:]
    die_with_parent(int(parent))
    collect_rarely()
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("dto").setLevel(logging.INFO)
    quiet()
    start, cpu = time.perf_counter(), time.process_time()
    code = guarded(lambda: work(Path(place), Path(dev)))
    if code == 0:
        usage = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        text = json.dumps({"digest": digest, **usage}) + "\n"
        manifest.write_text(Path(place) / "done.json", text)
    return code


if __name__ == "__main__":
    sys.exit(main())
