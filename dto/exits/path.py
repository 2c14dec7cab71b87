"""The main path: one response as it grows, paused and continued by an exit policy.

On a `resumable` engine (its noise is a function of seed and position) continuing gives the same
tokens as never pausing. Other engines get a seed derived from the position at each continuation:
the response is then another sample of the same distribution, and still reproducible.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from dto.concurrency import aside
from dto.context import Context
from dto.exits.monitor import kept_tokens
from dto.protocols import Chunk, Completion, Sampling
from dto.records import FinishReason, Span, Trial, derive
from dto.tags import FOREIGN, foreign_detail
from dto.text import INSIDE_CHARACTER, TagReader, char_ends, decode_response
from dto.trajectories import Reading, closes_thinking, read_response
from dto.usage import ModelShape, attention_flops, forward_flops

BROKEN = "\ufffd"  # decoded in place of a character whose tokens are not all there
TAIL_TOKENS = 64  # enough for a tag or a cue with its openers, in any tokenization


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitedResponse:
    """A response under an exit policy, with every token that was generated for it.

    The user gets `token_ids`, which are `leading_ids` to `answer_ids`. `leading_ids` is a
    `<think>` that the model wrote itself. `inserted_ids` is the text that closes the thinking at an
    exit; it is read, not generated. `answer_ids` is the rest, including the model's own `</think>`
    and EOS. `withdrawn` counts tokens of the main path that an exit removed again: the cue or white
    space that made the transition visible, and punctuation that becomes one token with the inserted
    text (:mod:`dto.text`). `would_leave` is the index of the trial at which the policy leaves, or
    in shadow mode would have left; -1 for none.
    """

    prompt_tokens: int
    leading_ids: tuple[int, ...] = ()
    thinking_ids: tuple[int, ...] = ()
    inserted_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()
    conclusion: str = ""
    exit_reason: str
    finish_reason: FinishReason
    withdrawn: int = 0
    trials: tuple[Trial, ...] = ()
    inducer_tokens: int = 0
    would_leave: int = -1
    error: str = ""

    @staticmethod
    def failed(prompt_tokens: int, error: str) -> ExitedResponse:
        """A failed response with the error of its request."""
        return ExitedResponse(
            prompt_tokens=prompt_tokens, exit_reason="failed", finish_reason="failed", error=error
        )

    @property
    def complete(self) -> bool:
        """Whether the thinking was closed and the conclusion is finished."""
        return self.finish_reason == "stop" and self.exit_reason not in ("length", "unclosed")

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Everything in the context after the prompt."""
        return self.leading_ids + self.thinking_ids + self.inserted_ids + self.answer_ids

    @property
    def inserted_tokens(self) -> Span:
        """The inserted text's span of `token_ids`, from the end of the thinking on."""
        start = len(self.leading_ids) + len(self.thinking_ids)
        return Span(start, start + len(self.inserted_ids))

    @property
    def answer_tokens(self) -> int:
        """Generated tokens of the response that are not thinking."""
        return len(self.leading_ids) + len(self.answer_ids)

    @property
    def trial_tokens(self) -> int:
        """Tokens of the trials, and tokens that an exit withdrew."""
        return sum(trial.tokens for trial in self.trials) + self.withdrawn

    def attention_flops(self, shape: ModelShape | None) -> float:
        """Attention FLOPs of prompt, response, trials and withdrawn tokens, each computed once."""
        return sum(attention_flops(shape, start, end) for start, end in self._computed())

    def model_flops(self, shape: ModelShape | None) -> float:
        """Model FLOPs of prompt, response, trials and withdrawn tokens, each computed once."""
        return sum(forward_flops(shape, start, end) for start, end in self._computed())

    def _computed(self) -> Iterator[tuple[int, int]]:
        """The ranges (start, end) of positions that pass through the model.

        A trial reads its prefix from the cache. Its inducer and its tokens are new; the inducer
        counts with its length before the join.
        """
        cut, closed = (self.prompt_tokens + end for end in self.inserted_tokens)
        yield 0, closed + len(self.answer_ids)
        yield cut, cut + self.withdrawn
        for trial in self.trials:
            start = self.prompt_tokens + trial.position
            yield start, start + self.inducer_tokens + trial.tokens


