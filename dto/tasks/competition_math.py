r"""MATH, its train split: competition problems whose answers stand in `\boxed{}` in the solution.

The test split is left out: MATH-500 is drawn from it.
"""

import re

from dto.grading.extract import last_box
from dto.tasks.task import Row, Task, text

_BARE = re.compile(r"\\(?:boxed|fbox)\s*([^\s{}$]+)")  # some solutions have \boxed 5, \boxed5


def boxed(row: Row, field: str) -> str:
    r"""What the last `\boxed{}` of a solution holds; nothing where it is empty or not there."""
    solution = text(row, field)
    box = last_box(solution)
    if box is not None:
        return box
    bare = _BARE.findall(solution)
    return bare[-1].rstrip(".,") if bare else ""


TASK = Task(
    name="math",
    hub="EleutherAI/hendrycks_math",
    subsets=(
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    ),
    revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
    splits={"train": "train"},
    answer="solution",
    gold=boxed,
    citation="Hendrycks et al. 2021, arXiv 2103.03874",
)
