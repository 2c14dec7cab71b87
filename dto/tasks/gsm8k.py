"""GSM8K: grade school word problems, whose answers are integers."""

from dto.tasks.task import Row, Task, text


def after_hashes(row: Row, field: str) -> str:
    """What follows the last `####` of a worked answer, without thousands separators; or nothing."""
    _, hashes, answer = text(row, field).rpartition("####")
    return answer.strip().replace(",", "") if hashes else ""


TASK = Task(
    name="gsm8k",
    hub="openai/gsm8k",
    subsets=("main",),
    revision="740312add88f781978c0658806c59bc2815b9866",
    splits={"train": "train", "test": "test"},
    question="question",
    answer="answer",
    gold=after_hashes,
    citation="Cobbe et al. 2021, arXiv 2110.14168",
)
