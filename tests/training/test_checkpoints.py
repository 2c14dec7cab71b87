"""Which checkpoint is kept, when a training has collapsed, and what a kill leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dto.errors import DtoError
from dto.recipe import TrainSettings
from dto.training.checkpoints import TrainingState, choose, has_collapsed
from dto.training.dev import DevScore, JudgingScore

EFFORT = {"train_seconds": 1.0, "dev_seconds": 1.0, "usage": {}}


def score(
    step: int, accuracy: float, tokens: float, truncated: float = 0.0, collapsed: bool = False
) -> DevScore:
    loss = None if step == 0 else 1.0
    return DevScore(step, step / 10, accuracy, 0.02, tokens, truncated, 1200, 0, loss, collapsed)


BASE = score(0, 0.70, 200)


@pytest.mark.parametrize(
    ("trained", "kept"),
    [
        ([], 0),
        ([score(10, 0.72, 120), score(20, 0.74, 80), score(30, 0.73, 90)], 20),  # fewest tokens
        ([score(10, 0.72, 120), score(20, 0.67, 60)], 10),  # shorter, but below base - 1 s.e.
        ([score(10, 0.681, 120)], 10),  # just within one standard error of the base
        ([score(10, 0.679, 120)], 0),
        ([score(10, 0.80, 210)], 0),  # right, but longer than the base
        ([score(10, 0.75, 80), score(20, 0.74, 80)], 10),  # equal length: the more accurate
        ([score(10, 0.69, 40, truncated=0.3, collapsed=True)], 0),
    ],
)
def test_choice(trained: list[DevScore], kept: int) -> None:
    choice = choose([BASE, *trained])
    assert choice.step == kept
    assert ("base is kept" in choice.reason) == (kept == 0)


@pytest.mark.parametrize(
    ("base_truncated", "accuracy", "truncated", "collapsed"),
    [
        (0.0, 0.61, 0.0, False),
        (0.0, 0.59, 0.0, True),
        (0.0, 0.75, 0.20, False),
        (0.0, 0.75, 0.21, True),
        (0.3, 0.75, 0.35, False),
        (0.3, 0.75, 0.41, True),
    ],
)
def test_collapse(
    base_truncated: float, accuracy: float, truncated: float, collapsed: bool
) -> None:
    base = score(0, 0.70, 200, truncated=base_truncated)
    settings = TrainSettings(collapse_points=10, collapse_truncated=0.2)
    assert has_collapsed(score(10, accuracy, 100, truncated), base, settings) == collapsed


def saved(state: TrainingState, step: int) -> Path:
    path = state.checkpoint(step)
    path.mkdir(parents=True)
    (path / "model.safetensors").write_text(str(step))
    return path


def steps(state: TrainingState) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in state.checkpoints.iterdir())


def test_only_the_last_and_the_best_checkpoint_stay(tmp_path: Path) -> None:
    state = TrainingState(tmp_path, "a")
    state.record(BASE, EFFORT)
    for each in (score(10, 0.72, 80), score(20, 0.60, 70), score(30, 0.60, 60)):
        saved(state, each.step)
        state.record(each, EFFORT)
    assert steps(state) == [10, 30]


def test_an_incomplete_checkpoint_is_removed(tmp_path: Path) -> None:
    state = TrainingState(tmp_path, "a")
    state.record(BASE, EFFORT)
    saved(state, 10)
    state.record(score(10, 0.72, 80), EFFORT)
    saved(state, 20)  # killed before its score was written
    again = TrainingState(tmp_path, "a")
    assert again.resume() == state.checkpoint(10)
    assert steps(again) == [10]
    assert again.history == state.history


def test_a_lost_checkpoint_starts_from_the_base(tmp_path: Path) -> None:
    state = TrainingState(tmp_path, "a")
    for each in (BASE, score(10, 0.72, 80)):
        state.record(each, EFFORT)
        state.record_judging(JudgingScore(each.step, 0.5, 0.4, 0.6, 10, 5, 0, 0, {}, {}, 9.0))
    again = TrainingState(tmp_path, "a")
    assert [each.step for each in again.judging] == [0, 10]
    assert again.resume() is None
    assert again.history == [BASE] and [each.step for each in again.judging] == [0]


def test_a_torn_line_of_effort_is_skipped(tmp_path: Path) -> None:
    state = TrainingState(tmp_path, "a")
    state.record(BASE, EFFORT)
    with (tmp_path / "effort.jsonl").open("a") as file:
        file.write('{"step": 10, "tra')
    assert state.efforts() == [{"step": 0, **EFFORT}]


def test_another_training_starts_anew(tmp_path: Path) -> None:
    state = TrainingState(tmp_path, "a")
    state.record(BASE, EFFORT)
    (tmp_path / "result.json").write_text(json.dumps({}))
    other = TrainingState(tmp_path, "b")
    assert other.history == []
    assert not (tmp_path / "result.json").exists()
    assert TrainingState(tmp_path, "b").resume() is None


@pytest.mark.parametrize(
    ("team", "said"),
    [
        (
            (1, ""),
            r"has checkpoints of 2 processes, up to step 10, and this training has 1 process:",
        ),
        (
            (3, ""),
            r"and this training has 3 processes: set train.processes and train.accelerate back",
        ),
        ((2, "fsdp"), r"and this training has 2 processes with fsdp: .* --recompute`$"),
        ((2, ""), ""),
    ],
)
@pytest.mark.parametrize("stage", ["base", "trained", "ended"])
def test_checkpoints_of_other_processes_are_not_lost(
    tmp_path: Path, team: tuple[int, str], said: str, stage: str
) -> None:
    """They are refused; an ended training is kept, and so is the score of the base."""
    state = TrainingState(tmp_path, "a", 2)
    state.record(BASE, EFFORT)
    if stage != "base":
        saved(state, 10)
        state.record(score(10, 0.72, 80), EFFORT)
    if stage == "ended":
        (tmp_path / "result.json").write_text(json.dumps({}))
    if said and stage == "trained":
        with pytest.raises(DtoError, match=said) as caught:
            TrainingState(tmp_path, "a", *team)
        assert "\n" not in str(caught.value) and steps(state) == [10]
        team = (2, "")
    again = TrainingState(tmp_path, "a", *team)
    assert again.history == state.history
    assert again.resume() == (None if stage == "base" else state.checkpoint(10))
    assert (tmp_path / "result.json").exists() is (stage == "ended")


def test_rows_of_steps_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    state = TrainingState(tmp_path, "a")
    state.record(BASE, EFFORT)
    saved(state, 10)
    state.record(score(10, 0.72, 80), EFFORT)
    rows = [json.dumps({"step": step, "reward": 0.5}) + "\n" for step in range(1, 14)]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(rows) + '{"step": 14, "re')
    TrainingState(tmp_path, "a", writer=False).resume()
    assert path.read_text().startswith("".join(rows))
    TrainingState(tmp_path, "a").resume()
    assert path.read_text() == "".join(rows[:10])
    again = TrainingState(tmp_path, "a")
    assert again.resume("progress.json") is None  # as an older version has left it
    assert again.history == [BASE] and path.read_text() == ""
