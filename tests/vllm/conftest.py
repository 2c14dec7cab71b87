"""These tests need vLLM: `make test-vllm` runs them in an environment that has it."""

from __future__ import annotations

from tests.engines.conftest import nano, prompts

__all__ = ["nano", "prompts"]
