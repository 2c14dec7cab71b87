"""HumanEval: 164 Python functions to complete, checked by running them."""

from dto.tasks.task import Task, tests

TASK = Task(
    name="humaneval",
    hub="openai/openai_humaneval",
    revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    splits={"test": "test"},
    question="prompt",
    answer="test",
    gold=tests("prompt"),
    answer_kind="code",
    kept=("task_id", "canonical_solution"),
    citation="Chen et al. 2021, arXiv 2107.03374",
)
