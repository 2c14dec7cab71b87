"""Who judges thinking patterns (2505.21765, section 3): one function each, of one signature.

    async def judge(problem, trajectory, segments, ctx) -> list[Verdict]

`segments` are those that an optimized trajectory keeps, the exit last. A judge gives a verdict with
a score for each that it looked at, and prunes nothing: `redundant`, `meaningless` and `harmful`
propose a removal, the higher the score the sooner. What it could not judge is `unjudged`, with the
reason, and stays. `dto.stages.prune` verifies the proposals and undoes what fails.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, NamedTuple, cast

from dto.concurrency import gather_bounded
from dto.context import Context
from dto.errors import EngineError
from dto.prompts import JUDGE, encode_prompt, render
from dto.protocols import Completion, Engine, Message, Sampling
from dto.records import Problem, Segment, Trajectory, Verdict, VerdictKind
from dto.rollouts import kept_ids, roll_out
from dto.tags import DEFAULT_TAGS, shown_tags, think_tags
from dto.usage import charged_to

SCORES: Mapping[VerdictKind, float] = {
    "harmful": 3.0, "meaningless": 2.0, "redundant": 1.0, "keep": 0.0,
}  # fmt: skip
"""The worse a pattern is said to be, the later it is restored when a test fails."""
REASON: dict[str, Any] = {"type": "string"}
"""What the schema asks of a reason. No length: not every server's schemas have it."""
TEMPLATE_TOKENS = 64
"""Allowance for the chat template of a judge whose tokenizer is not here."""


