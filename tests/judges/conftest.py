"""The toy trajectories of the stages' tests."""

from __future__ import annotations

from tests.stages.conftest import build, context, problem, tokenizer

__all__ = ["build", "context", "problem", "tokenizer"]
