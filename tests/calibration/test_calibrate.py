from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from dto import tables
from dto.calibration.calibrate import Calibration, calibrate, pick, replay_run
from dto.calibration.replay import candidates, sweep
from dto.errors import DtoError
from dto.recipe import Recipe, make_recipe
from dto.reporting.pictures import pareto_front
from dto.reporting.positions import reliability
from dto.studies.trace import Trace
from tests.calibration.traces import hand_trace, recipe


def harmless(number: int) -> Trace:
    """Leaving at 0.9 repairs one answer in ten; leaving at 0.5 breaks two in ten."""
    problem = f"{number:04d}"
    right = number % 10 != 0
    return hand_trace(problem, right, [(0.6, number % 10 > 2), (0.95, True)])


def harmful(number: int) -> Trace:
    """Whatever the threshold, one right answer in four is lost."""
    return hand_trace(f"{number:04d}", True, [(0.99, number % 4 != 0)])


def calibrated(traces: list[Trace], settings: Recipe) -> Calibration:
    grid = list(candidates(settings))
    return pick(sweep(traces, grid, settings.trace), settings, len(grid))


def test_the_cheapest_certified_exit_is_picked() -> None:
    result = calibrated([harmless(n) for n in range(400)], recipe())
    assert result.policy.name == "deer paragraph closed answer 0.9"
    kinds = {(each.monitor, each.inducer, each.confidence): each for each in result.reliability}
    trusted = kinds["paragraph", "closed", "answer"]
    assert f"off by {trusted.ece:.1%} on average over {trusted.trials:,} trials" in str(result)
    assert [len(part) for part in result.split] == [100, 200, 100]
    assert result.held_out.gain is not None
    assert result.held_out.gain.value == pytest.approx(0.1, abs=0.06)
    assert result.held_out.tokens.value == 20 + 5 + 2 * 2 + 2
    assert result.base.tokens.value == 110
    assert "loss of accuracy ≤ 2 points with probability ≥ 90 %" in str(result)


def test_a_larger_loss_admits_a_cheaper_exit() -> None:
    result = calibrated([harmless(n) for n in range(600)], recipe(max_loss=0.35))
    assert result.policy.threshold == 0.5
    assert {each.exit: each.certified for each in result.tested} == {
        "deer paragraph closed answer 0.5": True,
        "deer paragraph closed answer 0.9": True,
    }


@pytest.mark.parametrize(
    ("traces", "reason"),
    [
        ([harmful(n) for n in range(400)], "can be certified to lose at most 2 points"),
        ([harmless(n) for n in range(24)], "no candidate can be certified"),
        ([hand_trace(f"{n:04d}", True, [(0.1, True)]) for n in range(40)], "no candidate saves"),
        (
            [harmless(n) for n in range(380)]
            + [
                hand_trace(f"{n:04d}", True, [(0.99, True)], conclusion="failed")
                for n in range(380, 400)
            ],
            "20 of 400 problems have a request that failed",
        ),
    ],
    ids=["harm", "too few", "no saving", "failures"],
)
def test_what_cannot_be_certified_is_not_written(traces: list[Trace], reason: str) -> None:
    result = calibrated(traces, recipe())
    assert result.policy.policy == "none"
    assert reason in result.reason
    assert not any(each.certified for each in result.tested)


def test_too_few_problems_are_an_error() -> None:
    with pytest.raises(DtoError, match=r"2 problems are too few.*raise problems\.dev"):
        calibrated([harmless(1), harmless(2)], recipe())


def test_samples_of_a_problem_are_one_loss() -> None:
    traces = [
        hand_trace(f"{n:04d}", sample == 0, [(0.99, sample == 1 and n == 0)], sample=sample)
        for n in range(3)
        for sample in range(2)
    ]
    settings = recipe()
    swept = sweep(traces, list(candidates(settings)), settings.trace)
    assert swept.losses(swept.problems)[2].tolist() == [0.0, 0.5, 0.5]
    point = swept.figures(2, swept.problems)
    assert (point.accuracy.problems, point.accuracy.samples) == (3, 6)
    assert (point.accuracy.value, point.more["left"]) == (1 / 6, 1.0)