async def counterfactual(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> list[Verdict]:
    """Leave one pattern out and see whether the answer suffers: a judge that needs no other model.

    2505.21765 asks an auxiliary LLM; here the policy's own success rate at the exit says so. Each
    segment between the first and the last is scored p without it - p with it.

    The opening stays, because nothing else reads like the start of a response, and the exit stays,
    because its success rate is what the version was chosen for. Of longer versions only the last
    `prune.max_segments` are judged. Both rates come from `prune.rollouts` rollouts of their own. A
    segment is worth keeping when the rate falls by more than `prune.harm` without it; else it is
    `harmful` where the rate rises by more than the estimate's margin, and `redundant` where not.
    """
    settings = ctx.recipe.prune
    exit_segment = segments[-1]
    judged = segments[1:-1][-settings.max_segments :]
    if not judged:
        return []

    async def rate_without(left_out: Segment | None) -> float:
        kept = [segment for segment in segments if segment is not left_out]
        ids = kept_ids(trajectory, kept)
        prefix, count = trajectory.prompt_ids + ids, settings.rollouts
        row = exit_segment.id if left_out is None else left_out.id
        seed = ctx.seed(row, "judge")
        return (await roll_out(prefix, problem, ctx, seed, count, written=len(ids))).p

    rate, *rates = await gather_bounded(rate_without(segment) for segment in (None, *judged))
    return [
        _verdict(segment, rate, without, ctx)
        for segment, without in zip(judged, rates, strict=True)
    ]


def _verdict(segment: Segment, rate: float, without: float, ctx: Context) -> Verdict:
    score = without - rate
    if isnan(score):
        return Verdict(segment.index, "unjudged", 0.0, False, "all rollouts failed")
    reason = f"p {rate:.2f} with it, {without:.2f} without"
    if score < -ctx.recipe.prune.harm:
        return Verdict(segment.index, "keep", score, False, reason)
    kind: VerdictKind = "harmful" if score > ctx.recipe.estimate.margin else "redundant"
    return Verdict(segment.index, kind, score, False, reason)


class Said(NamedTuple):
    """The judge's words on one pattern; `unjudged` where they are no verdict."""

    verdict: VerdictKind
    reason: str


async def llm(
    problem: Problem, trajectory: Trajectory, segments: Sequence[Segment], ctx: Context
) -> list[Verdict]:
    """The verdicts of a language model, asked which patterns are redundant, meaningless or harmful.

    The judge of 2505.21765: all patterns of a trajectory go into one request (section 3 names the
    auxiliary LLM, not its prompt; that is ours). Where the judge's engine can hold it to a JSON
    schema it does; the reply is read just as strictly where it cannot. What is not a verdict leaves
    its pattern unjudged, for a reason given. First and last segment are only read.

    Of longer versions only the last `prune.max_segments` are judged. Where prompt and reply do not
    fit into the judge's context, the prompt begins with a later pattern, and those before it are
    unjudged. A request that fails is not made again: all its patterns are unjudged. What the judge
    reads and writes is charged to its own account (:mod:`dto.usage`).

    Raises EngineError for a judge that cannot be asked so at all.
    """
    between = range(1, len(segments) - 1)
    if not between:
        return []
    settings, engine = ctx.recipe.prune, ctx.judge or ctx.engine
    said = {
        position: Said("unjudged", f"not among the last {settings.max_segments} patterns")
        for position in between
    }
    asked = between[-settings.max_segments :]
    reply_tokens = min(settings.max_tokens, engine.context // 2)
    room = engine.context - reply_tokens

    def fits(start: int) -> bool:
        messages = _messages(problem, trajectory, segments, start, asked, ctx)
        return _tokens(messages, engine, ctx) <= room

    def first_shown() -> int:
        return 0 if fits(0) else bisect_left(between, True, key=fits) + between.start

    start = await asyncio.to_thread(first_shown)  # a long trajectory takes a while to encode
    left_out = Said("unjudged", f"no room in the judge's context of {engine.context:,} tokens")
    said |= {position: left_out for position in asked if position < start}
    if asked := range(max(asked.start, start), asked.stop):
        numbers = [position + 1 for position in asked]
        sampling = Sampling(
            max_tokens=reply_tokens,
            temperature=settings.temperature,
            top_p=1.0,
            seed=ctx.seed(trajectory.id, "judge"),
            json_schema=schema(numbers) if engine.capabilities.json_schema else None,
        )
        messages = _messages(problem, trajectory, segments, start, asked, ctx)
        reply = await _ask(engine, messages, sampling)
        if reply.finish_reason == "failed":
            failed = Said("unjudged", _line(f"the judge failed: {reply.error}"))
            found = dict.fromkeys(numbers, failed)
        else:
            found = read_verdicts(reply.text, numbers, _close(ctx))
            unjudged = all(words.verdict == "unjudged" for words in found.values())
            if reply.finish_reason == "length" and unjudged:
                cut = Said("unjudged", f"the reply has no end within {reply_tokens:,} tokens")
                found = dict.fromkeys(numbers, cut)
        said |= {number - 1: words for number, words in found.items()}
    return [
        Verdict(
            segment=segments[position].index,
            verdict=words.verdict,
            score=SCORES.get(words.verdict, 0.0),
            pruned=False,
            reason=words.reason,
        )
        for position, words in said.items()
    ]


async def _ask(engine: Engine, messages: Sequence[Message], sampling: Sampling) -> Completion:
    try:
        with charged_to("judge"):
            (reply,) = await engine.complete(messages, sampling)
    except EngineError as error:
        raise EngineError(f"judge: {error} (prune.temperature, prune.max_tokens)") from None
    return reply


def schema(numbers: Sequence[int]) -> dict[str, Any]:
    """One member for each number: what is held to it can neither leave a pattern out nor repeat it.

    The reason comes first, so that the verdict follows from it.
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
) -> dict[int, Said]:
    """What a reply says of each pattern asked for.

    The reply is one JSON object and nothing else, but thinking before it, up to the first `close`,
    and one code fence around it. Each entry stands for itself: one that is missing, given twice or
    malformed is unjudged, and the others hold; only where the reply names patterns that were not
    asked for in place of some that were, the numbers cannot be trusted, and nothing holds.
    """
    members = _members(text, close)
    if members is None:
        return dict.fromkeys(numbers, Said("unjudged", "the reply is no JSON object"))
    names = [name for name, _ in members]
    asked = {str(number) for number in numbers}
    if (strange := [name for name in names if name not in asked]) and not asked <= {*names}:
        reason = f"the reply is on {_line(strange[0])[:40]!r}, which was not asked for"
        return dict.fromkeys(numbers, Said("unjudged", reason))
    return {
        number: _entry([value for name, value in members if name == str(number)])
        for number in numbers
    }


def _members(text: str, close: str) -> tuple[tuple[str, Any], ...] | None:
    """The members of the JSON object that the text is; objects are tuples, to see what is twice."""
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


def _entry(values: Sequence[Any]) -> Said:
    if len(values) != 1:
        found = "two verdicts" if values else "no verdict"
        return Said("unjudged", f"the reply has {found} on it")
    members = values[0] if isinstance(values[0], tuple) else ()
    given = {"reason": [], "verdict": []} | {name: [] for name, _ in members}
    for name, value in members:
        given[name].append(value)
    match given["verdict"], given["reason"]:
        case [str(verdict)], [str(reason)] if verdict in SCORES:
            return Said(cast("VerdictKind", verdict), _line(reason))
    return Said("unjudged", "the reply's entry on it is not one verdict with one reason")


def _line(text: str) -> str:
    """One line that can be written as UTF-8, which half of a surrogate pair cannot."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def _messages(
    problem: Problem,
    trajectory: Trajectory,
    segments: Sequence[Segment],
    start: int,
    asked: range,
    ctx: Context,
) -> list[Message]:
    """The request on the patterns `asked` for, of which those before `start` are not shown."""
    shown = []
    for position in range(start, len(segments)):
        text = trajectory.text[slice(*segments[position].chars)].strip()
        shown.append(f"<pattern {position + 1}>\n{text}\n</pattern {position + 1}>")
    content = render(
        "patterns",
        JUDGE,
        question=problem.question,
        answer=problem.answer if ctx.recipe.prune.gold else "",
        patterns="\n".join(shown),
        first=str(max(asked.start, start) + 1),
        last=str(asked.stop),
    )
    messages: list[Message] = [{"role": "user", "content": content}]
    if ctx.recipe.judge is not None and ctx.recipe.judge.system:
        messages.insert(0, {"role": "system", "content": ctx.recipe.judge.system})
    return messages


def _close(ctx: Context) -> str:
    """How the judge closes its thinking."""
    if ctx.judge is None or ctx.recipe.judge is None:
        return ctx.tags.close
    if ctx.judge.tokenizer is None:
        return shown_tags(ctx.recipe.judge).close
    return think_tags(ctx.judge.tokenizer, ctx.recipe.judge).close


def _tokens(messages: Sequence[Message], engine: Engine, ctx: Context) -> int:
    """Length of a prompt; where the judge's tokenizer is not here, an estimate by the policy's."""
    if engine.tokenizer is not None:
        settings = ctx.recipe.judge or ctx.recipe.model
        return len(encode_prompt(messages, engine.tokenizer, engine.model, settings.template))
    text = "".join(message["content"] for message in messages)
    tokens = len(ctx.tokenizer.encode(text, add_special_tokens=False))
    return tokens * 5 // 4 + TEMPLATE_TOKENS