class ResponsePath:
    """One response while it is sampled: its tokens so far, and the requests that continue it.

    `sampling.max_tokens` limits the response, thinking and answer together; the remaining context
    may lower it. Tokens of trials do not count. `finish` is None while the response can continue.
    `closed` says whether the model, or the prompt, closed the thinking. A presence penalty counts
    the whole response so far, across requests, if the engine supports that.
    """

    def __init__(self, prompt_ids: Sequence[int], ctx: Context, sampling: Sampling) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.ctx = ctx
        self.tokenizer = ctx.tokenizer
        room = ctx.engine.context - len(self.prompt_ids)
        self.sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        self.ids: list[int] = []
        self.finish: FinishReason | None = None
        self.tags = ctx.tags
        self.closed = closes_thinking(self.tokenizer, self.prompt_ids, self.tags)
        self.error = ""
        self._close = TagReader(self.tokenizer, self.tags.close)

    @property
    def thinking(self) -> bool:
        """Whether the response can still leave its thinking early."""
        return self.finish is None and not self.closed

    def prefix(self, cut: int) -> tuple[int, ...]:
        """The prompt and the first `cut` tokens of the response."""
        return (*self.prompt_ids, *self.ids[:cut])

    def text(self, last: int = 0) -> str:
        """The text of the response so far, or of its `last` tokens (0: all)."""
        return decode_response(self.tokenizer, self.ids[-last:], self.tags)

    def border(self) -> int:
        """The number of tokens up to the last complete character that is not white space.

        As a :class:`~dto.exits.monitor.Monitor` cuts.
        """
        ends = char_ends(self.tokenizer, self.ids[-TAIL_TOKENS:])
        first = len(self.ids) - len(ends)
        places = [(end, first + i) for i, end in enumerate(ends, 1) if end != INSIDE_CHARACTER]
        text = self.text(last=TAIL_TOKENS)
        return kept_tokens([(0, first), *places], text, len(text.rstrip(BROKEN).rstrip()))

    def whole(self, cut: int) -> int:
        """The last place at or before `cut` that is between two characters and not in a tag."""
        cut -= self.tags.unfinished(self.ids[:cut])
        ids = self.ids[max(0, cut - TAIL_TOKENS) : cut]
        ends = char_ends(self.tokenizer, ids)
        if decode_response(self.tokenizer, ids, self.tags).endswith(BROKEN):
            ends[-1] = INSIDE_CHARACTER
        while ends and ends.pop() == INSIDE_CHARACTER:
            cut -= 1
        return cut

    async def advance(
        self, stop: tuple[str, ...] = (), limit: int | None = None, logprobs: int | None = None
    ) -> Completion:
        """Continue to a stop string, `limit` further tokens, or the end of the response."""
        [step] = await self.ctx.engine.complete(*self._request(stop, limit, logprobs))
        self._take(step)
        return step

    async def stream(self, logprobs: int | None = None) -> AsyncGenerator[Chunk]:
        """Continue to the model's own end, as a stream. Use inside `async with aclosing(...)`."""
        async with aclosing(self.ctx.engine.stream(*self._request((), None, logprobs))) as chunks:
            async for chunk in chunks:
                self._take(chunk)
                yield chunk
                if self.finish is not None:
                    return

    async def conclude(self, prefix: tuple[int, ...], sampling: Sampling) -> Completion:
        """Sample the conclusion after `prefix`, which closes the thinking."""
        [completion] = await self.ctx.engine.complete(prefix, sampling)
        return completion

    def tried(self, trial: Trial) -> None:
        """Called with each trial, in order of position, before the policy decides on it."""

    def _request(
        self, stop: tuple[str, ...], limit: int | None, logprobs: int | None
    ) -> tuple[tuple[int, ...], Sampling]:
        room = self.sampling.max_tokens - len(self.ids)
        seed = self.sampling.seed
        if self.ids and not self.ctx.engine.capabilities.resumable:
            seed = derive(seed, "", "resume", len(self.ids))
        return self.prefix(len(self.ids)), replace(
            self.sampling,
            max_tokens=room if limit is None else min(limit, room),
            seed=seed,
            stop=stop,
            logprobs=logprobs,
            written=len(self.ids),
        )

    def _take(self, step: Chunk) -> None:
        self.ids.extend(step.token_ids)
        if step.finish_reason == "failed":
            self.fail(step.error)
        elif step.finish_reason == "stop" and step.stop is None:
            self.finish = "stop"
        elif len(self.ids) >= self.sampling.max_tokens:
            self.finish = "length"
        self.closed = self._close.read(step.token_ids, step.text) or self.closed

    async def think(self) -> None:
        """Let the model think to its own end, or to the limit."""
        while self.thinking:
            await self.advance()

    def limited(self, max_tokens: int | None) -> bool:
        """Set the limit of the response (None: leave it); return whether it is open at the old one.

        A response that ended at the old limit and not at the new one goes on.
        """
        if max_tokens is None:
            return False
        ended = self.finish == "length" or not self.sampling.max_tokens
        at_limit = ended and len(self.ids) < max_tokens
        self.sampling = replace(self.sampling, max_tokens=max_tokens)
        if at_limit:
            self.finish = None
        return at_limit and not self.closed

    def rewind(self, count: int) -> None:
        """Remove all but the first `count` tokens, which come before `</think>`."""
        del self.ids[count:]
        self.finish, self.closed, self.error = None, False, ""
        self._close = TagReader(self.tokenizer, self.tags.close)

    def fail(self, error: str) -> None:
        """End the path with the error of a request."""
        self.finish, self.error = "failed", error or "the engine gave no reason"

    async def _read(self, ids: Sequence[int], ended: bool) -> Reading:
        prompt, tags = self.prompt_ids, self.tags
        return await aside(len(ids), read_response, self.tokenizer, prompt, ids, tags, ended=ended)

    async def finished(self) -> ExitedResponse:
        """Let the model continue to its own end."""
        while self.finish is None:
            await self.advance()
        reading = await self._read(self.ids, ended=self.finish == "stop")
        span = reading.thinking_tokens
        if reading.foreign is not None and self.finish != "failed":
            self.fail(f"{FOREIGN}: {foreign_detail(self.tags, reading.foreign)}")
        if self.finish == "failed":
            reason = "failed"
        elif reading.closed:
            reason = "closed"
        else:
            reason = "length" if self.finish == "length" else "unclosed"
        return ExitedResponse(
            prompt_tokens=len(self.prompt_ids),
            leading_ids=tuple(self.ids[: span.start]),
            thinking_ids=tuple(self.ids[span.start : span.end]),
            answer_ids=tuple(self.ids[span.end :]),
            conclusion=reading.text[reading.conclusion.start : reading.conclusion.end],
            exit_reason=reason,
            finish_reason=self.finish or "failed",
            error=self.error,
        )

    async def leave(self) -> ExitedResponse:
        """Leave the thinking here, without the white space at its end, and let the model conclude.

        A response whose thinking is over continues to its own end.
        """
        return await (self.concluded(self.border()) if self.thinking else self.finished())

    async def concluded(
        self, cut: int, reason: str = "policy", close: str | None = None
    ) -> ExitedResponse:
        """Keep the first `cut` tokens, close the thinking, and let the model conclude.

        `cut` moves back to a place between two characters, and before an unfinished closing tag.
        The text `close` is put there (None: the prompt `early_close`).
        """
        if close is None:
            close = self.ctx.text("early_close")
        prefix = self.prefix(self.whole(cut))
        start = len(self.prompt_ids)
        joined = self.ctx.join(prefix, close, fixed=start)
        kept = prefix[start : joined.kept]
        leading = (await self._read(kept, ended=False)).thinking_tokens.start
        prefix = (*prefix[: joined.kept], *joined.inserted)
        room = min(self.sampling.max_tokens - cut, self.ctx.engine.context - len(prefix))
        answer_ids: tuple[int, ...] = ()
        finish: FinishReason = "length"
        if room > 0:
            seed, written = derive(self.sampling.seed, "", "conclude", cut), len(prefix) - start
            drawn = replace(self.sampling, max_tokens=room, seed=seed, written=written)
            completion = await self.conclude(prefix, drawn)
            answer_ids, finish = completion.token_ids, completion.finish_reason
            if finish == "failed":
                self.fail(completion.error)
        return ExitedResponse(
            prompt_tokens=len(self.prompt_ids),
            leading_ids=kept[:leading],
            thinking_ids=kept[leading:],
            inserted_ids=joined.inserted,
            answer_ids=answer_ids,
            conclusion=decode_response(self.tokenizer, answer_ids, self.tags),
            exit_reason="failed" if finish == "failed" else reason,
            finish_reason=finish,
            withdrawn=len(self.ids) - len(kept),
            error=self.error,
        )
