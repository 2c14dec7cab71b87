"""Tasks whose answers are programs, which tests check."""

import json
from collections.abc import Callable

from dto.tasks.task import Row, Task, text


def _tests(prompt: str) -> Callable[[Row, str], str]:
    """A reader of the gold answer under rule `code` (see `Task`).

    `prompt` is the field with the code to complete. White space matters in programs and is kept.
    The answer is empty if one of its parts is.
    """

    def gold(row: Row, field: str) -> str:
        fields = {"prompt": prompt, "test": field, "entry_point": "entry_point"}
        parts = {part: str(row[name]) if text(row, name) else "" for part, name in fields.items()}
        return json.dumps(parts, ensure_ascii=False) if all(parts.values()) else ""

    return gold


HUMANEVAL = Task(
    name="humaneval",
    hub="openai/openai_humaneval",
    revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    splits={"test": "test"},
    question="prompt",
    answer="test",
    gold=_tests("prompt"),
    rule="code",
    kept=("task_id", "canonical_solution"),
    citation="Chen et al. 2021, arXiv 2107.03374",
)
"""164 Python functions to complete."""
BIGCODEBENCH = Task(
    name="bigcodebench",
    hub="bigcode/bigcodebench",
    revision="b74c0d0bf70d2c0bc459be537895cca163007f1a",
    splits={"v0.1.4": "test"},
    question="instruct_prompt",
    answer="test",
    gold=_tests("code_prompt"),
    rule="code",
    kept=("task_id", "libs", "canonical_solution"),
    citation="Zhuo et al. 2024, arXiv 2406.15877",
)
"""Programs described in words (Instruct): 1,140 that use libraries, with unit tests.

The tests need the libraries that the field `libs` names.
"""
