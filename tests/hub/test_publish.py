"""A run goes up as one commit, says where it comes from, and takes nothing private along."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import yaml

from dto import tables
from dto.errors import DtoError
from dto.hub.publish import publish
from dto.hub.upload import check_name
from dto.pipeline import open_run
from dto.records import OptimizedTrajectory, PreferencePair, Trajectory, Verdict
from dto.runs import manifest
from dto.runs.run import OpenRun, agree
from tests.hub.conftest import sent
from tests.hub.server import OWNER, READER, WRITER, Fault, Hub

NAME = f"{OWNER}/small"
KEY = ("dataset", NAME)


def published(hub: Hub) -> dict[str, bytes]:
    return hub.repos[KEY].files


def test_one_commit_holds_the_tables_as_they_are(run: OpenRun, hub: Hub) -> None:
    done = publish(run, NAME)
    repo = hub.repos[KEY]
    assert repo.messages == ["initial commit", "Publish run small"] and not repo.private
    assert done.uploaded is not None and done.uploaded.changed
    for stage in ("problems", "sample", "segment", "estimate", "optimize", "prune", "pair"):
        assert repo.files[f"{stage}/rows.parquet"] == run.table(stage).read_bytes()
    assert not [path for path in repo.files if path.startswith("train/model")]


def test_the_same_content_makes_no_second_commit(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    again = publish(run, NAME)
    assert again.uploaded is not None and not again.uploaded.changed
    assert len(hub.repos[KEY].commits) == 2
    fewer = publish(run, NAME, only=("pairs",))
    assert fewer.uploaded is not None and fewer.uploaded.changed
    assert "sample/rows.parquet" not in published(hub) and "pair/rows.parquet" in published(hub)


def test_private_and_public(run: OpenRun, hub: Hub) -> None:
    assert sent(run, NAME, private=True).private
    assert hub.repos[KEY].private
    hub.repos[KEY].private = False
    with pytest.raises(DtoError, match="exists and is public"):
        publish(run, NAME, private=True)


def test_dry_run_sends_nothing(run: OpenRun, hub: Hub) -> None:
    done = publish(run, NAME, dry_run=True)
    assert done.uploaded is None and not hub.requests
    assert (done.folder / "README.md").read_text("utf-8") == done.card
    assert (done.folder / "pair" / "rows.parquet").is_file()


TROUBLE = [
    (Fault("PUT", "/lfs/", times=99), "the connection failed"),
    (Fault("PUT", "/lfs/", times=99, status=503), "answered 503"),
    (Fault("POST", "/objects/batch", times=99), "the connection failed"),
    (Fault("POST", "/commit/"), "the connection failed"),
    (Fault("POST", "/commit/", status=500), "answered 500"),
    (Fault("POST", "/commit/", status=409), "changed by another user"),
    (Fault("POST", "/preupload/", times=99, status=502), "answered 502"),
]


@pytest.mark.parametrize(("fault", "said"), TROUBLE, ids=lambda each: str(each)[:60])
def test_what_breaks_off_is_not_seen_and_is_completed(
    fault: Fault, said: str, run: OpenRun, hub: Hub
) -> None:
    hub.faults.append(fault)
    with pytest.raises(DtoError, match=said) as error:
        publish(run, NAME)
    assert "run the same command again" in str(error.value)
    assert list(published(hub)) == [".gitattributes"]
    hub.faults.clear()
    sent = set(hub.blobs)
    hub.requests.clear()
    publish(run, NAME)
    assert len(hub.repos[KEY].commits) == 2 and "README.md" in published(hub)
    assert not {f"PUT /lfs/{oid}" for oid in sent} & set(hub.requests)  # not sent again


@pytest.mark.parametrize(("status", "said"), [(403, "no write access"), (401, "rejects the token")])
def test_what_the_storage_of_large_files_refuses(
    status: int, said: str, run: OpenRun, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's own storage is Xet; its client asks the Hub for leave first."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.faults.append(Fault("GET", "/xet-write-token", times=99, status=status))
    with pytest.raises(DtoError, match=said):
        publish(run, NAME)
    assert list(published(hub)) == [".gitattributes"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    assert sent(run, NAME).changed


def test_a_few_lost_connections_are_got_over(run: OpenRun, hub: Hub) -> None:
    hub.faults += [Fault("PUT", "/lfs/", times=3), Fault("PUT", "/lfs/", times=2, status=500)]
    assert sent(run, NAME).changed


def test_a_commit_whose_answer_is_lost_is_not_made_twice(run: OpenRun, hub: Hub) -> None:
    hub.faults.append(Fault("POST", "/commit/", late=True))
    with pytest.raises(DtoError, match="the connection failed"):
        publish(run, NAME)
    again = publish(run, NAME).uploaded
    assert again is not None and not again.changed and len(hub.repos[KEY].commits) == 2


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("", NAME, "none is set"),
        ("hf_wrong", NAME, "rejects the token"),
        (READER, NAME, "no write access"),
        (WRITER, "other/name", "belongs to another user"),
        (WRITER, "name", "write it as user/name"),
        (WRITER, "a/b/c", "write it as user/name"),
        (WRITER, "user/na me", "write it as user/name"),
    ],
)
def test_whose_name_and_token(
    token: str, name: str, said: str, run: OpenRun, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(DtoError, match=said) as error:
        publish(run, name)
    assert not hub.repos and (not token or token not in str(error.value))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("user/x", True), ("user/x-git", True), ("u-s/x.y", True), ("user/_x", True),
        ("user/..", False), ("user/-x", False), ("user/x.git", False), ("user/a--b", False),
        ("user/x.", False), ("user/" + "x" * 97, False), ("x", False), ("a/b/c", False),
    ],
)  # fmt: skip
def test_what_is_a_name_on_the_hub(name: str, is_one: bool) -> None:
    """As the client has it: nothing is built for a name that it refuses in the end."""
    if is_one:
        check_name(name)
        return
    with pytest.raises(DtoError, match=f"^'{name}' is not a Hub name: write it as user/name"):
        check_name(name)


def test_a_name_that_holds_something_else(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    repo = hub.repos[KEY]
    del repo.commits[-1]["run.json"]
    with pytest.raises(DtoError, match="does not hold a run of dto"):
        publish(run, NAME)
    other = json.dumps({"format": 1, "name": "theirs", "seed": 0}).encode()
    repo.commits[-1]["run.json"] = other
    with pytest.raises(DtoError, match=r"another run \(theirs\)"):
        publish(run, NAME)
    assert len(repo.commits) == 2
    publish(run, NAME, overwrite=True)
    assert json.loads(repo.files["run.json"])["name"] == "small"


def test_a_name_that_somebody_else_has(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    theirs = hub.repos["dataset", "other/small"] = hub.repos.pop(KEY)
    del theirs.commits[-1]["pair/rows.parquet"]
    with pytest.raises(DtoError, match=r"\(403\): the name belongs to another user"):
        publish(run, "other/small")
    assert len(theirs.commits) == 2


def test_stages_that_are_not_there(run: OpenRun, hub: Hub) -> None:
    for stage in ("pair", "train", "evaluate"):
        run.set_aside(stage)
    for name, stage in (("pairs", "pair"), ("train", "train"), ("evaluation", "evaluate")):
        with pytest.raises(DtoError, match=f"stage {stage} is missing .* `dto {stage} "):
            publish(run, NAME, only=(name,))
    with pytest.raises(DtoError, match="unknown table; choose from pairs, labels, trajectories"):
        publish(run, NAME, only=("nothing",))
    text = publish(run, NAME).card  # what is there goes up, the first table unasked
    assert 'load_dataset("somebody/small")' in text and "trajectories = " in text
    assert not hub.repos[KEY].files.keys() & {"pair/rows.parquet", "train/manifest.json"}


def test_a_half_finished_stage_is_told(
    run: OpenRun, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in ("evaluate", "pair"):
        (run / stage / "manifest.json").rename(run / stage / "kept")
        (run / stage / "journal").write_text("{}\n")
    with pytest.raises(DtoError, match="stage pair is not finished"):
        publish(run, NAME)
    (run / "pair" / "kept").rename(run / "pair" / "manifest.json")
    text = publish(run, NAME).card
    assert "stage evaluate is not finished and is not published" in caplog.text
    assert "these stages were unfinished: evaluate" in text
    assert "evaluate/rows.parquet" not in published(hub)


def test_stages_that_do_not_belong_together(run: OpenRun, hub: Hub) -> None:
    said = manifest.read(run / "sample") or {}
    manifest.write(run / "sample", said | {"digest": "0" * 16})
    with pytest.raises(DtoError, match=r"segment .* computed from another state of sample"):
        publish(run, NAME)


def leaky(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenRun:
    """The run of somebody called alice, whose models, files and servers have private names."""
    settings = yaml.safe_load((run_path / "recipe.yaml").read_text("utf-8"))
    settings["model"] |= {
        "name": "/home/alice/models/mine", "tokenizer": "../alice/tokenizer",
        "server": "http://gpu7.alice.example:8000/v1", "api_key": "ALICE_KEY",
    }  # fmt: skip
    settings["problems"]["source"] = "/home/alice/data/questions.jsonl"
    settings["evaluate"]["models"] = ["base", "trained", "/mnt/alice/second"]
    (run_path / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setenv("ALICE_KEY", "a-secret-of-alice")
    for stage in ("problems", "sample", "evaluate"):
        said = manifest.read(run_path / stage) or {}
        said["config"] |= {
            "model.name": "/home/alice/models/mine",
            "problems.source": "/home/alice/data/questions.jsonl",
            "content of /home/alice/data/questions.jsonl": "0123",
        }
        manifest.write(run_path / stage, said | {"host": "alice-laptop", "cwd": "/home/alice/dto"})
    dropped = {
        "id": "row/1",
        "reason": "missing_field",
        "detail": "/home/alice/data/questions.jsonl, row 3: no",
    }
    (run_path / "problems" / "dropped.jsonl").write_text(json.dumps(dropped) + "\n")
    sampled = pl.read_parquet(run_path / "sample" / "rows.parquet")
    reason = "No space left on device: '/scratch/alice/cache/x.bin'"  # no setting names that
    written = [
        Trajectory(**{**row_of(row), "model": "/home/alice/models/mine", "reason": reason})
        for row in tables.read(run_path / "sample" / "rows.parquet", Trajectory)
    ]
    assert len(written) == len(sampled)
    tables.write(run_path / "sample" / "rows.parquet", Trajectory, written)
    from dto.records import EvaluationRow

    path = run_path / "evaluate" / "rows.parquet"
    rows = []
    for row in tables.read(path, EvaluationRow):
        rows.append(row)
        if row.model == "trained":
            values = row_of(row) | {
                "model": "/mnt/alice/second", "id": f"/mnt/alice/second{row.id[7:]}",
                "reason": "no answer from http://gpu7.alice.example:8000/v1",
            }  # fmt: skip
            rows.append(EvaluationRow(**values))
    tables.write(path, EvaluationRow, sorted(rows, key=lambda row: row.id))
    from dto.recipe import load_recipe

    return open_run(run_path, load_recipe(run_path / "recipe.yaml"), recompute=agree)


def row_of(row: object) -> dict[str, object]:
    return {name: getattr(row, name) for name in type(row).__slots__}  # type: ignore[attr-defined]


def test_nothing_private_goes_up(
    run_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = leaky(run_path, monkeypatch)
    try:
        publish(run, NAME)
    finally:
        run.close()
    files = published(hub)
    for path, data in files.items():
        if path.endswith(".parquet"):
            (tmp_path / "one.parquet").write_bytes(data)
            text = pl.read_parquet(tmp_path / "one.parquet").write_json()
        else:
            text = data.decode("utf-8", "replace")
        for private in (
            "alice",
            "/home",
            "/scratch",
            "/mnt",
            str(tmp_path),
            "gpu7",
            "ALICE",
            WRITER,
        ):
            assert private not in text.replace("somebody", ""), (path, private)
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert recipe["model"]["name"] == "mine" and recipe["model"]["tokenizer"] == "tokenizer"
    assert recipe["model"]["server"] == "http://server.invalid/v1"
    assert recipe["problems"]["source"] == "questions.jsonl"
    said = json.loads(files["sample/manifest.json"])
    assert said["config"]["content of questions.jsonl"] == "0123" and "host" not in said
    dropped = json.loads(files["problems/dropped.jsonl"])
    assert dropped["detail"] == "questions.jsonl, row 3: no"
    (tmp_path / "one.parquet").write_bytes(files["evaluate/rows.parquet"])
    ids = pl.read_parquet(tmp_path / "one.parquet")["id"].to_list()
    assert ids == sorted(ids) and any(each.startswith("second/") for each in ids)
    reasons = pl.read_parquet(tmp_path / "one.parquet").filter(model="second")["reason"].to_list()
    assert set(reasons) == {"failed"}
    mark = json.loads(files["run.json"])
    assert mark["redacted"] == ["sample", "evaluate"]


def test_of_errors_only_the_kind_goes_up(run: OpenRun, hub: Hub, tmp_path: Path) -> None:
    """What a server, a file or a program says in an error is nobody's business."""
    said = "http://box answered 503: upstream zebra is down"
    samples = list(tables.read(run.table("sample"), Trajectory))
    first = replace(samples[0], grade="failed", reason=said)
    tables.write(run.table("sample"), Trajectory, [first, *samples[1:]])
    versions = list(tables.read(run.table("prune"), OptimizedTrajectory))
    verdict = Verdict(0, "unjudged", 0.0, False, f"the judge failed: {said}")
    judged = replace(versions[0], verdicts=(verdict,), counterfactual=(verdict,))
    tables.write(run.table("prune"), OptimizedTrajectory, [judged, *versions[1:]])
    dropped = [
        {"id": "a/000", "reason": "failed", "detail": "ConnectError: zebra:8000 refused"},
        {"id": "b/000", "reason": "error", "detail": "KeyError: 'zebra'"},
        {"id": "c/000", "reason": "no_exit", "detail": "the best boundary has p 0.20"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in dropped)
    (run / "estimate" / "dropped.jsonl").write_text(lines)
    publish(run, NAME)
    files = published(hub)
    rows = [json.loads(line) for line in files["estimate/dropped.jsonl"].splitlines()]
    kinds = ["ConnectError", "KeyError", "the best boundary has p 0.20"]
    assert [row["detail"] for row in rows] == kinds
    texts = {}
    for stage in ("sample", "prune"):
        (tmp_path / "one.parquet").write_bytes(files[f"{stage}/rows.parquet"])
        texts[stage] = pl.read_parquet(tmp_path / "one.parquet").head(1).write_json()
    assert '"HTTP 503"' in texts["sample"]
    assert texts["prune"].count('"the judge failed: HTTP 503"') == 2
    assert not [path for path, data in files.items() if b"zebra" in data]
    assert "zebra" not in "".join(texts.values())


@pytest.mark.parametrize(
    ("where", "text", "said"),
    [
        ("pair", "the key is hf_" + "A1" * 17, "column chosen holds a key: nothing is uploaded"),
        ("pair", "a-secret-of-alice", "column chosen holds the value of ALICE_API_KEY"),
        ("pair", "see /home/alice/notes", "column chosen holds a local path or a server: nothing"),
        ("recipe", "hf_" + "A1" * 17, "holds a key: nothing is uploaded"),
    ],
)
def test_what_remains_is_refused(
    where: str,
    text: str,
    said: str,
    run: OpenRun,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALICE_API_KEY", "a-secret-of-alice")
    monkeypatch.setenv("HOME", "/home/alice")
    if where == "recipe":
        system = run.recipe.model.model_copy(update={"system": f"Read {text}"})
        run = run.following(run.recipe.model_copy(update={"model": system}))
    else:
        rows = list(tables.read(run.table("pair"), PreferencePair))
        first = PreferencePair(**row_of(rows[0]) | {"chosen": text})  # type: ignore[arg-type]
        tables.write(run.table("pair"), PreferencePair, [first, *rows[1:]])
    with pytest.raises(DtoError, match="nothing is uploaded") as error:
        publish(run, NAME)
    assert said in str(error.value) and text not in str(error.value)
    assert not hub.requests


def test_a_name_of_this_machine_is_told(
    run: OpenRun, hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of whoever publishes, as a word; paths that a model may have made up are not."""
    monkeypatch.setenv("HOME", "/home/bob")
    monkeypatch.setenv("LOGNAME", "alice")
    rows = list(tables.read(run.table("pair"), PreferencePair))
    said = ["cat /home/carol/notes", "alice, f:\\mathbb{R} and a/m", "see C:\\Users\\x"]
    for place, text in enumerate(said):
        values = {name: getattr(rows[place], name) for name in PreferencePair.__slots__}
        rows[place] = PreferencePair(**values | {"chosen": text})
    tables.write(run.table("pair"), PreferencePair, rows)
    publish(run, "alice/small", dry_run=True)
    name = "pair/rows.parquet names this machine or its user 1 times, first in row"
    assert name in caplog.text and "carol" not in caplog.text
    assert "README.md" not in caplog.text  # `alice/small` is its name, and everybody's to see
    other = run.following(run.recipe.model_copy(update={"name": "of-alice x alice"}))
    publish(other, "alice/small", dry_run=True)
    assert "README.md names this machine or its user" in caplog.text
