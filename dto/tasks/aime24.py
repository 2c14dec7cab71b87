"""AIME 2024, I and II: 30 problems whose answers are integers from 0 to 999."""

from dto.tasks.task import Task

TASK = Task(
    name="aime24",
    hub="HuggingFaceH4/aime_2024",
    revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    splits={"train": "test"},
    citation="Mathematical Association of America, AIME 2024",
)
