"""A run on vLLM: killed in the middle, nobody is left over; again, and it is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from dto import tables
from dto.pipeline import STAGES
from dto.recipe import load_recipe
from dto.records import EvaluationRow, ExitEstimate, Trajectory
from dto.runs import manifest

RECIPE = """
model: {name: nano, engine: vllm, context: 1024, slots: 32}
problems: {train: 8, dev: 2, test: 5}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 320}
estimate: {threshold: 0.3, margin: 0.2, cap: 8, max_tokens: 16}
optimize: {max_tokens: 48}
prune: {rollouts: 2}
pair: {max_length: 1024}
train: {epochs: 1, batch_size: 8, evaluations: 1, dev_samples: 1, collapse_points: 100,
        collapse_truncated: 1.0}
evaluate: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 320, exits: [{name: none},
        {name: deer, policy: deer, monitor: paragraph, inducer: closed, threshold: 0.9}]}
"""
NOISE = 20  # lines on the terminal of a whole run


def start(recipe: Path, run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dto.cli", "run", str(recipe), "--out", str(run)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.timeout(900)  # it starts vLLM four times
def test_killed_nobody_is_left_and_again_it_is_whole(tmp_path: Path) -> None:
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    process = start(recipe, run)
    children: dict[int, psutil.Process] = {}
    while process.poll() is None and not any("EngineCore" in name(c) for c in children.values()):
        children |= {c.pid: c for c in psutil.Process(process.pid).children(recursive=True)}
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.communicate()
    _, alive = psutil.wait_procs(list(children.values()), timeout=20)
    alive = [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    for child in alive:
        child.kill()
    assert not alive

    process = start(recipe, run)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert len(errors.splitlines()) <= NOISE, errors
    others = ("batch", "chain", "label")
    stages = [stage.name for stage in STAGES.values() if stage.step and stage.name not in others]
    assert all((run / stage / "manifest.json").exists() for stage in stages)
    assert all(
        row.grade != "failed" and row.ids_from == "sampled"
        for row in tables.read(run / "sample" / "rows.parquet", Trajectory)
    )
    estimates = list(tables.read(run / "estimate" / "rows.parquet", ExitEstimate))
    assert estimates and not any(row.failed for row in estimates)
    rows = list(tables.read(run / "evaluate" / "rows.parquet", EvaluationRow))
    assert {(row.model, row.exit) for row in rows} == {
        (model, exit.name)
        for model in ("base", "trained")
        for exit in load_recipe(recipe).evaluate.exits
    }
    assert len(rows) == 4 * 5 and not any(row.grade == "failed" for row in rows)
    assert any(row.trials for row in rows if row.exit == "deer")
    for stage in ("sample", "estimate", "evaluate"):
        usage = manifest.read(run / stage)["usage"]  # type: ignore[index]
        assert 0 < usage["cached"] < usage["prompt"] and usage["generated"] > usage["wasted"]
