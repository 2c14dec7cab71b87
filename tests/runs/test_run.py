"""A run directory: what is skipped, what is refused, and by which name the difference goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dto.cluster.seats import NOTES
from dto.errors import DtoError, RunConflictError
from dto.pipeline import STAGES, open_run, run_stages, stage_of
from dto.recipe import Recipe, load_recipe
from dto.records import EvaluationRow, Trajectory
from dto.runs import manifest
from dto.runs.journal import Entry, Journal
from dto.runs.reader import RunReader
from dto.runs.run import OpenRun, agree, settings_read
from dto.runs.stage import Group, Runner
from dto.usage import Usage
from tests.runs.test_arms import row


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {"train": 3, "dev": 2, "test": 2}
    values = {"name": "r", "problems": settings, "segment": {}, "window": 4}
    return Recipe.model_validate(values | changes)


def opened(settings: Recipe, **how: bool) -> Iterator[OpenRun]:
    run = open_run(Path("run"), settings, **how)
    try:
        yield run
    finally:
        run.close()


def problems(settings: Recipe, **how: bool) -> dict[str, Any]:
    for run in opened(settings, **how):
        run_stages(run, ["problems"])
    return manifest.read(Path("run/problems")) or {}


def test_a_finished_stage_is_left_alone() -> None:
    first = problems(recipe())
    table = Path("run/problems/rows.parquet")
    before = table.stat().st_mtime_ns
    assert problems(recipe()) == first
    assert table.stat().st_mtime_ns == before
    assert load_recipe(Path("run/recipe.yaml")) == recipe()


@pytest.mark.parametrize("finished", [False, True], ids=["under way", "killed at the very end"])
def test_notes_of_actors_end_with_their_stage(finished: bool) -> None:
    if finished:
        problems(recipe())
    else:
        for run in opened(recipe()):
            (run / "problems").mkdir()
    notes = Path("run/problems") / NOTES
    notes.write_text('[{"session": 1, "groups": 2}]')
    done = problems(recipe())
    assert done.get("actors") == (None if finished else [{"session": 1, "groups": 2}])
    assert not notes.exists()


def test_how_it_is_computed_may_change_at_will() -> None:
    first = problems(recipe())
    faster = recipe(window=64, model={"slots": 8, "cache_bytes": 1, "device": "cpu"}, name="other")
    assert problems(faster) == first


def test_another_recipe_is_refused_and_the_keys_are_named() -> None:
    problems(recipe())
    journal = Journal(Path("run/sample/journal"), Trajectory, {"config": {}})
    journal.append(Entry("a", usage=Usage(requests=1, generated=70)))
    journal.close()
    other = recipe(seed=1, problems={"train": 3, "dev": 2, "test": 9})
    with pytest.raises(RunConflictError) as error:
        problems(other)
    assert "problems.test (2 → 9); seed (0 → 1)" in str(error.value)
    assert "sample (1 rows, 70 tokens, 0 s)" in str(error.value)
    assert "--recompute" in str(error.value) and "--out" in str(error.value)
    assert problems(other, recompute=agree)["rows"] == 14


def test_a_run_of_problems_alone_takes_any_recipe() -> None:
    problems(recipe())
    Path("run/sample").mkdir()
    Path("run/sample/journal").write_text('{"head": {"config": {}}}\n')
    other = recipe(seed=1, problems={"train": 3, "dev": 2, "test": 9})
    assert problems(other)["rows"] == 14
    assert load_recipe(Path("run/recipe.yaml")) == other


def test_resume_computes_only_what_differs() -> None:
    first = problems(recipe())
    assert problems(recipe(pair={"max_length": 77}), recompute=agree) == first
    assert load_recipe(Path("run/recipe.yaml")).pair.max_length == 77


def test_overwrite_begins_anew() -> None:
    problems(recipe())
    Path("run/sample").mkdir()
    assert problems(recipe(seed=3), overwrite=True)["rows"] == 7
    assert not Path("run/sample").exists()


def test_a_changed_file_is_noticed() -> None:
    source = Path("q.jsonl")
    source.write_text('{"problem": "a?", "answer": "1"}\n')
    settings = recipe(problems={"source": "q.jsonl", "train": 1, "dev": 0, "test": 0})
    problems(settings)
    source.write_text('{"problem": "b?", "answer": "1"}\n')
    assert problems(settings)["rows"] == 1  # questions cost nothing: nobody is asked
    assert [row.question for row in RunReader("run").problems("train")] == ["b?"]


def test_a_stage_that_was_begun_in_vain_has_no_settings() -> None:
    settings = {"source": "late.jsonl", "train": 1, "dev": 0, "test": 0}
    with pytest.raises(DtoError, match=r"late\.jsonl does not exist"):
        problems(recipe(problems=settings))
    Path("late.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    assert problems(recipe(problems=settings))["rows"] == 1


def test_a_changed_file_in_a_folder_is_noticed_and_a_touched_one_is_not() -> None:
    Path("q").mkdir()
    source = Path("q/train.jsonl")
    source.write_text('{"problem": "a?", "answer": "1"}\n')
    settings = recipe(problems={"source": "q", "train": 1, "dev": 0, "test": 0})
    for run in opened(settings):
        first = run.config(stage_of(run.recipe, "problems"))
        os.utime(source, (0, 0))
        assert run.config(stage_of(run.recipe, "problems")) == first
        source.write_text('{"problem": "another?", "answer": "1"}\n')
        os.utime(source, (0, 0))
        assert [
            key for key in first if run.config(stage_of(run.recipe, "problems"))[key] != first[key]
        ] == ["content of q"]


@pytest.mark.parametrize(
    ("stage", "before", "read"),
    [
        ("estimate", "segment", ["sample.temperature", "sample.top_p"]),
        ("optimize", "estimate", ["sample.temperature", "sample.top_p"]),
        ("prune", "optimize", ["sample.temperature", "sample.top_p"]),
        ("train", "pair", ["sample.max_tokens", "sample.temperature", "sample.top_p"]),
    ],
)
def test_what_a_stage_reads_of_the_sampling_is_part_of_what_it_computes(
    stage: str, before: str, read: list[str]
) -> None:
    """Also of an imported run, whose responses do not depend on it."""
    changed = {"samples": 9, "temperature": 0.1, "top_p": 0.2, "max_tokens": 3}
    Path("rows.jsonl").write_text("{}")
    configs = []
    for sampling in ({}, changed):
        settings = recipe(sample={"imported": "rows.jsonl", **sampling})
        for run in opened(settings, recompute=agree):
            for upstream in (before, "problems"):
                (run / upstream).mkdir(exist_ok=True)
                manifest.write(run / upstream, {"digest": "d", "config": {}})
            configs.append(
                (
                    run.config(stage_of(run.recipe, stage)),
                    run.config(stage_of(run.recipe, "sample")),
                )
            )
    (first, sampled), (second, sampled_then) = configs
    assert [key for key in sorted(first) if first[key] != second[key]] == read
    assert sampled == sampled_then


@pytest.mark.parametrize(
    ("stage", "settings", "change", "read"),
    [
        ("train", {"train": {"method": "grpo"}}, {"model": {"revision": "v2"}}, True),
        ("train", {"train": {"method": "none"}}, {"model": {"revision": "v2"}}, True),
        ("train", {"train": {"method": "sft"}}, {"model": {"revision": "v2"}}, False),
        ("sample", {"sample": {"imported": "r.jsonl"}}, {"model": {"prompt": "fast"}}, True),
        ("sample", {"sample": {"imported": "r.jsonl"}}, {"model": {"context": 9}}, False),
        ("prune", {"optimize": {"exit": "first_solution"}}, {"estimate": {"cap": 40}}, True),
        ("prune", {}, {"estimate": {"cap": 40}}, False),
        ("evaluate", {"evaluate": {"tasks": ["q.jsonl"]}}, {"problems": {"prompt": "fast"}}, True),
        ("evaluate", {}, {"problems": {"prompt": "fast"}}, False),
        *[
            (stage, settings, {"model": change}, read)
            for change in ({"template": {"effort": "low"}}, {"think": ["[THINK]", "[/THINK]"]})
            for stage, settings, read in (
                ("sample", {}, True),
                ("sample", {"sample": {"imported": "r.jsonl"}}, True),
                ("batch", {}, True),
                ("estimate", {}, True),
                ("evaluate", {}, True),
                ("trace", {}, True),
                ("label", {}, True),
                ("train", {"train": {"method": "grpo"}}, True),
                ("segment", {}, False),
                ("pair", {}, False),
                ("chain", {}, False),
                ("train", {"train": {"method": "sft"}}, False),
            )
        ],
        *[
            (stage, {}, {group: {key: value}}, read)
            for key, value in (("top_k", 20), ("min_p", 0.1), ("presence_penalty", 1.5))
            for stage, group, read in (
                ("sample", "sample", True),
                ("batch", "sample", True),
                ("estimate", "sample", True),
                ("optimize", "sample", True),
                ("prune", "sample", True),
                ("train", "sample", True),
                ("pilot", "sample", True),
                ("evaluate", "sample", False),
                ("trace", "sample", False),
                ("segment", "sample", False),
                ("evaluate", "evaluate", True),
                ("trace", "evaluate", True),
                ("sample", "evaluate", False),
                ("estimate", "evaluate", False),
            )
        ],
    ],
)
def test_what_no_stage_before_it_is_told_by_a_stage_says_itself(
    stage: str, settings: dict[str, Any], change: dict[str, Any], read: bool
) -> None:
    """What one before it reads, stands in that one's digest."""
    recipes = [recipe(**settings, **more) for more in ({}, change)]
    first, second = (settings_read(each, stage_of(each, stage)) for each in recipes)
    assert (first != second) == read


