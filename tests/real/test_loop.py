"""All stages on a real model that thinks too long, with a handful of word problems."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks.word_problems import problems as word_problems
from dto import tables
from dto.records import EvaluationRow, PreferencePair, Trajectory
from dto.runs import manifest

pytestmark = pytest.mark.timeout(1200)  # the whole run; a minute or two on an idle machine

TRAIN, DEV, TEST = 8, 2, 4
LIMIT = 150  # tokens of a response; most need about a hundred
DEER = {
    "name": "deer",
    "policy": "deer",
    "monitor": "paragraph",
    "inducer": "closed",
    "threshold": 0.8,
}


def recipe(model: Path, questions: Path) -> dict[str, object]:
    return {
        "model": {"name": str(model), "dtype": "bfloat16", "context": 512, "slots": 32},
        "problems": {"source": str(questions), "train": TRAIN, "dev": DEV, "test": TEST},
        "sample": {"samples": 2, "temperature": 0.8, "top_p": 1.0, "max_tokens": LIMIT},
        "estimate": {"threshold": 0.5, "margin": 0.25, "error": 0.1, "cap": 8, "max_tokens": 12},
        "optimize": {"finalizations": 2, "max_tokens": 32},
        "prune": {"rollouts": 2},
        "pair": {"max_length": 512},
        "train": {
            "learning_rate": 1e-3,
            "beta": 1.0,
            "gamma": 0.3,
            "batch_size": 4,
            "epochs": 0.5,
            "lora_rank": 8,
            "bf16": True,
            "gradient_checkpointing": True,
            "evaluations": 1,
            "dev_samples": 1,
            "keep": "last",
            "collapse_points": 100.0,
            "collapse_truncated": 1.0,
        },
        "evaluate": {
            "samples": 1,
            "temperature": 0.8,
            "top_p": 1.0,
            "max_tokens": LIMIT,
            "exits": [{"name": "none"}, DEER],
        },
    }


@pytest.fixture(scope="module")
def run(overthinks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, from the command line."""
    here = tmp_path_factory.mktemp("loop")
    questions, path = here / "words.jsonl", here / "loop.yaml"
    rows = word_problems(seed=100, count=TRAIN + DEV + TEST)
    lines = [json.dumps({"problem": row.question, "answer": str(row.answer)}) for row in rows]
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.write_text(yaml.safe_dump(recipe(overthinks, questions)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "dto.cli", "run", str(path), "--out", str(here / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr, done.stdout)
    return here / "run"


def test_trajectories_reach_pair(run: Path) -> None:
    sampled = list(tables.read(run / "sample" / "rows.parquet", Trajectory))
    grades = Counter(row.grade for row in sampled)
    assert len(sampled) == 2 * TRAIN and not grades["failed"], grades
    pairs = list(tables.read(run / "pair" / "rows.parquet", PreferencePair))
    optimized = [row for row in pairs if row.chosen_from == "optimized"]
    assert len({row.trajectory_id for row in optimized}) >= 4, (grades, len(pairs))
    correct = {row.id for row in sampled if row.grade == "correct"}
    assert all(
        row.chosen_tokens < row.rejected_tokens for row in optimized if row.rejected_id in correct
    )


def test_a_training_step_is_made(run: Path) -> None:
    done = manifest.read(run / "train") or {}
    assert done["steps"] >= 1 and done["kept_step"] == done["steps"]
    assert done["tokens_trained"] > 0
    assert (run / "train" / "model" / "model.safetensors").is_file()


def test_responses_leave_by_deer(run: Path) -> None:
    rows = list(tables.read(run / "evaluate" / "rows.parquet", EvaluationRow))
    assert Counter((row.model, row.exit) for row in rows) == {
        (model, exit): TEST for model in ("base", "trained") for exit in ("none", "deer")
    }
    assert not any(row.grade == "failed" for row in rows)
    left = [row for row in rows if row.exit == "deer" and row.exit_reason == "policy"]
    assert left and all(row.trials for row in left)


def test_the_report_has_every_arm(run: Path) -> None:
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "trained" in page and "deer" in page
