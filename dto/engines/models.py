"""Loading tokenizers and models, whoever needs one: an engine, a stage without one, training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dto.errors import EngineError
from dto.recipe import resolve
from dto.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dto.recipe import ModelSettings


def load_tokenizer(
    model: ModelSettings, name: str | None = None, *, title: str = "", local: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model, or of the model `name` (a trained one's folder).

    `local`: only where nothing has to be fetched for it. Raises EngineError, which calls it
    `title`, where it cannot be loaded or has no fast version.
    """
    from transformers import AutoTokenizer

    revision = model.revision
    if name is None:
        name = model.tokenizer or model.name
        revision = None if model.tokenizer else revision
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve(name), revision=revision, local_files_only=local
        )
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError("it has no fast version: convert it to a tokenizer.json")
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(title or f"tokenizer of {name!r}", error) from None
    return tokenizer


def load_model(
    name: str, revision: str | None = None, *, dtype: Any, title: str = ""
) -> PreTrainedModel:
    """The causal language model of an embedded name, a folder or a Hub id, on the CPU.

    Raises EngineError, which calls it `title`, where it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    title = title or f"model {name!r}"
    place = Source.parse(resolve(name))
    if place.is_local and not place.exists:
        raise _unloadable(title, FileNotFoundError("no such folder — train it first"))
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place.name, revision=revision, dtype=dtype
        )
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise _unloadable(title, error) from None
    return model


def load_for_serving(
    settings: ModelSettings, name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer for the transformers engine, on the device that serves.

    `auto` is CUDA where there is one, else the CPU; and the checkpoint's own dtype on a GPU,
    float32 on a CPU, which computes it faster and bit for bit the same in any batch. Raises
    EngineError, naming `name`, when they cannot be loaded.
    """
    import torch

    device, dtype = settings.device, settings.dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f"model.device = {device!r}: torch finds no GPU here; leave it at auto")
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    model: Any = load_model(name, settings.revision, dtype=dtype)
    try:
        model = model.to(device)
    except RuntimeError as error:  # out of memory
        raise _unloadable(f"model {name!r}", error) from None
    return model, load_tokenizer(settings, name)


def _unloadable(title: str, error: Exception) -> EngineError:
    reason = " ".join(str(error).split())[:300]
    return EngineError(
        f"{title} cannot be loaded: {reason} — give nano, nano-control, a folder with config.json, "
        "tokenizer and weights, or a Hub id"
    )
