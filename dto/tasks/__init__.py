"""The tasks: benchmarks and training sets of the Hub, each in a module of its own.

To add one, write its module and put it into `TASKS`; a recipe can name any other dataset without.
"""

from collections.abc import Mapping

from dto.tasks import (
    aime24,
    aime25,
    amc23,
    bigcodebench,
    competition_math,
    deepscaler,
    gaokao,
    gpqa,
    gsm8k,
    humaneval,
    math500,
    mmlu_pro,
    olympiadbench,
)
from dto.tasks.task import Task

TASKS: Mapping[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        gsm8k,
        competition_math,
        math500,
        aime24,
        aime25,
        amc23,
        gaokao,
        olympiadbench,
        gpqa,
        mmlu_pro,
        deepscaler,
        humaneval,
        bigcodebench,
    )
}

__all__ = ["TASKS", "Task"]
