"""The formula of a training's memory against the peaks of real steps (benchmarks/memory.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dto.takes import TOLERANCE

ROOT = Path(__file__).parents[2]
CASES = ("smollm2", "smollm2-lora", "wide-sft-batch", "many-ids", "biased-batch-checkpointing")


def test_the_formula_is_near_what_is_measured(overthinks: Path) -> None:
    """Tied and untied heads, two vocabularies, LoRA, checkpointing, padded batches."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--json", *CASES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["case"] for row in rows] == list(CASES), done.stderr[-2000:]
    assert {row["case"]: row for row in rows if abs(row["ratio"] - 1) > TOLERANCE} == {}
