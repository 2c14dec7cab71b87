"""The built-in tasks: benchmarks and training sets of the Hub.

To add one, define its `Task` in the file of its answer rule and list it in `TASKS`. A recipe can
name any other dataset, or a task of another package, without that.
"""

from collections.abc import Mapping

from dto.tasks import choices, code, mathematics
from dto.tasks.task import Task

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        mathematics.GSM8K,
        mathematics.MATH,
        mathematics.MATH500,
        mathematics.AIME24,
        mathematics.AIME25,
        mathematics.AMC23,
        mathematics.GAOKAO,
        mathematics.OLYMPIADBENCH,
        choices.GPQA,
        choices.MMLU_PRO,
        mathematics.DEEPSCALER,
        code.HUMANEVAL,
        code.BIGCODEBENCH,
    )
}

__all__ = ["TASKS", "Task"]
