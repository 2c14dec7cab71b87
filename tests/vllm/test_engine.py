"""The vllm engine does what every engine has to do; one core serves all of these tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
import pytest_asyncio

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from dto.engines import open_engine
from dto.errors import EngineError
from dto.protocols import Engine
from dto.recipe import ModelSettings
from tests.engines.conformance import CONTEXT, GREEDY, Conformance, endless
from tests.engines.served import Served

ROUND_TRIPS = 50  # each between two steps of the core, of which an endless request takes hundreds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncGenerator[Engine]:
    before = dict(os.environ)
    serving = open_engine(ModelSettings(engine="vllm", context=CONTEXT))
    async with serving:
        assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in set(os.environ) - set(before)
        yield serving


@pytest.mark.asyncio(loop_scope="module")
class TestVLLM(Conformance):
    async def assert_idle(self, engine: Engine) -> None:
        core = engine._llm.engine_core  # type: ignore[attr-defined]
        for _ in range(ROUND_TRIPS):
            if not await core.call_utility_async("has_work"):
                return
        raise AssertionError("an aborted request is still computed")

    async def test_a_request_that_vllm_refuses_is_a_failed_row(
        self, engine: Engine, prompts: list[list[int]]
    ) -> None:
        (refused,) = await engine.complete([10**6], GREEDY)
        assert refused.finish_reason == "failed" and "out of vocabulary" in refused.error
        (refused,) = await engine.complete(prompts[0], replace(GREEDY, json_schema={"type": 3}))
        assert refused.finish_reason == "failed" and refused.error
        assert (await engine.complete(prompts[0], GREEDY))[0].finish_reason != "failed"

    async def test_more_logprobs_than_there_are_is_an_error(
        self, engine: Engine, prompts: list[list[int]]
    ) -> None:
        with pytest.raises(EngineError, match="logprobs is 21"):
            await engine.complete(prompts[0], replace(GREEDY, logprobs=21))

    async def test_leaving_fails_what_is_under_way(
        self, engine: Engine, nano: Served, prompts: list[list[int]]
    ) -> None:
        """The last test: it closes the engine."""
        task = asyncio.create_task(engine.complete(prompts[0], endless(engine, nano)))
        await asyncio.sleep(0.05)
        await engine.__aexit__()
        (completion,) = await task
        assert completion.finish_reason == "failed" and "closed" in completion.error
        with pytest.raises(EngineError, match="async with"):
            await engine.complete(prompts[0], GREEDY)


def test_a_model_that_is_not_there_is_one_line(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(EngineError, match="cannot be served by vllm") as error:
        open_engine(ModelSettings(engine="vllm"), str(tmp_path / "missing"))
    assert "\n" not in str(error.value)
    with pytest.raises(EngineError, match="99999"):
        open_engine(ModelSettings(engine="vllm", context=99999))
