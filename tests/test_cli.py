"""The command line: plans without weights, errors in one line, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dto import tables
from dto.cli import main
from dto.records import Problem, Segment, Trajectory

ROOT = Path(__file__).parents[1]
NANO = ROOT / "dto/nano/weights/nano"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dto(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    old, sys.argv = sys.argv, ["dto", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = old
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_has_a_plan_and_is_short(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = dto("run", "--dry-run", str(path), capsys=capsys)
    assert code == 0
    for word in ("sample", "train", "report", "estimate: d_exit", "\\boxed", "</think>"):
        assert word in out
    assert not (path.parent / "runs").exists() and not Path("runs").exists()
    lines = path.read_text().splitlines()
    assert len(lines) <= 15
    assert lines[0] == f"# dto run pipelines/{path.name}"


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "pipelines/quickstart.yaml"])
def test_packaged_recipes_go_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dto("run", "--dry-run", name, capsys=capsys)
    assert code == 0
    assert "quickstart: nano on transformers" in out


def test_the_plan_shows_the_prompt_as_the_model_reads_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = dto("run", "--dry-run", "quickstart", capsys=capsys)
    assert "Start with " in out and "<think>" in out


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("sampel: {samples: 4}", [], "unknown key 'sampel'; allowed: name, seed"),
        ("sample: {n: 4}", [], "unknown key 'sample.n'; allowed: samples, temperature"),
        (
            "evaluate: {exits: [{name: a, treshold: 1}]}",
            [],
            "unknown key 'evaluate.exits.0.treshold'",
        ),
        ("sample: {samples: 0}", [], "sample.samples = 0: Input should be greater than or equal"),
        ("- a", [], "holds list, not a mapping"),
        ("a: [", [], "is not YAML"),
        ("seed: 1", ["--set", "seed"], "write it as key=value"),
        ("seed: 1", ["--set", "seed.x=1"], "'seed.x' cannot be set: 'seed' is a value"),
        ("seed: 1", ["--set", "sample.samples=-1"], "sample.samples = -1"),
        ("problems: {source: no.jsonl}", [], "file no.jsonl does not exist: check the path"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(
    recipe: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text(recipe)
    code, out, err = dto("run", "r.yaml", *arguments, capsys=capsys)
    assert code == 1
    assert err.startswith("dto: error: ") and err.count("\n") == 1
    assert message in err
    assert out == ""


def test_a_missing_recipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = dto("estimate", "no.yaml", capsys=capsys)
    assert (code, err.count("\n")) == (1, 1)
    assert "recipe no.yaml does not exist" in err


def test_settings_can_be_given_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--set", "sample.samples=7", "--set", "problems.train=11", "--set", "seed=5")
    _, out, _ = dto("run", "--dry-run", "quickstart", *arguments, capsys=capsys)
    assert "77 responses" in out and "seed 5" in out


@pytest.mark.skipif(not NANO.is_dir(), reason="the embedded model's weights are not here")
def test_import_enters_at_segment(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text(
        '{"question": "1+1?", "response": "<think>\\nIt is 2.\\n\\nWait, let me check. Yes.\\n'
        '</think>\\n\\n\\\\boxed{2}", "answer": "2"}\n'
        '{"question": "1+1?", "response": "<think>\\nHmm", "answer": "2"}\n'
    )
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", capsys=capsys)
    assert code == 0, err
    rows = list(tables.read(Path("runs/rows/sample/rows.parquet"), Trajectory))
    assert [(row.sample, row.grade, row.ids_from) for row in rows] == [
        (0, "correct", "encoded"),
        (1, "truncated", "encoded"),
    ]
    assert len(list(tables.read(Path("runs/rows/problems/rows.parquet"), Problem))) == 1
    code, _, err = dto("segment", "runs/rows", capsys=capsys)
    assert code == 0, err
    segments = list(tables.read(Path("runs/rows/segment/rows.parquet"), Segment))
    assert [row.cue for row in segments if row.trajectory_id == rows[0].id] == ["", "Wait"]
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", capsys=capsys)
    assert (code, "is finished already" in err) == (1, True)


@pytest.mark.skipif(not NANO.is_dir(), reason="the embedded model's weights are not here")
def test_ctrl_c_keeps_what_was_computed_and_says_how_to_go_on() -> None:
    Path("r.yaml").write_text(
        "model: {name: nano, family: nano, context: 1024, slots: 4}\nwindow: 4\n"
        "sample: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 400}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "dto.cli", "sample", "r.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    journal = Path("runs/r/sample/journal")
    while process.poll() is None and not (journal.exists() and b'\n{"key"' in journal.read_bytes()):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        "dto: interrupted; what was computed is kept, go on with: dto run runs/r"
    )
    assert "Traceback" not in err
    assert b'\n{"key"' in journal.read_bytes()
    assert not Path("runs/r/sample/rows.parquet").exists()
