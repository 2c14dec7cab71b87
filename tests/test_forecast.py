"""Forecasts: sums whose truth is known, and a pilot of the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from dto import forecast, tables
from dto.errors import RecipeError
from dto.forecast import FLOPS, TOKENS, Extrapolation, pilot_recipe, usage
from dto.recipe import Recipe, load_recipe
from dto.records import Problem
from dto.runs import manifest
from dto.runs.journal import GroupUsage
from dto.runs.reader import RunReader
from tests.commands import dto


def over(count: int, actual: int) -> Extrapolation:
    return Extrapolation({"train": [str(i) for i in range(count)]}, {"train": actual})


def took(tokens: object) -> pl.DataFrame:
    values = np.asarray(tokens, dtype=np.float64)
    return pl.DataFrame({"problem": [str(i) for i in range(len(values))], "tokens": values})


def test_a_sum_grows_with_the_problems() -> None:
    rows = took([1.0, 2.0, 3.0])
    total = over(3, 300).total(rows, TOKENS)
    assert total[0] == pytest.approx(600)
    assert 0 <= total[1] < 600 < total[2]
    assert over(3, 300).total(rows, TOKENS, number=30)[0] == pytest.approx(60)
    assert over(3, 300).total(rows, TOKENS / 6)[0] == pytest.approx(100)
    same = over(3, 300).total(took(np.ones(3)), TOKENS)
    assert same[1:] == pytest.approx([300, 300])


def test_a_problem_has_all_of_its_rows_or_took_nothing() -> None:
    rows = pl.DataFrame({"problem": ["0", "0", "2"], "tokens": [1, 2, 3]})
    assert over(3, 3).total(rows, TOKENS)[0] == pytest.approx(6)
    assert over(4, 8).total(rows, TOKENS)[0] == pytest.approx(12)


def test_what_is_not_known_stays_so() -> None:
    assert np.isnan(over(2, 10).total(took([1.0, np.nan]), TOKENS)[2])


@pytest.mark.slow
def test_intervals_hold_what_a_run_takes_nearly_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lopsided tokens, 20 problems of a pilot, 60 and 1,000 of a run."""
    monkeypatch.setattr(forecast, "RESAMPLES", 400)
    rng = np.random.default_rng(3)
    for number in (60, 1000):
        held = 0
        for _ in range(300):
            tokens = rng.lognormal(5.0, 0.6, 20 + number)
            found = over(20, number).total(took(tokens[:20]), TOKENS)
            held += found[1] <= tokens[20:].sum() <= found[2]
        assert 0.88 <= held / 300 <= 0.98


def test_what_was_spent_goes_to_its_problem(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "r", "estimate": {"method": "fixed", "rollouts": 2}})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    for stage, keys in {
        "estimate": {"a/000": 5, "a/001": 7, "c/000": 1},
        "evaluate": {"base/none/a": 3, "base/none/b": 4, "some/model/none/a": 9},
    }.items():
        (tmp_path / stage).mkdir()
        rows = [GroupUsage(key, 4, 0, 100, 80, n, 0, 1000.0) for key, n in keys.items()]
        tables.write(tmp_path / stage / "usage.parquet", GroupUsage, rows, key="key")
    (tmp_path / "train" / "model").mkdir(parents=True)
    config = {"num_attention_heads": 1, "num_hidden_layers": 1, "hidden_size": 1}
    (tmp_path / "train" / "model" / "config.json").write_text(json.dumps(config))
    rows = usage(RunReader(tmp_path), "estimate")
    assert rows["problem"].to_list() == ["a", "a", "c"]
    assert rows["tokens"].to_list() == [5, 7, 1]
    assert rows["flops"].to_list() == [1000.0] * 3
    once = 4 * 20 * 21 / 2  # what a request read from the cache: 80 / 4 tokens
    assert rows["cached"].to_list() == [2 * once] * 3
    arms = usage(RunReader(tmp_path), "evaluate")
    assert arms.select("model", "problem", "tokens").rows() == [
        ("base", "a", 3),
        ("base", "b", 4),
        ("some/model", "a", 9),
    ]
    three = Extrapolation({"train": ["a", "b", "c"]}, {"train": 3})
    assert three.total(rows, FLOPS)[0] == pytest.approx(3000)


