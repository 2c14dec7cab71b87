"""Gaokao 2023, mathematics, in English: 385 problems of the college entrance examination."""

from dto.tasks.task import Task

TASK = Task(
    name="gaokao",
    hub="MARIO-Math-Reasoning/Gaokao2023-Math-En",
    splits={"train": "test"},
    question="question",
    citation="Liao et al. 2024, arXiv 2401.08190",
)
