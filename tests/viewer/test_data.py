"""A run's tables joined: each row with what belongs to it, whatever stage has not come yet."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import dto
from dto import tables
from dto.errors import DtoError
from dto.pipeline import STAGES
from dto.recipe import resolve
from dto.records import (
    Dropped,
    EvaluationRow,
    ExitEstimate,
    OptimizedTrajectory,
    Trajectory,
)
from dto.runs.journal import Entry, Journal
from dto.viewer import arms
from dto.viewer.data import AnswersView, RunTables, TrajectoryView
from dto.viewer.render import show
from tests.viewer.generated import write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three problems × 4 samples; the second sample of each has no exit."""
    write(tmp_path / "run", 3, segments=4, sentences=1)
    return tmp_path / "run"


def under_way(run: Path, stage: str, rows: list[Any], key: Any, torn: bytes = b"") -> None:
    """The stage as it stands in the middle: a journal with these rows, no table."""
    shutil.rmtree(run / stage)
    journal = Journal(run / stage / "journal", STAGES[stage].record, {"config": {}})
    for row in reversed(rows):  # in the order in which they were done, not of their ids
        journal.append(Entry(key(row), [row]))
    journal.close()
    with (run / stage / "journal").open("ab") as file:
        file.write(torn)


def of(run: Path, stage: str) -> list[Any]:
    return list(tables.read(run / stage / "rows.parquet", STAGES[stage].record))


def test_each_trajectory_has_what_belongs_to_it(run: Path) -> None:
    views = list(RunTables(run).trajectories())
    assert [view.id for view in views] == [row.id for row in of(run, "sample")]
    segments, estimates = of(run, "segment"), of(run, "estimate")
    for view in views:
        own = view.id
        assert view.segments == tuple(row for row in segments if row.trajectory_id == own)
        assert view.estimates == tuple(row for row in estimates if row.trajectory_id == own)
        assert view.problem is not None and view.problem.id == view.trajectory.problem_id
        assert [pair.trajectory_id for pair in view.pairs] == [own] * len(view.pairs)
        assert (view.optimized is None) == (view.trajectory.sample == 1) == (not view.pairs)
        assert view.optimized is None or view.optimized.trajectory_id == own
        assert view.threshold == 0.75


def test_a_prompt_is_shown_as_it_was_sent(run: Path) -> None:
    nano = Tokenizer.from_file(str(Path(resolve("nano")) / "tokenizer.json"))
    prompt = "<|im_start|>user\n½ of 4?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    ids = tuple(nano.encode(prompt, add_special_tokens=False).ids)
    path = run / "sample/rows.parquet"
    rows = [replace(row, prompt_ids=ids) for row in tables.read(path, Trajectory)]
    tables.write(path, Trajectory, rows)
    for recipe, text, setting in (
        ("model: {name: nano}\nsample: {temperature: 0.25}\n", prompt, ("temperature", "0.25")),
        ("model: {name: no/where}\n", "", ("model", "generated")),
        ("model: {name: ./missing}\n", "", ("temperature", "0.6")),
    ):
        (run / "recipe.yaml").write_text(f"name: generated\n{recipe}")
        for view in RunTables(run).trajectories():
            request = view.request
            assert request is not None and request.tokens == len(ids)
            assert "".join(piece for piece, _ in request.pieces) == text
            assert [piece for piece, special in request.pieces if special] == re.findall(
                r"<\|im_\w+\|>", text
            )
            assert setting in request.settings and (not text) == bool(request.missing)


def test_token_ids_are_counted_and_not_read(run: Path) -> None:
    stored = {row.id: len(row.token_ids) for row in of(run, "sample")}
    for view in RunTables(run).trajectories():
        assert view.tokens == stored[view.id] > 0
        assert view.trajectory.token_ids == ()


def test_show_finds_one_row_and_reads_it_whole(run: Path) -> None:
    for view in RunTables(run).trajectories():
        found = dto.show(run, view.id).row
        assert isinstance(found, TrajectoryView)
        assert found.segments == view.segments and found.estimates == view.estimates
        assert found.pairs == view.pairs and found.problem == view.problem
        assert len(found.trajectory.token_ids) == view.tokens == found.tokens
    first = of(run, "sample")[0].id
    assert dto.show(run).row.id == first == dto.show(run, first[:6]).row.id
    with pytest.raises(DtoError, match="no row 'nothing': copy an id"):
        dto.show(run, "nothing")


