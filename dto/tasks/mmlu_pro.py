"""MMLU-Pro: 12,032 questions of many subjects with up to ten options, in the published order."""

from string import ascii_uppercase

from dto.tasks.task import FieldError, Options, Row, Task, text


def ten(row: Row) -> Options:
    """The options but those that say N/A, and the right one by its letter.

    Raises FieldError where `answer` and `answer_index` do not name the same option.
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


TASK = Task(
    name="mmlu_pro",
    hub="TIGER-Lab/MMLU-Pro",
    revision="b189ec765aa7ed75c8acfea42df31fdae71f97be",
    splits={"test": "test", "validation": "dev"},
    question="question",
    options=ten,
    answer_kind="choice",
    kept=("question_id", "category", "src"),
    citation="Wang et al. 2024, arXiv 2406.01574",
)
