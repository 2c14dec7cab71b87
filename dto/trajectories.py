"""Convert a question to prompt ids, and the ids of a response to a graded trajectory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dto.concurrency import aside
from dto.prompts import render, render_chat
from dto.protocols import Completion, Graded, Grader, Message
from dto.records import Dropped, Problem, Span, Trajectory
from dto.tags import DEFAULT_TAGS, FOREIGN, ThinkTags, foreign_detail
from dto.text import (
    ThinkingSplit,
    char_ends,
    decode_response,
    split_thinking,
    tokens_within,
    without_quoted_tags,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings

logger = logging.getLogger("dto")

TAIL_TOKENS = 96  # enough to hold a tag and white space, however they are cut into tokens


class Reading(NamedTuple):
    """A response as text, with the character and token spans of its thinking.

    `foreign` holds the tags if they are those of another model; then the spans are meaningless.
    """

    text: str
    thinking: Span
    conclusion: Span
    thinking_tokens: Span
    closed: bool
    foreign: tuple[str, str] | None = None


def prompt_ids(
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    prompt: str = "solve",
) -> tuple[int, ...]:
    """Convert a question to the ids of its prompt, up to the response.

    `prompt` names the file of `prompts/` that asks it (`Problem.prompt`). The chat template is
    applied once and adds the only BOS. Raises DtoError as `render_chat` does.
    """
    user = render(settings.prompt or prompt, settings.family, question=question)
    return chat_ids(user, tokenizer, settings)


def chat_ids(
    user: str, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings
) -> tuple[int, ...]:
    """Convert a user message to ids, with the model's system message. Raises as `prompt_ids`."""
    messages: list[Message] = []
    if settings.system is not None:
        messages.append({"role": "system", "content": settings.system})
    messages.append({"role": "user", "content": user})
    return render_chat(messages, tokenizer, settings.name, settings.template)


def opens_thinking(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tags: ThinkTags = DEFAULT_TAGS
) -> bool:
    """Whether the prompt ends in an open `<think>`, so that the response starts inside it."""
    return prompt_tail(tokenizer, prompt, tags).endswith(tags.open)


def closes_thinking(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tags: ThinkTags = DEFAULT_TAGS
) -> bool:
    """Whether the prompt ends in `</think>`, as templates write it when thinking is disabled."""
    return prompt_tail(tokenizer, prompt, tags).endswith(tags.close)


def prompt_tail(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tags: ThinkTags) -> str:
    """The text at the end of a prompt, without trailing white space."""
    return decode_response(tokenizer, prompt[-TAIL_TOKENS:], tags).rstrip()


def opening(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tags: ThinkTags = DEFAULT_TAGS
) -> str:
    """The text that opens the thinking after a prompt: `<think>`, or nothing if it is open already.

    Some chat templates leave it to the model to write `<think>`.
    """
    return "" if opens_thinking(tokenizer, prompt, tags) else f"{tags.open}\n"


def read_response(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    token_ids: Sequence[int],
    tags: ThinkTags = DEFAULT_TAGS,
    *,
    ended: bool = True,
) -> Reading:
    """Text and spans of a response sampled after `prompt`; `ended`: it was not cut off.

    If a tag is a single token, the same characters in other tokens (a quotation) are ordinary text.
    After a prompt that closes the thinking, a response that does not open it again is all
    conclusion.
    """
    text = decode_response(tokenizer, token_ids, tags)
    marked = without_quoted_tags(tokenizer, token_ids, text, (tags.open, tags.close))
    if closes_thinking(tokenizer, prompt, tags) and not marked.lstrip().startswith(tags.open):
        split = ThinkingSplit(Span(0, 0), Span(0, len(text)), True)
        return Reading(text, split.thinking, split.conclusion, Span(0, 0), True)
    split = split_thinking(marked, opens_thinking(tokenizer, prompt, tags), tags)
    tokens = tokens_within(char_ends(tokenizer, token_ids), split.thinking)
    foreign = tags.foreign(marked, ended=ended)
    return Reading(text, split.thinking, split.conclusion, tokens, split.closed, foreign)


def no_room(prompt: Sequence[int], context: int) -> str:
    """Why a prompt leaves no room for a response; empty where it does."""
    full = len(prompt) >= context
    return f"prompt has {len(prompt):,} tokens, context is {context:,}" if full else ""


async def read_whole(
    prompt: Sequence[int],
    response: Completion,
    tokenizer: PreTrainedTokenizerBase,
    tags: ThinkTags = DEFAULT_TAGS,
) -> tuple[Reading, Graded | None]:
    """A whole response as text and spans, and its grade where there is no conclusion to grade.

    A request that failed is graded `failed` (its error says why), and its text is empty. So is a
    response whose thinking is marked by another model's tags. One that ran out of tokens, or never
    closed its thinking, is `truncated`.
    """
    if response.finish_reason == "failed":
        nothing = Reading("", Span(0, 0), Span(0, 0), Span(0, 0), False)
        return nothing, Graded("failed", "", response.error or "the engine gave no reason")
    ended, ids = response.finish_reason == "stop", response.token_ids
    reading = await aside(len(ids), read_response, tokenizer, prompt, ids, tags, ended=ended)
    if reading.foreign is not None:
        reason = f"{FOREIGN}: {foreign_detail(tags, reading.foreign)}"
        return reading, Graded("failed", "", reason)
    if not ended or not reading.closed:
        return reading, Graded("truncated", "", "")
    return reading, None


async def read_and_grade(
    problem: Problem,
    prompt: Sequence[int],
    response: Completion,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader,
    tags: ThinkTags = DEFAULT_TAGS,
) -> tuple[Reading, Graded]:
    """A whole response (:func:`read_whole`), and its grade by what stands after `</think>`."""
    reading, graded = await read_whole(prompt, response, tokenizer, tags)
    if graded is None:
        conclusion = reading.text[slice(*reading.conclusion)]
        graded = await grader.grade_conclusion(
            conclusion, problem.answer, problem.rule, problem.question
        )
    return reading, graded


async def make_trajectory(
    problem: Problem,
    response: Completion,
    *,
    model: str,
    sample: int,
    seed: int,
    prompt_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader,
    tags: ThinkTags = DEFAULT_TAGS,
) -> Trajectory | Dropped:
    """Make a graded trajectory from one response; a failed response is a row too.

    A response that uses another model's tags is dropped (`foreign_tags`), since its thinking cannot
    be located.
    """
    reading, graded = await read_and_grade(problem, prompt_ids, response, tokenizer, grader, tags)
    row_id = Trajectory.make_id(problem.id, sample)
    if reading.foreign is not None:
        return Dropped(row_id, FOREIGN, foreign_detail(tags, reading.foreign))
    return Trajectory(
        id=row_id,
        problem_id=problem.id,
        model=model,
        sample=sample,
        seed=seed,
        prompt_ids=tuple(prompt_ids),
        token_ids=response.token_ids,
        ids_from=response.ids_from,
        text=reading.text,
        thinking=reading.thinking,
        conclusion=reading.conclusion,
        thinking_tokens=reading.thinking_tokens,
        finish_reason=response.finish_reason,
        grade=graded.grade,
        answer=graded.answer,
        reason=graded.reason
        if graded.grade == "failed" or graded.reason.startswith("grader_")  # wrong: it gave up
        else "",
    )
