"""AMC 2023: 40 problems of AMC 12 A and B, reworded so that the answer is an integer."""

from dto.tasks.task import Task

TASK = Task(
    name="amc23",
    hub="math-ai/amc23",
    revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
    splits={"test": "test"},
    question="question",
    citation="Mathematical Association of America, AMC 12 2023",
)
