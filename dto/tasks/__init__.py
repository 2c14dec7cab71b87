"""The tasks: benchmarks and training sets of the Hub.

To add one, write its `Task` into the file of its kind of answer and its name into `TASKS`; a recipe
can name any other dataset without.
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
