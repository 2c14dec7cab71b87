"""Between the engine protocol and vLLM's own parameters and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dto.errors import EngineError
from dto.protocols import Sampling
from dto.records import FinishReason


@dataclass(slots=True, eq=False)
class VLLMSample:
    """One request to the core: what has arrived of it, and how much of that went to the caller."""

    limit: int
    name: str = ""
    queue: Any = None
    seen: int = 0
    delivered: int = 0
    cached: int = 0
    ended: bool = False
    aborted: bool = False
    stopped: bool = False

    def note(self, output: Any) -> None:
        """Count what an output brings; a final one brings all, a stream's what is new."""
        self.seen += len(output.outputs[0].token_ids)
        self.cached = output.num_cached_tokens or 0
        self.ended = output.finished
        self.aborted = output.outputs[0].finish_reason == "abort"
        self.stopped = isinstance(output.outputs[0].stop_reason, str)  # seen here, not in the core


def sampling_params(sampling: Sampling, seed: int, limit: int, streaming: bool = False) -> Any:
    """One sample as vLLM is asked for it; text is decoded by us, at the end or piece by piece."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    stops = [stop for stop in sampling.stop if stop]
    greedy = sampling.temperature <= 0
    try:
        schema = sampling.json_schema
        held = None if schema is None else StructuredOutputsParams(json=dict(schema))
        return SamplingParams(
            max_tokens=limit,
            temperature=0.0 if greedy else sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_k=0 if greedy else sampling.top_k,
            min_p=0.0 if greedy else sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            seed=None if greedy else seed,
            stop=stops,
            stop_token_ids=list(sampling.stop_token_ids),
            include_stop_str_in_output=True,
            logprobs=sampling.logprobs,
            flat_logprobs=True,
            logit_bias={token: float("-inf") for token in sampling.banned} or None,
            structured_outputs=held,
            detokenize=bool(stops),
            skip_special_tokens=False,
            output_kind=RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
    except VLLMValidationError as error:
        raise EngineError(f"the vllm engine cannot sample so: {error}") from None


def finish(output: Any) -> tuple[FinishReason, str]:
    """Why a sample ended, and what went wrong where something did."""
    reason = output.outputs[0].finish_reason
    if reason in ("stop", "length"):
        return reason, ""
    return "failed", "engine closed" if reason == "abort" else f"vLLM: finish reason {reason!r}"


def stop_met(output: Any, text: str, sampling: Sampling) -> str | None:
    """The stop string met; of several that one token completed, the one that begins first."""
    met = output.outputs[0].stop_reason
    if not isinstance(met, str):
        return None
    found = [(at, stop) for stop in sampling.stop if stop and (at := text.find(stop)) >= 0]
    return min(found)[1] if found else met


def logprobs(
    output: Any, sampling: Sampling
) -> tuple[tuple[float, ...] | None, tuple[Mapping[int, float], ...] | None]:
    """The sampled tokens' own logprobs, and the most likely ones in order of rank."""
    if sampling.logprobs is None:
        return None, None
    flat = output.outputs[0].logprobs
    own = tuple(flat.logprobs[start] for start in flat.start_indices)
    if not sampling.logprobs:
        return own, None
    top: list[dict[int, float]] = []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        place = slice(start, end)
        ranked = sorted(
            zip(flat.ranks[place], flat.token_ids[place], flat.logprobs[place], strict=True)
        )
        likely = {token: logprob for _, token, logprob in ranked}
        top.append(dict(islice(likely.items(), sampling.logprobs)))
    return own, tuple(top)