def test_an_imported_run_trains_the_model_that_is_there() -> None:
    Path("mine").mkdir()
    settings = {
        "model": {"name": "mine"}, "sample": {"imported": "rows.jsonl"},
        "pair": {"data": "imported"},
    }  # fmt: skip
    for run in opened(recipe(**settings)):
        for upstream in ("problems", "pair"):
            (run / upstream).mkdir()
            manifest.write(run / upstream, {"digest": "d", "config": {}})
        configs = []
        for weights in (b"one", b"other"):
            Path("mine/model.safetensors").write_bytes(weights)
            configs.append(run.config(stage_of(run.recipe, "train")))
        assert [key for key in configs[0] if configs[0][key] != configs[1][key]] == ["weights"]


def test_a_setting_that_came_later_and_is_not_set_changes_nothing() -> None:
    first = problems(recipe())
    del first["config"]["problems.prompt"], first["check"]
    manifest.write(Path("run/problems"), first)
    assert problems(recipe()) == first


def test_weights_of_further_models_are_part_of_an_evaluation() -> None:
    Path("mine").mkdir()
    weights = Path("mine/model.safetensors")
    weights.write_bytes(b"one")
    for run in opened(recipe(evaluate={"models": ["base", "mine"]})):
        run_stages(run, ["problems"])
        before = run.config(stage_of(run.recipe, "evaluate"))
        weights.write_bytes(b"other")
        after = run.config(stage_of(run.recipe, "evaluate"))
        assert [key for key in before if before[key] != after[key]] == ["weights of mine"]


