"""A published run comes back with the same tables, and goes on from any stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dto.errors import DtoError, RunConflictError
from dto.hub.publish import publish
from dto.hub.pull import is_run, pull
from dto.pipeline import STAGES, needed, open_run, run_stages, stage_of
from dto.recipe import load_recipe
from dto.reporting.report import measure
from dto.runs import manifest
from dto.runs.run import OpenRun
from tests.conftest import ROOT
from tests.hub.server import OWNER, Fault, Hub
from tests.hub.test_publish import KEY, NAME, leaky

OUT = Path("runs/back")
TABLES = ("problems", "sample", "segment", "estimate", "optimize", "prune", "pair", "evaluate")


def go_on(path: Path, *stages: str) -> None:
    run = open_run(path, load_recipe(path / "recipe.yaml"))
    try:
        run_stages(run, stages or needed(run.recipe))
    finally:
        run.close()


def same_tables(one: Path, other: Path, stages: tuple[str, ...] = TABLES) -> bool:
    return all(
        (one / stage / "rows.parquet").read_bytes() == (other / stage / "rows.parquet").read_bytes()
        for stage in stages
    )


@pytest.mark.slow(seconds=100)  # this file comes early, and alone makes the run that many read
def test_there_and_back(finished: OpenRun, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """Of the quickstart itself where DTO_QUICKSTART names it, else of a small run."""
    publish(finished, NAME, private=True)
    assert is_run(NAME)
    assert set(pull(NAME, OUT)) == {*TABLES, "train"}
    assert same_tables(finished.path, OUT)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["back", "finished"]
    times = {stage: (OUT / stage / "rows.parquet").stat().st_mtime_ns for stage in TABLES}
    caplog.set_level("INFO", "dto")
    go_on(OUT)
    assert caplog.text.count("already finished") == len(TABLES) + 1  # and train
    assert {stage: (OUT / stage / "rows.parquet").stat().st_mtime_ns for stage in TABLES} == times
    assert measure(OUT).as_json() == measure(finished.path).as_json()
    back = open_run(OUT, load_recipe(OUT / "recipe.yaml"))
    try:
        again = publish(back, NAME).uploaded
    finally:
        back.close()
    assert again is not None and not again.changed and len(hub.repos[KEY].commits) == 2


@pytest.mark.slow
def test_questions_asked_together_come_back(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {
        "name": "together", "problems.train": 8, "problems.dev": 2, "problems.test": 2,
        "sample.samples": 2, "sample.max_tokens": 400, "batch.k": [2], "batch.samples": 2,
    }  # fmt: skip
    stages = ("problems", "sample", "batch", "chain", "label")
    run = open_run(Path("runs/together"), load_recipe(ROOT / "pipelines/drqa.yaml", changes))
    run_stages(run, stages)
    publish(run, NAME)
    assert pull(NAME, OUT) == tuple(sorted(stages))
    caplog.set_level("INFO", "dto")
    caplog.clear()
    go_on(OUT, *stages)
    assert caplog.text.count("already finished") == len(stages)
    assert same_tables(run.path, OUT, stages)


@pytest.mark.parametrize("stage", ["sample", "estimate", "pair"])
def test_any_stage_is_computed_again_to_the_same(stage: str, run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    pull(NAME, OUT)
    shutil.rmtree(OUT / stage)
    go_on(OUT, *TABLES[: TABLES.index(stage) + 1])
    assert same_tables(run.path, OUT)


def test_a_half_of_a_run_is_ended_elsewhere(run: OpenRun, hub: Hub, small_run: Path) -> None:
    for stage in ("prune", "pair", "train", "evaluate"):
        run.set_aside(stage)
    publish(run, NAME)
    pull(NAME, OUT)
    go_on(OUT, *TABLES[:-1])
    assert same_tables(small_run, OUT, TABLES[:-1])


def test_weights_come_apart(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    pull(NAME, OUT)
    evaluated = (OUT / "evaluate").rename("evaluated")
    with pytest.raises(DtoError, match="download it with `dto pull"):
        go_on(OUT, "evaluate")
    shutil.rmtree(OUT / "evaluate", ignore_errors=True)
    evaluated.rename(OUT / "evaluate")
    with pytest.raises(DtoError, match=f"publish RUN {NAME} --model"):
        pull(NAME, OUT, weights=True)
    publish(run, NAME, model=True)
    assert "train" in pull(NAME, OUT, weights=True)
    assert manifest.of_path(OUT / "train/model") == manifest.of_path(run / "train/model")
    shutil.rmtree(OUT / "evaluate")
    go_on(OUT, "evaluate")
    assert same_tables(run.path, OUT)
    repo = hub.repos["model", NAME]
    repo.commits[-1]["model.safetensors"] = b"\0" * 16
    shutil.rmtree(OUT / "train/model")
    shutil.rmtree(OUT.parent.parent / "cache", ignore_errors=True)
    with pytest.raises(DtoError, match=r"was published from another run"):
        pull(NAME, OUT, weights=True)


def test_what_named_local_paths_still_holds(
    run_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models and files are not there any more; what was computed is done nevertheless."""
    run = leaky(run_path, monkeypatch)
    for stage in (*TABLES, "train"):  # as if it had been computed so
        if not (run / stage / "manifest.json").is_file():
            continue
        said = manifest.read(run / stage) or {}
        config = run.config(stage_of(run.recipe, stage))
        if stage == "problems":
            config["content of /home/alice/data/questions.jsonl"] = "0123"
        manifest.write(run / stage, said | {"config": config})
    publish(run, NAME)
    run.close()
    pull(NAME, OUT)
    back = open_run(OUT, load_recipe(OUT / "recipe.yaml"))
    try:
        assert back.recipe.model.name == "mine"
        for stage in [STAGES[name] for name in (*TABLES, "train")]:
            assert back.finished(stage, back.config(stage)), stage.name
    finally:
        back.close()


