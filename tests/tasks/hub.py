"""Stand-ins for datasets of the Hub: folders with the Hub's names, splits and fields.

`datasets` takes a folder `openai/gsm8k` of the working directory for the dataset of that id, so a
test that changes into the folder above it goes the way that a user goes, without a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dto.tasks import TASKS

Row = Mapping[str, Any]

PROGRAM = "def add(a, b):\n    '''Add.'''\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
UNIT_TEST = (
    "import unittest\n\nclass TestCases(unittest.TestCase):\n"
    "    def test_sum(self):\n        self.assertEqual(add(1, 2), 3)\n"
)

ROWS: dict[str, Row] = {
    "gsm8k": {"question": "How many?", "answer": "5 + 5 = <<5+5=10>>10\n#### 1,010"},
    "math": {
        "problem": "What is $x$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": r"As $\boxed{1}$ is wrong, it is $\boxed{\frac{1}{2}}$.",
    },
    "math500": {
        "problem": "What is $x$?",
        "solution": r"\boxed{3}",
        "answer": r"\frac{14}{3}",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "test/algebra/1.json",
    },
    "aime24": {"id": 60, "problem": "Find it.", "solution": "So 204.", "answer": "204"},
    "aime25": {"problem": "Find it.", "answer": "70", "id": "0"},
    "amc23": {"id": 0, "question": "How far?", "answer": 27.0, "url": "https://example.org"},
    "gaokao": {"question": "What is $z$?", "answer": "$1-i$"},
    "olympiadbench": {
        "id": 1606,
        "question": "Find all.",
        "solution": ["Since it is."],
        "final_answer": ["$\\frac{1}{2}$", "3"],
        "is_multiple_answer": True,
        "unit": None,
        "error": None,
    },
    "gpqa": {
        "Question": "Which one?",
        "Correct Answer": "this\n",
        "Incorrect Answer 1": "not that",
        "Incorrect Answer 2": "nor that",
        "Incorrect Answer 3": "nor that either",
        "Record ID": "rec0",
        "High-level domain": "Physics",
        "Subdomain": "Optics",
        "Explanation": "Because.",
    },
    "mmlu_pro": {
        "question_id": 70,
        "question": "Which two?",
        "options": ["one", "two", "three", "N/A"],
        "answer": "C",
        "answer_index": 2,
        "cot_content": "",
        "category": "law",
        "src": "ori",
    },
    "deepscaler": {"problem": "What is $y$?", "answer": "-\\sqrt{3}", "solution": "So."},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": PROGRAM,
        "canonical_solution": "    return a + b\n",
        "test": CHECK,
        "entry_point": "add",
    },
    "bigcodebench": {
        "task_id": "BigCodeBench/0",
        "complete_prompt": PROGRAM,
        "instruct_prompt": "Add two numbers.",
        "canonical_solution": "    return a + b\n",
        "code_prompt": "def add(a, b):\n",
        "test": UNIT_TEST,
        "entry_point": "add",
        "doc_struct": "{}",
        "libs": "[]",
    },
}


def publish(place: Path, name: str, rows: Sequence[Row] | None = None) -> None:
    """Write below `place` what the Hub has of a task: each config and split with the same rows."""
    task = TASKS[name]
    folder = place / task.hub
    configs = []
    for subset in task.subsets:
        own = folder / (subset or "data")
        own.mkdir(parents=True, exist_ok=True)
        files = []
        for split in task.splits:
            marked = [dict(row) for row in rows or [ROWS[name]]]
            for row in marked:  # no question stands in two splits
                row[task.question] = f"{row[task.question]} ({subset}, {split})"
            pl.DataFrame(marked, infer_schema_length=None).write_parquet(own / f"{split}.parquet")
            files.append({"split": split, "path": f"{own.name}/{split}.parquet"})
        configs.append({"config_name": subset or "default", "data_files": files})
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
