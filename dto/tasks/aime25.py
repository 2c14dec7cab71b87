"""AIME 2025, I and II: 30 problems whose answers are integers from 0 to 999."""

from dto.tasks.task import Task

TASK = Task(
    name="aime25",
    hub="math-ai/aime25",
    revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
    splits={"test": "test"},
    citation="Mathematical Association of America, AIME 2025",
)
