"""The one reader of runs: finished, under way, or of another version."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from dto import tables
from dto.errors import DtoError, RecipeError
from dto.recipe import Recipe
from dto.records import Dropped, Problem, Segment, Span, Trajectory
from dto.runs.journal import Entry, Journal
from dto.runs.reader import RunReader

NONE = Span(0, 0)
ROWS = [Problem("a" * 16, "t", "train", "1?", "1"), Problem("b" * 16, "t", "test", "2?", "2")]


def trajectory(problem: Problem, sample: int) -> Trajectory:
    return Trajectory(
        Trajectory.make_id(problem.id, sample), problem.id, "m", sample, 0, (1,), (2, 3),
        "sampled", "x", NONE, NONE, NONE, "stop", "correct",
    )  # fmt: skip


def segment(row: Trajectory, index: int) -> Segment:
    place = Span(index, index + 1)
    return Segment(Segment.make_id(row.id, index), row.id, index, place, place, 1, "", "opening")


@pytest.fixture
def run(tmp_path: Path) -> RunReader:
    for stage, record, rows in (
        ("problems", Problem, ROWS),
        ("sample", Trajectory, [trajectory(ROWS[0], 0), trajectory(ROWS[0], 1)]),
        ("segment", Segment, [segment(trajectory(ROWS[0], 1), 0)]),
    ):
        (tmp_path / stage).mkdir()
        tables.write(tmp_path / stage / "rows.parquet", record, rows)  # type: ignore[type-var]
    journal = Journal(tmp_path / "pair" / "journal", Problem, {"config": {}})
    journal.append(Entry("k", rows=[ROWS[0]], dropped=[Dropped("d", "too_long", "9 tokens")]))
    journal.close()
    settings = Recipe(name="r").model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return RunReader(tmp_path)


def test_states_rows_and_what_was_dropped(run: RunReader) -> None:
    states = [run.state(stage) for stage in ("sample", "pair", "prune")]
    assert states == ["finished", "begun", "missing"]
    assert list(run.rows("problems", Problem)) == ROWS
    assert list(run.problems("test")) == ROWS[1:]
    assert list(run.rows("pair", Problem)) == ROWS[:1]  # from its journal
    assert [row.reason for row in run.dropped("pair")] == ["too_long"]
    assert list(run.dropped("prune")) == []
    assert (run.count("problems"), run.count("problems", split="test")) == (2, 1)
    assert run.frame("sample", "id").collect()["id"].to_list() == [
        f"{'a' * 16}/00{n}" for n in "01"
    ]
    with pytest.raises(DtoError, match="does not exist: run the stage that writes it first"):
        list(run.rows("prune", Problem))


def test_joined_rows(run: RunReader) -> None:
    first, second = run.joined(("segment", Segment))
    assert (first[0], first[1].sample, first[2]) == (ROWS[0], 0, [])
    assert [row.index for row in second[2]] == [0]


def test_a_recipe_of_another_version(run: RunReader, caplog: pytest.LogCaptureFixture) -> None:
    path = run.path / "recipe.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["telepathy"] = {"range": 3}
    settings["estimate"]["psychic"] = True
    settings["evaluate"]["exits"] = [{"name": "none", "aura": "blue"}]
    path.write_text(yaml.safe_dump(settings))
    with caplog.at_level(logging.WARNING, "dto"):
        later = RunReader(run.path)
        assert later.recipe.name == "r"
    assert sorted(later.unknown) == ["estimate.psychic", "evaluate.exits.0.aura", "telepathy"]
    assert (
        "made by dto unknown; settings that this version does not know are ignored" in caplog.text
    )
    settings["estimate"]["threshold"] = "high"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(RecipeError, match="threshold"):
        RunReader(run.path).recipe  # noqa: B018  # what it cannot mean is refused
