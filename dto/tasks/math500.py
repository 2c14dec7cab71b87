"""MATH-500: 500 problems of MATH's test split."""

from dto.tasks.task import Task

TASK = Task(
    name="math500",
    hub="HuggingFaceH4/MATH-500",
    revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    splits={"test": "test"},
    citation="Lightman et al. 2023, arXiv 2305.20050",
)
