"""What counts as private, and what a model may have written itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto.recipe import make_recipe
from dto.redact import (
    Redaction,
    dropped_detail,
    failure_kind,
    public_names,
    verdict_reason,
    without_servers,
)

KNOWN = {
    "/home/alice/models/mine": "mine",
    "http://gpu7:8000/v1": "http://server.invalid/v1",
    "data/x.jsonl": "x.jsonl",
    "gpu7:8000": "server.invalid",
    "gpu8.alice.example": "server.invalid",
    "/home/alice": "~",
    "/m": "m",
}
PRIVATE = Redaction(KNOWN, {"s3cretvalue": "A_KEY"})


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
    assert PRIVATE.text(text) == shown
    assert PRIVATE.data({text: [text, 1]}) == {shown: [shown, 1]}
    assert PRIVATE.private_kind(shown, written_by_us=False) is None
    assert (PRIVATE.private_kind(text, written_by_us=False) is None) == (text == shown)


@pytest.mark.parametrize(
    ("text", "written_by_us", "kind"),
    [
        ("it is s3cretvalue", False, "the value of A_KEY"),
        ("token hf_" + "a1B2" * 9, False, "a key"),
        ("-----BEGIN RSA PRIVATE KEY-----", False, "a key"),
        ("AKIAABCDEFGHIJKLMNOP", False, "a key"),
        ("task-1, ask-me, hf_short", True, None),
        ("cd /usr/local/bin", False, None),
        ("cd /usr/local/bin", True, None),
        ("see /home/alice/notes", True, "a local path or a server"),
        ("https://example.org/data/x and 3/4, and/or, /data", True, None),
        ("openai/gsm8k and m/s", True, None),
    ],
)
def test_what_remains_is_found(text: str, written_by_us: bool, kind: str | None) -> None:
    assert PRIVATE.private_kind(text, written_by_us=written_by_us) == kind


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("", ""),
        ("http://gpu7:8000/v1 answered 500: /home/alice/x failed", "HTTP 500"),
        ("Error code: 429 - {'error': {'message': 'org-alice is over its limit'}}", "HTTP 429"),
        ("HTTP/1.1 status code: 503 from gpu7", "HTTP 503"),
        ("request to http://gpu7 failed: ConnectError: gpu7:8000", "ConnectError"),
        ("OSError: No space left on device: '/scratch/alice/x.bin'", "OSError"),
        ("No space left on device: '/scratch/alice/cache/x.bin'", "failed"),
        ("no answer from http://gpu7:8000/v1 in 60 s (model.timeout)", "failed"),
        ("connection to http://gpu7 failed: alice", "failed"),
        ("alice", "failed"),
        ("no_capacity: gpu7", "no_capacity"),
        ("no_gold_answer", "no_gold_answer"),
        ("grader_timeout", "grader_timeout"),
        ("sandbox_landlock: /home/alice/x", "sandbox_landlock"),
        ("sandbox_bwrap: it does not start", "sandbox_bwrap"),
        ("unreadable_gold: test: SyntaxError", "unreadable_gold: test: SyntaxError"),
        ("time_limit unisolated", "time_limit unisolated"),
        ("killed by SIGKILL", "killed by SIGKILL"),
        ("AssertionError", "AssertionError"),
        ("prompt has 5,000 tokens, context is 4,096: shorten it, alice",
         "prompt has 5,000 tokens, context is 4,096"),
        ('batch/out.jsonl, custom_id q-7: the request failed: {"message": "You (org-alice) have no '
         'quota", "code": "insufficient_quota"}', "failed"),
        ("batch/out.jsonl, custom_id q-7: the request failed with status 429", "HTTP 429"),
        ("failed", "failed"),
    ],
)  # fmt: skip
def test_of_an_error_only_the_kind_is_told(reason: str, kind: str) -> None:
    assert failure_kind(reason) == kind == failure_kind(kind)
    for ended in ("failed", "error", "failed_request"):
        assert dropped_detail(ended, reason) == kind
    assert dropped_detail("no_exit", "the best p is 0.20") == "the best p is 0.20"
    assert dropped_detail("missing_field", "row 3: no question") == "row 3: no question"
    assert verdict_reason(f"the judge failed: {reason}") == f"the judge failed: {kind}"
    assert verdict_reason(f"it says 500, {reason}") == f"it says 500, {reason}"


def test_a_pulled_recipe_asks_no_server_and_reads_no_key() -> None:
    settings = {"model": {"server": "http://evil", "api_key": "MINE"}, "judge": {"api_key": "MY"}}
    assert without_servers(settings) == {
        "model": {"server": "http://server.invalid/v1", "api_key": "OPENAI_API_KEY"},
        "judge": {"api_key": "OPENAI_API_KEY"},
    }
    further = {
        "batch": {"teacher": {"server": "http://evil", "api_key": "MINE", "name": "t"}},
        "evaluate": {"server": "http://evil", "samples": 1},
    }
    assert without_servers(further) == {
        "batch": {"teacher": {"server": "http://server.invalid/v1", "api_key": "OPENAI_API_KEY",
                              "name": "t"}},
        "evaluate": {"server": "http://server.invalid/v1", "samples": 1},
    }  # fmt: skip
    untouched = {"batch": {"k": [2]}, "evaluate": {"samples": 1}}
    assert without_servers(untouched) == {"batch": {"k": [2]}, "evaluate": {"samples": 1}}


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
    private = Redaction.of(make_recipe(settings), tmp_path / "runs" / "r")
    assert private.secrets.keys() >= {"not-named", "0123456789"}
    replaced = dict(private.replacements)
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
    private = Redaction.of(make_recipe({"name": "r"}), tmp_path / "runs" / "r")
    text = f"open('/home/{user}/notes.txt')"
    assert bool(private.private_kind(text, written_by_us=False)) == refused
    assert private.private_kind(text, written_by_us=True)
    assert private.text(text) == "open('~/notes.txt')"
    assert private.private_kind(f"see {tmp_path}/runs/r/x", written_by_us=False)


def test_no_two_places_get_one_name(tmp_path: Path) -> None:
    models = ["base", "trained", "/runs/a/model", "/runs/b/model", "/runs/c/trained"]
    settings = {"name": "r", "model": {"name": "/mine/nano"}, "evaluate": {"models": models}}
    private = Redaction.of(make_recipe(settings), tmp_path / "runs" / "r")
    shown = [private.text(each) for each in models]
    assert shown == ["base", "trained", "model", "model-2", "trained-2"]
    assert private.text("/runs/b/model/none/p1/000") == "model-2/none/p1/000"
    assert private.text("/mine/nano") == "nano-2"  # not the embedded one
    assert public_names(["/a/base", "x/y", "base"]) == {
        "x/y": "x/y", "base": "base", "/a/base": "base-2"
    }  # fmt: skip


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
    private = Redaction.of(make_recipe(settings), tmp_path / "runs" / "r")
    found = {each for each, shown in private.replacements.items() if shown == "server.invalid"}
    assert found == hidden
    assert private.text(server) == "http://server.invalid/v1"
