"""Engines: everything that needs tokens asks one (:mod:`dto.engines.base`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dto.errors import EngineError

if TYPE_CHECKING:
    from dto.engines.base import Engine
    from dto.recipe import ModelSettings


def open_engine(settings: ModelSettings, model: str | None = None) -> Engine:
    """The engine that a recipe asks for, to be entered with `async with`.

    `model` overrides the settings' name (a trained model's folder). Raises EngineError for an
    engine that this version does not hold, and for a model that cannot be loaded.
    """
    name = settings.name if model is None else model
    match settings.engine:
        case "transformers":
            from dto.engines.models import load
            from dto.engines.transformers import TransformersEngine
            from dto.nano import resolve

            loaded, tokenizer = load(settings, name, resolve(name))
            return TransformersEngine(
                loaded,
                tokenizer,
                name=name,
                context=settings.context,
                slots=settings.slots,
                cache_bytes=settings.cache_bytes,
            )
        case "vllm" | "openai":
            raise EngineError(
                f"engine {settings.engine!r} is not built in this version: set "
                "model.engine to transformers"
            )
