"""The transformers engine does on a real model what every engine has to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from dto.engines import open_engine
from dto.protocols import Engine
from tests.real.conformance import MODEL, RealConformance


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(overthinks: Path) -> AsyncGenerator[Engine]:
    async with open_engine(MODEL) as serving:
        yield serving


@pytest.mark.asyncio(loop_scope="module")
class TestTransformers(RealConformance):
    pass
