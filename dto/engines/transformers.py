"""The default engine: serves any causal language model of transformers, on CPU or GPU.

One worker thread (two for a small model on a CPU) decodes a running batch, which requests join and
leave; thousands of coroutines may wait for it. Results depend neither on scheduling nor on the rest
of the batch: noise is a function of seed and position, and the logits of a row are bitwise the same
in any batch (float32 on an x86 CPU with MKL; elsewhere equal up to rounding).

Memory beyond the weights is bounded by `cache_bytes` for the prefix cache and `kv_bytes` for the
running batch. The longer the requests may become, the fewer decode together.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from dto.engines.batch import Batch, Workers, worker_count
from dto.engines.kv import ATTENTION, LENGTH_STEP, KVShape, PrefixCache, RowsCache, forward
from dto.engines.linearised import Linearised
from dto.engines.models import load_for_serving, shape_of_model
from dto.engines.sampling import Request, Sample
from dto.engines.shared import (
    Cost,
    check,
    check_score,
    completion_of,
    encode_prompt,
    end_ids,
    failure,
    response_text,
    unfit,
)
from dto.errors import EngineError
from dto.protocols import Capabilities, Chunk, Completion, Prompt, Sampling, TokenIds
from dto.records import FinishReason
from dto.text import StopReader
from dto.usage import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings

_FULL_ATTENTION = {"full_attention", "sliding_attention"}
_PROBE_TOKENS = 8
BRANCHING = 2
"""The number of branched responses at a time; each has its own cache."""


class TransformersEngine:
    """Serves a model in memory, even one in training.

    While the engine is entered, the model is in evaluation mode and uses this engine's attention;
    both are restored on leaving. The prefix cache ends on leaving too, so weights may change
    between two uses but not during one. Between uses, the memory of a GPU is free for other
    processes, such as a training. Use it on one event loop at a time.
    """

    capabilities = Capabilities(logprobs=1000, resumable=True)

    def __init__(
        self,
        settings: ModelSettings,
        name: str | None = None,
        loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    ) -> None:
        """Load the model `name` (None: the settings' name), or wrap one that is in memory.

        The model is a causal language model with standard attention; `name` is its name in the
        tables. `kv_bytes` (None: half of a GPU's free memory, else 4 GiB) holds keys and values,
        but always those of at least sixteen requests. Raises EngineError for a model that cannot be
        loaded, and for an architecture that cannot be served.
        """
        self.model = name or settings.name
        model, tokenizer = loaded or load_for_serving(settings, self.model)
        self.tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self.shape: ModelShape | None = shape_of_model(model)
        self.context = _context_limit(self.model, model.config, settings.context)
        self.hf_model: Any = model
        self._device: torch.device = model.device
        self._loaded_here = loaded is None
        self._tokenizer = tokenizer
        self._settings = settings
        generation = getattr(model, "generation_config", None)
        self.end_ids = end_ids(getattr(generation, "eos_token_id", None), tokenizer)
        self.kv_shape: KVShape | None = None
        self._workers: Workers | None = None
        self.branching = asyncio.Semaphore(BRANCHING)
        self._restore: tuple[bool, str] = (False, "")

    async def __aenter__(self) -> TransformersEngine:
        """Start the workers. Raises EngineError if the model does not work with this engine."""
        if self._workers is not None:
            raise EngineError(f"engine for {self.model!r} is already serving: enter it once")
        config = self.hf_model.config
        self._restore = (self.hf_model.training, config._attn_implementation)
        if self._loaded_here:
            self.hf_model.to(self._device)
        self.hf_model.eval()
        try:
            self.kv_shape = shape = _fit(self.model, self.hf_model)
        except BaseException:
            self._give_back()
            raise

        parameters = self.shape.parameters if self.shape else None
        count = worker_count(parameters, shape.device, self._settings.slots)
        slots = -(-self._settings.slots // count)

        def make_batch() -> Batch:
            prefixes = PrefixCache(shape, self._settings.cache_bytes // count)
            kv_bytes = (self._settings.kv_bytes or _free_bytes(shape.device)) // count
            return Batch(self.hf_model, shape, prefixes, slots, kv_bytes, self.end_ids)

        workers = Workers(make_batch, asyncio.get_running_loop(), count, slots)
        if reason := await workers.ready():
            await asyncio.to_thread(workers.close)
            await asyncio.to_thread(self._give_back)
            raise EngineError(
                f"engine for {self.model!r} cannot start ({reason[:200]}): lower "
                "model.cache_bytes or model.slots"
            )
        self._workers = workers
        self.branching = asyncio.Semaphore(BRANCHING)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop; pending requests come back as failed."""
        if self._workers is not None:
            workers, self._workers = self._workers, None
            await asyncio.to_thread(workers.close)
            await asyncio.to_thread(self._give_back)

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample n times; the samples share one prefill. See the protocol."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._settings.template)
        check(sampling, self.capabilities, "the transformers engine")
        if error := unfit(ids, self.context):
            return [completion_of(failure(ids, error, n))] * n
        request = self._request(ids, sampling, n)
        await self._computed(request)
        return [completion_of(self._chunk(each, 0, each.finish)) for each in request.samples]

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """Stream one sample. See the protocol."""
        ids = encode_prompt(prompt, self._tokenizer, self.model, self._settings.template)
        check(sampling, self.capabilities, "the transformers engine")
        if error := unfit(ids, self.context):
            yield failure(ids, error)
            return
        progress = asyncio.Event()
        request = self._request(ids, sampling, 1, streaming=True)
        request.changed = progress.set
        (sample,) = request.samples
        self._serving.submit(request)
        delivered = 0
        try:
            while True:
                await progress.wait()
                progress.clear()
                finish = sample.finish
                if finish is None and len(sample.token_ids) == delivered:
                    continue
                chunk = self._chunk(sample, delivered, finish)
                delivered += len(chunk.token_ids)
                yield chunk
                if finish is not None:
                    return
        finally:
            self._settle(request, delivered)

    @asynccontextmanager
    async def branched(self) -> AsyncIterator[TransformersEngine]:
        """Decode all requests of one response as a single sequence, with this engine's model.

        This is branch-parallel decoding (2504.15895, described there but never released). Departs
        from the paper: the caller decides which branch wins. A branch and its keys are freed when
        its request ends or is cancelled. The winner's conclusion is one more request, whose prefix
        is already computed.

        The first request is the main chain. Each request made while it runs is a branch off their
        longest shared prefix. When nothing runs, the next request becomes the main chain and reuses
        the shared part. Requests that share nothing work too, without a gain.

        Memory: keys and values of the main chain and at most `CHAINS` branches. The prompt is read
        once per response, since the engine's prefix cache is not shared. At most `BRANCHING`
        responses run at a time. Raises EngineError if this engine is not serving.
        """
        shape = self.kv_shape
        if self._workers is None or shape is None:
            raise EngineError(
                f"engine for {self.model!r} is not serving: use `async with engine` before "
                "engine.branched()"
            )

        def make_batch() -> Linearised:
            return Linearised(self.hf_model, shape, self.end_ids)

        async with self.branching:
            view = copy.copy(self)
            view._workers = workers = Workers(make_batch, asyncio.get_running_loop())
            try:
                yield view
            finally:
                view._workers = None
                await asyncio.to_thread(workers.close)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """Logprobs of the continuation's tokens after the prompt, by one teacher-forced pass.

        Raises EngineError if both together exceed the context, or the worker fails.
        """
        check_score(prompt, continuation, self.context)
        if not continuation:
            return ()
        request = self._request(tuple(prompt), Sampling(max_tokens=1), 1)
        request.continuation = tuple(continuation)
        (sample,) = request.samples
        await self._computed(request)
        if sample.finish == "failed":
            raise EngineError(f"score: {sample.error}")
        return tuple(sample.logprobs)

    @property
    def _serving(self) -> Workers:
        if self._workers is None:
            raise EngineError(f"engine for {self.model!r} is not serving: use `async with engine`")
        return self._workers

    def _give_back(self) -> None:
        training, implementation = self._restore
        self.hf_model.train(training)
        self.hf_model.set_attn_implementation(implementation)
        if self._device.type == "cuda":  # torch would keep what is unused for this process
            if self._loaded_here:
                self.hf_model.to("cpu")
            torch.cuda.empty_cache()

    def _request(
        self, ids: tuple[int, ...], sampling: Sampling, n: int, streaming: bool = False
    ) -> Request:
        limit = min(sampling.max_tokens, self.context - len(ids))
        request = Request(ids, sampling, limit, streaming)
        backend = self._tokenizer.backend_tokenizer
        for index in range(n):
            reads = streaming or any(sampling.stop)
            reader = StopReader(backend, sampling.stop) if reads else None
            request.samples.append(Sample(request, sampling.seed + index, reader))
        return request

    async def _computed(self, request: Request) -> None:
        """Wait until the worker has finished all samples of a request."""
        ended = asyncio.Event()

        def changed() -> None:
            if all(sample.finish for sample in request.samples):
                ended.set()

        request.changed = changed
        self._serving.submit(request)
        try:
            await ended.wait()
        finally:
            self._settle(request)

    def _settle(self, request: Request, delivered: int = 0) -> None:
        """Charge a request that has ended, here or in the worker, and free its slots."""
        samples = request.samples
        request.cancelled = any(sample.finish is None for sample in samples)
        if self._workers is not None:
            self._workers.settle(request)
        scored = len(request.continuation)
        for sample in samples:
            failed = sample.finish == "failed"
            generated = 0 if scored else sample.started
            Cost(
                prompt=len(request.prompt) + scored,
                cached=sample.cached_tokens,
                generated=generated,
                kept=delivered if failed or request.cancelled else generated,
                failed=failed,
                begun=sample.started > 0,
                ended=True,
            ).charge(self.shape)

    def _chunk(self, sample: Sample, start: int, finish: FinishReason | None) -> Chunk:
        """The tokens after `start`. Read `finish` before calling: once set, all is complete."""
        end = len(sample.token_ids)
        text = "".join(sample.pieces[start:end])
        if finish is not None and finish != "failed":
            text = response_text(self._tokenizer, sample.token_ids, self.end_ids)
            text = text[len("".join(sample.pieces[:start])) :]
        wanted = sample.request.sampling.logprobs
        return Chunk(
            token_ids=tuple(sample.token_ids[start:end]),
            text=text,
            finish_reason=finish,
            prompt_tokens=len(sample.request.prompt),
            cached_tokens=sample.cached_tokens,
            stop=sample.stop if finish else None,
            logprobs=None if wanted is None else tuple(sample.logprobs[start:end]),
            top_logprobs=tuple(sample.top_logprobs[start:end]) if wanted else None,
            error=sample.error if finish else "",
        )


def _context_limit(name: str, config: Any, wanted: int | None) -> int:
    """The context length of the settings, or else the model's. Raises EngineError if too long."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - _FULL_ATTENTION:
        raise EngineError(
            f"model {name!r} has layers of kind {', '.join(sorted(kinds - _FULL_ATTENTION))}: the "
            "transformers engine serves standard attention only"
        )
    most = int(getattr(config, "max_position_embeddings", 0) or 2048)
    window = getattr(config, "sliding_window", None)
    if window and (not kinds or "sliding_attention" in kinds):
        most = min(most, int(window))  # within this length a sliding window sees everything
    if wanted is not None and wanted > most:
        raise EngineError(
            f"model.context is {wanted:,}, but {name!r} takes at most {most:,}: lower it"
        )
    return wanted or most


def _fit(name: str, model: PreTrainedModel) -> KVShape:
    """Switch to this engine's attention, and check that the model's logits stay the same."""
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None] % int(model.config.vocab_size)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=True)
        try:
            layers = list(expected.past_key_values.layers)
            first = layers[0].keys
            shape = KVShape(len(layers), first.shape[1], first.shape[3], first.dtype, first.device)
            model.set_attn_implementation(ATTENTION)
            cache = RowsCache(shape.zeros(1, LENGTH_STEP))
            logits = forward(model, cache, ids, ids.new_tensor([range(_PROBE_TOKENS)]), LENGTH_STEP)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise EngineError(
                f"model {name!r} does not work with the transformers engine, which serves standard "
                f"attention only ({reason}): use another engine"
            ) from error
    want = expected.logits[:, -1:].float()
    tolerance = 1e-3 if shape.dtype == torch.float32 else 0.1
    most = tolerance * float(1 + want.abs().max())
    difference = float((logits - want).abs().max())
    if torch.isfinite(want).all() and difference > most:
        # In half precision the logits of some weights differ as much between stock attentions.
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            other = model(input_ids=ids).logits[:, -1:].float()
        model.set_attn_implementation(ATTENTION)
        if difference > 2 * float((other - want).abs().max()):
            raise EngineError(
                f"model {name!r} computes different logits in the transformers engine, which "
                "serves standard attention only: use another engine"
            )
    return shape


def _free_bytes(device: torch.device) -> int:
    """Memory for the running batch: half of a GPU's free memory, else 4 GiB."""
    if device.type != "cuda":
        return 4 * 2**30
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + unused) // 2
