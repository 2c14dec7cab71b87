"""Forecasts: sums whose truth is known, clocks, and a pilot of the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto import forecast, tables
from dto.errors import RecipeError
from dto.forecast import (
    NOTHING,
    Clock,
    Extrapolation,
    Forecast,
    Range,
    StageForecast,
    _gpus,
    _seconds,
    clock,
    pilot_recipe,
    spent,
    spent_by_arm,
)
from dto.recipe import Recipe
from dto.runs import manifest
from dto.runs.journal import GroupUsage, Timing
from tests.commands import dto


def over(had: int, actual: int) -> Extrapolation:
    return Extrapolation({"train": [str(i) for i in range(had)]}, {"train": actual})


def test_a_sum_grows_with_the_problems() -> None:
    values = {"train": np.array([1.0, 2.0, 3.0])}
    total = over(3, 300).total(values)
    assert total.value == pytest.approx(600)
    assert 0 <= total.low < 600 < total.high
    assert over(3, 300).growth(values).value == pytest.approx(100)
    assert over(3, 300).like("train", values["train"], 30).value == pytest.approx(60)
    same = over(3, 300).total({"train": np.ones(3)})
    assert (same.low, same.high) == pytest.approx((300, 300))


def test_what_took_nothing_grows_by_number() -> None:
    assert over(4, 100).growth({"train": np.zeros(4)}) == Range(25.0, 25.0, 25.0)


def test_what_is_not_known_stays_so() -> None:
    assert np.isnan(over(2, 10).total({"train": np.array([1.0, np.nan])}).high)


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
            found = over(20, number).total({"train": tokens[:20]})
            held += found.low <= tokens[20:].sum() <= found.high
        assert 0.88 <= held / 300 <= 0.98


@given(st.floats(0.1, 1e4), st.floats(1, 100), st.floats(1, 64), st.floats(0, 100))
def test_a_fuller_batch_takes_less_time_never_less_than_fixed(
    busy: float, growth: float, fuller: float, fixed: float
) -> None:
    seconds = _seconds(Clock(fixed, busy, 1.0), Range(growth, growth, growth), fuller)
    assert fixed <= seconds.low <= seconds.value <= seconds.high
    assert seconds.high == pytest.approx(fixed + busy * growth)
    assert seconds.low == pytest.approx(fixed + busy * growth / fuller)


def a_stage(run: Path, stage: str, took: dict[str, float], **done: float) -> None:
    (run / stage).mkdir()
    manifest.write(run / stage, done)
    rows = [Timing(id, seconds, 0) for id, seconds in sorted(took.items())]
    tables.write(run / stage / "timings.parquet", Timing, rows)


def test_the_clock_parts_what_starts_from_what_works(tmp_path: Path) -> None:
    a_stage(tmp_path, "sample", {"a": 3.0, "b": 5.0}, seconds=10.0, fed_seconds=5.0)
    assert clock(tmp_path, "sample") == Clock(fixed=5.0, busy=5.0, in_flight=1.6)
    # processes start with the first text: their start is in the time of the first result
    a_stage(tmp_path, "segment", {"a": 3.0, "b": 4.5}, seconds=6.0, fed_seconds=5.0)
    assert clock(tmp_path, "segment") == Clock(fixed=4.0, busy=2.0, in_flight=3.75)
    a_stage(tmp_path, "problems", {}, seconds=1.0)
    assert clock(tmp_path, "problems") == Clock(fixed=1.0, busy=0.0, in_flight=0.0)


def usage(key: str, generated: int) -> GroupUsage:
    return GroupUsage(key, 4, 0, 100, 80, generated, 0, 1000.0)


def test_what_was_spent_goes_to_its_problem(tmp_path: Path) -> None:
    for stage, keys in {
        "estimate": {"a/000": 5, "a/001": 7, "c/000": 1},
        "evaluate": {"base/none/a": 3, "base/none/b": 4, "some/model/none/a": 9},
    }.items():
        (tmp_path / stage).mkdir()
        rows = [usage(key, tokens) for key, tokens in keys.items()]
        tables.write(tmp_path / stage / "usage.parquet", GroupUsage, rows, key="key")
    (tmp_path / "train" / "model").mkdir(parents=True)
    config = {"num_attention_heads": 1, "num_hidden_layers": 1, "hidden_size": 1}
    (tmp_path / "train" / "model" / "config.json").write_text(json.dumps(config))
    had = spent(tmp_path, "estimate", ["a", "b", "c"], width=2)
    assert had.tokens.tolist() == [12, 0, 1]
    assert had.flops.tolist() == [2000, 0, 1000]
    once = 4 * 20 * 21 / 2  # what a request read from the cache: 80 / 4 tokens
    assert had.again.tolist() == [2 * 2 * once, 0, 2 * once]
    arms = spent_by_arm(tmp_path, ["a", "b"])
    assert arms.keys() == {("base", "none"), ("some/model", "none")}
    assert arms["some/model", "none"].tokens.tolist() == [9, 0]


def test_a_pilot_has_fewer_problems_and_is_else_the_same() -> None:
    recipe = Recipe.model_validate(
        {"name": "r", "problems": {"dev": 3}, "evaluate": {"tasks": ["chains"], "limit": 50}}
    )
    small = pilot_recipe(recipe, 20)
    assert (small.problems.train, small.problems.dev, small.problems.test) == (20, 3, 20)
    assert (small.name, small.evaluate.limit) == ("r-pilot", 20)
    assert small.model == recipe.model and small.train == recipe.train
    imported = Recipe.model_validate({"name": "r", "sample": {"imported": "rows.jsonl"}})
    with pytest.raises(RecipeError, match="are there already"):
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
        for figure in ("tokens", "attention_flops", "seconds"):
            found = stages[stage][figure]
            assert 0 <= found["low"] <= found["value"] <= found["high"], (stage, figure)
        assert stages[stage]["tokens"]["value"] > 0
    # 30 dev problems × 1 sample, before training and after it
    expected = 2 * 30 * tokens / 8
    assert stages["train"]["tokens"]["high"] > stages["train"]["tokens"]["value"]
    assert stages["train"]["tokens"]["value"] == pytest.approx(expected)
    again, told, _ = dto("run", "small.yaml", "--pilot", "4", capsys=capsys)
    assert (again, told) == (0, out), "what is finished is not run again"


def test_gpu_hours_are_the_seconds_that_gpus_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate(
        {"name": "r", "model": {"engine": "vllm", "tensor_parallel": 4, "name": "m"}}
    )
    for there, gpus in ((True, 4), (False, 0)):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert _gpus(recipe) == gpus
    hour = Range(3600.0, 1800.0, 7200.0)
    row = StageForecast("total", NOTHING, NOTHING, NOTHING, hour, 0.0, hour.times(4 / 3600))
    text = str(Forecast("r", {"train": 2}, {"train": 9}, (), row, 1, 1.0))
    assert "GPU-hours" in text and "4.00 (2.00–8.00)" in text


def test_too_few_problems_are_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.jsonl").write_text('{"problem": "Start with 1. Add 1.", "answer": "2"}\n')
    Path("small.yaml").write_text(SMALL)
    setting = ("--set", "evaluate.tasks=[one.jsonl]")
    code, _, err = dto("run", "small.yaml", "--pilot", "4", *setting, capsys=capsys)
    assert code == 1 and "there are 1 problems for test one" in err
    assert not Path("runs").exists()


def test_what_cannot_be_forecast_is_refused() -> None:
    comparison = Recipe.model_validate({"name": "r", "compare": {"methods": ["dto", "sft"]}})
    with pytest.raises(RecipeError, match="forecast the recipe of a method"):
        pilot_recipe(comparison, 20)