def test_answers_are_grouped_by_problem_and_sample(run: Path) -> None:
    views = list(RunTables(run).answers())
    rows = of(run, "evaluate")
    assert sum(len(view.rows) for view in views) == len(rows) == 24
    assert [view.id for view in views] == sorted({f"{r.problem_id}/{r.sample:03d}" for r in rows})
    for view in views:
        assert {row.exit for row in view.rows} == {"none", "deer"}
        assert {(row.problem_id, row.sample) for row in view.rows} == {
            (view.problem_id, view.sample)
        }
    shutil.rmtree(run / "sample")
    found = dto.show(run, views[1].id).row
    assert isinstance(found, AnswersView)
    assert found.id == views[1].id and found.outcome == views[1].outcome


def test_a_run_that_was_only_evaluated(run: Path) -> None:
    for stage in ("sample", "segment", "estimate", "prune", "pair"):
        shutil.rmtree(run / stage)
    found = RunTables(run)
    assert not list(found.trajectories())
    answers = list(found.answers())
    assert len(answers) == 12
    assert dto.show(run).row == answers[0]


@pytest.mark.parametrize(
    "missing", ["problems", "segment", "estimate", "prune", "pair", "evaluate"]
)
def test_a_run_that_lacks_a_stage(run: Path, missing: str) -> None:
    shutil.rmtree(run / missing)
    views = list(RunTables(run).trajectories())
    assert len(views) == 12
    assert all(not view.segments for view in views) == (missing == "segment")
    assert all(view.optimized is None for view in views) == (missing == "prune")
    assert all(view.problem is None for view in views) == (missing == "problems")
    assert str(show(views[0])) and show(views[0])._repr_html_()


def test_a_run_that_stands_in_journals(run: Path) -> None:
    whole = list(RunTables(run).trajectories())
    answers = list(RunTables(run).answers())
    samples, estimates, rows = of(run, "sample"), of(run, "estimate"), of(run, "evaluate")
    before = run / "sample/journal"
    under_way(run, "sample", samples, lambda row: row.problem_id + str(row.sample), b'{"key": "to')
    under_way(run, "estimate", estimates[:5], lambda row: row.id)
    arm = "{0.model}/{0.exit}/{0.problem_id}".format
    under_way(run, "evaluate", rows, lambda row: f"{arm(row)}{row.sample}")
    content = before.read_bytes()
    views = list(RunTables(run).trajectories())
    assert [view.id for view in views] == [view.id for view in whole]
    assert [view.tokens for view in views] == [view.tokens for view in whole]
    assert [row for view in views for row in view.estimates] == estimates[:5]
    again = list(RunTables(run).answers())
    assert [view.id for view in again] == [view.id for view in answers]
    assert dto.show(run, whole[3].id).row.id == whole[3].id
    assert before.read_bytes() == content  # its writer may be at work: nothing is cut off


def test_pruning_under_way_shows_what_it_has_not_reached(run: Path) -> None:
    rows = of(run, "prune")
    (run / "optimize").mkdir()
    tables.write(run / "optimize/rows.parquet", OptimizedTrajectory, rows)
    pruned = [rows[2]]
    under_way(run, "prune", pruned, lambda row: row.id)
    views = [view.optimized for view in RunTables(run).trajectories() if view.optimized]
    assert [row.id for row in views] == [row.id for row in rows]


def test_a_comparison_shows_every_method_beside_the_base(run: Path) -> None:
    for name in ("base", "sft"):
        shutil.copytree(run / "evaluate", run / "compare" / name / "evaluate")
    shutil.rmtree(run / "evaluate")
    (run / "recipe.yaml").write_text("compare: {methods: [sft, mine/own.yaml]}\n")
    assert RunTables(run).missing() == ("compare/own",)
    views = list(RunTables(run).answers())
    assert len(views) == 12
    for view in views:
        assert [row.model for row in view.ordered] == ["base", "base", "sft", "sft"]
        assert view.reference is not None
        assert (view.reference.model, view.reference.exit) == ("base", "none")
    shutil.rmtree(run / "sample")
    assert dto.show(run, views[2].id).row == views[2]


