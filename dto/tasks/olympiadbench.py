"""OlympiadBench, its open-ended mathematics in English and without pictures: 674 problems."""

from dto.tasks.task import FieldError, Row, Task


def final_answers(row: Row, field: str) -> str:
    """The answers of a row's list, one after the other, without the dollars around each."""
    answers = row.get(field)
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        held = type(answers).__name__ if field in row else "nothing"
        raise FieldError("wrong_type", field, f"field {field!r} holds {held}, not a list of text")
    return ", ".join(answer.strip().strip("$").strip() for answer in answers)


TASK = Task(
    name="olympiadbench",
    hub="Hothan/OlympiadBench",
    subsets=("OE_TO_maths_en_COMP",),
    revision="91184b52131e7fc9455fef848035173aea8cc01a",
    splits={"train": "test"},
    question="question",
    answer="final_answer",
    gold=final_answers,
    citation="He et al. 2024, arXiv 2402.14008",
)
