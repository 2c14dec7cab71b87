"""A change of settings: what it would compute again is listed, agreed to, and kept until then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dto.commands import consent
from dto.errors import RunConflictError
from dto.pipeline import STAGES, open_run, run_stages, stage_of, write_run_manifest
from dto.recipe import Recipe
from dto.runs import manifest
from dto.runs.run import ASIDE, OpenRun, Stale, agree

DONE = ("sample", "segment", "estimate", "optimize", "prune", "pair", "train", "evaluate", "trace")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {"name": "r", "problems": {"train": 3, "dev": 2, "test": 2}}
    return Recipe.model_validate(values | changes)


def opened(settings: Recipe, **how: Any) -> Iterator[OpenRun]:
    run = open_run(Path("run"), settings, **how)
    try:
        yield run
    finally:
        run.close()


@pytest.fixture
def whole(here: None) -> None:
    """A run whose stages say that they are finished."""
    for run in opened(recipe()):
        run_stages(run, ["problems"])
        for name in DONE:
            (run / name).mkdir()
            stage = stage_of(run.recipe, name)
            done = manifest.finished(name, run.config(stage), "c", rows=7, seconds=2.0,
                                     usage={"generated": 500})  # fmt: skip
            manifest.write(run / name, done)


def stale(**changes: Any) -> list[Stale]:
    found: list[Stale] = []

    def ask(path: Path, those: Sequence[Stale]) -> None:
        found.extend(those)
        raise RunConflictError("no")

    try:
        for _ in opened(recipe(**changes), recompute=ask):
            pass
    except RunConflictError:
        assert found
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ""),
        ({"estimate": {"threshold": 0.8}}, "estimate optimize prune pair train evaluate"),
        ({"sample": {"temperature": 0.5}},
         "sample segment estimate optimize prune pair train evaluate"),
        ({"prune": {"harm": 0.1}}, "prune pair train evaluate"),
        ({"train": {"beta": 3.0}}, "train evaluate"),
        ({"trace": {"every": 9}}, "trace"),
        ({"seed": 1}, "problems sample segment estimate optimize prune pair train evaluate trace"),
        ({"model": {"revision": "v2"}},
         "sample segment estimate optimize prune pair train evaluate trace"),
        ({"model": {"slots": 3, "server": "http://other/v1", "concurrency": 9}}, ""),
        ({"model": {"engine": "vllm"}}, ""),
        ({"model": {"engine": "builtins:dict"}}, ""),
        ({"prune": {"judge": "builtins:dict"}}, "prune pair train evaluate"),
        ({"train": {"reward": "builtins:dict"}}, "train evaluate"),
        ({"window": 9, "name": "other"}, ""),
        ({"calibrate": {"max_loss": 0.5}}, ""),
    ],
)  # fmt: skip
def test_what_a_change_would_compute_again(
    whole: None, changes: dict[str, Any], names: str
) -> None:
    found = stale(**changes)
    assert " ".join(each.stage for each in found) == names
    told = {(each.rows, each.tokens, each.seconds) for each in found if each.stage != "problems"}
    assert told <= {(7, 500, 2.0)}


def test_nothing_is_touched_without_a_yes(whole: None) -> None:
    before = Path("run/recipe.yaml").read_text()
    with pytest.raises(RunConflictError, match=r"estimate\.threshold \(0\.75 → 0\.8\)"):
        open_run(Path("run"), recipe(estimate={"threshold": 0.8}))
    assert Path("run/recipe.yaml").read_text() == before and not Path("run", ASIDE).exists()
    open_run(Path("run"), recipe()).close()  # nobody holds it any more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "yes", "message"),
    [(False, True, "use --recompute"), (True, False, "use --yes to agree"), (True, True, "")],
)
def test_sampled_rows_go_with_the_flag_and_a_yes(
    whole: None, wanted: bool, yes: bool, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change = recipe(sample={"temperature": 0.5})
    if message:
        with pytest.raises(RunConflictError, match=message):
            open_run(Path("run"), change, recompute=consent(wanted, yes))
    else:
        open_run(Path("run"), change, recompute=consent(wanted, yes)).close()
    told = capsys.readouterr().err
    assert ("sample (7 rows, 500 tokens, 2 s): sample.temperature" in told) == wanted
    assert Path("run/sample/manifest.json").exists()  # until its stage begins


def test_what_is_set_aside_stays_until_the_stage_is_done(whole: None) -> None:
    for run in opened(recipe(sample={"temperature": 0.5}), recompute=agree):
        stage = STAGES["sample"]
        assert not run.finished(stage, run.config(stage))
        assert not (run / "sample").exists()
        (run / "sample").mkdir()  # an attempt, which another change finds unfinished
        run.set_aside("sample")
        assert sorted(path.name for path in Path("run", ASIDE).iterdir()) == ["sample", "sample-2"]
        assert (Path("run", ASIDE) / "sample/manifest.json").exists()
        run.done("segment")
        assert Path("run", ASIDE).exists()
        run.done("sample")
        assert not Path("run", ASIDE).exists()


def test_to_begin_anew_sets_everything_aside(whole: None) -> None:
    with pytest.raises(RunConflictError, match="sample"):
        open_run(Path("run"), recipe(), overwrite=True)
    for run in opened(recipe(), overwrite=True, recompute=agree):
        assert {path.name for path in Path("run", ASIDE).iterdir()} == {"problems", *DONE}
        run_stages(run, ["problems"])
        assert not Path("run", ASIDE, "problems").exists()


def test_one_stage_again_though_nothing_changed(whole: None) -> None:
    for run in opened(recipe(), again=("prune",), recompute=agree):
        assert run.state("prune") == "missing" and run.state("optimize") == "finished"


def test_the_manifest_names_the_engine_of_each_stage(whole: None) -> None:
    for run in opened(recipe(model={"engine": "vllm"})):
        told = write_run_manifest(run)["stages"]
        assert isinstance(told, dict)
        assert told["sample"]["engine"] == "transformers"
        assert "engine" not in told["segment"]


def test_a_new_exit_only_adds_to_an_evaluation(whole: None) -> None:
    exits = [{"name": "none"}, {"name": "half", "policy": "static"}]
    first = recipe(evaluate={"exits": exits[:1]})
    for run in opened(first, recompute=agree):
        config = run.config(STAGES["evaluate"])
        manifest.write(run / "evaluate", manifest.finished("evaluate", config, "c", rows=7))
    assert stale(evaluate={"exits": exits}) == []
    for run in opened(recipe(evaluate={"exits": exits}), recompute=agree):
        config = run.config(STAGES["evaluate"])
        manifest.write(run / "evaluate", manifest.finished("evaluate", config, "c", rows=7))
    (lost,) = stale(evaluate={"exits": exits[:1]})
    assert "base/half, trained/half" in lost.why and "the rest is kept" in lost.why
