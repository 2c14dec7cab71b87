"""What vLLM is started with, how it is asked for a sample, and how its outputs are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from dto.engines.shared import Cost
from dto.engines.vllm_children import SWITCH
from dto.errors import EngineError
from dto.protocols import Chunk, Sampling
from dto.records import FinishReason
from dto.text import first_stop

if TYPE_CHECKING:
    from dto.recipe import ModelSettings

INSTALL = "make setup-gpu with CUDA, make setup-vllm without"
LOGPROBS = 20  # vLLM's own limit, and that of servers
PREFILL_TOKENS = 4096  # CPU: of all prompts that are read in one step
BLOCK = 32  # CPU: tokens; by default 128, and shorter prefixes are never found again

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    SWITCH: "1",
}
# AsyncLLM's core is a child all the same; without the first, the model is in a child of that child,
# and three processes spin. A second thread makes small models slower, many times over.
_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


def model_arguments(settings: ModelSettings, path: str, cpu: bool) -> dict[str, Any]:
    """Which model, in which precision, with how long a context; a CPU computes in float32."""
    return {
        "model": path,
        "revision": settings.revision,
        "max_model_len": settings.context,
        "dtype": "float32" if cpu and settings.dtype == "auto" else settings.dtype,
    }


def serving_arguments(settings: ModelSettings, cpu: bool, context: int) -> dict[str, Any]:
    """How it is served."""
    common: dict[str, Any] = {
        "enable_prefix_caching": True,
        "max_logprobs": LOGPROBS,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "tensor_parallel_size": settings.tensor_parallel,
    }
    if not cpu:
        return common | {"gpu_memory_utilization": settings.gpu_memory}
    # A seed of its own together with a prompt that is read in parts kills the core on a CPU.
    return common | {
        "enforce_eager": True,
        "kv_cache_memory_bytes": settings.cache_bytes,
        "block_size": BLOCK,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(context, PREFILL_TOKENS),
        "max_num_seqs": settings.slots,
    }


@contextmanager
def environment(cpu: bool = False) -> Iterator[None]:
    """Variables that vLLM and its children read, unless the user has set them; taken back after."""
    wanted = _ENVIRONMENT | (_CPU_ENVIRONMENT if cpu else {})
    added = [key for key in wanted if key not in os.environ]
    os.environ.update({key: wanted[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Quiet, and one line where something goes wrong."""
    logger = logging.getLogger("vllm")
    if logger.level == logging.NOTSET:  # vLLM gives it a level only once an engine starts
        logger.setLevel(logging.ERROR)
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # vLLM raises of every kind
        reason = " ".join(str(error).split())[:400]
        raise EngineError(f"model {name!r} cannot be served by vllm: {reason}") from None


@dataclass(slots=True, eq=False)
class VLLMSample:
    """One request to the core: what it has cost, and whether all of it has arrived."""

    cost: Cost
    limit: int
    name: str = ""
    queue: Any = None
    ended: bool = False

    def note(self, output: Any) -> None:
        """Count what an output brings; a final one brings all, a stream's what is new.

        The core goes on until an abort reaches it, after a stop string as well, which is seen here
        and not in the core.
        """
        completion = output.outputs[0]
        self.cost.generated += len(completion.token_ids)
        self.cost.cached = output.num_cached_tokens or 0
        self.ended = output.finished
        cut = completion.finish_reason == "abort" or isinstance(completion.stop_reason, str)
        self.cost.ended = self.ended and not cut

    def chunk(self, output: Any, sampling: Sampling, text: str, whole: str) -> Chunk:
        """An output whose tokens made `text` readable, of the `whole` where it is the last."""
        completion = output.outputs[0]
        finish: FinishReason | None = None
        error = ""
        if self.ended and completion.finish_reason in ("stop", "length"):
            finish = completion.finish_reason
        elif self.ended:
            finish, error = "failed", f"vLLM: finish reason {completion.finish_reason!r}"
            if completion.finish_reason == "abort":
                error = "engine closed"
        self.cost.failed = finish == "failed"
        self.cost.kept = self.cost.generated
        own, top = logprobs(completion.logprobs, sampling)
        return Chunk(
            token_ids=tuple(completion.token_ids),
            text=text,
            finish_reason=finish,
            prompt_tokens=self.cost.prompt,
            cached_tokens=self.cost.cached,
            stop=stop_met(completion.stop_reason, whole, sampling),
            logprobs=own,
            top_logprobs=top,
            error=error,
        )


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


def stop_met(reason: object, text: str, sampling: Sampling) -> str | None:
    """The stop string met; of several that one token completed, the one that begins first."""
    if not isinstance(reason, str):
        return None
    met = first_stop(text, sampling.stop)
    return met[1] if met else reason


def logprobs(
    flat: Any, sampling: Sampling
) -> tuple[tuple[float, ...] | None, tuple[Mapping[int, float], ...] | None]:
    """The sampled tokens' own logprobs, and the most likely ones in order of rank."""
    if sampling.logprobs is None or flat is None:
        return None, None
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
