"""Tasks whose answers are mathematics."""

import re

from dto.grading.extract import last_box
from dto.tasks.task import FieldError, Row, Task, text

_BARE = re.compile(r"\\(?:boxed|fbox)\s*([^\s{}$]+)")  # some solutions have \boxed 5, \boxed5


def _after_hashes(row: Row, field: str) -> str:
    """The text behind the last `####`, without thousands separators; empty if there is none."""
    _, hashes, answer = text(row, field).rpartition("####")
    return answer.strip().replace(",", "") if hashes else ""


def _boxed(row: Row, field: str) -> str:
    r"""The content of the last `\boxed{}` of a solution; empty if there is none."""
    solution = text(row, field)
    box = last_box(solution)
    if box is not None:
        return box
    bare = _BARE.findall(solution)
    return bare[-1].rstrip(".,") if bare else ""


def _in_a_row(row: Row, field: str) -> str:
    """The answers of a row's list, joined, without the dollar signs around each."""
    answers = row.get(field)
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        actual = type(answers).__name__ if field in row else "nothing"
        raise FieldError("wrong_type", field, f"field {field!r} holds {actual}, not a list of text")
    return ", ".join(answer.strip().strip("$").strip() for answer in answers)


GSM8K = Task(
    name="gsm8k",
    hub="openai/gsm8k",
    subsets=("main",),
    revision="740312add88f781978c0658806c59bc2815b9866",
    splits={"train": "train", "test": "test"},
    question="question",
    gold=_after_hashes,
    citation="Cobbe et al. 2021, arXiv 2110.14168",
)
"""Grade school word problems, whose answers are integers."""
MATH = Task(
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
    gold=_boxed,
    citation="Hendrycks et al. 2021, arXiv 2103.03874",
)
r"""Competition problems with answers in the `\boxed{}` of their solutions.

The test split is not used: MATH-500 is drawn from it.
"""
MATH500 = Task(
    name="math500",
    hub="HuggingFaceH4/MATH-500",
    revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    splits={"test": "test"},
    citation="Lightman et al. 2023, arXiv 2305.20050",
)
"""500 problems of MATH's test split."""
AIME24 = Task(
    name="aime24",
    hub="HuggingFaceH4/aime_2024",
    revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    splits={"train": "test"},
    citation="Mathematical Association of America, AIME 2024",
)
"""AIME 2024, I and II: 30 problems whose answers are integers from 0 to 999."""
AIME25 = Task(
    name="aime25",
    hub="math-ai/aime25",
    revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
    splits={"test": "test"},
    citation="Mathematical Association of America, AIME 2025",
)
"""AIME 2025, I and II: 30 problems whose answers are integers from 0 to 999."""
AMC23 = Task(
    name="amc23",
    hub="math-ai/amc23",
    revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
    splits={"test": "test"},
    question="question",
    citation="Mathematical Association of America, AMC 12 2023",
)
"""40 problems of AMC 12 A and B, reworded so that the answer is an integer."""
GAOKAO = Task(
    name="gaokao",
    hub="MARIO-Math-Reasoning/Gaokao2023-Math-En",
    splits={"train": "test"},
    question="question",
    citation="Liao et al. 2024, arXiv 2401.08190",
)
"""Gaokao 2023 in English: 385 problems of the college entrance examination."""
OLYMPIADBENCH = Task(
    name="olympiadbench",
    hub="Hothan/OlympiadBench",
    subsets=("OE_TO_maths_en_COMP",),
    revision="91184b52131e7fc9455fef848035173aea8cc01a",
    splits={"train": "test"},
    question="question",
    answer="final_answer",
    gold=_in_a_row,
    citation="He et al. 2024, arXiv 2402.14008",
)
"""The open-ended mathematics of OlympiadBench, in English and without pictures: 674 problems."""
DEEPSCALER = Task(
    name="deepscaler",
    hub="agentica-org/DeepScaleR-Preview-Dataset",
    revision="b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29",
    splits={"train": "train"},
    citation="Luo et al. 2025, DeepScaleR",
)
"""A training set: about 40,000 problems of AIME, AMC, Omni-MATH and STILL."""
