"""What the command line says to people who err: one line with the value and the way out."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from dto import tables
from dto.api import load_recipe
from dto.calibration.calibrate import check_problems
from dto.calibration.risk import p_value, problems_needed, split
from dto.commands import parse_changes
from dto.errors import DtoError, RecipeError
from dto.recipe import make_recipe
from dto.records import Problem
from dto.runs.reader import RunReader
from dto.source import beside
from tests.commands import dto, told


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("seed: 1", ["batch.k=2,3"], "batch.k = '2,3': this is a list: write [2,3]"),
        ("seed: 1", ["evaluate.tasks=math500"], "this is a list: write [math500]"),
        ("seed: 1", ["evaluate.exits={name: a}"], "evaluate.exits: this is a list: write […]"),
        ("sample: 4", [], "sample = 4: this is a group of settings: name one, as in sample.KEY"),
        ("sample: [4]", [], "this is a group of settings: name one, as in sample.KEY"),
        ("", [], "recipe r.yaml is empty, not a mapping of settings: see pipelines/ for examples"),
        ("4", [], "recipe r.yaml holds int, not a mapping of settings"),
        (
            "seed: 1\nsample: {samples: 2}\nsample: {samples: 3}",
            [],
            "recipe r.yaml cannot be read: key 'sample' is given twice: remove one line 3",
        ),
        ("sample: {samples: 2, samples: 2}", [], "key 'samples' is given twice"),
        ("seed: 1", ["problems={dev: 1, dev: 2}"], "is not a YAML value: key 'dev' is given twice"),
        ("seed: 1", ["problems.dev=[1"], "'[1' is not a YAML value: "),
        (
            "evaluate: {exits: [{name: a}, {name: b, policy: deer}]}",
            ["evaluate.exits.2.threshold=0.5"],
            "'evaluate.exits.2.threshold' cannot be set: '2' is no place in a list of 2",
        ),
        (
            "evaluate: {exits: [{name: a}]}",
            ["evaluate.exits.a.threshold=0.5"],
            "'a' is no place in a list of 1, counted from 0",
        ),
        (
            "model: {server: http://SECRET/v1}",
            ["model.server.x=1"],
            "'model.server.x' cannot be set: it is inside a value, which is no group",
        ),
        (
            "problems: {source: mine.jsonl}",
            [],
            "file mine.jsonl does not exist: check the path, which starts in {cwd} or beside the",
        ),
        ("problems: {source: /no/mine.jsonl}", [], "file /no/mine.jsonl does not exist: check"),
    ],
)
def test_a_mistake_in_settings_is_one_line(
    recipe: str, changes: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text(recipe)
    options = [part for change in changes for part in ("--set", change)]
    code, out, err = dto("run", "r.yaml", *options, capsys=capsys)
    assert code == 1 and err.count("\n") == 1 and err.startswith("dto: error: ")
    assert "SECRET" not in out + err
    assert said.format(cwd=Path.cwd()) in err
    assert "jsonl" in recipe or not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("problems.test_source=None", None),
        ("problems.test_source=null", None),
        ("problems.test_source=", None),
        ("problems.test_source='None'", "None"),
        ("problems.test_source=None.jsonl", "None.jsonl"),
        ("train.method=none", "none"),
    ],
)
def test_none_is_null(change: str, value: str | None) -> None:
    (key,) = parsed = parse_changes([change])
    assert parsed == {key: value}
    text = f"{key.partition('.')[0]}: {{{key.partition('.')[2]}: {change.partition('=')[2]}}}"
    Path("r.yaml").write_text(text)
    group, name = key.split(".")
    assert getattr(getattr(load_recipe("r.yaml"), group), name) == value


@pytest.mark.parametrize("index", [0, 1])
def test_one_exit_of_a_list_can_be_set(index: int) -> None:
    exits = [{"name": str(n), "policy": "deer", "threshold": 0.5} for n in range(2)]
    change = {f"evaluate.exits.{index}.threshold": 0.25}
    recipe = make_recipe({"name": "r", "evaluate": {"exits": exits}}, change)
    found = [exit.threshold for exit in recipe.evaluate.exits]
    assert found == [0.25 if n == index else 0.5 for n in range(2)]
    with pytest.raises(RecipeError, match=rf"'evaluate\.exits\.{index}\.treshold' \(did you"):
        make_recipe(
            {"name": "r", "evaluate": {"exits": exits}}, {f"evaluate.exits.{index}.treshold": 1}
        )


def test_a_source_is_found_beside_the_recipe(tmp_path: Path) -> None:
    folder = Path("there")
    folder.mkdir()
    for name in ("own.jsonl", "both.jsonl"):
        (folder / name).write_text("")
    Path("both.jsonl").write_text("")
    (folder / "r.yaml").write_text(
        "problems: {source: own.jsonl, test_source: both.jsonl}\n"
        "evaluate: {tasks: [gsm8k, own.jsonl, no.jsonl]}\n"
    )
    recipe = load_recipe(folder / "r.yaml")
    assert recipe.problems.source == str(folder / "own.jsonl")
    assert recipe.problems.test_source == "both.jsonl"  # the working directory comes first
    assert recipe.evaluate.tasks == ("gsm8k", str(folder / "own.jsonl"), "no.jsonl")
    changed = load_recipe(folder / "r.yaml", {"problems.source": "own.jsonl"})
    assert changed.problems.source == "own.jsonl"  # of the command line: as it was typed
    assert beside(recipe, folder) == {}


@pytest.mark.parametrize("command", ["segment", "estimate", "prune"])
def test_hints_can_be_pasted(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("Meine Läufe 你好") / "x"
    place.parent.mkdir()
    small = ("problems.train=1", "problems.dev=1", "problems.test=1")
    options = [part for change in small for part in ("--set", change)]
    code, _, err = dto(command, "quickstart", "--out", str(place), *options, capsys=capsys)
    assert code == 1 and f"or `dto run '{place}'`" in err


def made(path: Path, recipe: dict[str, object], version: str) -> Path:
    path.mkdir()
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (path / "problems").mkdir()
    tables.write(path / "problems" / "rows.parquet", Problem, [])
    manifest = {"versions": {"dto": version}}
    (path / "problems" / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_a_run_of_another_version_can_be_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = made(tmp_path / "new", {"name": "r", "sample": {"repetition": 2, "samples": 3}}, "0.9.7")
    reader = RunReader(run)
    assert reader.recipe.sample.samples == 3 and reader.unknown == ("sample.repetition",)
    assert "made by dto 0.9.7" in caplog.text and "sample.repetition" in caplog.text


def test_evaluate_without_a_trained_model_names_the_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = dto("evaluate", "quickstart", "--out", "my runs/ev", capsys=capsys)
    assert code == 1 and not out and err.count("\n") == 1
    assert "--set 'evaluate.models=[base]'" in err and "`dto run 'my runs/ev'`" in err
    assert not Path("my runs").exists()


@pytest.mark.slow
def test_evaluate_shows_its_results_and_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = ("evaluate.models=[base]", "problems.train=1", "problems.dev=1", "problems.test=3",
               "evaluate.samples=1", "evaluate.max_tokens=40")  # fmt: skip
    options = [part for change in changes for part in ("--set", change)]
    code, out, err = dto("evaluate", "quickstart", "--out", "runs/ev", *options, capsys=capsys)
    assert code == 0, err
    assert "3 test problems × 1 sample" in out and "accuracy %" in out and "break-even" not in out
    assert out.splitlines()[-1].startswith("All figures and a page: dto report runs/ev")
    code, again = told("report", "runs/ev", capsys=capsys)
    assert code == 0 and "report.html" in again


@pytest.mark.parametrize("level", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("limit", [0.005, 0.02, 0.1, 0.5])
def test_the_number_of_problems_that_certify(limit: float, level: float) -> None:
    needed = problems_needed(limit, level)
    assert needed is not None
    assert p_value(np.zeros(needed), limit, level) <= level
    assert p_value(np.zeros(needed - 1), limit, level) > level


@pytest.mark.parametrize(
    ("settings", "problems", "said"),
    [
        ({}, 270, ""),
        ({}, 269, "Set problems.dev to 270 or more"),
        ({}, 40, "20 of them certify (calibrate.certify), 135 are needed"),
        ({}, 0, "0 dev problems are too few to certify a loss of at most 2 points"),
        ({"max_loss": 0.2}, 40, ""),
        ({"max_loss": 0.2}, 20, "of at most 20 points (calibrate.max_loss) with probability 90 %"),
        ({"error": 0.01}, 270, "with probability 99 %"),
        ({"max_loss": 0.0}, 10**6, "no number of problems is enough"),
        ({"certify": 0.0}, 10**6, "raise calibrate"),
        ({"certify": 0.25}, 400, "Set problems.dev to "),
    ],
)
def test_too_few_problems_are_told_before_recording(
    settings: dict[str, float], problems: int, said: str
) -> None:
    recipe = make_recipe({"name": "r", "calibrate": settings})
    if not said:
        enough = check_problems(recipe, problems)
        assert re.match(rf"\d+ of {problems} dev problems certify; \d+ are needed to", enough)
        return
    with pytest.raises(DtoError) as error:
        check_problems(recipe, problems)
    assert said in str(error.value) and "\n" not in str(error.value)
    if found := re.search(r"problems\.dev to ([\d,]+) or", str(error.value)):
        enough = int(found[1].replace(",", ""))
        check_problems(recipe, enough)
        parts = split([str(n) for n in range(enough)], 0, recipe.calibrate.choose,
                      recipe.calibrate.certify)  # fmt: skip
        assert p_value(np.zeros(len(parts.certify)), recipe.calibrate.max_loss, 0.1) <= 0.1


def test_how_many_problems_certify() -> None:
    recipe = make_recipe({"name": "r"})
    assert check_problems(recipe, 300) == (
        "150 of 300 dev problems certify; 135 are needed to certify a loss of at most 2 points "
        "(calibrate.max_loss) with probability 90 %"
    )


def test_calibrate_refuses_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--set", "problems.dev=40")
    code, out, err = dto("calibrate", "nano", *options, capsys=capsys)
    assert code == 1 and err.count("\n") == 1 and not out
    assert "problems.dev to 270" in err and "--force" in err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_calibrate_records_few_problems_if_it_is_forced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = ("problems.train=0", "problems.dev=12", "problems.test=0",
               "evaluate.max_tokens=60", "trace.inducers=[closed]")  # fmt: skip
    options = [part for change in changes for part in ("--set", change)]
    code, out, err = dto("calibrate", "nano", "--force", *options, capsys=capsys)
    assert code == 0, err
    assert "policy none: no candidate" in out and "12 problems" not in err
    code, again, err = dto("calibrate", "runs/calibrate-nano", capsys=capsys)  # it is recorded
    assert (code, again) == (0, out), err


def test_completion_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = told("--help", capsys=capsys)
    assert code == 0 and "--install-completion" in out


@pytest.mark.parametrize("command", ["run", "sample", "pilot"])
@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_is_missed_before_anything_is_read(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The questions of this recipe are on the Hub, where nothing is fetched from."""
    code, out, err = dto(command, "dto-r1-distill-1.5b", "--force" if command == "run" else "--yes",
                         capsys=capsys)  # fmt: skip
    assert code == 1 and err.count("\n") == 1 and not out
    assert "model.engine: vllm: not installed: pip install 'dto[vllm]'" in err
    assert "or set it to transformers" in err