def test_reliability_by_hand() -> None:
    trials = [(0.95, True, "a"), (0.85, True, "a"), (0.85, False, "b"), (1.0, False, "b")]
    found = reliability("cue", "inside", "mean", trials)
    assert [(each.trials, each.accuracy.value) for each in found.bins] == [(2, 0.5), (2, 0.5)]
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.85) + 2 * abs(0.5 - 0.975)) / 4)
    assert math.isnan(reliability("cue", "inside", "mean", []).ece)


def make_run(path: Path, settings: Recipe, traces: list[Trace]) -> Path:
    (path / "trace").mkdir(parents=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    tables.write(path / "trace" / "rows.parquet", Trace, traces)
    return path


@pytest.mark.slow
def test_the_policy_file_is_an_exit_of_a_recipe(tmp_path: Path) -> None:
    run = make_run(tmp_path, recipe(), [harmless(n) for n in range(400)])
    result = calibrate(run)
    file = run / "calibrate" / "policy.yaml"
    assert file.read_text().startswith("# hand: problems: 100 choose, 200 certify, 100 held out")
    loaded = make_recipe({"name": "x", "evaluate": {"exits": [{"file": str(file)}]}})
    [exit] = loaded.evaluate.exits
    assert exit.model_copy(update={"name": result.policy.name}) == result.policy
    changes = {"evaluate.exits": [{"file": str(file), "name": "mine", "overlap": True}]}
    [mine] = make_recipe({"name": "x"}, changes).evaluate.exits
    assert (mine.name, mine.overlap, mine.threshold) == ("mine", True, 0.9)
    data = json.loads((run / "calibrate" / "calibration.json").read_text())
    assert data["policy"]["threshold"] == 0.9
    assert data["points"][0]["exit"] == "none"
    assert result.held_out.gain is not None
    assert data["held_out"]["gain"] == asdict(result.held_out.gain)
    picture = (run / "calibrate" / "calibration.png").read_bytes()
    calibrate(run)
    assert (run / "calibrate" / "calibration.png").read_bytes() == picture


def test_where_nothing_is_certified_the_file_says_none(tmp_path: Path) -> None:
    run = make_run(tmp_path, recipe(), [harmful(n) for n in range(100)])
    calibrate(run)
    text = (run / "calibrate" / "policy.yaml").read_text()
    assert yaml.safe_load(text) == {"name": "calibrated", "policy": "none"}
    assert "# policy none: no candidate can be certified" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: dto calibrate writes one"),
        ("- a", "holds list, not a mapping of settings"),
        ("treshold: 1", "unknown key"),
    ],
)
def test_a_bad_policy_file_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "policy.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DtoError, match=message):
        make_recipe({"name": "x", "evaluate": {"exits": [{"file": str(file), "name": "a"}]}})


def test_a_replay_shows_what_no_other_beats(tmp_path: Path) -> None:
    settings = recipe()
    run = make_run(tmp_path, settings, [harmless(n) for n in range(40)])
    more = make_recipe(
        settings.model_dump(mode="json"),
        {"evaluate.exits": [{"name": "b", "policy": "budget"}, {"name": "none"}]},
    )
    curve = replay_run(run, more)
    assert [point.exit for point in curve.points] == [
        "none",
        "deer paragraph closed answer 0.5",
        "deer paragraph closed answer 0.9",
    ]
    assert [point.tokens.value for point in pareto_front(curve.points)] == [19, 31]
    assert "exit 'b' cannot be replayed" in str(curve)
    assert (run / "replay" / "replay.png").stat().st_size > 1000
    with pytest.raises(DtoError, match="has no traces"):
        replay_run(tmp_path / "other", settings)
