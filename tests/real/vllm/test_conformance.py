"""The vllm engine does on a real model what every engine has to do; one core serves all tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

pytest.importorskip("vllm", reason="vLLM is not installed: make test-real")

from dto.engines import open_engine
from dto.protocols import Engine
from tests.real.conformance import MODEL, RealConformance
from tests.vllm import test_engine

ON_VLLM = MODEL.model_copy(update={"engine": "vllm"})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(overthinks: Path) -> AsyncGenerator[Engine]:
    async with open_engine(ON_VLLM) as serving:
        yield serving


@pytest.mark.asyncio(loop_scope="module")
class TestVLLM(RealConformance, test_engine.TestVLLM):
    pass
