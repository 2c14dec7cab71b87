"""GPQA-Diamond: 198 questions of graduate science with four options.

The dataset stands behind a form: accept its terms on the Hub, then log in with `hf auth login`. It
lists the right option first, so the options are shuffled.
"""

from dto.tasks.task import Options, Row, Task, text

_FIELDS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def four(row: Row) -> Options:
    """The right option and the three wrong ones."""
    return Options(tuple(text(row, field) for field in _FIELDS), right=0)


TASK = Task(
    name="gpqa",
    hub="Idavidrein/gpqa",
    subsets=("gpqa_diamond",),
    revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    splits={"train": "test"},
    question="Question",
    answer="Correct Answer",
    options=four,
    seed=0,
    answer_kind="choice",
    kept=("Record ID", "High-level domain", "Subdomain"),
    citation="Rein et al. 2023, arXiv 2311.12022",
)
