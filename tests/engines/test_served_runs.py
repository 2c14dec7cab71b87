"""`dto run` on a server to its end: training in process, then evaluation in process or served."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dto import tables
from dto.api import find_recipe
from dto.engines.checks import check_start, missing_weights, sentences, serving, settled
from dto.engines.models import origin
from dto.engines.server import server_flags
from dto.errors import EngineError, RecipeError
from dto.recipe import ModelSettings, Recipe, load_recipe, make_recipe
from dto.records import EvaluationRow, Trajectory
from dto.runs import manifest
from tests.commands import dto, told
from tests.engines.model_server import ModelServer
from tests.engines.model_server import serving as served

RECIPE: dict[str, Any] = yaml.safe_load("""
model: {name: nano, engine: openai, retries: 0}
problems: {train: 8, dev: 2, test: 3}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 320}
estimate: {threshold: 0.3, margin: 0.2, cap: 8, max_tokens: 16}
optimize: {max_tokens: 48}
prune: {judge: none, confirmations: 0}
pair: {max_length: 1024}
train: {epochs: 1, batch_size: 8, evaluations: 1, dev_samples: 1, collapse_points: 100,
        collapse_truncated: 1.0, learning_rate: 1.0e-4, keep: last}
evaluate: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 320, exits: [{name: none},
        {name: deer, policy: deer, monitor: paragraph, inducer: closed, threshold: 0.9}]}
