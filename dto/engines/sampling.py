"""Requests in progress, and choosing their next tokens with noise from (seed, position) alone.

Only the worker appends to a sample. The asyncio side reads its lists up to a length that it has
read before, so neither waits for the other.

Each token takes one uniform number. It becomes a token by inverting the cumulative distribution
over the ids that temperature, min-p, top-k and top-p leave (in this order, which is vLLM's). The
alternative, Gumbel noise for every id, costs a hash per row, step and id, and is equally sensitive
to rounding of the logits. The number depends only on seed and position. So a token depends neither
on scheduling nor on the rest of the batch, and continuing a prefix of a stream under the same seed
gives the tokens of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dto.protocols import Sampling
from dto.records import FinishReason
from dto.text import StopReader

ROW = np.dtype(
    [
        ("token", np.int64),  # the last token, whose keys are not computed yet
        ("length", np.int64),  # number of tokens with computed keys
        ("seed", np.uint64),
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("top_k", np.int64),
        ("min_p", np.float64),
    ]
)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(slots=True, eq=False)
class Request:
    """One call: n samples of a prompt, or the score of a continuation.

    `changed` is called on the event loop when a sample has finished, and when `streaming` after
    each token. `limit` is the maximum number of tokens of one sample. A score has one sample, whose
    `logprobs` are those of `continuation`.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    streaming: bool = False
    changed: Callable[[], None] = lambda: None
    continuation: tuple[int, ...] = ()
    cancelled: bool = False
    samples: list[Sample] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The maximum number of tokens of the prompt and one sample together."""
        return len(self.prompt) + self.limit


@dataclass(slots=True, eq=False)
class Sample:
    """One sample of a request. With a reader, `pieces` has one text per token.

    `present` holds the ids that a presence penalty counts, in order; empty without a penalty.
    `finish` is set last, when everything else is final. `started` counts the tokens whose
    computation has started, so it is one ahead of `token_ids` during a step.
    """

    request: Request
    seed: int
    reader: StopReader | None = None
    cached_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[Mapping[int, float]] = field(default_factory=list)
    stop: str | None = None
    error: str = ""
    finish: FinishReason | None = None
    started: int = 0
    present: dict[int, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        if sampling.presence_penalty and sampling.written:
            self.present = dict.fromkeys(self.request.prompt[-sampling.written :])

    def row(self, length: int) -> tuple[float, ...]:
        """Its entry of `ROW`, with the keys of `length` tokens computed."""
        sampling = self.request.sampling
        return (
            0, length, self.seed % 2**64, sampling.temperature, sampling.top_p, sampling.top_k,
            sampling.min_p,
        )  # fmt: skip

    def accept(self, token: int, end_ids: frozenset[int]) -> None:
        """Append the next token, which may end the sample."""
        request = self.request
        ended, stop = token in end_ids, None
        if self.reader is not None:
            piece = ""
            if not ended:
                piece, stop = self.reader.read(token)
            self.pieces.append(piece)
        self.token_ids.append(token)
        if request.sampling.presence_penalty:
            self.present[token] = None
        self.stop = stop
        if ended or stop is not None or token in request.sampling.stop_token_ids:
            self.finish = "stop"
        elif len(self.token_ids) >= request.limit:
            self.finish = "length"

    def fail(self, reason: str) -> None:
        """End the sample as failed."""
        self.error = reason
        self.finish = "failed"


def next_tokens(
    logits: Tensor, samples: Sequence[Sample], rows: NDArray[Any], end_ids: frozenset[int]
) -> None:
    """Choose and record a token for each sample; sets `token` of its row.

    Args:
        logits: [samples, vocabulary], float32; a sample with a non-finite row fails.
        samples: the samples that get a token.
        rows: [samples], of `ROW`.
        end_ids: the ids that end a response.
    """
    finite = torch.isfinite(logits.amax(-1))
    penalties = [sample.request.sampling.presence_penalty for sample in samples]
    allowed = penalised(logits, [[*sample.present] for sample in samples], penalties)
    allowed = _without_banned(allowed, samples)
    tokens = choose(allowed, rows, uniforms(rows["seed"], rows["length"]))
    chosen: list[int] = tokens.tolist()
    rows["token"] = chosen
    if not bool(finite.all()):
        for sample, good in zip(samples, finite.tolist(), strict=True):
            if not good:
                sample.fail("the model's logits are not finite")
    _record_logprobs(logits, tokens, samples)
    for sample, token in zip(samples, chosen, strict=True):
        if sample.finish is None:
            sample.accept(token, end_ids)


def _record_logprobs(logits: Tensor, tokens: Tensor, samples: Sequence[Sample]) -> None:
    at = [i for i, s in enumerate(samples) if s.request.sampling.logprobs is not None]
    if not at:
        return
    logprobs = torch.log_softmax(logits[at], -1)
    own = logprobs.gather(-1, tokens[at][:, None])[:, 0].tolist()
    most = max(samples[i].request.sampling.logprobs or 0 for i in at)
    top = logprobs.topk(min(most, logprobs.shape[-1]), -1)
    values, ids = top.values.tolist(), top.indices.tolist()
    for place, i in enumerate(at):
        samples[i].logprobs.append(own[place])
        if wanted := samples[i].request.sampling.logprobs:
            likely = zip(ids[place][:wanted], values[place][:wanted], strict=True)
            samples[i].top_logprobs.append(dict(likely))


def _without_banned(logits: Tensor, samples: Sequence[Sample]) -> Tensor:
    """A copy of the logits without banned ids; logprobs are read from the original."""
    banned = [s.request.sampling.banned for s in samples]
    if not any(banned):
        return logits
    logits = logits.clone()
    for i, ids in enumerate(banned):
        if ids:
            logits[i, list(ids)] = float("-inf")
    return logits


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for (seed, absolute position) pairs, in steps of 2^-40."""
    key = _mix((seeds + np.uint64(1)) * _GOLDEN)
    bits = _mix(key + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    # With 40 bits, the number stays below 1 when scaled by a sum of probabilities.
    numbers: NDArray[np.float64] = (bits >> np.uint64(24)).astype(np.float64) * 2.0**-40
    return numbers


def choose(logits: Tensor, rows: NDArray[Any], numbers: NDArray[np.float64]) -> Tensor:
    """Choose one token id per row; returns [rows].

    Args:
        logits: [rows, vocabulary], float32.
        rows: [rows], of `ROW`. Temperature 0 is greedy. `top_p` 1 keeps all ids; ids as likely as
            the last kept one are kept too. `top_k` 0 keeps all. `min_p` drops ids less likely than
            this share of the most likely id's probability; 0 keeps all.
        numbers: [rows], from `uniforms`.
    """
    temperature, top_p = rows["temperature"], rows["top_p"]
    top_k, min_p = rows["top_k"], rows["min_p"]
    greedy = temperature <= 0
    if greedy.all():
        return logits.argmax(-1)
    device = logits.device
    scale = torch.as_tensor(np.where(greedy, 1.0, temperature), dtype=logits.dtype, device=device)
    probabilities = torch.softmax(logits / scale[:, None], -1)
    # Filter only rows that request it, since renormalising changes the last bits.
    if len(at := np.flatnonzero(min_p > 0)):
        least = torch.as_tensor(min_p[at], dtype=logits.dtype, device=device)
        probabilities[at] = _min_p(probabilities[at], least)
    if len(at := np.flatnonzero(top_k > 0)):
        kept = torch.as_tensor(top_k[at], device=device)
        probabilities[at] = _top_k(probabilities[at], kept)
    if len(at := np.flatnonzero(top_p < 1)):
        share = torch.as_tensor(top_p[at], dtype=torch.float64, device=device)
        probabilities[at] = _top_p(probabilities[at], share)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    targets = torch.as_tensor(numbers, device=device)[:, None] * cumulative[:, -1:]
    sampled = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    sampled.clamp_(max=logits.shape[-1] - 1)  # rows of nan are out of range
    if not greedy.any():
        return sampled
    return torch.where(torch.as_tensor(greedy, device=device), logits.argmax(-1), sampled)


def penalised(logits: Tensor, present: Sequence[Sequence[int]], penalty: Sequence[float]) -> Tensor:
    """Subtract each row's penalty from its logits [rows, vocabulary] at its present ids, once each.

    The given logits stay unchanged, since logprobs are read from them.
    """
    if not any(penalty):
        return logits
    counts = [len(ids) for ids in present]
    rows = np.repeat(np.arange(len(present)), counts)
    columns = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in present])
    amounts = np.repeat(np.asarray(penalty, dtype=np.float32), counts)
    at = tuple(torch.as_tensor(index, device=logits.device) for index in (rows, columns))
    lowered = logits.clone()
    lowered[at] -= torch.as_tensor(amounts, dtype=logits.dtype, device=logits.device)
    return lowered


def _min_p(probabilities: Tensor, share: Tensor) -> Tensor:
    least = share[:, None] * probabilities.amax(-1, keepdim=True)
    probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def _top_k(probabilities: Tensor, kept: Tensor) -> Tensor:
    kept = kept.clamp(max=probabilities.shape[-1])
    ranked = probabilities.topk(int(kept.max()), -1).values
    least = ranked.gather(-1, (kept - 1)[:, None])
    probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def _top_p(probabilities: Tensor, share: Tensor) -> Tensor:
    # All ids below this floor together have less than 1 - top_p, so none of them is kept. Only the
    # few above it need sorting.
    floor = (1 - share) / probabilities.shape[-1]
    widest = int((probabilities > floor[:, None]).sum(-1).max())
    ranked = probabilities.topk(max(1, widest), -1).values
    before = ranked.cumsum(-1, dtype=torch.float64) - ranked
    kept = (before < share[:, None]).sum(-1).clamp(min=1)
    least = ranked.gather(-1, (kept - 1)[:, None])
    return probabilities.masked_fill(probabilities < least, 0.0)
