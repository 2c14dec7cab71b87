"""A model with its tokenizer, and engines over it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from dto.engines.transformers import TransformersEngine
from dto.recipe import ModelSettings


class Served(NamedTuple):
    """A model with its tokenizer, and engines over it."""

    model: Any
    tokenizer: Any

    def engine(self, **options: Any) -> TransformersEngine:
        settings = ModelSettings.model_construct(**options)
        return TransformersEngine(settings, loaded=(self.model, self.tokenizer))

    def endless(self, **options: Any) -> TransformersEngine:
        """An engine whose samples end at their token limit alone."""
        engine = self.engine(**options)
        engine.end_ids = frozenset()
        return engine

    def generate(self, prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return output[0, len(prompt) :].tolist()