""")


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with served("nano") as server:
        yield server


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the server from its start to its end, by the command line."""
    place = tmp_path_factory.mktemp("served")
    run = place / "run"
    (place / "tiny.yaml").write_text(yaml.safe_dump({**RECIPE, "name": "tiny"}))
    command = ["dto", "run", str(place / "tiny.yaml"), "--out", str(run)]
    command += ["--set", f"model.server={server.url}", "--set", "evaluate.engine=transformers"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", (place / "out").open("w"))
        patch.setattr("sys.stderr", (place / "err").open("w"))
        patch.setattr("sys.argv", command)
        log = logging.FileHandler(place / "log")
        logging.getLogger("dto").addHandler(log)
        from dto.cli import main

        with pytest.raises(SystemExit) as ended:
            main()
    logging.getLogger("dto").removeHandler(log)
    assert not ended.value.code, (place / "err").read_text()
    return run


def arms(run: Path) -> dict[str, list[EvaluationRow]]:
    rows: dict[str, list[EvaluationRow]] = {}
    for row in tables.read(run / "evaluate" / "rows.parquet", EvaluationRow):
        rows.setdefault(row.model, []).append(row)
    return rows


@pytest.mark.slow(seconds=30)
def test_a_run_on_a_server_ends_with_both_models_measured_in_process(
    finished: Path, server: ModelServer
) -> None:
    sampled = list(tables.read(finished / "sample" / "rows.parquet", Trajectory))
    assert len(sampled) == 16 and {row.ids_from for row in sampled} == {"sampled"}
    engines = {
        name: stage["engine"]
        for name, stage in (manifest.read(finished) or {})["stages"].items()
        if "engine" in stage
    }
    assert engines["sample"] == engines["estimate"] == "openai"
    assert engines["evaluate"] == "transformers"
    rows = arms(finished)
    assert {name: len(part) for name, part in rows.items()} == {"base": 6, "trained": 6}
    assert not any(row.grade == "failed" for part in rows.values() for row in part)
    assert any(row.trials for row in rows["trained"])
    assert (finished / "report" / "report.html").is_file()
    assert (finished / "train" / "model" / "model.safetensors").is_file()
    log = (finished.parent / "log").read_text()
    assert "evaluate  base and trained in process on transformers (" in log
    assert log.index("base and trained in process") < log.index("sample ")  # before any work


@pytest.mark.slow(seconds=20)
def test_the_trained_model_is_evaluated_on_a_server_of_its_own(
    finished: Path,
    server: ModelServer,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It cannot be there at the start: the run stops, says how to start it, and goes on."""
    run = shutil.copytree(finished, Path("run"))
    shutil.rmtree(run / "evaluate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}/v1"
    assert load_recipe(run / "recipe.yaml").evaluate.engine == "transformers"  # of this run
    command = ("run", "run", "--set", f"evaluate.server={url}")
    code, out = told(*command, capsys=capsys)
    assert code == 1
    last = out.strip().splitlines()[-1]
    assert f"connection to {url} failed" in last and "evaluate.server has to serve" in last
    assert "vllm serve run/train/model" in last and "run the same command again" in last
    plan = f"base on {server.url} (model.server), trained on {url} (evaluate.server)"
    assert plan in caplog.text
    asked = server.asked

    with served("nano", port=port):  # another model than the trained one
        code, out = told(*command, capsys=capsys)
    last = out.strip().splitlines()[-1]
    assert code == 1 and "does not serve model 'run/train/model'; it serves nano; start" in last

    with served("run/train/model", str(Path("run/train/model").resolve()), port=port) as own:
        code, out = told(*command, capsys=capsys)
    assert code == 0, out
    assert own.asked > 6 and server.asked == asked  # the answers of the base model were kept
    rows, in_process = arms(run), arms(finished)
    assert {name: len(part) for name, part in rows.items()} == {"base": 6, "trained": 6}
    plain = [row for row in rows["trained"] if row.exit == "none"]
    assert plain == [row for row in in_process["trained"] if row.exit == "none"]
    config = (manifest.read(run / "evaluate") or {})["config"]
    assert "evaluate.server" not in config and "evaluate.engine" not in config


@pytest.mark.slow(seconds=3)
def test_an_evaluation_never_mixes_engines(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers of another engine are computed again, with consent, if they are not complete."""
    run = shutil.copytree(finished, Path("run"))
    (run / "evaluate" / "manifest.json").unlink()
    begun = {"head": {"config": (manifest.read(finished / "evaluate") or {})["config"]}}
    entry = {"key": "base/none/x", "rows": [], "dropped": [], "usage": {}, "seconds": {},
             "wasted": {}, "elapsed": 1.0}  # fmt: skip
    lines = [json.dumps(line) + "\n" for line in (begun, entry)]
    (run / "evaluate" / "journal").write_text("".join(lines))
    again = ("--set", "evaluate.server=http://127.0.0.1:9/v1")
    code, out = told("run", "run", *again, capsys=capsys)
    assert code == 1 and "would compute again evaluate" in out and "changed or removed" in out


def recipe(**changes: Any) -> Recipe:
    model = {"name": "nano", "engine": "openai", "server": "http://a:1/v1"}
    data = {"name": "r", "model": model | changes.pop("model", {}), **changes}
    return make_recipe(data)


SERVED = {"evaluate": {"server": "http://b:2/v1"}}
BRANCHES = {"exits": [{"name": "d", "policy": "deer", "overlap": "branches"}]}


@pytest.mark.parametrize(
    ("changes", "ready", "engine", "base", "trained"),
    [
        ({}, False, "transformers", ("transformers", None), ("transformers", None)),
        ({}, True, "vllm", ("vllm", None), ("vllm", None)),
        ({"evaluate": BRANCHES}, True, "transformers", *[("transformers", None)] * 2),
        ({"evaluate": {"engine": "vllm"}}, False, "vllm", ("vllm", None), ("vllm", None)),
        (SERVED, True, None, ("openai", "http://a:1/v1"), ("openai", "http://b:2/v1")),
        # near misses: nothing to choose
        ({"evaluate": {"models": ["base"]}}, True, None, *[("openai", "http://a:1/v1")] * 2),
        ({"model": {"engine": "vllm", "server": None}}, True, None, *[("vllm", None)] * 2),
    ],
)  # fmt: skip
def test_who_answers_for_which_model(
    changes: dict[str, Any],
    ready: bool,
    engine: str | None,
    base: tuple[str, str | None],
    trained: tuple[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = "ready, vllm 1 on the GPU" if ready else "not installed: make setup-gpu"
    monkeypatch.setattr("dto.engines.checks.usable", lambda: [("vllm", state)])
    settings = settled(recipe(**changes))
    assert settings.evaluate.engine == engine
    for name, expected in (("base", base), ("trained", trained)):
        asked = serving(settings, "evaluate", name)
        assert (asked.engine, asked.server) == expected
    assert serving(settings, "sample") == settings.model
    assert settled(settings) == settings
    said = " ".join(sentences(settings))
    if trained[1] == "http://b:2/v1":
        assert "base on http://a:1/v1" in said and "vllm serve RUN/train/model" in said
    elif engine is not None:
        assert f"base and trained in process on {engine}" in said
        assert ("make setup-gpu" in said) == (not ready and engine == "transformers")
    else:
        assert not said


@pytest.mark.parametrize(
    ("name", "tokenizer", "engine", "expected"),
    [
        ("served", "nano", "openai", ("nano", None)),
        ("nano", "other", "openai", ("nano", "abc")),
        ("user/name", "other/name", "openai", ("user/name", "abc")),
        ("served", None, "openai", ("served", "abc")),
        ("served", "nano", "vllm", ("served", "abc")),
    ],
)
def test_the_weights_behind_a_servers_name(
    name: str, tokenizer: str | None, engine: str, expected: tuple[str, str | None]
) -> None:
    settings = ModelSettings(name=name, tokenizer=tokenizer, engine=engine, revision="abc")
    assert origin(settings) == expected


@pytest.mark.parametrize(
    ("changes", "engine"),
    [
        ({"evaluate.server": "http://b:2/v1"}, None),
        ({"evaluate.server": "http://b:2/v1", "evaluate.engine": "vllm"}, "vllm"),  # refused
        ({"evaluate.server": None}, "transformers"),
        ({"evaluate.samples": 2}, "transformers"),
        (None, "transformers"),
    ],
)
def test_a_server_takes_the_place_of_the_engine_that_a_run_has(
    changes: dict[str, Any] | None, engine: str | None
) -> None:
    Path("run").mkdir()
    data = recipe(evaluate={"engine": "transformers"}).model_dump(mode="json")
    for file in ("run/recipe.yaml", "r.yaml"):
        Path(file).write_text(yaml.safe_dump(data))
    assert find_recipe("run", changes)[0].evaluate.engine == engine
    own = find_recipe("r.yaml", changes)[0].evaluate.engine  # the user wrote that one
    assert own == (engine or "transformers")


WHOLE = ("sample", "train", "evaluate")
REFUSED = [
    ({"model": {"name": "served"}}, WHOLE, "stage train .* weights of 'served'.*nor a Hub id"),
    ({"model": {"name": "user/no-such"}}, WHOLE, "'user/no-such'.*not in the cache .*OFFLINE"),
    ({"model": {"name": "./absent"}}, WHOLE, "there is no such folder; name their folder"),
    ({"model": {"name": "./empty"}}, ("evaluate",), "stage evaluate .* has no model.safetensors"),
    ({"model": {"name": "served"}, **SERVED}, WHOLE, "stage train"),
    ({"model": {"engine": "vllm"}, **SERVED}, WHOLE, "model.engine is vllm, .* measured alike"),
    ({"evaluate": {"server": "http://b:2/v1", "engine": "vllm"}}, WHOLE, "evaluate.engine is vllm"),
    ({"evaluate": {"engine": "vllm"}}, WHOLE, "evaluate.engine: vllm: not installed"),
    ({"evaluate": {"engine": "vllm", **BRANCHES}}, WHOLE, "which vllm does not support"),
    ({"batch": {"teacher": {"name": "nano"}}}, WHOLE, "batch.k is empty"),
]
PASSED = [
    ({}, WHOLE),
    (SERVED, WHOLE),
    ({"model": {"name": "served", "tokenizer": "nano"}}, WHOLE),
    ({"model": {"name": "served"}}, ("sample", "segment")),
    ({"model": {"name": "served"}, **SERVED}, ("evaluate",)),
    ({"model": {"name": "served", "engine": "transformers"}}, WHOLE),
    ({"evaluate": {"engine": "vllm"}}, ("sample",)),
    ({"batch": {"k": [2], "teacher": {"name": "nano"}}}, WHOLE),
]


@pytest.mark.parametrize(("changes", "stages", "reason"), REFUSED)
def test_what_cannot_end_is_refused_before_it_begins(
    changes: dict[str, Any],
    stages: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dto.engines.checks.usable", lambda: [("vllm", "not installed: make …")])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    with pytest.raises((RecipeError, EngineError), match=reason) as refused:
        check_start(settled(recipe(**changes)), stages)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("changes", "stages"), PASSED)
def test_what_can_end_is_not_refused(
    changes: dict[str, Any], stages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dto.engines.checks.usable", lambda: [("vllm", "not installed: make …")])
    check_start(settled(recipe(**changes)), stages)


def test_a_dry_run_asks_nobody_for_weights() -> None:
    settings = ModelSettings(name="user/no-such", engine="openai")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: 1 / 0)
        assert missing_weights(settings, "trusted") == ""
        assert missing_weights(settings, "left") == "they are not in the cache of the Hub"
        assert "division" in missing_weights(settings)  # the reason of the connection


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["engine    training in process, from the weights of 'nano'",
              "engine    base and trained in process on "]),
        (SERVED, ["engine    base on http://a:1/v1 (model.server), trained on http://b:2/v1"]),
        ({"model": {"name": "served"}}, ["refused   stage train runs in process and needs"]),
    ],
)  # fmt: skip
def test_the_plan_says_where(
    changes: dict[str, Any], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = recipe(**changes).model_dump(mode="json", exclude_unset=True)
    Path("r.yaml").write_text(yaml.safe_dump(data))
    code, out, _ = dto("run", "r.yaml", "--dry-run", capsys=capsys)
    assert code == 0
    assert all(any(given.startswith(line) for given in out.splitlines()) for line in lines)


@pytest.mark.slow(seconds=3)
def test_exits_that_a_server_cannot_do_are_refused_before_sampling(
    server: ModelServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last stage it would be too late. In process they can be done."""
    monkeypatch.setattr(server, "dialect", "text")

    async def as_text(request: Any) -> tuple[int, Any]:
        return server.respond(request)

    monkeypatch.setattr(server, "answered", as_text)
    Path("r.yaml").write_text(yaml.safe_dump({**RECIPE, "name": "r"}))
    command = ("run", "r.yaml", "--set", f"model.server={server.url}", "--set",
               "problems.train=1", "--set", "sample.samples=1")  # fmt: skip
    served = ("--set", "evaluate.server=http://127.0.0.1:9/v1")
    code, out = told(*command, *served, capsys=capsys)
    assert code == 1 and "exit 'deer': policy deer continues the model's tokens" in out
    assert not (Path("runs/r/sample") / "rows.parquet").exists()
    code, out = told("sample", *command[1:], capsys=capsys)
    assert code == 0, out


def test_the_documentation_names_every_flag_of_a_server() -> None:
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    for flag, why in server_flags():
        assert flag in page and why