def test_what_was_dropped_stands_with_its_row(run: Path) -> None:
    own = of(run, "sample")[1].id
    line = Dropped(own, "no_exit", "the best boundary has p 0.20")
    (run / "estimate/dropped.jsonl").write_text(
        f'{{"id": "{line.id}", "reason": "{line.reason}", "detail": "{line.detail}"}}\n'
    )
    view = dto.show(run, own).row
    assert isinstance(view, TrajectoryView)
    assert view.dropped == (("estimate", line),) and view.outcome == "no_exit"
    assert "dropped by estimate: no_exit, the best boundary has p 0.20" in str(show(view))
    open_one = dto.show(run, own.replace("/001", "/000")).row
    assert isinstance(open_one, TrajectoryView) and not open_one.dropped


def test_what_is_no_run_is_an_error_in_one_line(tmp_path: Path, run: Path) -> None:
    with pytest.raises(DtoError, match="is not a run: give the directory"):
        RunTables(tmp_path / "nothing")
    with pytest.raises(DtoError, match=r"is not a run: it has no recipe\.yaml"):
        RunTables(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(DtoError, match="no trajectories or answers to show: run `dto sample"):
        RunTables(tmp_path)
    (run / "segment/rows.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DtoError, match=r"rows\.parquet cannot be read"):
        RunTables(run)
    tables.write(run / "segment/rows.parquet", ExitEstimate, of(run, "estimate"))
    with pytest.raises(DtoError, match=r"lacks the columns .* of a Segment"):
        RunTables(run)


def test_views_of_a_real_run(small_run: Path) -> None:
    recipe, views = RunTables(small_run).recipe, list(RunTables(small_run).trajectories())
    trajectories = recipe.problems.train * recipe.sample.samples
    assert len(views) == trajectories == 16 and any(view.optimized for view in views)
    for view in views:
        assert (
            "".join(view.trajectory.text[slice(*segment.chars)] for segment in view.segments)
            == view.trajectory.text[slice(*view.trajectory.thinking)]
        )
    answers = list(RunTables(small_run).answers())
    arms = len(recipe.evaluate.models) * len(recipe.evaluate.exits)
    questions = recipe.problems.test * recipe.evaluate.samples
    assert [len(view.rows) for view in answers] == [arms] * questions
    assert all(isinstance(row, EvaluationRow) for view in answers for row in view.rows)
    assert all(isinstance(view.trajectory, Trajectory) for view in views)


@pytest.mark.parametrize("state", ["finished", "running"])
@pytest.mark.parametrize("window", [1, 3, 32])
def test_answers_are_read_by_question_whatever_the_windows(
    state: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arms with other questions, row groups that cut through arms; texts are read, ids are not."""
    rng = random.Random(window)
    rows = [
        EvaluationRow(
            EvaluationRow.make_id(model, exit, problem, sample), model, exit, problem, sample, 0,
            "correct", "", "", "closed", 1, 1, 0, 2, 3, 1.0,
            token_ids=(1, 2), text=f"{model} {exit} {problem} {sample}",
        )
        for model in ("base", "other/model", "trained")
        for exit in ("deer", "none")
        for problem in ("aa", "ab", "b0", "ca")
        for sample in range(3)
        if rng.random() < 0.8
    ]  # fmt: skip
    rows.sort(key=lambda row: row.id)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    (tmp_path / "evaluate").mkdir()
    if state == "finished":
        monkeypatch.setattr(tables, "ROW_GROUP", 7)
        monkeypatch.setattr(arms, "WINDOW", window)
        tables.write(tmp_path / "evaluate/rows.parquet", EvaluationRow, rows)
    else:
        journal = Journal(tmp_path / "evaluate/journal", EvaluationRow, {})
        groups = [list(group) for _, group in groupby(rows, key=lambda row: row.id[:-4])]
        for group in rng.sample(groups, len(groups)):
            journal.append(Entry(group[0].id[:-4], group))
        journal.close()
    views = list(RunTables(tmp_path).answers())
    ids = [view.id for view in views]
    assert ids == sorted({f"{row.problem_id}/{row.sample:03d}" for row in rows})
    found = [row for view in views for row in view.rows]
    assert {row.id: row.text for row in found} == {row.id: row.text for row in rows}
    assert len(found) == len(rows)
    if state == "finished":
        assert not any(row.token_ids for row in found)
    for start in ("a", "ab", "b0/001", "z"):
        problem = start.partition("/")[0]
        some = [view.id for view in RunTables(tmp_path).answers(start)]
        assert some == [id for id in ids if id.startswith(problem)]
