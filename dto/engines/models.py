"""Loading tokenizers and models, and what of them the transformers engine can serve.

Whoever loads one (an engine, a stage that needs the tokenizer alone, training) does it here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dto.engines.kv import ATTENTION, LENGTH_STEP, KVShape, RowsCache
from dto.engines.prefill import forward
from dto.errors import EngineError
from dto.recipe import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings

_FULL_ATTENTION = {"full_attention", "sliding_attention"}
_PROBE_TOKENS = 8


def load_tokenizer(
    name: str, revision: str | None = None, *, title: str = "", local: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of an embedded model, a folder or a Hub id.

    `local`: only where nothing has to be fetched. Raises EngineError, which calls it `title`, where
    it cannot be loaded or has no fast version.
    """
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
    title, path = title or f"model {name!r}", resolve(name)
    if not Path(path).is_dir() and (path.count("/") > 1 or path.startswith((".", "/", "~"))):
        raise _unloadable(title, FileNotFoundError("no such folder — train it first"))
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, config=config, dtype=dtype
        )
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise _unloadable(title, error) from None
    return model


def _unloadable(title: str, error: Exception) -> EngineError:
    reason = " ".join(str(error).split())[:300]
    return EngineError(
        f"{title} cannot be loaded: {reason} — give nano, nano-control, a folder with config.json, "
        "tokenizer and weights, or a Hub id"
    )


def load(settings: ModelSettings, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer for the transformers engine, on the device that serves.

    `auto` is CUDA where there is one, else the CPU; and the checkpoint's own dtype on a GPU,
    float32 on a CPU, which computes it faster and bit for bit the same in any batch. Raises
    EngineError, naming `name`, when they cannot be loaded.
    """
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
    return model, load_tokenizer(name, settings.revision)


def context_limit(name: str, config: Any, wanted: int | None) -> int:
    """The context that is wanted, within what the model can take."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - _FULL_ATTENTION:
        raise EngineError(
            f"model {name!r} has layers of kind {', '.join(sorted(kinds - _FULL_ATTENTION))}: the "
            "transformers engine serves standard attention only"
        )
    most = int(getattr(config, "max_position_embeddings", 0) or 2048)
    window = getattr(config, "sliding_window", None)
    if window and (not kinds or "sliding_attention" in kinds):
        most = min(most, int(window))  # up to there a sliding window sees everything
    if wanted is not None and wanted > most:
        raise EngineError(
            f"model.context is {wanted:,}, and {name!r} takes at most {most:,}: lower it"
        )
    return wanted or most


def fit(name: str, model: PreTrainedModel) -> KVShape:
    """Switch to this engine's attention, and see that the model computes what it did before."""
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None] % int(model.config.vocab_size)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=True)
        try:
            layers = list(expected.past_key_values.layers)
            first = layers[0].keys
            shape = KVShape(len(layers), first.shape[1], first.shape[3], first.dtype, first.device)
            model.set_attn_implementation(ATTENTION)
            cache = RowsCache(shape.zeros(1, LENGTH_STEP))
            logits = forward(model, cache, ids, ids.new_tensor([range(_PROBE_TOKENS)]), LENGTH_STEP)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise EngineError(
                f"model {name!r} does not fit the transformers engine, which serves standard "
                f"attention only ({reason})"
            ) from error
    want = expected.logits[:, -1:].float()
    tolerance = 1e-3 if shape.dtype == torch.float32 else 0.1
    if torch.isfinite(want).all() and (logits - want).abs().max() > tolerance * (
        1 + want.abs().max()
    ):
        raise EngineError(
            f"model {name!r} computes other logits in the transformers engine, which serves "
            "standard attention only: use another engine"
        )
    return shape


def free_bytes(device: torch.device) -> int:
    """What the running batch may take: half of a GPU's free memory, elsewhere 4 GiB."""
    if device.type != "cuda":
        return 4 * 2**30
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + unused) // 2
