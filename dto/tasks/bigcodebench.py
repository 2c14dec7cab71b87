"""BigCodeBench, asked in words (Instruct): 1,140 programs that use libraries, with unit tests.

The tests need the libraries that the field `libs` names.
"""

from dto.tasks.task import Task, tests

TASK = Task(
    name="bigcodebench",
    hub="bigcode/bigcodebench",
    revision="b74c0d0bf70d2c0bc459be537895cca163007f1a",
    splits={"v0.1.4": "test"},
    question="instruct_prompt",
    answer="test",
    gold=tests("code_prompt"),
    answer_kind="code",
    kept=("task_id", "libs", "canonical_solution"),
    citation="Zhuo et al. 2024, arXiv 2406.15877",
)
