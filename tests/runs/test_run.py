"""A run directory: what is skipped, what is refused, and by which name the difference goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dto.errors import DtoError, RunConflictError
from dto.pipeline import run_stages
from dto.recipe import Recipe, load_recipe
from dto.runs import manifest
from dto.runs.run import Run, open_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {"train": 3, "dev": 2, "test": 2}
    values = {"name": "r", "problems": settings, "segment": {}, "window": 4}
    return Recipe.model_validate(values | changes)


def opened(settings: Recipe, **how: bool) -> Iterator[Run]:
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


def test_how_it_is_computed_may_change_at_will() -> None:
    first = problems(recipe())
    faster = recipe(window=64, model={"slots": 8, "cache_bytes": 1, "device": "cpu"}, name="other")
    assert problems(faster) == first


def test_another_recipe_is_refused_and_the_keys_are_named() -> None:
    problems(recipe())
    other = recipe(seed=1, problems={"train": 3, "dev": 2, "test": 9})
    with pytest.raises(RunConflictError) as error:
        problems(other)
    assert "problems.test (2 → 9), seed (0 → 1)" in str(error.value)
    assert "--resume" in str(error.value) and "--overwrite" in str(error.value)
    assert problems(other, resume=True)["rows"] == 14


def test_resume_computes_only_what_differs() -> None:
    first = problems(recipe())
    assert problems(recipe(pair={"max_length": 77}), resume=True) == first
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
    with pytest.raises(RunConflictError, match=r"content of q\.jsonl"):
        problems(settings)
    assert problems(settings, resume=True)["rows"] == 1


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
    with pytest.raises(RunConflictError, match="holds something that is no run"):
        open_run(Path("run"), recipe(), overwrite=overwrite)
    assert Path("run/thesis.tex").read_text() == "x"


def test_an_edited_prompt_is_part_of_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    problems(recipe())
    for run in opened(recipe()):
        before = run.config("sample")
        monkeypatch.setattr("dto.runs.run._prompts_hash", lambda family: "other")
        assert manifest.differences(before, run.config("sample"))[0].startswith("prompts (")
