"""kill -9 during each stage, then the same command again: the same tables, and nobody left over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

from dto.pipeline import STAGES
from dto.runs import manifest
from dto.training.train import json_lines
from tests import warm

pytestmark = pytest.mark.slow(seconds=60)

RECIPE = """
model: {name: nano, family: nano, context: 1024, slots: 16}
window: 4
problems: {train: 8, dev: 2, test: 4}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 256}
estimate: {threshold: 0.3, margin: 0.2, cap: 8, max_tokens: 16}
optimize: {max_tokens: 48}
prune: {rollouts: 2}
pair: {max_length: 1024}
train: {learning_rate: 5.0e-5, beta: 1.0, gamma: 0.3, nll: 5.0, epochs: 1, batch_size: 2,
        evaluations: 2, dev_samples: 1, collapse_points: 100, collapse_truncated: 1.0}
evaluate: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 320, exits: [{name: none},
        {name: deer, policy: deer, monitor: paragraph, inducer: closed, threshold: 0.9}]}
"""
TOGETHER = """
model: {name: nano, family: nano, context: 1024, slots: 16}
window: 4
problems: {train: 10, dev: 0, test: 1}
sample: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 200}
batch: {k: [2, 3]}
train: {method: none}
evaluate: {samples: 1, max_tokens: 16, models: [base]}
"""
DRQA = ("batch", "chain", "label")
DONE = [name for name, stage in STAGES.items() if stage.step and name not in DRQA]
TABLES = [stage for stage in DONE if stage != "train"]
RESPONSE = "<think>\n{0} and one.\n\nWait, {0} + 1.\n</think>\n\n\\boxed{{{0}}}"
ATTEMPTS = 20


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


Command = tuple[str, ...]


def start(arguments: Command, run: Path) -> BaseProcess:
    return warm.process(warm.dto, [*arguments, "--out", str(run)])


def to_the_end(arguments: Command, run: Path) -> None:
    process = start(arguments, run)
    process.join()
    assert process.exitcode == 0


def under_way(directory: Path) -> bool:
    """Whether a stage has finished some of its groups; for training: a step."""
    if directory.name == "train":
        return (directory / "history.jsonl").exists()
    try:
        return b'\n{"key"' in (directory / "journal").read_bytes()
    except OSError:
        return False


def kill_during(stage: str, arguments: Command, run: Path) -> None:
    """Kill a run while the stage is under way; where it was quicker, undo it and try again."""
    for _ in range(ATTEMPTS):
        process = start(arguments, run)
        directory = run / stage
        while process.is_alive() and not under_way(directory) and not manifest.read(directory):
            time.sleep(0.001)
        if process.is_alive():  # looking for its family takes longer than some stages
            os.kill(process.pid, signal.SIGSTOP)
        family = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, f"left over after {stage}: {alive}"
        if manifest.read(run / stage) is None and under_way(run / stage):
            return
        shutil.rmtree(run / stage, ignore_errors=True)
        for later in [*STAGES, "report"][[*STAGES].index(stage) :]:
            shutil.rmtree(run / later, ignore_errors=True)
    pytest.fail(f"could not kill a run during {stage}")


@pytest.mark.timeout(900)
def test_killed_in_every_stage_and_resumed(recipe: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ("run", str(recipe))
    to_the_end(arguments, whole)
    for stage in DONE:
        kill_during(stage, arguments, killed)
    to_the_end(arguments, killed)
    same_tables(TABLES, whole, killed)
    assert (killed / "train/history.jsonl").read_text() == (
        whole / "train/history.jsonl"
    ).read_text()
    steps = [json_lines(run / "train/steps.jsonl") for run in (whole, killed)]
    assert [row["step"] for row in steps[0]] == [*range(1, len(steps[0]) + 1)] != []
    untimed = [[{**row, "tokens_per_second": 0} for row in rows] for rows in steps]
    assert untimed[0] == untimed[1]
    log = (killed / "log.txt").read_text()
    assert log.count(": dto run ") == len(DONE) + 1 and log.endswith(" ended\n")
    assert all(log.count(f" {stage:<9} ") for stage in DONE)
    done = [manifest.read(run) or {} for run in (whole, killed)]
    assert done[0]["stages"].keys() == done[1]["stages"].keys() == set(DONE)
    for stage in DONE:
        assert done[0]["stages"][stage]["digest"] == done[1]["stages"][stage]["digest"]


@pytest.mark.timeout(300)
def test_killed_while_questions_are_asked_together(recipe: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    together = tmp_path / "together.yaml"
    together.write_text(TOGETHER)
    to_the_end(("run", str(together)), whole)
    kill_during("batch", ("run", str(together)), killed)
    to_the_end(("run", str(together)), killed)
    for run in (whole, killed):
        to_the_end(("chain", str(together)), run)
    same_tables(("sample", "batch", "chain"), whole, killed)
    reports = [json.loads((run / "report/report.json").read_text()) for run in (whole, killed)]
    assert reports[0]["batch"] == reports[1]["batch"]


@pytest.mark.timeout(300)
def test_a_killed_import_never_samples(recipe: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    source = tmp_path / "rows.jsonl"
    lines = (
        {"question": f"{number} + 1?", "answer": number + 1, "response": RESPONSE.format(number)}
        for number in range(400)
    )
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("import", str(source), "--model", "nano", "--recipe", str(recipe))
    to_the_end(arguments, whole)
    for stage in ("problems", "sample"):
        kill_during(stage, arguments, killed)
    to_the_end(("sample", str(killed)), killed)
    same_tables(("problems", "sample"), whole, killed)
    rows = pl.read_parquet(killed / "sample/rows.parquet")
    assert rows["ids_from"].unique().to_list() == ["encoded"]
    assert rows.height == 400


def same_tables(stages: Sequence[str], whole: Path, killed: Path) -> None:
    for stage in stages:
        frames = [pl.read_parquet(run / stage / "rows.parquet") for run in (whole, killed)]
        assert_frame_equal(*frames, check_exact=True)
        assert frames[0].height
        assert (killed / stage / "dropped.jsonl").read_bytes() == (
            whole / stage / "dropped.jsonl"
        ).read_bytes()
        assert not (killed / stage / "journal").exists()
