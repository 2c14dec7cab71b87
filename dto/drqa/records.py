"""The rows of DRQA (2508.17803): responses to batch prompts, chains, labelled chains.

problems → sample, batch → chain → label → train
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dto.records import FinishReason, Grade, IdsFrom, Span, Split
from dto.seeds import content_id

Origin = Literal["vanilla", "batch"]
Verdict = Literal["verbose", "concise", "wrong"]
Letter = Literal["A", "B", "C"]


@dataclass(frozen=True, slots=True)
class BatchResponse:
    """One response to `k` numbered questions; its token ids are the state, as a Trajectory's are.

    Question i (from 1) is `problem_ids[i - 1]`, and so are the entries of `grades`, `answers` and
    `faults`. A grade is that of the answer which the conclusion gives to this number. Where it
    gives none that can be told, the grade is `wrong` and the fault says why; a response that ran
    out of tokens, or never closed its thinking, is `truncated` throughout, a request that failed
    `failed` for the `reason` given.
    """

    id: str  # k / sample / content id of the questions in their order
    problem_ids: tuple[str, ...]
    k: int
    model: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    ids_from: IdsFrom
    text: str
    thinking: Span
    conclusion: Span
    thinking_tokens: Span
    finish_reason: FinishReason
    grades: tuple[Grade, ...]
    answers: tuple[str, ...]
    faults: tuple[str, ...]
    reason: str = ""  # of failed grades, or of a wrong one where the grader gave up

    @staticmethod
    def make_id(sample: int, problem_ids: tuple[str, ...]) -> str:
        """`k/sample/content`, the numbers padded so that ids sort in order."""
        return f"{len(problem_ids):03d}/{sample:03d}/{content_id(*problem_ids)}"


@dataclass(frozen=True, slots=True)
class Chain:
    """The reasoning about one question with its answer, however it was asked.

    `span` is the chain's thinking over the token ids of the source: the Trajectory (`vanilla`, k is
    1) or BatchResponse (`batch`) `source_id`. `text` is that thinking as the judge reads it, whose
    chains look alike whatever their origin (`dto.drqa.alike`); `tokens` counts the span, `length`
    the tokens of `text`. Grades are `correct` or `wrong`: others make no chain.
    """

    id: str  # problem id / origin / k / sample
    problem_id: str
    origin: Origin
    k: int
    sample: int
    number: int  # of the question in its prompt, from 1
    source_id: str
    span: Span
    text: str
    tokens: int
    length: int
    answer: str
    grade: Grade

    @staticmethod
    def make_id(problem_id: str, origin: Origin, k: int, sample: int) -> str:
        """`problem/origin/k/sample`, the numbers padded so that ids sort in order."""
        return f"{problem_id}/{origin}/{k:03d}/{sample:03d}"


@dataclass(frozen=True, slots=True)
class LabelledChain:
    """A chain with the question about it and the letter that is right.

    `options` are the wordings as A, B and C show them: a permutation drawn from `seed`. `prompt` is
    the text of `prompt_ids`. `split` is `train`, or `dev` for the problems whose chains are held
    out to measure judging. Lengths are in tokens.
    """

    id: str  # the chain's id
    problem_id: str
    split: Split
    question: str
    chain: str
    answer: str
    verdict: Verdict
    label: Letter
    options: tuple[str, ...]
    origin: Origin
    k: int
    tokens: int  # that the model generated for the chain
    length: int  # of `chain`
    seed: int
    prompt: str
    prompt_ids: tuple[int, ...]


RECORDS: dict[str, type[Any]] = {"batch": BatchResponse, "chain": Chain, "label": LabelledChain}
"""The record of each stage's table."""
