"""Tasks whose answers are letters of options."""

from string import ascii_uppercase

from dto.tasks.task import FieldError, Options, Row, Task, text

_FOUR = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _four(row: Row) -> Options:
    """The right option and the three wrong ones."""
    return Options(tuple(text(row, field) for field in _FOUR), right=0)


def _ten(row: Row) -> Options:
    """The options except those that are N/A, and the right one by its letter.

    Raises FieldError if `answer` and `answer_index` name different options.
    """
    texts = row.get("options")
    if not isinstance(texts, list) or not all(isinstance(option, str) for option in texts):
        raise FieldError("wrong_type", "options", "field 'options' holds no list of text")
    letter, index = text(row, "answer"), row.get("answer_index")
    right = ascii_uppercase.find(letter) if len(letter) == 1 else -1
    if right != index or not 0 <= right < len(texts) or texts[right] == "N/A":
        raise FieldError(
            "bad_options", "answer", f"has the answer {letter!r} and the answer_index {index!r}"
        )
    offered = [place for place, option in enumerate(texts) if option != "N/A"]
    return Options(tuple(texts[place].strip() for place in offered), offered.index(right))


GPQA = Task(
    name="gpqa",
    hub="Idavidrein/gpqa",
    subsets=("gpqa_diamond",),
    revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    splits={"train": "test"},
    question="Question",
    answer="Correct Answer",
    options=_four,
    seed=0,
    rule="choice",
    kept=("Record ID", "High-level domain", "Subdomain"),
    citation="Rein et al. 2023, arXiv 2311.12022",
)
"""GPQA-Diamond: 198 questions of graduate science with four options.

The dataset is gated: accept its terms on the Hub, then log in with `hf auth login`. It lists the
right option first, so the options are shuffled.
"""
MMLU_PRO = Task(
    name="mmlu_pro",
    hub="TIGER-Lab/MMLU-Pro",
    revision="b189ec765aa7ed75c8acfea42df31fdae71f97be",
    splits={"test": "test", "validation": "dev"},
    question="question",
    options=_ten,
    rule="choice",
    kept=("question_id", "category", "src"),
    citation="Wang et al. 2024, arXiv 2406.01574",
)
"""12,032 questions of many subjects with up to ten options, in the published order."""
