"""Methods side by side: the same grid and budget for all, resumed where it was killed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dto.baselines import pairs_of_samples
from dto.commands.plan import plan
from dto.compare.compare import BASE, compare, find, grid, methods, prepare, set_aside
from dto.compare.report import report
from dto.compare.tune import work
from dto.errors import DtoError, RecipeError, RunConflictError
from dto.pipeline import needed, open_run, run_stages
from dto.prompts import resource
from dto.recipe import PairSettings, Recipe, load_recipe
from dto.records import Problem
from dto.runs.run import agree, refuse
from dto.training.dev import DevScore
from tests.compare.test_data import samples

PIPELINES = Path(str(resource("pipelines")))
RECIPES = sorted((PIPELINES / "baselines").glob("*.yaml"))
TINY = {
    "problems.train": 6,
    "problems.dev": 3,
    "problems.test": 4,
    "sample.samples": 2,
    "sample.max_tokens": 256,
    "train.dev_samples": 1,
    "train.evaluations": 1,
    "evaluate.samples": 1,
    "evaluate.max_tokens": 256,
    "compare.policy_tokens": 6000,
    "compare.learning_rates": [1e-4],
    "compare.reference": "sft",
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_methods(path: Path) -> None:
    recipe = load_recipe(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# dto run pipelines/baselines/{path.name}"
    assert len(lines) <= 15
    assert find(path.stem) == path
    assert recipe.compare.own and len(recipe.compare.values) == 2


COMPARISONS = ("compare.yaml", "compare-drqa.yaml")


def test_every_method_is_compared() -> None:
    compared = [load_recipe(PIPELINES / name).compare.methods for name in COMPARISONS]
    assert {path.stem for path in RECIPES} == {name for each in compared for name in each}


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_method_gets_the_same_grid_and_budget(name: str) -> None:
    shared = load_recipe(PIPELINES / name)
    found = methods(shared)
    assert [*found] == [BASE, *shared.compare.methods]
    values = shared.compare.own_values or 2
    for name, recipe in found.items():
        points = grid(recipe)
        trained = recipe.train.method != "none"
        rates = shared.compare.learning_rates or (recipe.train.learning_rate,)
        assert len(points) == (0 if name == BASE else values * len(rates) if trained else values)
        if trained:
            tried = [point["train.learning_rate"] for point in points]
            assert sorted(set(tried)) == sorted(rates)
        assert recipe.compare.policy_tokens == shared.compare.policy_tokens
        for group in ("model", "problems", "sample", "batch"):
            assert getattr(recipe, group) == getattr(shared, group)
        assert recipe.train.evaluations == shared.train.evaluations
        assert recipe.train.dev_samples == shared.train.dev_samples
        assert recipe.train.keep == shared.train.keep == "shortest"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare.methods": ["nobody"]}, r"unknown method 'nobody'; choose from .*dast"),
        ({"compare.methods": ["sft", "sft"]}, r"'sft' is listed twice"),
        ({"compare.methods": ["dpo"]}, r"compare.reference = 'dto': choose from base, dpo"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        methods(load_recipe(PIPELINES / "compare.yaml", changes))


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({}, "problems sample segment estimate optimize prune pair train"),
        ({"pair": {"data": "shortest"}}, "problems sample pair train"),
        (
            {"optimize": {"exit": "first_solution"}},
            "problems sample segment optimize prune pair train",
        ),
        ({"train": {"method": "o1_pruner"}}, "problems sample train"),
        ({"train": {"method": "grpo"}}, "problems train"),
        ({"train": {"method": "drqa"}}, "problems sample chain label train"),
        (
            {"batch": {"k": [2]}, "train": {"method": "cft"}},
            "problems sample batch chain label train",
        ),
        ({"evaluate": {"models": ["base"]}}, "problems"),
    ],
)
def test_only_what_is_read_is_computed(settings: dict[str, Any], stages: str) -> None:
    recipe = Recipe.model_validate({"name": "x", **settings})
    assert needed(recipe) == (*stages.split(), "evaluate")


def run_tiny(tmp_path: Path, **changes: Any) -> Any:
    settings = {**TINY, "compare.methods": ["sft"], **changes}
    run = open_run(tmp_path / "run", load_recipe(PIPELINES / "compare.yaml", settings))
    try:
        compare(run)
        return report([run.path])
    finally:
        run.close()


@pytest.mark.slow(seconds=28)
def test_a_comparison_resumes_and_says_the_same(tmp_path: Path) -> None:
    first = run_tiny(tmp_path)
    assert [row.method for row in first.rows] == [BASE, "sft"]
    assert first.problems == 4
    assert all(row.accuracy_rank is None for row in first.rows)  # 4 problems rank nothing
    assert "too few to rank" in str(first)
    place = tmp_path / "run" / "compare"
    sft = json.loads((place / "sft" / "grid.json").read_text())
    assert len(sft["points"]) == 2
    assert 0 < sft["charged"] < 6000
    for point in sft["points"]:
        assert sft["charged"] < point["policy_tokens"] <= 6000
        assert point["policy_tokens"] == sft["charged"] + point["tokens_trained"]
    assert (place / "sft" / "sample").is_symlink()
    assert not (place / "sft" / "segment").exists()
    for name in ("compare.png", "compare.svg", "methods.csv", "grid.csv"):
        assert (place / name).stat().st_size > 100
    assert pl.read_parquet(place / "methods.parquet")["method"].to_list() == [
        row.method for row in first.rows
    ]
    assert pl.read_parquet(place / "grid.parquet").height == 2

    # Killed after the first point: that one stands, the rest is done again and comes out alike.
    (place / "sft" / "done.json").unlink()
    for path in (place / "sft" / "grid.json", place / "sft" / "grid" / "1" / "point.json"):
        path.unlink()
    kept = (place / "sft" / "grid" / "0" / "point.json").stat().st_mtime_ns
    base = (place / "base" / "done.json").stat().st_mtime_ns
    again = run_tiny(tmp_path)
    assert (place / "sft" / "grid" / "0" / "point.json").stat().st_mtime_ns == kept
    assert (place / "base" / "done.json").stat().st_mtime_ns == base
    assert (again.problems, len(again.rows)) == (first.problems, len(first.rows))
    for before, after in zip(first.rows, again.rows, strict=True):
        assert (before.accuracy, before.tokens) == (after.accuracy, after.tokens)
        assert before.picked == after.picked


@pytest.mark.slow
def test_a_prompt_is_picked_on_dev_and_evaluated(tmp_path: Path) -> None:
    """In this process: a base that is longer than any prompt's responses makes one be picked."""
    settings = {**TINY, "compare.methods": ["fast-prompt"], "compare.reference": BASE}
    run = open_run(tmp_path / "run", load_recipe(PIPELINES / "compare.yaml", settings))
    run_stages(run, ("problems",))
    place = prepare(run, "fast-prompt", methods(run.recipe)["fast-prompt"])
    run.close()
    dev = tmp_path / "dev.json"
    dev.write_text(json.dumps(asdict(DevScore(0, 0.0, 0.0, 0.1, 9999.0, 0.0, 3, 0, None))))
    work(place, dev)
    picked = json.loads((place / "grid.json").read_text())
    assert picked["picked"] in (0, 1) and picked["charged"] == 0
    prompt = picked["points"][picked["picked"]]["change"]["model.prompt"]
    config = json.loads((place / "evaluate" / "manifest.json").read_text())["config"]
    assert config["model.prompt"] == prompt
    rows = pl.read_parquet(place / "evaluate" / "rows.parquet")
    assert rows["model"].unique().to_list() == ["base"] and rows.height == 4


