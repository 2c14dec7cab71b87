"""DRQA's recipes on the embedded model: two steps of each, on the same few chains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dto.commands.plan import plan
from dto.compare.compare import charged_tokens
from dto.errors import RecipeError
from dto.forecast import pilot_recipe
from dto.pipeline import open_run, run_stages
from dto.prompts import resource
from dto.recipe import load_recipe
from dto.runs.reader import RunReader
from dto.runs.run import agree
from dto.training.dev import DevScore
from dto.training.fit import fit

PIPELINES = Path(str(resource("pipelines")))
BASE = DevScore(0, 0.0, 0.5, 0.1, 200.0, 0.0, 2, 0, None)
SMALL: dict[str, Any] = {
    "problems.train": 24,
    "problems.dev": 2,
    "problems.test": 2,
    "sample.samples": 2,
    "batch.k": [2, 3, 5],
    "batch.samples": 2,
    "label.held_out": 0.4,
    "train.evaluations": 1,
    "train.dev_samples": 1,
    "train.response_tokens": 32,
    "train.keep": "last",
    "train.collapse_points": 1000,
    "train.collapse_truncated": 1.0,
}
RECIPES = ("drqa", "drqa-after-dto", *(f"baselines/{name}" for name in (
    "drqa-2", "drqa-3", "drqa-5", "drqa-shortest", "cft", "sft-batch", "grpo-accuracy",
)))  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("drqa") / "run"
    run = open_run(place, load_recipe(PIPELINES / "drqa.yaml", SMALL))
    run_stages(run, ("problems", "sample", "batch", "chain"))
    run.close()
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_each_recipe(shared: Path, tmp_path: Path, name: str) -> None:
    path = PIPELINES / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert f"dto run pipelines/{name}.yaml" in lines[0] and len(lines) <= 15
    recipe = load_recipe(path, {**SMALL, "model.name": "nano"})
    settings = recipe.train
    online, labels = settings.method in ("drqa", "grpo"), settings.method != "grpo"
    place = tmp_path / "run"
    shutil.copytree(shared, place)
    run = open_run(place, recipe, recompute=agree)
    rows = SMALL["problems.train"]
    if labels:
        run_stages(run, ("label",))
        table = pl.read_parquet(place / "label" / "rows.parquet").filter(split="train")
        imitated = table.filter(verdict="concise") if settings.method == "sft_batch" else table
        rows = imitated.height
    run.close()
    data = recipe.model_dump(mode="json", exclude_unset=True)
    # A step is one group of responses, or four responses to imitate.
    data["train"]["batch_size"] = settings.group if online else 4
    data["train"]["epochs"] = (2 if online else 8) / rows
    two = type(recipe).model_validate(data)
    result = fit(place, two, base=BASE)
    assert result["steps"] == 2
    assert result["kept_step"] == 2
    assert (result["groups"] is None) == (not online)
    assert (result["judging"] is None) == (not labels)
    if labels:
        lines = (place / "train" / "judging.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 2]
    if result["groups"]:
        assert result["groups"]["groups"] == 2


@pytest.mark.slow
def test_batch_responses_are_charged_to_those_whose_labels_read_them(shared: Path) -> None:
    frame = pl.read_parquet(shared / "batch" / "rows.parquet")
    tokens = dict(frame.group_by("k").agg(pl.col("token_ids").list.len().sum()).iter_rows())
    sampled = json.loads((shared / "sample" / "manifest.json").read_text())["usage"]["generated"]

    def spent(name: str, **changes: Any) -> int:
        path = PIPELINES / "baselines" / f"{name}.yaml"
        return charged_tokens(RunReader(shared), load_recipe(path, SMALL | changes)) - sampled

    assert spent("drqa-2") == tokens[2]
    assert spent("drqa-5") == tokens[5]
    assert spent("cft") == sum(tokens.values())
    assert spent("drqa-shortest") == 0


def test_a_pilot_of_batch_prompts_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"--pilot: batch prompts .* problems\.train=40"):
        pilot_recipe(load_recipe(PIPELINES / "drqa.yaml"), 4)


def test_the_plan_shows_what_is_asked_together_and_what_is_judged() -> None:
    text = "\n".join(plan(load_recipe(PIPELINES / "drqa.yaml")))
    assert "batch: a prompt of 2 questions" in text and "2. Start with" in text
    assert "A. right but could be more concise" in text
    real = "\n".join(plan(load_recipe(PIPELINES / "drqa-r1-distill-1.5b.yaml")))
    assert "Solve these 2 questions" in real and "Which holds for the reasoning?" in real
