"""Methods as recipes: what a comparison takes of each, and the small grid that it is tuned over.

Every trained method gets the same grid: `compare.learning_rates` (or, where that is empty, its own
rate) times the values of one parameter of its own. One that trains nothing has only the latter.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from dto.errors import RecipeError
from dto.pipeline import STAGES, needed
from dto.prompts import resource
from dto.recipe import Recipe, load_recipe, make_recipe
from dto.runs.reader import RunReader

FOLDER = "baselines"
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
    folder = Path(str(resource("pipelines"))) / FOLDER
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