@pytest.mark.slow
def test_a_method_whose_data_takes_the_budget_is_named(tmp_path: Path) -> None:
    settings = {**TINY, "compare.methods": ["sft"], "compare.policy_tokens": 10}
    run = open_run(tmp_path / "run", load_recipe(PIPELINES / "compare.yaml", settings))
    run_stages(run, ("problems", "sample"))
    place = prepare(run, "sft", methods(run.recipe)["sft"])
    run.close()
    dev = tmp_path / "dev.json"
    dev.write_text(json.dumps(asdict(DevScore(0, 0.0, 0.0, 0.1, 9999.0, 0.0, 3, 0, None))))
    with pytest.raises(DtoError, match=r"method sft: its data took .* policy tokens"):
        work(place, dev)
    with pytest.raises(DtoError, match="method base is not finished"):
        report([tmp_path / "run"])


def test_a_changed_method_is_named_and_moved_aside_not_deleted(tmp_path: Path) -> None:
    settings = {**TINY, "compare.methods": ["sft", "dpo"]}
    run = open_run(tmp_path / "run", load_recipe(PIPELINES / "compare.yaml", settings))
    run_stages(run, ("problems",))
    recipes = methods(run.recipe)
    sft, dpo = (prepare(run, name, recipes[name]) for name in ("sft", "dpo"))
    point = sft / "grid" / "0" / "point.json"
    point.parent.mkdir(parents=True)
    point.write_text(json.dumps({"policy_tokens": 4321, "seconds": 7.0}))
    set_aside(run, recipes, refuse)  # nothing has changed
    changed = {**recipes, "sft": recipes["sft"].model_copy(update={"seed": 8})}
    with pytest.raises(RunConflictError, match=r"compare/sft \(0 rows, 4,321 tokens, 7 s\)"):
        set_aside(run, changed, refuse)
    assert point.exists()
    set_aside(run, changed, agree)
    assert not sft.exists() and dpo.exists()
    assert (run / ".aside" / "compare" / "sft" / "grid" / "0" / "point.json").exists()
    assert prepare(run, "sft", changed["sft"]) == sft and sft.exists()
    set_aside(run, recipes, agree)  # and back: the one aside is kept
    assert {path.name for path in (run / ".aside" / "compare").iterdir()} == {"sft", "sft-2"}
    run.close()


def test_the_plan_names_the_methods() -> None:
    lines = [*plan(load_recipe(PIPELINES / "compare.yaml"))]
    assert "dast: 6 points train.nll 1.0, 5.0" in map(str.strip, lines)
    assert any(line.startswith("prune") for line in lines)
    assert not any(line.startswith("train ") for line in lines)


def test_pair_has_a_row_for_a_problem_without_a_pair() -> None:
    problem = Problem("p", "toy", "train", "1 + 1?", "2")
    tokenizer: Any = None
    settings = PairSettings(data="shortest")
    (row,) = pairs_of_samples(problem, samples(("wrong", 5)), tokenizer, settings, 200)
    assert (row.id, row.reason) == ("p", "no_pair")


def test_a_comparison_trains_in_one_process() -> None:
    changes = {"train.processes": 2, "train.gradient_accumulation": 2}
    with pytest.raises(RecipeError, match=r"train\.processes = 2: a comparison trains each method"):
        methods(load_recipe(PIPELINES / "compare.yaml", changes))
