"""From a question to prompt ids, and from the ids of a response to a graded trajectory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dto.errors import DtoError
from dto.grading import Graded, Grader
from dto.prompts import render
from dto.records import FinishReason, IdsFrom, Problem, Span, Trajectory
from dto.text import (
    OPEN_TAG,
    decode_response,
    split_thinking,
    thinking_tokens,
    without_quoted_tags,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.engines.base import Message
    from dto.recipe import ModelSettings

TAIL_TOKENS = 16  # enough to hold `<think>` and white space, however they are cut into tokens


class Reading(NamedTuple):
    """A response as text: character spans over it, and the tokens that are its thinking."""

    text: str
    thinking: Span
    conclusion: Span
    thinking_tokens: Span
    closed: bool


def prompt_ids(
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    prompt: str = "solve",
) -> tuple[int, ...]:
    """The question as the model reads it: its chat template applied once, up to the response.

    `prompt` names the text that asks it (`Problem.prompt`). The template brings the BOS, nothing
    else adds one. Raises DtoError for a tokenizer without a chat template.
    """
    user = render(settings.prompt or prompt, settings.family, question=question)
    return chat_ids(user, tokenizer, settings)


def chat_ids(
    user: str, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings
) -> tuple[int, ...]:
    """A user message as the model reads it; raises as `prompt_ids` does."""
    if not tokenizer.chat_template:
        raise DtoError(
            f"tokenizer of {settings.name!r} has no chat template: use the reasoning version of "
            "the model, or put a chat_template.jinja beside its tokenizer"
        )
    messages: list[Message] = []
    if settings.system is not None:
        messages.append({"role": "system", "content": settings.system})
    messages.append({"role": "user", "content": user})
    encoded: Any = tokenizer.apply_chat_template(
        messages,  # type: ignore[arg-type]
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    return tuple(encoded["input_ids"])


def opens_thinking(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> bool:
    """Whether the prompt ends in an open `<think>`, so that the response starts inside it."""
    return decode_response(tokenizer, prompt[-TAIL_TOKENS:]).rstrip().endswith(OPEN_TAG)


def opening(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> str:
    """What text put after the prompt begins with, to stand in the thinking: `<think>`, or nothing.

    Chat templates that do not open it leave that to the model.
    """
    return "" if opens_thinking(tokenizer, prompt) else f"{OPEN_TAG}\n"


def read_response(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], token_ids: Sequence[int]
) -> Reading:
    """Text and spans of a response that was sampled after `prompt`.

    Where a tag is one token, its spelling in others (a quotation) is text like any other.
    """
    text = decode_response(tokenizer, token_ids)
    marked = without_quoted_tags(tokenizer, token_ids, text)
    split = split_thinking(marked, opens_thinking(tokenizer, prompt))
    tokens = thinking_tokens(tokenizer, token_ids, split.thinking)
    return Reading(text, split.thinking, split.conclusion, tokens, split.closed)


async def read_and_grade(
    problem: Problem,
    prompt: Sequence[int],
    token_ids: Sequence[int],
    finish_reason: FinishReason,
    error: str,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader,
) -> tuple[Reading, Graded]:
    """A whole response as text and spans, and its grade by what stands after `</think>`.

    A request that failed is graded `failed` (`error` says why), and its text is empty. A response
    that ran out of tokens, or never closed its thinking, is `truncated` without asking the grader.
    """
    if finish_reason == "failed":
        nothing = Reading("", Span(0, 0), Span(0, 0), Span(0, 0), False)
        return nothing, Graded("failed", "", error or "the engine gave no reason")
    # A long response takes milliseconds to align: not on the event loop.
    reading = await asyncio.to_thread(read_response, tokenizer, prompt, token_ids)
    if finish_reason == "length" or not reading.closed:
        return reading, Graded("truncated", "", "")
    conclusion = reading.text[slice(*reading.conclusion)]
    return reading, await grader.grade_conclusion(
        conclusion, problem.answer, problem.answer_kind, problem.question
    )


async def make_trajectory(
    problem: Problem,
    *,
    model: str,
    sample: int,
    seed: int,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    ids_from: IdsFrom,
    finish_reason: FinishReason,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader,
    error: str = "",
) -> Trajectory:
    """A graded trajectory from one response, whatever became of it: failed ones are rows too."""
    reading, graded = await read_and_grade(
        problem, prompt_ids, token_ids, finish_reason, error, tokenizer, grader
    )
    return Trajectory(
        id=Trajectory.make_id(problem.id, sample),
        problem_id=problem.id,
        model=model,
        sample=sample,
        seed=seed,
        prompt_ids=tuple(prompt_ids),
        token_ids=tuple(token_ids),
        ids_from=ids_from,
        text=reading.text,
        thinking=reading.thinking,
        conclusion=reading.conclusion,
        thinking_tokens=reading.thinking_tokens,
        finish_reason=finish_reason,
        grade=graded.grade,
        answer=graded.answer,
        reason=graded.reason if graded.grade == "failed" else "",
    )
