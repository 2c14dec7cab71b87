"""Branch-parallel decoding (2504.15895, described, never released): trials beside the main chain.

How a response and its trials are one sequence is told in `dto.engines.linearised`. Departs from the
paper: what loses or wins is decided by who asked for it. A branch leaves when its request ends or
is cancelled, and its keys go with it; a winner's conclusion is one more request, which finds the
prefix that it keeps already computed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from transformers import PreTrainedModel

from dto.engines.batch import Batch
from dto.engines.kv import KVShape
from dto.engines.linearised import Linearised
from dto.engines.transformers import TransformersEngine
from dto.engines.worker import Worker
from dto.errors import EngineError
from dto.protocols import Engine


class BranchedEngine(TransformersEngine):
    """A serving engine's model for the requests of one response, decoded as one sequence.

    The first request is the main chain, and whatever is asked while it runs is a branch off the
    longest prefix that it shares with it. When nothing runs, the next request takes over as main
    chain from what it shares. Requests that share nothing are answered too, without any gain.

    Memory: keys and values of the main chain and of at most `CHAINS` branches. The prompt is read
    once for each response: the engine's prefix cache is not shared.
    """

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine, which has to serve for as long as this one does.

        Raises EngineError for another engine than that of transformers.
        """
        if not isinstance(engine, TransformersEngine):
            raise EngineError(
                f"overlap: branches decodes inside the transformers engine, and {engine.model!r} "
                "is served by another: set model.engine to transformers, or overlap to true"
            )
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
            return Linearised(model, _shape(model), end_ids)

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


def _shape(model: PreTrainedModel) -> KVShape:
    config: Any = model.config
    heads = int(config.num_attention_heads)
    return KVShape(
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        dtype=model.dtype,
        device=model.device,
    )
