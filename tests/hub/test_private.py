"""What counts as private, and what a model may have written itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto import tables
from dto.hub.publish import publish
from dto.recipe import make_recipe
from dto.records import PreferencePair
from dto.redact import Private, is_local, last_part, private_of
from dto.runs.run import Run
from tests.hub.server import Hub

KNOWN = {
    "/home/alice/models/mine": "mine",
    "http://gpu7:8000/v1": "http://server.invalid/v1",
    "data/x.jsonl": "x.jsonl",
    "gpu7:8000": "server.invalid",
    "gpu8.alice.example": "server.invalid",
    "/home/alice": "~",
    "/m": "m",
}
PRIVATE = Private(KNOWN, {"s3cretvalue": "A_KEY"})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/models/mine", "mine"),
        ("/home/alice/models/mine/none/p1/000", "mine/none/p1/000"),
        ("content of data/x.jsonl", "content of x.jsonl"),
        ("file:///home/alice/models/mine", "file://mine"),
        ("see /home/alice/notes", "see ~/notes"),
        ("/home/alice2 and x/home/alice", "/home/alice2 and x/home/alice"),
        ("no answer from http://gpu7:8000/v1/completions", "no answer from "
         "http://server.invalid/v1/completions"),
        ("ws://gpu7:8000", "ws://server.invalid"),
        ("cannot resolve gpu8.alice.example.", "cannot resolve server.invalid."),
        ("my-gpu8.alice.example", "my-gpu8.alice.example"),
        ("/m", "m"),
        ("/m/none/p1/000", "m/none/p1/000"),
        ("weights of /m", "weights of m"),
        ("60 km/min, 5 g /m^2, a/m", "60 km/min, 5 g /m^2, a/m"),
        ("mydata/x.jsonl data/x.jsonls", "mydata/x.jsonl data/x.jsonls"),
    ],
)  # fmt: skip
def test_what_is_known_is_replaced_where_it_stands(text: str, shown: str) -> None:
    assert PRIVATE.redact(text) == shown
    assert PRIVATE.redact_all({text: [text, 1]}) == {shown: [shown, 1]}
    assert PRIVATE.found(shown, written_by_us=False) is None
    assert (PRIVATE.found(text, written_by_us=False) is None) == (text == shown)


@pytest.mark.parametrize(
    ("text", "written_by_us", "kind"),
    [
        ("it is s3cretvalue", False, "the value of A_KEY"),
        ("token hf_" + "a1B2" * 9, False, "a key"),
        ("-----BEGIN RSA PRIVATE KEY-----", False, "a key"),
        ("AKIAABCDEFGHIJKLMNOP", False, "a key"),
        ("task-1, ask-me, hf_short", True, None),
        ("cd /usr/local/bin", False, None),
        ("cd /usr/local/bin", True, "the local path 'bin'"),
        ("C:\\Users\\bob\\x.txt", True, "the local path 'x.txt'"),
        ("~/work/x", True, "the local path 'x'"),
        ("https://example.org/data/x and 3/4, and/or, /data", True, None),
        ("openai/gsm8k and m/s", True, None),
    ],
)
def test_what_remains_is_found(text: str, written_by_us: bool, kind: str | None) -> None:
    assert PRIVATE.found(text, written_by_us=written_by_us) == kind


@pytest.mark.parametrize(
    ("value", "local"),
    [
        ("/models/a", True), ("~/a", True), ("../a", True), ("./a", True), ("C:\\a", True),
        ("data/a.jsonl", True), ("here/a", True), ("openai/gsm8k", False), ("chains", False),
        ("a.jsonl", False), ("nano", False),
    ],
)  # fmt: skip
def test_local_names(
    value: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here/a").mkdir(parents=True)
    assert is_local(value) == local
    assert last_part(value) == value.replace("\\", "/").rpartition("/")[2]


def test_what_a_run_makes_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setenv("MY_SERVER_PASS", "not-named")
    monkeypatch.setenv("MY_API_KEY", "0123456789")
    settings = {
        "name": "r",
        "model": {"name": "x/y", "engine": "openai", "server": "http://localhost:1/v1",
                  "system": "/a/b is \\boxed{}", "api_key": "MY_SERVER_PASS"},
        "evaluate": {"models": ["base", "/mnt/second"], "tasks": ["gsm8k", "sets/mine.jsonl"]},
    }  # fmt: skip
    private = private_of(make_recipe(settings), tmp_path / "runs" / "r")
    assert private.secrets.keys() >= {"not-named", "0123456789"}
    replaced = dict(private.replaced)
    for original in ("/home/alice", "/Users/alice", "/mnt/second", "sets/mine.jsonl",
                     "http://localhost:1/v1", str(tmp_path / "runs" / "r")):  # fmt: skip
        assert original in replaced
    assert not {"localhost:1", "/a/b is \\boxed{}", "x/y"} & replaced.keys()
    lengths = [len(original) for original in replaced]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(("user", "refused"), [("ubuntu", False), ("user", False), ("alice", True)])
def test_a_home_that_is_anybodys_is_no_secret_in_what_a_model_wrote(
    user: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", f"/home/{user}")
    monkeypatch.setenv("LOGNAME", user)
    private = private_of(make_recipe({"name": "r"}), tmp_path / "runs" / "r")
    text = f"open('/home/{user}/notes.txt')"
    assert bool(private.found(text, written_by_us=False)) == refused
    assert private.found(text, written_by_us=True)
    assert private.redact(text) == "open('~/notes.txt')"
    assert private.found(f"see {tmp_path}/runs/r/x", written_by_us=False)


def test_what_looks_private_is_told(
    run: Run, hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths that a model may have made up, and the name of whoever publishes, as a word."""
    monkeypatch.setenv("HOME", "/home/bob")
    monkeypatch.setenv("LOGNAME", "alice")
    rows = list(tables.read(run.table("pair"), PreferencePair))
    said = ["cat /home/carol/notes", "alice, f:\\mathbb{R} and a/m", "see C:\\Users\\x"]
    for place, text in enumerate(said):
        values = {name: getattr(rows[place], name) for name in PreferencePair.__slots__}
        rows[place] = PreferencePair(**values | {"chosen": text})
    tables.write(run.table("pair"), PreferencePair, rows)
    publish(run, "alice/small", dry_run=True)
    count = len(rows)
    first = f"'/home/carol' in row {rows[0].id}, column chosen"
    assert (
        f"pair/rows.parquet: 2 of {count} rows hold what looks like a local path: {first}"
        in caplog.text
    )
    name = f"1 of {count} rows hold what looks like a name of this machine: 'alice' in row"
    assert name in caplog.text
    assert "README.md" not in caplog.text  # `alice/small` is its name, and everybody's to see
    other = Run(run.path, run.recipe.model_copy(update={"name": "of-alice x alice"}), False, -1)
    publish(other, "alice/small", dry_run=True)
    assert "README.md: a name of this machine in" in caplog.text