def test_another_exit_leaves_the_evaluated_ones_alone() -> None:
    exits = [{"name": "none"}, {"name": "short", "policy": "static"}]
    for number in (1, 2):
        settings = recipe(evaluate={"models": ["base"], "exits": exits[:number]})
        for run in opened(settings, recompute=agree):
            run_stages(run, ["problems"])
            config = run.config(stage_of(run.recipe, "evaluate"))
            assert not run.finished(STAGES["evaluate"], config)
            with Runner(run / "evaluate", EvaluationRow, config) as stage:
                groups = [Group(f"base/{each['name']}/p", ()) for each in exits]
                assert [stage.has_pending(iter([group])) for group in groups] == [number == 1, True]
                stage._journal.append(Entry("base/none/p", [row("base", "none", "p", 0)]))


def test_a_stage_names_the_one_it_waits_for() -> None:
    for run in opened(recipe()):
        run_stages(run, ["problems"])
        with pytest.raises(DtoError, match="stage estimate needs segment, which is not finished"):
            run_stages(run, ["estimate"])


def test_a_run_is_held_by_one_process() -> None:
    for _ in opened(recipe()):
        with pytest.raises(RunConflictError, match="in use by another process"):
            open_run(Path("run"), recipe())
    open_run(Path("run"), recipe()).close()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_something_else_is_never_touched(overwrite: bool) -> None:
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("x")
    with pytest.raises(RunConflictError, match="is not a run directory"):
        open_run(Path("run"), recipe(), overwrite=overwrite)
    assert Path("run/thesis.tex").read_text() == "x"


def test_an_edited_prompt_is_part_of_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    problems(recipe())
    for run in opened(recipe()):
        before = run.config(stage_of(run.recipe, "sample"))
        monkeypatch.setattr("dto.runs.manifest.of_prompts", lambda family: "other")
        assert manifest.differences(before, run.config(stage_of(run.recipe, "sample")))[
            0
        ].startswith("prompts (")