def test_a_pull_that_breaks_off_is_taken_up(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    hub.faults.append(Fault("GET", "evaluate/rows.parquet", times=99))
    with pytest.raises(DtoError, match="run the same command again"):
        pull(NAME, OUT)
    assert not OUT.exists()
    hub.faults.clear()
    hub.requests.clear()
    pull(NAME, OUT)
    assert same_tables(run.path, OUT)
    assert not [each for each in hub.requests if each.endswith("sample/rows.parquet")]


def test_what_another_pull_left_is_no_part_of_it(
    run: OpenRun, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    publish(run, NAME)
    hub.faults.append(Fault("GET", "evaluate/rows.parquet", times=99))
    with pytest.raises(DtoError, match="run the same command again"):
        pull(NAME, OUT)
    hub.faults.clear()
    publish(run, f"{OWNER}/pairs", only=("pairs", "exits"))
    assert pull(f"{OWNER}/pairs", OUT) == ("estimate", "pair")


def test_a_directory_that_holds_something(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    with pytest.raises(RunConflictError, match="choose another --out"):
        pull(NAME, run.path)


def test_an_older_state(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME, only=("pairs",))
    first = hub.repos[KEY].sha()
    publish(run, NAME)
    assert pull(NAME, OUT, revision=first) == ("pair",)
    with pytest.raises(DtoError, match="no such revision"):
        pull(NAME, Path("runs/other"), revision="0" * 40)


@pytest.mark.parametrize(
    ("path", "data", "said"),
    [
        ("sample/rows.parquet", b"PAR1 not", "table of sample does not match its manifest"),
        ("run.json", b'{"format": 99}', "another version of dto"),
        ("run.json", b"[", "another version of dto"),
        ("run.json", b'{"format": 1, "withheld": 5}', None),
        ("recipe.yaml", b"- 1\n", f"^{NAME}: its recipe.yaml holds list, not a mapping"),
        ("recipe.yaml", b"{: [", f"^{NAME}: its recipe.yaml is not YAML: "),
        ("recipe.yaml", b"name: \xff", f"^{NAME}: its recipe.yaml is not YAML: 'utf-8' codec"),
        ("recipe.yaml", b"model: 5\n", f"^{NAME}: its recipe.yaml: model = 5: "),
        ("recipe.yaml", b"model: {context: -5}\n", f"^{NAME}: its recipe.yaml: model.context = -5"),
        ("recipe.yaml", None, f"^{NAME}: its recipe.yaml is missing: try another --revision"),
    ],
)
def test_what_was_tampered_with(
    path: str, data: bytes | None, said: str | None, run: OpenRun, hub: Hub
) -> None:
    publish(run, NAME)
    files = hub.repos[KEY].commits[-1]
    if data is None:
        del files[path]
    else:
        files[path] = data
    if said is None:
        assert set(pull(NAME, OUT)) == {*TABLES, "train"}
        return
    with pytest.raises(DtoError, match=said) as error:
        pull(NAME, OUT)
    assert not OUT.exists()
    assert path != "recipe.yaml" or ".pulled" not in str(error.value)


@pytest.mark.parametrize("key", ["config", "digest", "dropped", "usage", "versions", "git"])
def test_a_manifest_that_is_none(key: str, run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    files = hub.repos[KEY].commits[-1]
    said = json.loads(files["sample/manifest.json"])
    files["sample/manifest.json"] = json.dumps(said | {key: ["x"]}).encode()
    with pytest.raises(DtoError, match=f"manifest of sample has an invalid value of '{key}'"):
        pull(NAME, OUT)


def test_settings_of_another_version_are_named_and_left_out(
    run: OpenRun, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    publish(run, NAME)
    files = hub.repos[KEY].commits[-1]
    recipe = yaml.safe_load(files["recipe.yaml"])
    recipe["sample"]["fancy"] = 1
    files["recipe.yaml"] = yaml.safe_dump(recipe | {"nonsense": 1}).encode()
    pull(NAME, OUT)
    assert "dropped settings that this version does not know" in caplog.text
    assert "sample.fancy" in caplog.text and "nonsense" in caplog.text
    assert load_recipe(OUT / "recipe.yaml") == run.recipe


@pytest.mark.parametrize(
    ("server", "api_key"),
    [
        ("https://thief.example/v1", "AWS_SECRET_ACCESS_KEY"),
        (5, "AWS_SECRET_ACCESS_KEY"),  # cut before it is looked at
        ("https://user:secret@thief.example/v1", "no-name"),
    ],
)
def test_a_recipe_of_others_asks_no_server(
    server: object, api_key: str, run: OpenRun, hub: Hub
) -> None:
    publish(run, NAME)
    files = hub.repos[KEY].commits[-1]
    recipe = yaml.safe_load(files["recipe.yaml"])
    recipe["model"] |= {"server": server, "api_key": api_key}
    files["recipe.yaml"] = yaml.safe_dump(recipe).encode()
    files["evil/manifest.json"] = b'{"digest": "0"}'
    files["sample/../../evil.txt"] = files["evil.py"] = files["sample/evil.py"] = b"x"
    pull(NAME, OUT)
    model = load_recipe(OUT / "recipe.yaml").model
    assert (model.server, model.api_key) == ("http://server.invalid/v1", "OPENAI_API_KEY")
    assert not [path for path in Path().rglob("evil*") if "cache" not in path.parts]


def test_what_is_not_there(run: OpenRun, hub: Hub) -> None:
    with pytest.raises(DtoError, match="is not on the Hub"):
        pull(f"{OWNER}/nothing", OUT)
    publish(run, NAME, model=True)
    with pytest.raises(DtoError, match="is a model, not a dataset"):
        is_run(NAME)


def test_tokens_that_may_not_see_it(
    run: OpenRun, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run, NAME, private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(DtoError, match="or it is private"):
        is_run(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DtoError, match="rejects the token"):
        is_run(NAME)


def test_a_gated_dataset(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    hub.faults.append(Fault("GET", "/api/datasets", status=403, code="GatedRepo"))
    with pytest.raises(DtoError, match=f"dataset {NAME} is gated: accept its terms"):
        is_run(NAME)
    hub.faults.append(Fault("HEAD", "/resolve/", times=99, status=403, code="GatedRepo"))
    with pytest.raises(DtoError, match=f"dataset {NAME} is gated: accept its terms"):
        pull(NAME, OUT)
    assert not OUT.exists()