def test_no_two_places_get_one_name(tmp_path: Path) -> None:
    models = ["base", "trained", "/runs/a/model", "/runs/b/model", "/runs/c/trained"]
    settings = {"name": "r", "model": {"name": "/mine/nano"}, "evaluate": {"models": models}}
    private = private_of(make_recipe(settings), tmp_path / "runs" / "r")
    shown = [private.redact(each) for each in models]
    assert shown == ["base", "trained", "model", "model-2", "trained-2"]
    assert private.redact("/runs/b/model/none/p1/000") == "model-2/none/p1/000"
    assert private.redact("/mine/nano") == "nano-2"  # not the embedded one


@pytest.mark.parametrize(
    ("server", "hidden"),
    [
        ("http://gpu7:8000/v1", {"gpu7:8000"}),
        ("http://vllm.corp.example/v1", {"vllm.corp.example"}),
        ("http://10.0.0.7:1/v1", {"10.0.0.7:1", "10.0.0.7"}),
        ("http://model/v1", set()),  # the address is cut, the word is anybody's
        ("http://localhost:8000/v1", set()),
    ],
)
def test_a_host_is_hidden_with_and_without_its_port(
    server: str, hidden: set[str], tmp_path: Path
) -> None:
    settings = {"name": "r", "model": {"engine": "openai", "server": server}}
    private = private_of(make_recipe(settings), tmp_path / "runs" / "r")
    found = {each for each, shown in private.replaced.items() if shown == "server.invalid"}
    assert found == hidden
    assert private.redact(server) == "http://server.invalid/v1"