def test_a_pilot_has_fewer_problems_and_is_else_the_same() -> None:
    recipe = Recipe.model_validate(
        {"name": "r", "problems": {"dev": 3}, "evaluate": {"tasks": ["chains"], "limit": 50}}
    )
    small = pilot_recipe(recipe, 20)
    assert (small.problems.train, small.problems.dev, small.problems.test) == (20, 3, 20)
    assert (small.name, small.evaluate.limit) == ("r-pilot", 20)
    assert small.model == recipe.model and small.train == recipe.train
    imported = Recipe.model_validate({"name": "r", "sample": {"imported": "rows.jsonl"}})
    with pytest.raises(RecipeError, match="imported responses in"):
        pilot_recipe(imported, 20)


SMALL = """
model: {name: nano, context: 384}
problems: {train: 40, dev: 30, test: 50}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 192}
optimize: {max_tokens: 64}
pair: {max_length: 384}
train: {learning_rate: 5.0e-5, beta: 1.0, nll: 5.0, batch_size: 4, dev_samples: 1, evaluations: 1}
evaluate: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 96}
"""


@pytest.mark.slow
def test_a_pilot_forecasts_and_runs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dto.training.fit import fit

    # The real training, without a second process that imports all of torch and TRL first.
    monkeypatch.setattr("dto.training.train.train", fit)
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    code, out, err = dto("run", "small.yaml", "--pilot", "4", capsys=capsys)
    assert code == 0, err
    assert [path.name for path in Path("runs").iterdir()] == ["small-pilot"]
    assert "40 train (4), 30 dev (4), 50 test chains (4) problems" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "second" not in out
    data = json.loads(Path("runs/small-pilot/forecast.json").read_text())
    stages = {row["stage"]: row for row in data["stages"]}
    assert list(stages) == [
        "problems", "sample", "segment", "estimate", "optimize", "prune", "pair", "train",
        "evaluate",
    ]  # fmt: skip
    sampled = manifest.read(Path("runs/small-pilot/sample"))
    assert sampled is not None
    tokens = sampled["usage"]["generated"]
    assert stages["sample"]["tokens"]["value"] == pytest.approx(10 * tokens)
    for stage in ("sample", "estimate", "optimize", "train", "evaluate"):
        for figure in ("tokens", "attention_flops"):
            found = stages[stage][figure]
            assert 0 <= found["low"] <= found["value"] <= found["high"], (stage, figure)
        assert stages[stage]["tokens"]["value"] > 0
    # 30 dev problems × 1 sample, before training and after it
    expected = 2 * 30 * tokens / 8
    assert stages["train"]["tokens"]["high"] > stages["train"]["tokens"]["value"]
    assert stages["train"]["tokens"]["value"] == pytest.approx(expected)
    again, told, _ = dto("run", "small.yaml", "--pilot", "4", capsys=capsys)
    assert (again, told) == (0, out), "what is finished is not run again"

    # Of the finished pilot too few problems are left, or just enough.
    held, recipe = RunReader(Path("runs/small-pilot")), load_recipe(Path("small.yaml"))
    actual = {"train": 40, "dev": 30, "test chains": 50}
    rows = list(tables.read(held.table("problems"), Problem))
    for split, name in (("train", "train"), ("dev", "dev"), ("test", "test chains")):
        for left in (0, 1, 2):
            gone = {row.id for row in [row for row in rows if row.split == split][left:]}
            kept = [row for row in rows if row.id not in gone]
            tables.write(held.table("problems"), Problem, kept)
            if left == 2:
                assert forecast.forecast(held, recipe, actual).pilot[name] == 2
                continue
            with pytest.raises(RecipeError, match=f"{name} has {left} problems"):
                forecast.forecast(held, recipe, actual)
    # One step is evaluated once after the base, however often the recipe asks.
    tables.write(held.table("problems"), Problem, rows)
    often = recipe.model_copy(update={"train": recipe.train.model_copy(
        update={"evaluations": 10, "batch_size": 1000})})  # fmt: skip
    trained = {row.stage: row for row in forecast.forecast(held, often, actual).stages}["train"]
    assert trained.tokens.value == pytest.approx(expected)


def test_too_few_problems_are_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.jsonl").write_text('{"problem": "Start with 1. Add 1.", "answer": "2"}\n')
    Path("small.yaml").write_text(SMALL)
    setting = ("--set", "evaluate.tasks=[one.jsonl]")
    code, _, err = dto("run", "small.yaml", "--pilot", "4", *setting, capsys=capsys)
    assert code == 1 and "test one has 1 problems" in err
    assert not Path("runs").exists()


def test_what_cannot_be_forecast_is_refused() -> None:
    comparison = Recipe.model_validate({"name": "r", "compare": {"methods": ["dto", "sft"]}})
    with pytest.raises(RecipeError, match="forecast the recipe of one method"):
        pilot_recipe(comparison, 20)
