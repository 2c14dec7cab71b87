"""`dto calibrate` and `dto evaluate --replay` on the embedded model, as a user types them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml

from dto.recipe import load_recipe
from tests.commands import dto

SMALL = [
    "problems.train=0",
    "problems.dev=12",
    "problems.test=2",
    "evaluate.samples=1",
    "evaluate.max_tokens=160",
    "trace.inducers=[closed]",
    "calibrate.confidences=[answer]",
    "calibrate.max_loss=0.9",
]


@pytest.mark.slow
def test_calibrate_replay_and_evaluate(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dto")
    monkeypatch.chdir(tmp_path)
    changes = [part for change in SMALL for part in ("--set", change)]
    code, out, err = dto("calibrate", "nano", *changes, capsys=capsys)
    assert code == 0, err
    assert "3 choose, 6 certify, 3 held out, 0 failed" in out
    assert "calibrate 6 of 12 dev problems certify; 3 are needed to certify" in caplog.text
    run = Path("runs/calibrate-nano")
    assert load_recipe(run / "recipe.yaml").model.family == "nano"
    policy = run / "calibrate" / "policy.yaml"
    assert yaml.safe_load(policy.read_text())["name"] == "calibrated"

    before = (run / "trace" / "rows.parquet").read_bytes()
    code, again, err = dto("calibrate", str(run), capsys=capsys)
    assert (code, again) == (0, out)
    assert (run / "trace" / "rows.parquet").read_bytes() == before
    code, _, err = dto("calibrate", str(run), "--set", "evaluate.max_tokens=50", capsys=capsys)
    assert code == 1 and "evaluate.max_tokens" in err
    changed = ("--set", "calibrate.max_loss=0.001")
    code, out, err = dto("calibrate", str(run), *changed, capsys=capsys)
    assert code == 0, err
    assert "policy none" in out
    assert (run / "trace" / "rows.parquet").read_bytes() == before

    code, out, err = dto("evaluate", "--replay", str(run), capsys=capsys)
    assert code == 0, err
    assert "exits over 12 problems, replayed" in out
    points = json.loads((run / "replay" / "replay.json").read_text())["points"]
    for other in ('trace.inducers=["inside"]', "trace.every=7", "evaluate.temperature=0.5"):
        code, _, err = dto("evaluate", "--replay", str(run), "--set", other, capsys=capsys)
        assert code == 1 and err.count("\n") == 1
        assert "were recorded with different settings: " + other.partition("=")[0] in err
    assert points[0]["exit"] == "none" and points[0]["more"]["left"] == 0

    exits = f"evaluate.exits=[{{name: none}}, {{file: {policy}}}]"
    once = ("--out", "live", "--set", exits, "--set", "evaluate.models=[base]")
    code, _, err = dto("evaluate", str(run), *once, capsys=capsys)
    assert code == 0, err
    assert [exit.name for exit in load_recipe("live/recipe.yaml").evaluate.exits] == [
        "none",
        "calibrated",
    ]


def test_a_run_without_traces_says_how_to_get_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = dto("evaluate", "--replay", "quickstart", capsys=capsys)
    assert code == 1
    assert "runs/quickstart has no traces: record them with `dto calibrate runs/quickstart`" in err
