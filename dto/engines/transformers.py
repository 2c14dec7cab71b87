"""The engine that is always there: any causal language model of transformers, on CPU or GPU.

One worker thread decodes a running batch that requests join and leave; thousands of coroutines may
wait for it. Results depend neither on scheduling nor on batch-mates: noise is a function of seed
and position, and the logits of a row are the same bit for bit whatever it is computed with (float32
on an x86 CPU with MKL; elsewhere equal up to rounding).

Memory beyond the weights is bounded by `cache_bytes` for the prefix cache and by `kv_bytes` for the
running batch: the longer the requests under way may become, the fewer of them decode together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from dto.engines.batch import Batch
from dto.engines.kv import KVShape, PrefixCache
from dto.engines.linearised import Linearised
from dto.engines.models import context_limit, end_ids, fit, free_bytes
from dto.engines.sampling import Request, Sample
from dto.engines.worker import Worker
from dto.errors import EngineError
from dto.protocols import Capabilities, Chunk, Completion, Prompt, Sampling, TokenIds, unfit
from dto.templates import Arguments, encode_prompt
from dto.text import StopReader
from dto.usage import ModelShape, Usage, attention_flops, charge, forward_flops

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BRANCHING = 2
"""Responses at a time that decode with their trials as one sequence: each has its own cache."""


class TransformersEngine:
    """Serves a model, also one that is being trained.

    The model serves between entering and leaving: it is then in evaluation mode, with this engine's
    attention, and gets both back as they were. The prefix cache lives as long, so weights may
    change between two uses, not within one. One event loop at a time.
    """

    capabilities = Capabilities(logprobs=1000, resumable=True)

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        context: int | None = None,
        slots: int = 128,
        cache_bytes: int = 256 * 2**20,
        kv_bytes: int | None = None,
        template: Arguments | None = None,
    ) -> None:
        """Wrap a model in memory.

        Args:
            model: a causal language model with standard attention.
            tokenizer: its fast tokenizer.
            name: what tables call the model; its own name or path when None.
            context: tokens of prompt and completion; the model's own limit when None.
            slots: requests that decode together.
            cache_bytes: bound of the prefix cache.
            kv_bytes: bound of the running batch's keys and values, kept as long as at least sixteen
                requests fit; when None half of a GPU's free memory, elsewhere 4 GiB.
            template: arguments of the chat template, for prompts of messages.

        Raises:
            EngineError: the tokenizer or the model's architecture cannot be served.
        """
        self.model = name or str(getattr(model, "name_or_path", "")) or type(model).__name__
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise EngineError(
                f"tokenizer of {self.model!r} has no fast version: convert it to a tokenizer.json"
            )
        self.tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self.shape: ModelShape | None = ModelShape.of_model(model)
        self.context = context_limit(self.model, model.config, context)
        self.hf_model: Any = model
        self._tokenizer = tokenizer
        self._backend: Tokenizer = backend
        self._slots = slots
        self._cache_bytes = cache_bytes
        self._kv_bytes = kv_bytes
        self._template = dict(template or {})
        self.end_ids = end_ids(model, tokenizer)
        self._worker: Worker | None = None
        self.branching = asyncio.Semaphore(BRANCHING)
        self._restore: tuple[bool, str] = (False, "")
        self._under_way: dict[Request, None] = {}

    async def __aenter__(self) -> TransformersEngine:
        """Start the worker. Raises EngineError when the model does not fit this engine."""
        if self._worker is not None:
            raise EngineError(f"engine for {self.model!r} is already serving: enter it once")
        config = self.hf_model.config
        self._restore = (self.hf_model.training, config._attn_implementation)
        self.hf_model.eval()
        try:
            shape = fit(self.model, self.hf_model)
        except BaseException:
            self._give_back()
            raise

        def make_batch() -> Batch:
            prefixes = PrefixCache(shape, self._cache_bytes)
            kv_bytes = self._kv_bytes or free_bytes(shape.device)
            return Batch(self.hf_model, shape, prefixes, self._slots, kv_bytes, self.end_ids)

        worker = Worker(make_batch, asyncio.get_running_loop())
        await worker.ready.wait()
        if worker.dead:
            await asyncio.to_thread(worker.close)
            self._give_back()
            raise EngineError(
                f"engine for {self.model!r} cannot start ({worker.dead[:200]}): lower "
                "model.cache_bytes or model.slots"
            )
        self._worker = worker
        self.branching = asyncio.Semaphore(BRANCHING)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop; requests under way come back as failed."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await asyncio.to_thread(worker.close)
            self._give_back()

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times; the samples share one prefill. See the protocol."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._template)
        self._check(sampling)
        if error := unfit(ids, self.context):
            charge(Usage(requests=n, failed=n))
            return [Completion((), "", "failed", len(ids), error=error)] * n
        done = asyncio.get_running_loop().create_future()

        def changed() -> None:
            if not done.done() and all(sample.finish for sample in request.samples):
                done.set_result(None)

        request = self._request(ids, sampling, changed, n, streaming=False)
        self._serving.submit(request)
        try:
            await done
        finally:
            self._settle(request)
        return [self._completion(sample) for sample in request.samples]

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """One sample as it grows. See the protocol."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._template)
        self._check(sampling)
        if error := unfit(ids, self.context):
            charge(Usage(requests=1, failed=1))
            yield Chunk((), "", "failed", len(ids), error=error)
            return
        news = asyncio.Event()
        request = self._request(ids, sampling, news.set, 1, streaming=True)
        (sample,) = request.samples
        self._serving.submit(request)
        delivered = 0
        try:
            while True:
                await news.wait()
                news.clear()
                chunk = self._chunk(sample, delivered)
                if chunk is None:
                    continue
                delivered += len(chunk.token_ids)
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self._settle(request, delivered)

    def branched(self) -> BranchedEngine:
        """Trials beside the main chain of one response, decoded as one sequence."""
        return BranchedEngine(self)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens after the prompt, by one teacher-forced pass.

        Raises EngineError when both together exceed the context, or the worker fails.
        """
        ids, after = tuple(prompt), tuple(continuation)
        if not ids or len(ids) + len(after) > self.context:
            raise EngineError(
                f"score: {len(ids):,} + {len(after):,} tokens do not fit into a context of "
                f"{self.context:,}, or the prompt is empty: shorten them or raise model.context"
            )
        if not after:
            return ()
        done = asyncio.get_running_loop().create_future()

        def changed() -> None:
            if not done.done():
                done.set_result(None)

        request = self._request(ids, Sampling(max_tokens=1), changed, 1, streaming=False)
        request.continuation = after
        (sample,) = request.samples
        self._serving.submit(request)
        try:
            await done
        finally:
            request.cancelled = sample.finish is None
            total = len(ids) + len(after)
            charge(
                Usage(
                    requests=1,
                    failed=int(sample.finish == "failed"),
                    prompt=total,
                    cached=sample.cached_tokens,
                    attention_flops=attention_flops(self.shape, sample.cached_tokens, total - 1),
                    model_flops=forward_flops(self.shape, sample.cached_tokens, total - 1),
                )
            )
        if sample.finish == "failed":
            raise EngineError(f"score: {sample.error}")
        return tuple(sample.logprobs)

    @property
    def _serving(self) -> Worker:
        if self._worker is None:
            raise EngineError(f"engine for {self.model!r} is not serving: use `async with engine`")
        return self._worker

    def _give_back(self) -> None:
        training, implementation = self._restore
        self.hf_model.train(training)
        self.hf_model.set_attn_implementation(implementation)

    def _request(
        self, ids: tuple[int, ...], sampling: Sampling, changed: Any, n: int, streaming: bool
    ) -> Request:
        limit = min(sampling.max_tokens, self.context - len(ids))
        request = Request(ids, sampling, limit, changed, streaming)
        for index in range(n):
            reads = streaming or any(sampling.stop)
            reader = StopReader(self._backend, sampling.stop) if reads else None
            request.samples.append(Sample(request, sampling.seed + index, reader))
        return request

    def _check(self, sampling: Sampling) -> None:
        if sampling.json_schema is not None:
            raise EngineError(
                "the transformers engine cannot hold a model to a JSON schema: use vllm or openai"
            )
        if sampling.max_tokens < 1:
            raise EngineError(f"max_tokens is {sampling.max_tokens}: ask for at least one token")

    def _settle(self, request: Request, delivered: int = 0) -> None:
        """Charge a request that has ended, here or in the worker; free what it still holds."""
        samples = request.samples
        if any(sample.finish is None for sample in samples):
            if self._worker is not None:
                self._worker.cancel(request)
            request.cancelled = True
        failed = sum(sample.finish == "failed" for sample in samples)
        usage = Usage(requests=len(samples), failed=failed)
        length = len(request.prompt)
        for sample in samples:
            if not sample.started:
                continue
            usage.prompt += length
            usage.cached += sample.cached_tokens
            usage.generated += sample.started
            end = length + sample.started - 1
            usage.attention_flops += attention_flops(self.shape, sample.cached_tokens, end)
            usage.model_flops += forward_flops(self.shape, sample.cached_tokens, end)
            if request.cancelled or sample.finish == "failed":
                usage.wasted += sample.started - delivered
        charge(usage)

    def _completion(self, sample: Sample) -> Completion:
        request = sample.request
        length, cached = len(request.prompt), sample.cached_tokens
        if sample.finish is None or sample.finish == "failed":
            return Completion((), "", "failed", length, cached, error=sample.error)
        asked = request.sampling.logprobs
        return Completion(
            token_ids=tuple(sample.token_ids),
            text=self._text(sample.token_ids),
            finish_reason=sample.finish,
            prompt_tokens=length,
            cached_tokens=cached,
            stop=sample.stop,
            logprobs=None if asked is None else tuple(sample.logprobs),
            top_logprobs=tuple(sample.top_logprobs) if asked else None,
        )

    def _chunk(self, sample: Sample, start: int) -> Chunk | None:
        """What came after `start` tokens; None when nothing did."""
        finish = sample.finish  # before the tokens: once it is set they are complete
        end = len(sample.token_ids)
        if end == start and finish is None:
            return None
        text = "".join(sample.pieces[start:end])
        if finish is not None and finish != "failed":
            text = self._text(sample.token_ids)[len("".join(sample.pieces[:start])) :]
        asked = sample.request.sampling.logprobs
        return Chunk(
            token_ids=tuple(sample.token_ids[start:end]),
            text=text,
            finish_reason=finish,
            prompt_tokens=len(sample.request.prompt),
            cached_tokens=sample.cached_tokens,
            stop=sample.stop if finish else None,
            logprobs=None if asked is None else tuple(sample.logprobs[start:end]),
            top_logprobs=tuple(sample.top_logprobs[start:end]) if asked else None,
            error=sample.error if finish else "",
        )

    def _text(self, ids: Sequence[int]) -> str:
        if ids and ids[-1] in self.end_ids:
            ids = ids[:-1]
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text


class BranchedEngine(TransformersEngine):
    """A serving engine's model for the requests of one response, decoded as one sequence.

    Branch-parallel decoding (2504.15895, described, never released). Departs from the paper: what
    loses or wins is decided by who asked for it. A branch leaves when its request ends or is
    cancelled, and its keys go with it; a winner's conclusion is one more request, which finds the
    prefix that it keeps already computed.

    The first request is the main chain, and whatever is asked while it runs is a branch off the
    longest prefix that it shares with it. When nothing runs, the next request takes over as main
    chain from what it shares. Requests that share nothing are answered too, without any gain.

    Memory: keys and values of the main chain and of at most `CHAINS` branches. The prompt is read
    once for each response: the engine's prefix cache is not shared.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        """Wrap an engine, which has to serve for as long as this one does."""
        super().__init__(
            engine.hf_model,
            engine._tokenizer,
            name=engine.model,
            context=engine.context,
            template=engine._template,
        )
        self.end_ids = engine.end_ids
        self._engine = engine

    async def __aenter__(self) -> BranchedEngine:
        """Start a worker, once fewer than `BRANCHING` are under way on the wrapped engine.

        Raises EngineError when that does not serve.
        """
        if self._engine._worker is None:
            raise EngineError(f"engine for {self.model!r} is not serving: enter it before branches")
        model, end_ids = self.hf_model, self.end_ids

        def make_batch() -> Batch:
            return Linearised(model, _kv_shape(model), end_ids)

        await self._engine.branching.acquire()
        self._worker = Worker(make_batch, asyncio.get_running_loop())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop; requests under way come back as failed."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            try:
                await asyncio.to_thread(worker.close)
            finally:
                self._engine.branching.release()


def _kv_shape(model: PreTrainedModel) -> KVShape:
    config: Any = model.config
    heads = int(config.num_attention_heads)
    return KVShape(
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        dtype=model.dtype,
        device=model.device,
    )
