"""Mode compat on our engine beside the lock-step version on raw vLLM, greedily."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks import lockstep
from dto.engines import open_engine
from dto.grading import Grader
from dto.recipe import ModelSettings, resolve
from tests.exits import published

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Iterator[lockstep.Generate]:
    from vllm import LLM

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    llm = LLM(
        resolve("nano"),
        dtype="float32",
        max_model_len=1024,
        max_num_batched_tokens=4096,
        max_num_seqs=32,
        kv_cache_memory_bytes=2**26,
        block_size=32,
        enforce_eager=True,
    )
    yield lockstep.of_vllm(llm)
    llm.llm_engine.engine_core.shutdown()


async def test_the_same_decisions_as_the_lock_step_version(generate: lockstep.Generate) -> None:
    model = ModelSettings(name="nano", engine="vllm", context=1024, slots=32, cache_bytes=2**26)
    async with open_engine(model) as engine, Grader(workers=1) as grader:
        ctx = published.context(engine, grader)
        prompts = published.prompts(ctx)
        for exit in published.EXITS[::2]:
            policy = published.policy_of(**exit)
            ours = await published.by_compat(ctx, policy)
            theirs = await asyncio.to_thread(
                published.by_lockstep, prompts, generate, ctx.tokenizer, policy
            )
            for response, question in zip(ours, theirs, strict=True):
                published.assert_same(response, question, ctx.tokenizer)
            assert sum(len(response.trials) for response in ours) > 3
