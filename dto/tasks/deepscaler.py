"""DeepScaleR's training set: about 40,000 problems of AIME, AMC, Omni-MATH and STILL."""

from dto.tasks.task import Task

TASK = Task(
    name="deepscaler",
    hub="agentica-org/DeepScaleR-Preview-Dataset",
    revision="b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29",
    splits={"train": "train"},
    citation="Luo et al. 2025, DeepScaleR",
)
