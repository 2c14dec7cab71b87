"""The judge of 2505.21765: a language model says which patterns are needless (`prune.judge: llm`).

It is asked on the engine of the recipe's `judge` group, or else on the policy's. A reply is read
strictly: a pattern without a valid verdict is `unjudged` and stays.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from dto.context import Context
from dto.engines.shared import encode_prompt
from dto.errors import EngineError
from dto.prompts import JUDGE, render
from dto.protocols import Completion, Engine, Message, Sampling
from dto.records import Problem, Segment, Trajectory, Verdict, VerdictKind
from dto.tags import DEFAULT_TAGS, shown_tags, think_tags
from dto.usage import charged_to

SCORES: Mapping[VerdictKind, float] = {
    "harmful": 3.0, "meaningless": 2.0, "redundant": 1.0, "keep": 0.0,
}  # fmt: skip
"""The higher the score, the later a pattern is restored when a test fails."""
REASON: dict[str, Any] = {"type": "string"}
"""The schema of a reason. It limits no length: not every server's schemas can."""
TEMPLATE_TOKENS = 64
"""Allowance for the chat template of a judge whose tokenizer is not available here."""


class Opinion(NamedTuple):
    """The verdict of a language model on one pattern, with its reason."""

    verdict: VerdictKind
    reason: str


