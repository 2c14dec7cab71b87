"""The transformers engine does what every engine has to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from dto.engines import open_engine
from dto.engines.transformers import TransformersEngine
from dto.protocols import Engine
from dto.recipe import ModelSettings
from tests.engines.conformance import CONTEXT, Conformance

pytestmark = pytest.mark.slow


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[1, 2], ids=["one worker", "two workers"]
)
async def engine(request: pytest.FixtureRequest) -> AsyncGenerator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dto.engines.transformers.worker_count", lambda *_: request.param)
        async with open_engine(ModelSettings(context=CONTEXT)) as serving:
            yield serving


@pytest.mark.asyncio(loop_scope="module")
class TestTransformers(Conformance):
    async def assert_idle(self, engine: Engine) -> None:
        assert isinstance(engine, TransformersEngine) and engine.capabilities.resumable