async def llm(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> list[Verdict]:
    """Ask a language model which patterns are redundant, meaningless or harmful.

    This is the judge of 2505.21765: one request has all patterns of a trajectory. Section 3 names
    the auxiliary LLM but not its prompt, which is ours. An engine with JSON schemas gets one; the
    reply is read equally strictly without. A pattern without a valid verdict is `unjudged`, with
    the reason. The first and the last segment are shown and not judged.

    The last `prune.max_segments` patterns are judged. A prompt that is too long for the judge's
    context starts at a later pattern; the patterns before it are unjudged. A request that fails is
    not repeated: all its patterns are unjudged. Tokens are charged to the account of the judge
    (:mod:`dto.usage`).

    Raises EngineError when the engine cannot make such a request.
    """
    between = range(1, len(segments) - 1)
    if not between:
        return []
    settings, engine = ctx.recipe.prune, ctx.judge or ctx.engine
    skipped = Opinion("unjudged", f"not among the last {settings.max_segments} patterns")
    opinions = dict.fromkeys(between, skipped)
    judged = between[-settings.max_segments :]
    reply_tokens = min(settings.max_tokens, engine.context // 2)
    room = engine.context - reply_tokens

    def fits(start: int) -> bool:
        messages = _messages(problem, trajectory, segments, start, judged, ctx)
        return _tokens(messages, engine, ctx) <= room

    def first_shown() -> int:
        return 0 if fits(0) else bisect_left(between, True, key=fits) + between.start

    start = await asyncio.to_thread(first_shown)  # a long trajectory takes a while to encode
    no_room = Opinion("unjudged", f"no room in the judge's context of {engine.context:,} tokens")
    opinions |= {position: no_room for position in judged if position < start}
    if judged := range(max(judged.start, start), judged.stop):
        numbers = [position + 1 for position in judged]
        sampling = Sampling(
            max_tokens=reply_tokens,
            temperature=settings.temperature,
            top_p=1.0,
            seed=ctx.seed(trajectory.id, "judge"),
            json_schema=schema(numbers) if engine.capabilities.json_schema else None,
        )
        messages = _messages(problem, trajectory, segments, start, judged, ctx)
        reply = await _ask(engine, messages, sampling)
        if reply.finish_reason == "failed":
            failed = Opinion("unjudged", _line(f"the judge failed: {reply.error}"))
            replies = dict.fromkeys(numbers, failed)
        else:
            replies = read_verdicts(reply.text, numbers, _close(ctx))
            unjudged = all(opinion.verdict == "unjudged" for opinion in replies.values())
            if reply.finish_reason == "length" and unjudged:
                cut = f"the reply does not end within {reply_tokens:,} tokens: raise max_tokens"
                replies = dict.fromkeys(numbers, Opinion("unjudged", cut))
        opinions |= {number - 1: opinion for number, opinion in replies.items()}
    return [
        Verdict(
            segment=segments[position].index,
            verdict=opinion.verdict,
            score=SCORES.get(opinion.verdict, 0.0),
            reason=opinion.reason,
        )
        for position, opinion in opinions.items()
    ]


async def _ask(engine: Engine, messages: Sequence[Message], sampling: Sampling) -> Completion:
    try:
        with charged_to("judge"):
            (reply,) = await engine.complete(messages, sampling)
    except EngineError as error:
        raise EngineError(f"judge: {error} (prune.temperature, prune.max_tokens)") from None
    return reply


def schema(numbers: Sequence[int]) -> dict[str, Any]:
    """The JSON schema of a reply: one required member for each pattern number.

    The reason precedes the verdict, so that the verdict follows from it.
    """
    verdict = {"type": "string", "enum": list(SCORES)}
    entry = _closed_object({"reason": REASON, "verdict": verdict})
    return _closed_object({str(number): entry for number in numbers})


def _closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read_verdicts(
    text: str, numbers: Sequence[int], close: str = DEFAULT_TAGS.close
) -> dict[int, Opinion]:
    """Read a reply: the opinion on the pattern of each number.

    The reply is one JSON object. Before it may be thinking, up to the first `close`, and around it
    one code fence. An entry that is missing, duplicate or malformed is unjudged; the others count.
    Where the reply lacks a number and has another one, no number can be trusted and none counts.
    """
    members = _members(text, close)
    if members is None:
        return dict.fromkeys(numbers, Opinion("unjudged", "the reply is not a JSON object"))
    names = [name for name, _ in members]
    wanted = {str(number) for number in numbers}
    if (other := [name for name in names if name not in wanted]) and not wanted <= {*names}:
        reason = f"the reply has {_line(other[0])[:40]!r}, which is not a number in the request"
        return dict.fromkeys(numbers, Opinion("unjudged", reason))
    return {
        number: _entry([value for name, value in members if name == str(number)])
        for number in numbers
    }


def _members(text: str, close: str) -> tuple[tuple[str, Any], ...] | None:
    """The members of a JSON object. Nested objects are tuples too, which keep duplicate keys."""
    for part in (text, text.partition(close)[2]):
        reply = part.strip()
        if reply.startswith("```") and reply.endswith("```"):
            reply = reply[3:-3].removeprefix("json")
        try:
            value = json.loads(reply, object_pairs_hook=tuple)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, tuple) else None
    return None


def _entry(values: Sequence[Any]) -> Opinion:
    if len(values) != 1:
        count = "two verdicts" if values else "no verdict"
        return Opinion("unjudged", f"the reply has {count} on this pattern")
    members = values[0] if isinstance(values[0], tuple) else ()
    match [[value for key, value in members if key == name] for name in ("verdict", "reason")]:
        case [str(verdict)], [str(reason)] if verdict in SCORES:
            return Opinion(cast("VerdictKind", verdict), _line(reason))
    return Opinion("unjudged", "the reply's entry needs one verdict with one reason")


def _line(text: str) -> str:
    """The text in one line of valid UTF-8: half of a surrogate pair becomes `?`."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def _messages(
    problem: Problem,
    trajectory: Trajectory,
    segments: Sequence[Segment],
    start: int,
    judged: range,
    ctx: Context,
) -> list[Message]:
    """The request to judge patterns, which shows the patterns from `start` on."""
    patterns = []
    for position in range(start, len(segments)):
        text = trajectory.text[slice(*segments[position].chars)].strip()
        patterns.append(f"<pattern {position + 1}>\n{text}\n</pattern {position + 1}>")
    content = render(
        "patterns",
        JUDGE,
        question=problem.question,
        answer=problem.answer if ctx.recipe.prune.gold else "",
        patterns="\n".join(patterns),
        first=str(max(judged.start, start) + 1),
        last=str(judged.stop),
    )
    messages: list[Message] = [{"role": "user", "content": content}]
    if ctx.recipe.judge is not None and ctx.recipe.judge.system:
        messages.insert(0, {"role": "system", "content": ctx.recipe.judge.system})
    return messages


def _close(ctx: Context) -> str:
    """The tag that closes the thinking of the judge."""
    if ctx.judge is None or ctx.recipe.judge is None:
        return ctx.tags.close
    if ctx.judge.tokenizer is None:
        return shown_tags(ctx.recipe.judge).close
    return think_tags(ctx.judge.tokenizer, ctx.recipe.judge).close


def _tokens(messages: Sequence[Message], engine: Engine, ctx: Context) -> int:
    """Length of a prompt; without a tokenizer of the judge, an estimate by the policy's."""
    if engine.tokenizer is not None:
        settings = ctx.recipe.judge or ctx.recipe.model
        return len(encode_prompt(messages, engine.tokenizer, engine.model, settings.template))
    text = "".join(message["content"] for message in messages)
    tokens = len(ctx.tokenizer.encode(text, add_special_tokens=False))
    return tokens * 5 // 4 + TEMPLATE_TOKENS
